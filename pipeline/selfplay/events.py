"""What happened during a decision: collisions, leaving the road, red lights, goals.

Shape legend: W worlds, A agents, s simulator steps in a token, J edge segments near an agent, S signals.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.geometry import box_corners, boxes_overlap
from data.road import cell_of
from pipeline.selfplay.simulator import Motion, State
from pipeline.selfplay.worlds import EDGE_CELL, World

__all__ = ["Events", "collisions", "find_events", "goals", "off_road", "red_lights"]

_GOAL_RADIUS = 2.0
# Half width of the strip in which crossing a stop point counts, metres: half a lane.
_STOP_LINE_HALF_WIDTH = 2.0
# Weight of differences of height when the nearest edge is looked for, as in Waymo's metric.
_Z_STRETCH = 3.0


@dataclass(frozen=True)
class Events:
    """[W, A] bool each, over the steps of one decision."""

    collision: Tensor
    off_road: Tensor
    red_light: Tensor
    goal: Tensor  # reached for the first time


def collisions(world: World, motion: Motion, box_scale: float) -> Tensor:
    """Whose box overlapped another's at some step. Boxes at different levels do not collide."""
    half = world.size[..., :2] * (box_scale / 2)
    depth = world.size[..., 2] / 2
    gap = (world.height[:, :, None] - world.height[:, None]).abs() - (depth[:, :, None] + depth[:, None])
    agents = world.types.shape[1]
    other = ~torch.eye(agents, dtype=torch.bool, device=half.device)
    possible = (gap < 0) & other
    hit = torch.zeros_like(world.exists)
    for index in range(motion.pose.shape[2]):
        pose, present = motion.pose[:, :, index], motion.present[:, :, index]
        overlap = boxes_overlap(
            pose[:, :, None, :2],
            pose[:, :, None, 2],
            half[:, :, None],
            pose[:, None, :, :2],
            pose[:, None, :, 2],
            half[:, None],
        )
        both = present[:, :, None] & present[:, None] & possible
        hit = hit | (overlap & both).any(-1)
    return hit


def _edge_side(point: Tensor, start: Tensor, end: Tensor) -> Tensor:
    """Positive where a point [..., 2] lies on the starboard side of segments."""
    direction, offset = end - start, point - start
    return offset[..., 0] * direction[..., 1] - offset[..., 1] * direction[..., 0]


def signed_edge_distance(world: World, point: Tensor, height: Tensor, near: Tensor) -> Tensor:
    """Planar distance of points to the nearest of some edge segments, negative on the road (port) side.

    Args:
        world: batched. point: [W, A, P, 2]. height: [W, A] of their bottom. near: [W, A, J] segment numbers.

    Returns:
        [W, A, P] metres.
    """
    edges = world.edges
    row = torch.arange(len(near), device=near.device)[:, None, None]
    start, end = edges.start[row, near].unsqueeze(2), edges.end[row, near].unsqueeze(2)  # [W, A, 1, J, 2]
    z = edges.height[row, near]  # [W, A, J, 2]
    direction = end - start
    offset = point.unsqueeze(3) - start  # [W, A, P, J, 2]
    squared = (direction * direction).sum(-1).clamp(min=1e-9)
    along = (offset * direction).sum(-1) / squared
    clipped = along.clamp(0.0, 1.0)
    planar = (offset - clipped.unsqueeze(-1) * direction).norm(dim=-1)  # [W, A, P, J]
    level = z[..., 0].unsqueeze(2) * (1 - clipped) + z[..., 1].unsqueeze(2) * clipped
    rank = torch.hypot(planar, _Z_STRETCH * (height[..., None, None] - level))
    best = rank.argmin(-1, keepdim=True)  # [W, A, P, 1]
    segment = near.unsqueeze(2).expand(*rank.shape).gather(-1, best).squeeze(-1)  # [W, A, P]
    t = along.gather(-1, best).squeeze(-1)
    distance = planar.gather(-1, best).squeeze(-1)
    own_start, own_end = edges.start[row, segment], edges.end[row, segment]
    own = _edge_side(point, own_start, own_end)
    turn = edges.turn[row, segment]  # [W, A, P, 2]
    # Beyond an end of the segment the neighbour there decides too: at a left turn both sides must be port.
    neighbour = torch.where(t < 0, turn[..., 0], torch.where(t > 1, turn[..., 1], -1))
    safe = neighbour.clamp(min=0)
    next_start, next_end = edges.start[row, safe], edges.end[row, safe]
    beside = _edge_side(point, next_start, next_end)
    own_direction, next_direction = own_end - own_start, next_end - next_start
    bend = own_direction[..., 0] * next_direction[..., 1] - own_direction[..., 1] * next_direction[..., 0]
    convex = torch.where(t < 0, -bend, bend) > 0
    both = torch.where(convex, torch.maximum(own, beside), torch.minimum(own, beside))
    sign = torch.sign(torch.where(neighbour >= 0, both, own))
    return sign * distance


