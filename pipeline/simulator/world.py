"""A world: everything of a scene that the simulator needs and that does not change while it is simulated.

Shape legend: W worlds, A agents, S signals, H history tokens, D decisions, T simulated 0.1 s steps (80). Positions
are metres minus the scene's origin (``data.tokenizer.scene_origin``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.road import Segments, edge_segments, no_segments, road_segments
from data.road_grid import RoadLists, as_batch, edge_grid, join_roads, single_cell, view_grid
from data.scene import CURRENT_INDEX, FUTURE_STEPS, LightState, MapKind, Scene
from data.tokenizer import match_token, scene_origin, tokenize_scene
from data.vocabulary import Vocabulary, type_index

# Sides of the grid cells for road edges and for what agents see, metres.
EDGE_CELL = 2.5
VIEW_CELL = 6.0
# The grids reach where agents are, and where their velocity leads in this time (seconds), plus a margin (metres).
_HORIZON = 8.0
_MARGIN = 40.0
# An agent whose log ends nearer than this to where it is does not move, metres.
STILL = 0.2
# Signals are padded to this number: code would be compiled once more for zero, and once more for one.
_LEAST_SIGNALS = 2


@dataclass(frozen=True)
class World:
    """W worlds as batched tensors."""

    origin: Tensor  # [W, 2] float32, added to positions gives global coordinates
    types: Tensor  # [W, A] int64 from type_index
    size: Tensor  # [W, A, 3] length, width, height, metres
    height: Tensor  # [W, A] z of the box centre, metres
    exists: Tensor  # [W, A] bool: valid at the current step
    pose: Tensor  # [W, A, 3] x, y, heading at the current step
    velocity: Tensor  # [W, A, 2] m/s at the current step
    goal: Tensor  # [W, A, 2] last recorded position, metres
    moves: Tensor  # [W, A] bool: the goal is not where the agent is
    log: Tensor  # [W, A, 80, 3] recorded poses after the current step
    log_valid: Tensor  # [W, A, 80] bool
    log_ids: Tensor  # [W, A, D] int64 tokens nearest to the log's motion, each from where the log is
    history_ids: Tensor  # [W, A, H] int64 tokens of the logged first second
    history_valid: Tensor  # [W, A, H] bool
    history_poses: Tensor  # [W, A, H + 1, 3]
    stop_line: Tensor  # [W, S, 3] x, y of the stop point and heading of the lane there
    red: Tensor  # [W, S, 81] bool, from the current step on
    light_now: Tensor  # [W, S] bool: red when last observed by the current step
    light_known: Tensor  # [W, S] bool: placed, and observed by the current step
    light_valid: Tensor  # [W, S] bool: placed
    bounded: Tensor  # [W] bool: there are road edges
    edges: Segments  # [M, ...] of all worlds
    edge_grid: RoadLists
    road: Segments  # [M, ...] of all worlds
    road_grid: RoadLists


def signals_of(scene: Scene, origin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Stop lines [S, 3], red [S, T'] over all steps, and whether they could be placed [S]."""
    lights, road = scene.lights, scene.map
    count = max(_LEAST_SIGNALS, len(lights.lane_id))
    steps = scene.num_steps
    lines, placed = torch.zeros(count, 3), torch.zeros(count, dtype=torch.bool)
    is_red = _is_red(lights.state)
    for row, lane in enumerate(lights.lane_id.tolist()):
        feature = ((road.feature_id == lane) & (road.kind == MapKind.LANE)).nonzero().flatten()
        seen = lights.observed[row].nonzero().flatten()
        if not len(feature) or not len(seen):
            continue
        points = road.point[road.point_feature == feature[0], :2]
        if len(points) < 2:
            continue
        stop = lights.stop_point[row, seen[0], :2]
        nearest = (points[:-1] - stop).norm(dim=-1).argmin()
        direction = points[nearest + 1] - points[nearest]
        lines[row, :2] = stop - origin
        lines[row, 2] = torch.atan2(direction[1], direction[0])
        placed[row] = True
    red = torch.zeros(count, CURRENT_INDEX + 1 + FUTURE_STEPS, dtype=torch.bool)
    red[: len(is_red), :steps] = is_red & lights.observed
    return lines, red, placed


