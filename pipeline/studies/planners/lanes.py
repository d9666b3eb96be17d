"""The lanes of a map as polylines with successors, and which of them a recorded drive took.

Shape legend: n points of a lane, K observations, L lanes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.scene import LinkKind, MapKind, Scene

Floats = NDArray[np.float64]

_BIKE_LANE = 3
_MPH = 0.44704
# A lane begins where another ends if the points are so near (metres) and the headings agree (radians). Maps without
# links have points in common there.
_JOINT = 0.6
_JOINT_TURN = np.pi / 4
# Observations farther from a lane (metres), or turned more against it (radians), say that it was not taken.
_FAR = 5.0
_TURNED = np.pi / 3
# Costs of matching in square metres: of heading errors times 1 - cos, and of a change to a lane beside.
_HEADING_COST = 20.0
_CHANGE_COST = 30.0


@dataclass(frozen=True)
class Lane:
    """A centreline.

    Attributes:
        point: [n, 2] metres from the scene's origin, n >= 2. travelled: [n] from 0. heading: [n - 1] of the pieces.
        speed_limit: m/s, 0 where the map has none. successors: places in the list of lanes.
    """

    point: Floats
    travelled: Floats
    heading: Floats
    speed_limit: float
    successors: tuple[int, ...]

    @property
    def length(self) -> float:
        return float(self.travelled[-1])

    def piece(self, first: float, last: float) -> Floats:
        """The points from one length to another, both included."""
        inside = (self.travelled > first) & (self.travelled < last)
        s = np.concatenate(([first], self.travelled[inside], [last]))
        return np.stack([np.interp(s, self.travelled, self.point[:, axis]) for axis in (0, 1)], axis=-1)


@dataclass(frozen=True)
class Taken:
    """A lane that was taken, entered from the one before at its end, or from beside.

    Attributes:
        lane: place in the list of lanes. enters, leaves: where along the lane, metres. changed: from beside.
    """

    lane: int
    enters: float
    leaves: float
    changed: bool


def wrapped(angle: Floats | float) -> Floats:
    """Radians in [-pi, pi]."""
    return np.asarray(np.arctan2(np.sin(angle), np.cos(angle)))


def read_lanes(scene: Scene, origin: Floats) -> list[Lane]:
    """Lanes for cars, minus ``origin`` [2]. Successors are EXIT links and lanes that begin where this one ends."""
    road = scene.map
    owner = road.point_feature.numpy()
    points = road.point.numpy()[:, :2].astype(np.float64) - origin
    starts = np.searchsorted(owner, np.arange(len(road.kind) + 1))
    parts: list[tuple[int, Floats]] = []
    for feature, (kind, subtype) in enumerate(zip(road.kind.tolist(), road.subtype.tolist())):
        if kind != MapKind.LANE or subtype == _BIKE_LANE:
            continue
        line = points[starts[feature] : starts[feature + 1]]
        if len(line) > 1:
            line = line[np.append(True, np.linalg.norm(np.diff(line, axis=0), axis=1) > 1e-3)]
        if len(line) > 1:
            parts.append((feature, line))
    place = {feature: index for index, (feature, _) in enumerate(parts)}
    by_id = {int(name): feature for feature, name in enumerate(road.feature_id.tolist())}
    following: list[set[int]] = [set() for _ in parts]
    links = zip(road.link_source.tolist(), road.link_kind.tolist(), road.link_target.tolist())
    for source, kind, target in links:
        after = by_id.get(target, -1)
        if kind == LinkKind.EXIT and source in place and after in place:
            following[place[source]].add(place[after])
    headings = [np.arctan2(*np.diff(line, axis=0).T[::-1]) for _, line in parts]
    if parts:
        first, last = (np.array([line[end] for _, line in parts]) for end in (0, -1))
        begins, ends = (np.array([heading[end] for heading in headings]) for end in (0, -1))
        near = np.linalg.norm(last[:, None] - first[None], axis=-1) < _JOINT
        near &= np.abs(wrapped(begins[None] - ends[:, None])) < _JOINT_TURN
        for before, after in zip(*near.nonzero()):
            if before != after:
                following[before].add(int(after))
    return [
        Lane(
            point=line,
            travelled=np.append(0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))),
            heading=headings[index],
            speed_limit=float(road.speed_limit[feature]) * _MPH,
            successors=tuple(sorted(following[index])),
        )
        for index, (feature, line) in enumerate(parts)
    ]


def along(lane: Lane, point: Floats) -> tuple[Floats, Floats, Floats]:
    """Where along a lane [K] the points [K, 2] are, how far from it [K], and its heading there [K]."""
    step = np.diff(lane.point, axis=0)
    gap = point[:, None] - lane.point[None, :-1]  # [K, n - 1, 2]
    length = np.diff(lane.travelled)
    fraction = np.clip((gap * step).sum(-1) / length**2, 0.0, 1.0)
    distance = np.linalg.norm(gap - fraction[..., None] * step, axis=-1)
    best = distance.argmin(1)
    row = np.arange(len(point))
    travelled = lane.travelled[best] + fraction[row, best] * length[best]
    return travelled, distance[row, best], lane.heading[best]


def match_lanes(lanes: Sequence[Lane], pose: Floats) -> list[Taken]:
    """The lanes whose centrelines lie nearest to a drive, changes between lanes costing some.

    The cheapest sequence is found by dynamic programming over the observations, as in matching of tracks to maps:
    squared distance and turn of every observation, nothing for going on in a lane or in its successor, a constant
    for any other change.

    Args:
        lanes: of ``read_lanes``. pose: [K, 3] x, y, heading about a metre apart, K >= 1.

    Returns:
        The lanes in order; none if no lane is near.
    """
    kept, travelled, costs = [], [], []
    low, high = pose[:, :2].min(0) - _FAR, pose[:, :2].max(0) + _FAR
    for index, lane in enumerate(lanes):
        if (lane.point.min(0) > high).any() or (lane.point.max(0) < low).any():
            continue
        where, distance, heading = along(lane, pose[:, :2])
        turn = wrapped(heading - pose[:, 2])
        fits = (distance < _FAR) & (np.abs(turn) < _TURNED)
        if fits.any():
            cost = np.minimum(distance, _FAR) ** 2 + _HEADING_COST * (1 - np.cos(turn))
            kept.append(index)
            travelled.append(where)
            costs.append(np.where(fits, cost, _FAR**2 + _HEADING_COST))
    if not kept:
        return []
    cost, where = np.array(costs), np.array(travelled)  # [L, K]
    change = _change_costs(lanes, kept)
    best, came = cost[:, 0], []
    for index in range(1, pose.shape[0]):
        total = best[:, None] + change  # from, to
        came.append(total.argmin(0))
        best = total.min(0) + cost[:, index]
    state = [int(best.argmin())]
    for step in reversed(came):
        state.append(int(step[state[-1]]))
    state.reverse()
    taken: list[Taken] = []
    for index, row in enumerate(state):
        number = kept[row]
        if taken and taken[-1].lane == number:
            continue
        changed = False
        if taken:
            old = taken[-1]
            before = kept.index(old.lane)
            changed = bool(change[before, row] > 0)
            leaves = float(where[before, index]) if changed else lanes[old.lane].length
            taken[-1] = Taken(old.lane, old.enters, leaves, old.changed)
            taken.extend([] if changed else _between(lanes, old.lane, number))
        enters = float(where[row, index]) if changed else 0.0
        taken.append(Taken(number, enters, lanes[number].length, changed))
    return taken


def _change_costs(lanes: Sequence[Lane], kept: Sequence[int]) -> Floats:
    """[L, L] what it costs to go from one lane to another; a short lane between two may be without observations."""
    change = np.full((len(kept), len(kept)), _CHANGE_COST)
    place = {lane: row for row, lane in enumerate(kept)}
    for lane, row in place.items():
        change[row, row] = 0.0
        for after in lanes[lane].successors:
            following = (after, *(lanes[after].successors if lanes[after].length < _FAR else ()))
            for other in following:
                if other in place:
                    change[row, place[other]] = 0.0
    return change


def _between(lanes: Sequence[Lane], before: int, after: int) -> list[Taken]:
    """The short lane that was skipped between two."""
    if after in lanes[before].successors:
        return []
    middle = next(lane for lane in lanes[before].successors if after in lanes[lane].successors)
    return [Taken(middle, 0.0, lanes[middle].length, False)]


def straightest(lanes: Sequence[Lane], lane: int, length: float) -> list[int]:
    """Successors of a lane, each the one that turns least, until they are ``length`` metres together."""
    result: list[int] = []
    seen = {lane}
    while length > 0:
        turns = {
            after: abs(float(wrapped(lanes[after].heading[-1] - lanes[lane].heading[-1])))
            for after in lanes[lane].successors
            if after not in seen
        }
        if not turns:
            break
        lane = min(turns, key=lambda after: (turns[after], after))
        seen.add(lane)
        result.append(lane)
        length -= lanes[lane].length
    return result