def off_road(world: World, motion: Motion, box_scale: float) -> Tensor:
    """Whose box had a corner off the road at some step."""
    size = world.size * box_scale
    bottom = world.height - world.size[..., 2] / 2
    row = torch.arange(len(bottom), device=bottom.device)[:, None]
    outside = torch.zeros_like(world.exists)
    far = world.edges.kind.shape[1] - 1
    for index in range(motion.pose.shape[2]):
        pose = motion.pose[:, :, index]
        near = world.edge_grid.table[row, cell_of(world.edge_grid, pose[..., :2], EDGE_CELL)]
        corners = box_corners(pose[..., :2], pose[..., 2], size[..., 0], size[..., 1])
        distance = signed_edge_distance(world, corners, bottom, near)
        some_edge = (near < far).any(-1)
        outside = outside | ((distance > 0).any(-1) & some_edge & motion.present[:, :, index])
    return outside


def red_lights(world: World, motion: Motion) -> Tensor:
    """Which vehicles passed a stop point, in the direction of its lane, while its light was red."""
    ran = torch.zeros_like(world.exists)
    if not world.stop_line.shape[1]:
        return ran
    line, heading = world.stop_line[:, None, :, :2], world.stop_line[:, None, :, 2]
    cos, sin = torch.cos(heading), torch.sin(heading)

    def local(pose: Tensor) -> tuple[Tensor, Tensor]:
        delta = pose[:, :, None, :2] - line  # [W, A, S, 2]
        return delta[..., 0] * cos + delta[..., 1] * sin, delta[..., 1] * cos - delta[..., 0] * sin

    before, _ = local(motion.start)
    for index in range(motion.pose.shape[2]):
        pose = motion.pose[:, :, index]
        after, aside = local(pose)
        red = (world.red[:, :, motion.first_step + index] & world.light_valid).unsqueeze(1)
        same_way = torch.cos(pose[:, :, None, 2] - heading) > 0.5
        crossed = (before < 0) & (after >= 0) & (aside.abs() < _STOP_LINE_HALF_WIDTH) & same_way & red
        ran = ran | (crossed.any(-1) & motion.present[:, :, index])
        before = after
    return ran & (world.types == 0)


def goals(world: World, state: State) -> Tensor:
    """Who came within 2 m of its goal for the first time. Agents whose log stands still have none."""
    near = (state.pose[..., :2] - world.goal).norm(dim=-1) < _GOAL_RADIUS
    return near & world.moves & ~state.goal_reached


def find_events(world: World, state: State, motion: Motion, box_scale: float) -> Events:
    """All events of a decision; ``state`` is the one behind it."""
    return Events(
        collision=collisions(world, motion, box_scale),
        off_road=off_road(world, motion, box_scale),
        red_light=red_lights(world, motion),
        goal=goals(world, state),
    )