def _lights_by_now(scene: Scene) -> tuple[Tensor, Tensor]:
    """Which lights were observed by the current step [S], and which of them were red when last observed [S]."""
    observed = scene.lights.observed[:, : CURRENT_INDEX + 1]
    last = _last(observed)
    state = scene.lights.state.gather(1, last.clamp(min=0).unsqueeze(1)).squeeze(1)
    none = max(0, _LEAST_SIGNALS - len(last))
    pad = torch.nn.functional.pad
    return pad(last >= 0, (0, none)), pad((last >= 0) & _is_red(state), (0, none))


def _is_red(state: Tensor) -> Tensor:
    return (state == LightState.STOP) | (state == LightState.ARROW_STOP)


def _last(known: Tensor) -> Tensor:
    """The last step [...] that is known [..., T] bool, -1 for none."""
    return torch.where(known, torch.arange(known.shape[-1]), -1).amax(-1)


def moving_agents(scene: Scene) -> Tensor:
    """[A] bool of the simulated agents: whose log ends elsewhere than where they are."""
    agents, simulated = scene.agents, scene.simulated
    position, last = agents.position[simulated, :, :2], _last(agents.valid[simulated])
    goal = position[torch.arange(len(position)), last]
    return (goal - position[:, CURRENT_INDEX]).norm(dim=-1) > STILL


def _extent(position: Tensor, velocity: Tensor) -> tuple[Tensor, Tensor]:
    """Corners [2] of where agents may get to, from the present alone: grids must not know the future."""
    reached = torch.cat((position, position + _HORIZON * velocity))
    return reached.amin(0) - _MARGIN, reached.amax(0) + _MARGIN


def build_world(
    scene: Scene, vocabulary: Vocabulary, view_size: int, with_edges: bool = True, brief: bool = False
) -> World:
    """A single scene as a batch of one world.

    Args:
        scene: single; with 11 steps only, goals are the current positions and the log is empty.
        vocabulary: for the tokens of the log.
        view_size: road segments that agents see around a point (``ObservationConfig.listed_segments``).
        with_edges: keep the road's edges, by which agents are off the road; observations do not need them.
        brief: for few decisions: without lists of the road near a point, which take most of the time to build.
    """
    origin = scene_origin(scene)
    agents = scene.agents
    chosen = scene.simulated
    position = agents.position[chosen, :, :2] - origin
    pose = torch.cat((position, agents.heading[chosen].unsqueeze(-1)), dim=-1)  # [A, T', 3]
    valid = agents.valid[chosen]
    now = pose[:, CURRENT_INDEX]
    types, (count, steps) = type_index(agents.type[chosen]), valid.shape
    log = now[:, None].repeat(1, FUTURE_STEPS, 1)
    log_valid = torch.zeros(count, FUTURE_STEPS, dtype=torch.bool)
    recorded = steps - CURRENT_INDEX - 1
    log[:, :recorded], log_valid[:, :recorded] = pose[:, CURRENT_INDEX + 1 :], valid[:, CURRENT_INDEX + 1 :]
    last = _last(valid)
    goal = position[torch.arange(count), last]
    tokens = tokenize_scene(vocabulary, scene, origin)
    history = CURRENT_INDEX // vocabulary.token_steps
    lines, red, placed = signals_of(scene, origin)
    known, red_now = _lights_by_now(scene)
    low, high = _extent(now[:, :2], agents.velocity[chosen, CURRENT_INDEX])
    road = road_segments(scene, origin)
    edges = edge_segments(scene, origin) if with_edges else no_segments()
    bottom = agents.position[chosen, CURRENT_INDEX, 2] - agents.size[chosen, CURRENT_INDEX, 2] / 2
    merged_edges, edge_cells = as_batch(edges, edge_grid(edges, low, high, EDGE_CELL, bottom, True))
    near = single_cell(road) if brief else view_grid(road, low, high, VIEW_CELL, view_size)
    merged_road, road_cells = as_batch(road, near)
    world = World(
        origin=origin,
        types=types,
        size=agents.size[chosen, CURRENT_INDEX],
        height=agents.position[chosen, CURRENT_INDEX, 2],
        exists=torch.ones(count, dtype=torch.bool),
        pose=now,
        velocity=agents.velocity[chosen, CURRENT_INDEX],
        goal=goal,
        moves=(goal - now[:, :2]).norm(dim=-1) > STILL,
        log=log,
        log_valid=log_valid,
        log_ids=log_tokens(vocabulary, types, now, log, recorded),
        history_ids=tokens.ids[chosen, :history],
        history_valid=tokens.valid[chosen, :history],
        history_poses=tokens.poses[chosen, : history + 1],
        stop_line=lines,
        red=red[:, CURRENT_INDEX:],
        light_now=red_now,
        light_known=placed & known,
        light_valid=placed,
        bounded=torch.tensor(len(edges.kind) > 0),
        edges=merged_edges,
        edge_grid=edge_cells,
        road=merged_road,
        road_grid=road_cells,
    )
    return _of_worlds(world, lambda tensor: tensor.unsqueeze(0))


