"""Choosing scenes from a recorded world: the AV, what it sees, and the tracks to predict."""

from __future__ import annotations

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
from data.traffic.checks import Boxes, off_road, overlaps, runs_red_light
from data.traffic.demand import CAR, User
from data.traffic.motion import Motion
from data.traffic.roadmap import WorldMap
from data.traffic.signals import SignalLane

__all__ = ["Cast", "Window", "pick_window"]

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
    for position, first in enumerate(rows):
        for second in rows[position + 1 :]:
            both = boxes.valid[first] & boxes.valid[second]
            gap = np.linalg.norm(boxes.centre[first, both] - boxes.centre[second, both], axis=-1)
            best = min(best, (float(gap.min(initial=math.inf)), (first, second)))
    return best[1] if rng.random() < 0.6 else ()
