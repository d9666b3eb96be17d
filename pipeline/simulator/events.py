"""What happened during a decision: collisions, leaving the road, red lights, goals.

Shape legend: W worlds, A agents, s simulator steps in a token, J edge segments near an agent, S signals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.geometry import box_corners, box_separation
from data.road import Segments
from data.road_grid import Z_STRETCH
from pipeline.simulator.step import AgentIndex, Motion, State
from pipeline.simulator.world import EDGE_CELL, World, table_rows

_GOAL_RADIUS = 2.0
# Half width of the strip in which crossing a stop point counts, metres: half a lane.
_STOP_LINE_HALF_WIDTH = 2.0
# Boxes whose bottoms differ by more, metres, are on different levels. Heights stay what they are at the current
# step, so on a hill they differ between agents that meet later; a bridge is higher.
LEVEL_GAP = 4.0
_FAR = 1e9


@dataclass(frozen=True)
class Events:
    """[W, A] bool each, over the steps of one decision."""

    collision: Tensor
    off_road: Tensor  # vehicles alone
    red_light: Tensor  # vehicles alone
    goal: Tensor  # reached for the first time


def collisions(world: World, motion: Motion, box_scale: float, agent_index: AgentIndex) -> Tensor:
    """Agents whose box overlapped another's at some step. Boxes at different levels do not collide.

    Args:
        world: batched. motion: of all agents. box_scale: of the boxes.
        agent_index: of the N agents to check; they may collide with any agent.

    Returns:
        [W, A] bool, False for agents that are not checked.
    """
    w, a = agent_index
    length, width, height = world.size.unbind(-1)
    bottom = world.height - height / 2
    itself = torch.arange(world.types.shape[1], device=a.device) == a[:, None]  # [N, A]
    hit = torch.zeros_like(a, dtype=torch.bool)
    for index in range(motion.pose.shape[2]):
        x, y, heading = motion.pose[:, :, index].unbind(-1)
        present = motion.present[:, :, index]
        # One plane per number: pairs are made of contiguous rows, and no angle is computed twice.
        numbers = (x, y, torch.cos(heading), torch.sin(heading), length * (box_scale / 2), width * (box_scale / 2))
        boxes = torch.stack((*numbers, bottom))  # [7, W, A]
        # Absent agents become points far away, whatever their slots hold.
        boxes = torch.where(present, boxes, 0.0)
        boxes[0].masked_fill_(~present, _FAR)
        hit = hit | (_touched(boxes, w, a, itself) & present[w, a])
    return torch.zeros_like(world.exists).index_put(agent_index, hit)


def _touched(boxes: Tensor, w: Tensor, a: Tensor, itself: Tensor) -> Tensor:
    """[N] bool, whether the boxes of some agents overlap others of their world.

    Args:
        boxes: [7, W, A] x, y, cosine, sine, half the length, half the width, bottom. w, a: [N] agents to check.
        itself: [N, A] true at the agent's own place.
    """
    if torch.compiler.is_compiling() or boxes.device.type != "cpu":
        # All pairs at once: compiled code and GPUs do it in one pass over registers.
        gap = _gap(boxes[:, w, a].unsqueeze(-1), boxes[:, w])
        return torch.where(itself, torch.inf, gap).amin(-1) < 0
    # Otherwise each operation is a pass through memory: only the few pairs that are near enough are compared.
    (x, y), reach = boxes[:2], (boxes[4] + boxes[5])
    squared = (table_rows(x, w) - x[w, a].unsqueeze(-1)).square_()
    squared += (table_rows(y, w) - y[w, a].unsqueeze(-1)).square_()
    near = squared <= (table_rows(reach, w) + reach[w, a].unsqueeze(-1)).square_()
    pair, other = (near & ~itself).nonzero(as_tuple=True)
    touched = _gap(boxes[:, w[pair], a[pair]], boxes[:, w[pair], other]) < 0
    return torch.zeros_like(w, dtype=torch.bool).index_fill(0, pair[touched], True)


def _gap(one: Tensor, other: Tensor) -> Tensor:
    """[...] negative where boxes [7, ...] overlap in the plane and are on the same level."""
    gap = box_separation(one[:2], one[2:4], one[4:6], other[:2], other[2:4], other[4:6])
    return torch.maximum(gap, (one[6] - other[6]).abs() - LEVEL_GAP)


def _nearness(segment: Tensor, point: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of points [..., 2] to segments [..., 6]: the fraction of the segment at which its line is nearest, the
    squared planar distance, and the height there; [...] each."""
    start_x, start_y, along_x, along_y, low, high = segment.unbind(-1)
    x, y = point[..., 0] - start_x, point[..., 1] - start_y
    along = (x * along_x + y * along_y) / (along_x * along_x + along_y * along_y).clamp(min=1e-9)
    clipped = along.clamp(0.0, 1.0)
    # Squares, since compiled code vectorises them, but not hypot.
    planar = (x - clipped * along_x).square() + (y - clipped * along_y).square()
    return along, planar, torch.lerp(low, high, clipped)


