"""Choosing scenes from a recorded world: the AV, what it sees, and the tracks to predict.

Users that break a rule of the Sim Agents metric (rounded boxes that overlap, box corners beyond a road edge,
crossing a stop point on red) are not chosen. The computation is independent of the metric: shapely on polygons
instead of distances to segments.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry
from waymo_open_dataset.protos import scenario_pb2

from data.scene import CURRENT_INDEX, NUM_STEPS
from data.traffic.demand import CAR, User
from data.traffic.motion import Motion
from data.traffic.roadmap import WorldMap
from data.traffic.signals import STOP_STATES, SignalLane

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# The AV travels at least this far in its window, metres.
_AV_TRAVEL = 6.0
# A track to predict travels at least this far while visible, metres, and is visible for this many future steps.
_TARGET_TRAVEL = 5.0
_TARGET_STEPS = 30
_MOST_TARGETS = 8
_MOST_AGENTS = 128
# Visibility is tested every so many steps.
_SIGHT_STEPS = 5
# The metric rounds the corners of boxes by this fraction of half their shorter side.
_ROUNDING = 0.7
# Boxes nearer than this (metres) count as overlapping, and corners nearer than this to the edge as off the road, so
# that rounding to float32 at coordinates of some kilometres cannot add a violation.
_MARGIN = 0.03
# A user within this distance (m) across and this angle (cosine) of a signalled lane's start is on that lane.
_LANE_REACH = 1.8
_LANE_COSINE = 0.5


@dataclass(frozen=True)
class Cast:
    """All users of a world, with parked vehicles: N users over T steps.

    Attributes:
        users: types and sizes. motion: poses. signals: lights over the same steps.
        road: the surface. sight: the area free of houses.
        map: features, for the directions of signalled lanes.
    """

    users: tuple[User, ...]
    motion: Motion
    signals: tuple[SignalLane, ...]
    road: BaseGeometry
    sight: BaseGeometry
    map: WorldMap


@dataclass(frozen=True)
class Window:
    """One scene: ``start`` is its first step; agents are indices into the cast, in the order of the tracks.

    Attributes:
        valid: [A, 91] bool, visible to the AV. av: row of the AV. targets: rows to predict. interest: no rows, or
            two that interact.
    """

    start: int
    agents: NDArray[np.int64]
    valid: BoolArray
    av: int
    targets: tuple[int, ...]
    interest: tuple[int, ...]


def pick_window(rng: np.random.Generator, cast: Cast, start: int, counts: Counter[str]) -> Window | None:
    """Choose an AV for the 91 steps from ``start``, and the agents that it sees.

    A candidate is dropped if it overlaps with an agent, leaves the road or runs a red light, or if there is no
    agent to predict. Agents that break a rule are never tracks to predict.

    Args:
        rng: draws the choices. cast: the world. start: first step. counts: of what was dropped, by reason.

    Returns:
        The first clean window, or None if no car qualifies.
    """
    steps = slice(start, start + NUM_STEPS)
    centre = cast.motion.centre[:, steps]
    present = cast.motion.present[:, steps]
    travel = np.nansum(np.linalg.norm(np.diff(centre, axis=1), axis=-1), axis=1)
    is_car = np.array([user.kind is CAR for user in cast.users])
    candidates = np.flatnonzero(is_car & present.all(axis=1) & (travel > _AV_TRAVEL))
    for av in rng.permutation(candidates)[:4]:
        window = _window_of(rng, cast, start, int(av), travel, counts)
        if window is not None:
            return window
    counts["windows_without_clean_av"] += 1
    return None


def _window_of(
    rng: np.random.Generator, cast: Cast, start: int, av: int, travel: FloatArray, counts: Counter[str]
) -> Window | None:
    steps = slice(start, start + NUM_STEPS)
    seen = _visible(rng, cast, steps, av)
    agents = np.flatnonzero(seen.any(axis=1))
    if len(agents) > _MOST_AGENTS:
        distance = np.linalg.norm(cast.motion.centre[agents, start] - cast.motion.centre[av, start], axis=-1)
        agents = np.sort(agents[np.argsort(distance, kind="stable")[:_MOST_AGENTS]])
    # The order of the tracks is random; the AV comes last, as in WOMD.
    agents = np.append(rng.permutation(agents[agents != av]), av)
    valid = seen[agents]
    boxes = Boxes(
        cast.motion.centre[agents, steps],
        cast.motion.heading[agents, steps],
        np.array([[cast.users[agent].length, cast.users[agent].width] for agent in agents]),
        valid,
    )
    hits = overlaps(boxes)
    signals = [SignalLane(s.lane, s.stop_point, s.state[steps]) for s in cast.signals]
    starts = [_direction(cast.map.lanes[signal.lane].points) for signal in signals]
    broken = {
        "overlap": hits.any(axis=1),
        "off_road": off_road(boxes, cast.road),
        "red_light": runs_red_light(boxes, signals, starts),
    }
    row = len(agents) - 1
    for rule, rows in broken.items():
        if rows[row]:
            counts[f"avs_dropped_{rule}"] += 1
            return None
    moving = (travel[agents] > _TARGET_TRAVEL) & valid[:, CURRENT_INDEX]
    moving &= valid[:, CURRENT_INDEX + 1 :].sum(axis=1) >= _TARGET_STEPS
    moving[row] = False
    for rule, rows in broken.items():
        counts[f"candidates_dropped_{rule}"] += int((rows & moving).sum())
        moving &= ~rows
    targets = _draw_targets(rng, cast, agents, boxes, np.flatnonzero(moving))
    if not targets:
        counts["avs_dropped_nobody_to_predict"] += 1
        return None
    return Window(start, agents, valid, row, targets, _interacting(rng, boxes, [row, *targets]))


def _direction(points: FloatArray) -> FloatArray:
    step = points[1] - points[0]
    return step / np.linalg.norm(step)


def _visible(rng: np.random.Generator, cast: Cast, steps: slice, av: int) -> BoolArray:
    """Users [N, 91] visible to the AV: near enough, and no house between."""
    centre, present = cast.motion.centre[:, steps], cast.motion.present[:, steps]
    offset = centre - centre[av]
    # The range of visibility differs between users.
    reach = rng.uniform(45, 100, size=len(centre))
    near = present & (np.linalg.norm(offset, axis=-1) < reach[:, None])
    coarse = near[:, ::_SIGHT_STEPS]
    user, step = np.nonzero(coarse)
    ends = np.stack([centre[av, ::_SIGHT_STEPS][step], centre[:, ::_SIGHT_STEPS][user, step]], axis=1)
    clear = np.zeros(coarse.shape, dtype=bool)
    clear[user, step] = shapely.covers(cast.sight, shapely.linestrings(ends))
    seen = near & np.repeat(clear, _SIGHT_STEPS, axis=1)[:, : near.shape[1]]
    seen[av] = present[av]
    return seen


def _draw_targets(
    rng: np.random.Generator, cast: Cast, agents: NDArray[np.int64], boxes: Boxes, rows: NDArray[np.int64]
) -> tuple[int, ...]:
    """Draw up to eight rows; turning, braking, near and rare users are more likely."""
    if len(rows) == 0:
        return ()
    weights = []
    for row in rows:
        steps = np.flatnonzero(boxes.valid[row])
        heading = boxes.heading[row, steps]
        turned = abs(math.remainder(heading[-1] - heading[0], 2 * math.pi))
        speed = np.linalg.norm(cast.motion.velocity[agents[row]][steps], axis=-1)
        nearest = np.nanmin(np.linalg.norm(boxes.centre[row] - boxes.centre[-1], axis=-1))
        rare = {scenario_pb2.Track.TYPE_CYCLIST: 1.5, scenario_pb2.Track.TYPE_PEDESTRIAN: 2.0}
        far = np.linalg.norm(boxes.centre[row, steps[-1]] - boxes.centre[row, steps[0]]) > 40
        weight = 1.0 + 2.0 * (turned > 0.5) + 1.0 * (np.ptp(speed) > 3) + 1.0 * (nearest < 25) + 1.0 * far
        weights.append(weight * rare.get(cast.users[agents[row]].kind.track_type, 1.0))
    wanted = min(_MOST_TARGETS, len(rows), 1 + int(rng.poisson(3.4)))
    drawn = rng.choice(rows, size=wanted, replace=False, p=np.array(weights) / sum(weights))
    return tuple(int(row) for row in drawn)


def _interacting(rng: np.random.Generator, boxes: Boxes, rows: Sequence[int]) -> tuple[int, ...]:
    """The pair that comes nearest, in some of the scenes where a pair comes within 12 m."""
    best: tuple[float, tuple[int, ...]] = (12.0, ())
    for first, second in itertools.combinations(rows, 2):
        both = boxes.valid[first] & boxes.valid[second]
        gap = np.linalg.norm(boxes.centre[first, both] - boxes.centre[second, both], axis=-1)
        best = min(best, (float(gap.min(initial=math.inf)), (first, second)))
    return best[1] if rng.random() < 0.6 else ()


@dataclass(frozen=True)
class Boxes:
    """N boxes over T steps: centre [N, T, 2] and size [N, 2] (length, width) in metres, heading [N, T] radians,
    valid [N, T]; centre and heading may be NaN where not valid."""

    centre: FloatArray
    heading: FloatArray
    size: FloatArray
    valid: BoolArray


def box_corners(boxes: Boxes, shrink: FloatArray | float = 0.0) -> FloatArray:
    """Corners [N, T, 4, 2] counter-clockwise from the front left; sides are moved in by ``shrink`` [N] metres."""
    half = np.maximum(boxes.size / 2 - np.reshape(shrink, (-1, 1)), 0.0)
    sign = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    local = half[:, None, None, :] * sign
    cos, sin = np.cos(boxes.heading)[..., None], np.sin(boxes.heading)[..., None]
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y], axis=-1) + boxes.centre[..., None, :]


def overlaps(boxes: Boxes) -> BoolArray:
    """Which pairs [N, N] of rounded boxes overlap at any step at which both are valid."""
    count = len(boxes.size)
    rounding = _ROUNDING * boxes.size.min(axis=1) / 2
    reach = np.linalg.norm(boxes.size, axis=1) / 2
    first, second = np.triu_indices(count, 1)
    distance = np.linalg.norm(boxes.centre[first] - boxes.centre[second], axis=-1)
    near = boxes.valid[first] & boxes.valid[second] & (distance < (reach[first] + reach[second])[:, None])
    pair, step = np.nonzero(near)
    cores = shapely.polygons(np.nan_to_num(box_corners(boxes, rounding)))
    a, b = first[pair], second[pair]
    gap = shapely.distance(cores[a, step], cores[b, step]) - rounding[a] - rounding[b]
    hit = gap < _MARGIN
    result = np.zeros((count, count), dtype=bool)
    result[a[hit], b[hit]] = True
    return result | result.T


def off_road(boxes: Boxes, road: BaseGeometry) -> BoolArray:
    """Which boxes [N] have a corner beyond the road edge at any valid step."""
    inner = road.buffer(-_MARGIN)
    shapely.prepare(inner)
    corners = box_corners(boxes)[boxes.valid]
    on_road = shapely.contains_xy(inner, corners[..., 0], corners[..., 1]).all(axis=-1)
    result = np.zeros(boxes.valid.shape, dtype=bool)
    result[boxes.valid] = ~on_road
    return result.any(axis=1)


def runs_red_light(boxes: Boxes, signals: Sequence[SignalLane], starts: Sequence[FloatArray]) -> BoolArray:
    """Which users [N] cross the stop point of a signalled lane while it shows red.

    Args:
        boxes: the users. signals: their states over the same T steps. starts: the unit direction [2] at the first
            point of each signalled lane.
    """
    result = np.zeros(len(boxes.size), dtype=bool)
    both = boxes.valid[:, 1:] & boxes.valid[:, :-1]
    for signal, direction in zip(signals, starts, strict=True):
        red = np.isin(signal.state, STOP_STATES)[1:]
        if not red.any():
            continue
        relative = boxes.centre - signal.stop_point
        along = relative @ direction
        across = np.abs(relative @ np.array([-direction[1], direction[0]]))[:, 1:]
        facing = (np.cos(boxes.heading) * direction[0] + np.sin(boxes.heading) * direction[1])[:, 1:]
        crosses = (along[:, :-1] < 0) & (along[:, 1:] >= 0)
        on_lane = (across < _LANE_REACH) & (facing > _LANE_COSINE)
        result |= (crosses & on_lane & red & both).any(axis=1)
    return result
