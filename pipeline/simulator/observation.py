"""What an agent sees: itself, its neighbours and the road around it, in its own frame.

Shape legend: W worlds, A agents, N observing agents, P neighbours, R road segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import UserError
from data.scene import FUTURE_STEPS, MapKind
from data.vocabulary import TYPE_NAMES
from pipeline.simulator.step import AgentIndex, State
from pipeline.simulator.world import VIEW_CELL, World, table_rows

_TYPES = len(TYPE_NAMES)
_ROAD_KINDS = len(MapKind) - 1
# Scales of what the switches add: metres and radians of a token.
_MOTION_SCALE = 4.0
_LIGHT_RANGE = 50.0
_LANE_HALF_WIDTH = 2.0
# The point ahead around which further road is seen is at least so far away, metres.
_LEAST_AHEAD = 10.0
# By which the place in the log is divided for critics, metres.
_BEYOND_SCALE = 20.0


@dataclass(frozen=True)
class ObservationConfig:
    """What agents see. The paper's features are always there; switches add to them.

    Args:
        neighbours: agents seen; 63 in the paper.
        road_segments: road segments seen; 120 in the paper.
        ahead_segments: of these, how many are the ones nearest to where the agent will be; 0 in the paper, whose
            agents see those nearest to themselves.
        ahead_seconds: until then, at the speed of now, and at least 10 m ahead.
        radius: how far agents and road are seen, metres.
        speed_scale: by which speeds are divided, m/s; 100 in the paper.
        distance_scale: by which positions of neighbours and road are divided, metres.
        goal_scale: by which positions of the goal are divided, metres; 1000 in the paper.
        show_type: own and neighbours' type.
        show_goal_known: whether the goal is shown; a goal that is not, and one that is reached, look alike without.
        show_motion: what the own last token did.
        show_velocity: velocity of neighbours in the own frame, and the own velocity.
        show_light: the signal ahead, as last observed by the current step (later states are unknown to an entry).
        history: at how many earlier decisions the own poses and the neighbours' places are remembered.
        box_scale: of the boxes that collide or leave the road, as felt and paid; GPUDrive shrinks to 0.7.
    """

    neighbours: int = 16
    road_segments: int = 48
    ahead_segments: int = 0
    ahead_seconds: float = 1.5
    radius: float = 50.0
    speed_scale: float = 20.0
    distance_scale: float = 50.0
    goal_scale: float = 100.0
    show_type: bool = True
    show_goal_known: bool = False
    show_motion: bool = True
    show_velocity: bool = True
    show_light: bool = True
    history: int = 0
    box_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.ahead_segments < self.road_segments:
            raise UserError(
                f"view.ahead_segments is {self.ahead_segments}; it must be at least 0 and less than "
                f"view.road_segments, {self.road_segments}"
            )

    @property
    def near_segments(self) -> int:
        """Road segments seen that are nearest to the agent."""
        return self.road_segments - self.ahead_segments

    @property
    def listed_segments(self) -> int:
        """How many nearest segments of any point a world must know."""
        return max(self.near_segments, self.ahead_segments)


@dataclass(frozen=True)
class Observation:
    """Of N agents. Slots beyond the number of neighbours or segments are masked and zero."""

    ego: Tensor  # [N, E]
    neighbour: Tensor  # [N, P, F]
    neighbour_seen: Tensor  # [N, P] bool
    road: Tensor  # [N, R, 13]
    road_seen: Tensor  # [N, R] bool
    type: Tensor  # [N] int64 from type_index
    motion: Tensor  # [N, 3] the last token's motion in the frame of its start, metres and radians
    beyond: Tensor  # [N, 6], or [N, 0] where nobody asks: what no agent sees, and a critic may (time, goal, log)


def feature_sizes(config: ObservationConfig) -> tuple[int, int, int]:
    """Widths of ego, neighbour and road features."""
    ego = (
        6
        + config.show_goal_known
        + _TYPES * config.show_type
        + 3 * config.show_motion
        + 2 * config.show_velocity
        + 3 * config.show_light
    )
    ego += 4 * config.history
    neighbour = 6 + _TYPES * config.show_type + 2 * config.show_velocity + 3 * config.history
    return ego, neighbour, 6 + _ROAD_KINDS


def _into_frame(vector: Tensor, heading: Tensor) -> Tensor:
    return torch.stack(_turned(vector[..., 0], vector[..., 1], heading), dim=-1)


def _turned(x: Tensor, y: Tensor, heading: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = torch.cos(heading), torch.sin(heading)
    return x * cos + y * sin, y * cos - x * sin


def _one_hot(index: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(index, count).to(torch.float32)


def observe(
    world: World, state: State, agent_index: AgentIndex, config: ObservationConfig, for_critic: bool = True
) -> Observation:
    """Observations of some agents.

    Args:
        world: batched. state: of all agents. agent_index: of the N agents that observe. config: what they see.
        for_critic: also what a critic of its own may see.
    """
    road, road_seen = observe_road(world, state, agent_index, config)
    w, a = agent_index
    motion = state.last_motion[w, a]
    return Observation(
        ego=observe_ego(world, state, agent_index, config),
        **observe_neighbours(world, state, agent_index, config),
        road=road,
        road_seen=road_seen,
        type=world.types[w, a],
        motion=motion,
        beyond=_observe_beyond(world, state, agent_index, config) if for_critic else motion[:, :0],
    )


def observe_ego(world: World, state: State, agent_index: AgentIndex, config: ObservationConfig) -> Tensor:
    """``Observation.ego`` of some agents; see ``observe``."""
    w, a = agent_index
    pose, size, velocity = state.pose[w, a], world.size[w, a], state.velocity[w, a]
    goal = _into_frame(world.goal[w, a] - pose[:, :2], pose[:, 2]) / config.goal_scale
    goal = torch.where(state.goal_hidden[w, a].unsqueeze(-1), torch.zeros_like(goal), goal.clamp(-1.0, 1.0))
    parts = [
        velocity.norm(dim=-1, keepdim=True) / config.speed_scale,
        size[:, :1] / 30.0,
        size[:, 1:2] / 15.0,
        goal,
        state.collided[w, a].float().unsqueeze(-1),
    ]
    if config.show_goal_known:
        is_known = world.moves[w, a] & ~(state.goal_hidden | state.goal_reached)[w, a]
        parts.append(is_known.float().unsqueeze(-1))
    if config.show_type:
        parts.append(_one_hot(world.types[w, a], _TYPES))
    if config.show_motion:
        along, aside, turned = state.last_motion[w, a].unbind(-1)
        parts.append(torch.stack((along / _MOTION_SCALE, aside, 4.0 * turned), dim=-1))
    if config.show_velocity:
        parts.append(_into_frame(velocity, pose[:, 2]) / config.speed_scale)
    if config.show_light:
        parts.append(_light_ahead(world, w, pose))
    if config.history:
        past, known = state.past[w, a], state.past_known[w, a].unsqueeze(-1)  # [N, h, 3]
        turn = past[..., 2] - pose[:, None, 2]
        place = _into_frame(past[..., :2] - pose[:, None, :2], pose[:, 2:]) / config.distance_scale
        turn = torch.atan2(torch.sin(turn), torch.cos(turn)).unsqueeze(-1)
        parts.append(torch.where(known, torch.cat((place, turn, known.float()), dim=-1), 0.0).flatten(1))
    return torch.cat(parts, dim=-1)


def _observe_beyond(world: World, state: State, agent_index: AgentIndex, config: ObservationConfig) -> Tensor:
    """``Observation.beyond`` of some agents; see ``observe``."""
    w, a = agent_index
    pose = state.pose[w, a]
    # At the start the log is a step later.
    places = torch.stack((world.goal, world.log[:, :, max(0, state.step - 1), :2]), dim=2)[w, a]  # [N, 2, 2]
    goal, logged = _into_frame(places - pose[:, None, :2], pose[:, None, 2]).unbind(1)
    is_open = (world.moves & ~state.goal_reached)[w, a].unsqueeze(-1)
    left = torch.full_like(pose[:, :1], 1.0 - state.step / FUTURE_STEPS)
    places = torch.cat((goal / config.goal_scale, logged / _BEYOND_SCALE), dim=-1).clamp(-1.0, 1.0)
    return torch.cat((left, is_open, places), dim=-1)


def _light_ahead(world: World, w: Tensor, pose: Tensor) -> Tensor:
    """[N, 3]: whether a stop line of the agent's lane lies ahead, how near it is, and whether its light was red.

    Lights first observed after the current step are unknown, as they are to a submission.
    """
    line = world.stop_line[w]  # [N, S, 3]
    ahead = _into_frame(line[..., :2] - pose[:, None, :2], line[..., 2])
    aligned = torch.cos(line[..., 2] - pose[:, None, 2]) > 0.5
    near = (ahead[..., 0] > -1.0) & (ahead[..., 0] < _LIGHT_RANGE) & (ahead[..., 1].abs() < _LANE_HALF_WIDTH)
    seen = near & aligned & world.light_known[w]
    distance = torch.where(seen, ahead[..., 0], torch.inf)
    nearest, index = distance.min(-1)
    there = torch.isfinite(nearest)
    red = world.light_now[w].gather(-1, index.unsqueeze(-1)).squeeze(-1) & there
    closeness = torch.where(there, 1.0 - nearest.clamp(min=0.0, max=_LIGHT_RANGE) / _LIGHT_RANGE, 0.0)
    return torch.stack((there.float(), closeness, red.float()), dim=-1)


def observe_neighbours(
    world: World, state: State, agent_index: AgentIndex, config: ObservationConfig
) -> dict[str, Tensor]:
    """``neighbour`` and ``neighbour_seen`` of some agents; see ``observe``."""
    w, a = agent_index
    agents = state.pose.shape[1]
    own = state.pose[w, a]
    # Absent agents are infinitely far away, whatever their slots hold.
    x, y = (torch.where(state.present, plane, torch.inf) for plane in state.pose[..., :2].unbind(-1))
    # Squares, since compiled code vectorises them, but not hypot.
    distance = (table_rows(x, w) - own[:, :1]).square() + (table_rows(y, w) - own[:, 1:2]).square()
    distance = distance.scatter(1, a.unsqueeze(-1), torch.inf)  # [N, A], squared
    count = min(config.neighbours, agents)
    nearest = distance.topk(count, dim=-1, largest=False)
    seen = nearest.values <= config.radius**2  # [N, P]
    # The agent itself fills empty slots, so that no garbage is multiplied by zero.
    index = torch.where(seen, nearest.indices, a.unsqueeze(-1))
    flat = w.unsqueeze(-1) * agents + index
    other = table_rows(state.pose.flatten(0, 1), flat)
    place = _into_frame(other[..., :2] - own[:, None, :2], own[:, None, 2]) / config.distance_scale
    turn = other[..., 2] - own[:, None, 2]
    # As atan2 has it: pi for an agent that comes the other way, where ``wrap_angle`` has -pi.
    turn = (turn - 2 * torch.pi * torch.round(turn / (2 * torch.pi))) / torch.pi
    velocity = state.velocity.flatten(0, 1)
    # Features that do not depend on the observer are computed once per agent, not once per pair.
    scaled = [velocity.norm(dim=-1, keepdim=True) / config.speed_scale]
    length, width, _ = world.size.flatten(0, 1).unbind(-1)
    scaled.append(torch.stack((length / 30.0, width / 15.0), dim=-1))
    if config.show_type:
        scaled.append(_one_hot(world.types.flatten(), _TYPES))
    same = table_rows(torch.cat(scaled, dim=-1), flat)
    parts = [same[..., :1], place, turn.unsqueeze(-1), same[..., 1:]]
    if config.show_velocity:
        parts.append(_into_frame(table_rows(velocity, flat), own[:, None, 2]) / config.speed_scale)
    if config.history:
        past = state.past.flatten(0, 1)[flat]  # [N, P, h, 3]
        known = state.past_known.flatten(0, 1)[flat].unsqueeze(-1)
        place = _into_frame(past[..., :2] - other[..., None, :2], own[:, None, 2:]) / config.distance_scale
        parts.append(torch.where(known, torch.cat((place, known.float()), dim=-1), 0.0).flatten(2))
    feature, seen = _filled_up(torch.cat(parts, dim=-1) * seen.unsqueeze(-1), seen, config.neighbours)
    return {"neighbour": feature, "neighbour_seen": seen}


def observe_road(
    world: World, state: State, agent_index: AgentIndex, config: ObservationConfig
) -> tuple[Tensor, Tensor]:
    """``road`` and ``road_seen`` of some agents, which depend on nothing that moves but their poses."""
    w, a = agent_index
    pose = state.pose[w, a]  # [N, 3]
    # Rows of flat tables and one plane per number: compiled or not, twice as fast as pairs of indices and vectors.
    heading = pose[:, 2:]  # [N, 1]
    flat, distance = _nearest_segments(world, w, pose[:, :2], config.near_segments)  # [N, R]
    if config.ahead_segments:
        speed = state.velocity[w, a].norm(dim=-1, keepdim=True)
        reach = (speed * config.ahead_seconds).clamp(_LEAST_AHEAD, config.radius - _LEAST_AHEAD)
        ahead = pose[:, :2] + reach * torch.cat((torch.cos(heading), torch.sin(heading)), dim=-1)
        # What is seen anyway is nearer than the farthest of these.
        beyond = torch.cat((pose[:, :2], distance.amax(-1, keepdim=True)), dim=-1)
        more, _ = _nearest_segments(world, w, ahead, config.ahead_segments, beyond)
        flat = torch.cat((flat, more), dim=-1)
    kind = world.road.kind[flat]
    _, _, along_x, along_y, low, high = table_rows(world.road.line, flat).unbind(-1)
    middle_x, middle_y = table_rows(world.road.middle, flat).unbind(-1)
    middle_x, middle_y = _turned(middle_x - pose[:, :1], middle_y - pose[:, 1:2], heading)
    along_x, along_y = _turned(along_x, along_y, heading)
    length = (along_x.square() + along_y.square()).sqrt()
    seen = (kind > 0) & (middle_x.square() + middle_y.square() <= config.radius**2)
    # A point has no direction: the division must not give one.
    whole = length.clamp(min=1e-3)
    rise = (low + high) / 2 - world.height[w, a].unsqueeze(-1)
    scale = config.distance_scale
    planes = (middle_x / scale, middle_y / scale, length / 10.0, along_x / whole, along_y / whole, rise / 10.0)
    shown = seen.to(rise.dtype)
    kinds = torch.eye(_ROAD_KINDS + 1, device=kind.device)[:, 1:]
    kinds = table_rows(kinds.contiguous(), torch.where(seen, kind, 0))
    feature = torch.cat((torch.stack([plane * shown for plane in planes], dim=-1), kinds), dim=-1)
    return _filled_up(feature, seen, config.road_segments)


def _nearest_segments(
    world: World, w: Tensor, point: Tensor, count: int, beyond: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rows of the segments whose middles are nearest to points, and their squared distances; both [N, count].

    Args:
        world: batched. w: [N] worlds of the points. point: [N, 2] metres. count: of segments.
        beyond: [N, 3] x, y and squared distance: no segment that is nearer to (x, y), but row 0 instead.
    """
    candidates = world.road_grid.near(w, point.unsqueeze(1), VIEW_CELL).squeeze(1)  # [N, J]
    middle_x, middle_y = table_rows(world.road.middle, candidates).unbind(-1)
    distance = (middle_x - point[:, :1]).square() + (middle_y - point[:, 1:]).square()
    if beyond is not None:
        x, y, least = beyond.unsqueeze(1).unbind(-1)
        is_new = (middle_x - x).square() + (middle_y - y).square() > least
        distance, candidates = torch.where(is_new, distance, torch.inf), torch.where(is_new, candidates, 0)
    nearest = distance.topk(min(count, candidates.shape[1]), dim=-1, largest=False, sorted=False)
    return candidates.gather(-1, nearest.indices), nearest.values


def _filled_up(feature: Tensor, seen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Features [N, M, F] and masks [N, M], padded to ``count`` slots."""
    short = count - seen.shape[1]
    # Padding by nothing is a copy. Compiled code does not make it, and the branch would compile it once more.
    if not torch.compiler.is_compiling() and not short:
        return feature, seen
    pad = torch.nn.functional.pad
    return pad(feature, (0, 0, 0, short)), pad(seen, (0, short))