def _starboard(point: Tensor, segment: Tensor) -> Tensor:
    """Positive where points [..., 2] lie on the starboard side of segments [..., (x, y, dx, dy, ...)]."""
    return (point[..., 0] - segment[..., 0]) * segment[..., 3] - (point[..., 1] - segment[..., 1]) * segment[..., 2]


def signed_edge_distance(edges: Segments, point: Tensor, height: Tensor, near: Tensor) -> Tensor:
    """Planar distance of points to the nearest of some edge segments, negative on the road (port) side.

    With lists of ``edge_grid(sides_only=True)`` the sign is right for points within the grid, but not the distance.
    Points beyond the grid's border have the list of the cell nearest to them, which need not hold the edge nearest
    to them: there the sign may be another one. Where two edges are equally near within float32, either counts.

    Args:
        edges: of all worlds. point: [N, P, 2]. height: [N], metres.
        near: [N, P, J] rows of edges, those of padding being far away.

    Returns:
        [N, P] metres.
    """
    _, planar, level = _nearness(table_rows(edges.line, near), point.unsqueeze(-2))  # [N, P, J]
    rank = planar + (Z_STRETCH * (height[:, None, None] - level)).square()
    segment = near.gather(-1, rank.argmin(-1, keepdim=True)).squeeze(-1)  # [N, P]
    own = table_rows(edges.line, segment)
    # Computed again for the nearest alone, which is cheaper than keeping it for all.
    t, planar, _ = _nearness(own, point)
    distance = planar.sqrt()
    turn = table_rows(edges.neighbours, segment)  # [N, P, 2]
    # Beyond an end of the segment the neighbour there decides too: at a left turn both sides must be port.
    neighbour = torch.where(t < 0, turn[..., 0], torch.where(t > 1, turn[..., 1], -1))
    beside = table_rows(edges.line, neighbour.clamp(min=0))
    own_side, beside_side = _starboard(point, own), _starboard(point, beside)
    bend = own[..., 2] * beside[..., 3] - own[..., 3] * beside[..., 2]
    convex = torch.where(t < 0, -bend, bend) > 0
    both = torch.where(convex, torch.maximum(own_side, beside_side), torch.minimum(own_side, beside_side))
    return torch.sign(torch.where(neighbour >= 0, both, own_side)) * distance