def decision_poses(now: Tensor, log: Tensor, token_steps: int) -> Tensor:
    """[..., D + 1, 3] poses at the decisions and at the end: ``now`` [..., 3], and those of a log [..., 80, 3]."""
    return torch.cat((now.unsqueeze(-2), log[..., token_steps - 1 :: token_steps, :]), dim=-2)


def log_tokens(
    vocabulary: Vocabulary, types: Tensor, now: Tensor, log: Tensor, recorded: int = FUTURE_STEPS
) -> Tensor:
    """[A, D] tokens nearest to the log's motion, each from where the log is; any where it is not valid.

    Args:
        types: [A]. now: [A, 3] at the current step. log: [A, 80, 3]. recorded: steps of it that are known.
    """
    steps = vocabulary.token_steps
    ids = torch.zeros(len(now), FUTURE_STEPS // steps, dtype=torch.int64)
    known = recorded // steps
    pose = decision_poses(now, log, steps)[:, : known + 1]
    ids[:, :known], _ = match_token(vocabulary, pose[:, :-1], pose[:, 1:], types.unsqueeze(-1))
    return ids


def _pad_cat(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate [w_i, n_i, ...] along the first dimension, the others padded with zeros to the largest."""
    size = [max(tensor.shape[axis] for tensor in tensors) for axis in range(1, tensors[0].dim())]
    result = tensors[0].new_zeros(sum(len(tensor) for tensor in tensors), *size)
    row = 0
    for tensor in tensors:
        result[(slice(row, row + len(tensor)), *(slice(0, length) for length in tensor.shape[1:]))] = tensor
        row += len(tensor)
    return result


_TABLES = frozenset({"edges", "edge_grid", "road", "road_grid"})
_OF_AGENTS = (
    *("types", "size", "height", "exists", "pose", "velocity", "goal", "moves", "log", "log_valid"),
    *("log_ids", "history_ids", "history_valid", "history_poses"),
)


def _of_worlds(world: World, function: Callable[[Tensor], Tensor]) -> World:
    """Apply a function to all tensors that have a row for each world, outside of the road."""
    names = [field.name for field in dataclasses.fields(World) if field.name not in _TABLES]
    changes: dict[str, Any] = {name: function(getattr(world, name)) for name in names}
    return dataclasses.replace(world, **changes)


def stack_worlds(worlds: Sequence[World]) -> World:
    """Several batches of worlds as one, agents and signals padded; padded agents do not exist."""
    edges, edge_grid = join_roads([(world.edges, world.edge_grid) for world in worlds])
    road, road_grid = join_roads([(world.road, world.road_grid) for world in worlds])
    values = {
        field.name: _pad_cat([getattr(world, field.name) for world in worlds])
        for field in dataclasses.fields(World)
        if field.name not in _TABLES
    }
    return World(**values, edges=edges, edge_grid=edge_grid, road=road, road_grid=road_grid)


def choose_worlds(world: World, rows: Tensor) -> World:
    """Some worlds [n] of a batch, in any order and number; their roads are not copied."""
    chosen = _of_worlds(world, lambda tensor: tensor[rows])
    return dataclasses.replace(
        chosen, edge_grid=world.edge_grid.of_scenes(rows), road_grid=world.road_grid.of_scenes(rows)
    )


def with_empty_agent(world: World) -> World:
    """A batch of worlds with one more agent in each, the last one, that does not exist."""
    pad = torch.nn.functional.pad
    changes: dict[str, Any] = {}
    for name in _OF_AGENTS:
        tensor: Tensor = getattr(world, name)
        changes[name] = pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, 1))
    return dataclasses.replace(world, **changes)


def repeat_world(world: World, count: int) -> World:
    """Each world of a batch ``count`` times, in consecutive rows."""
    return choose_worlds(world, torch.arange(len(world.types), device=world.types.device).repeat_interleave(count))


def table_rows(table: Tensor, index: Tensor) -> Tensor:
    """Rows of a table [M, C] named by [...]: [..., C]."""
    # As index_select, but compiled code need not work out the place in [...] that a row belongs to.
    return torch.nn.functional.embedding(index, table)