def off_road(world: World, motion: Motion, box_scale: float, agent_index: AgentIndex) -> Tensor:
    """Vehicles whose box had a corner off the road at some step; none where there is no road edge.

    Pedestrians and cyclists may use the roadside.

    Args:
        world: batched. motion: of all agents. box_scale: of the boxes.
        agent_index: of the N agents to check.

    Returns:
        [W, A] bool, False for agents that are not checked, and for others than vehicles.
    """
    w, a = agent_index
    size = world.size[w, a] * box_scale
    bottom = world.height[w, a] - world.size[w, a, 2] / 2
    steps = motion.pose.shape[2]
    pose = motion.pose[w, a]  # [N, s, 3]
    corners = box_corners(pose[..., :2], pose[..., 2], size[:, :1], size[:, 1:2]).flatten(1, 2)  # [N, s * 4, 2]
    near = world.edge_grid.near(w, corners, EDGE_CELL)
    distance = signed_edge_distance(world.edges, corners, bottom, near).unflatten(1, (steps, 4))
    outside = ((distance > 0).any(-1) & motion.present[w, a]).any(-1) & world.bounded[w] & (world.types[w, a] == 0)
    return torch.zeros_like(world.exists).index_put(agent_index, outside)


def red_lights(world: World, motion: Motion) -> Tensor:
    """[W, A] vehicles that passed a stop point, in the direction of its lane, while its light was red."""
    ran = torch.zeros_like(world.exists)
    line, heading = world.stop_line[:, None, :, :2], world.stop_line[:, None, :, 2]
    cos, sin = torch.cos(heading), torch.sin(heading)

    def local(pose: Tensor) -> tuple[Tensor, Tensor]:
        delta = pose[:, :, None, :2] - line  # [W, A, S, 2]
        return delta[..., 0] * cos + delta[..., 1] * sin, delta[..., 1] * cos - delta[..., 0] * sin

    before, _ = local(motion.start)
    steps = motion.pose.shape[2]
    # One slice: compiled code takes a slice from anywhere, but would be compiled anew for each single index.
    red_now = world.red[:, :, motion.first_step : motion.first_step + steps]
    for index in range(steps):
        pose = motion.pose[:, :, index]
        after, aside = local(pose)
        red = (red_now[:, :, index] & world.light_valid).unsqueeze(1)
        same_way = torch.cos(pose[:, :, None, 2] - heading) > 0.5
        crossed = (before < 0) & (after >= 0) & (aside.abs() < _STOP_LINE_HALF_WIDTH) & same_way & red
        ran = ran | (crossed.any(-1) & motion.present[:, :, index])
        before = after
    return ran & (world.types == 0)


def goals(world: World, state: State, motion: Motion) -> Tensor:
    """[W, A] agents that came within 2 m of their goal for the first time, at some step of the decision.

    Who stands still in the log has no goal.
    """
    apart = (motion.pose[..., :2] - world.goal.unsqueeze(2)).norm(dim=-1)
    near = ((apart < _GOAL_RADIUS) & motion.present).any(-1)
    return near & world.moves & ~state.goal_reached


def find_events(world: World, state: State, motion: Motion, box_scale: float, agent_index: AgentIndex) -> Events:
    """All events of a decision.

    Args:
        world: batched. state: after the decision. motion: of the decision. box_scale: of the boxes.
        agent_index: of the agents whose collisions and road edges count.
    """
    return Events(
        collision=collisions(world, motion, box_scale, agent_index),
        off_road=off_road(world, motion, box_scale, agent_index),
        red_light=red_lights(world, motion),
        goal=goals(world, state, motion),
    )


def events_at_start(world: World, state: State, box_scale: float, agent_index: AgentIndex) -> Events:
    """Collisions and places off the road before the first decision; no light was passed and no goal reached yet.

    Args:
        world: batched. state: of ``reset``. box_scale, agent_index: as for ``find_events``.
    """
    standing = Motion(
        start=state.pose, pose=state.pose.unsqueeze(2), present=state.present.unsqueeze(-1), first_step=0
    )
    nobody = torch.zeros_like(world.exists)
    return Events(
        collision=collisions(world, standing, box_scale, agent_index),
        off_road=off_road(world, standing, box_scale, agent_index),
        red_light=nobody,
        goal=nobody,
    )
