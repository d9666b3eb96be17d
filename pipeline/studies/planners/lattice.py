"""Candidates of a Frenet lattice, and how much room the road leaves them.

Quartic in time along the route, quintic in length across it:

    s(t) from (s0, v0, a0) to (v1, 0) in T;  d(s) from (d0, d0', d0'') to (d1, 0, 0) in S, then constant

Werling et al. 2010, with the offset as a function of length at all speeds, as they have it at low ones: a car that
stands does not move sideways.

Shape legend: L longitudinal candidates, C = L * D candidates with an offset, K steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from numpy.polynomial.polynomial import polyder, polyval
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from data.scene import CURRENT_INDEX, MapKind, Scene
from pipeline.studies.planners.interface import Floats
from pipeline.studies.planners.lanes import wrapped
from pipeline.studies.planners.route import Route

# Offsets are changed within this length at least, metres.
_LEAST_LENGTH = 10.0


@dataclass(frozen=True)
class Start:
    """Where the AV is on the route: length, its rate in m/s and its acceleration; offset and its first two
    derivatives by length."""

    s: float
    rate: float
    acceleration: float
    d: float
    slope: float
    bend: float


@dataclass(frozen=True)
class Candidates:
    """C trajectories over K steps.

    Attributes:
        s, d: [C, K] Frenet coordinates. rate: [C, K] of s, m/s. acceleration, jerk: [C, K] its derivatives.
        speed: [C, K] of the AV, m/s.
        turn: [C, K] heading less that of the route. lateral: [C, K] acceleration across the heading, m/s^2.
        slope, bend: [C, K] derivatives of the offset by length. curvature: [C, K] 1/m.
    """

    s: Floats
    d: Floats
    rate: Floats
    acceleration: Floats
    jerk: Floats
    speed: Floats
    turn: Floats
    lateral: Floats
    slope: Floats
    bend: Floats
    curvature: Floats

    def one(self, row: int) -> Candidates:
        """A single candidate, C = 1."""
        return Candidates(**{name: value[row : row + 1] for name, value in vars(self).items()})

    def state(self, row: int, step: int) -> Start:
        """Where a candidate is at a step: another one from there goes on smoothly."""
        values = (self.s, self.rate, self.acceleration, self.d, self.slope, self.bend)
        return Start(*(float(value[row, step]) for value in values))

    def pose(self, route: Route, rows: NDArray[np.int64] | slice = slice(None)) -> Floats:
        """[c, K, 3] x, y, heading of some candidates."""
        s, d = self.s[rows], self.d[rows]
        x, y, heading, _ = route.at(s)
        turned = wrapped(heading + self.turn[rows])
        return np.stack((x - d * np.sin(heading), y + d * np.cos(heading), turned), axis=-1)


def quartic(start: tuple[float, float, float], end_speed: Floats, duration: Floats) -> Floats:
    """[..., 5] coefficients, lowest first, with given position, speed and acceleration at 0, and with given speed
    and no acceleration at the end."""
    position, speed, acceleration = start
    change = end_speed - speed - acceleration * duration
    missing = -acceleration
    c3 = (change / duration**2) - missing / (3 * duration)
    c4 = missing / (4 * duration**2) - change / (2 * duration**3)
    ones = np.ones_like(duration)
    return np.stack((position * ones, speed * ones, acceleration / 2 * ones, c3, c4), axis=-1)


def quintic(start: tuple[float, float, float], end: Floats, length: Floats) -> Floats:
    """[..., 6] coefficients, lowest first, with given value and derivatives at 0, and the value ``end`` without
    derivatives at ``length``."""
    value, slope, bend = start
    gap = end - value - slope * length - bend / 2 * length**2
    rate = -slope - bend * length
    c3 = (10 * gap / length**3) - 4 * rate / length**2 - bend / (2 * length)
    c4 = (-15 * gap / length**4) + 7 * rate / length**3 + bend / length**2
    c5 = (6 * gap / length**5) - 3 * rate / length**4 - bend / (2 * length**3)
    ones = np.ones_like(length)
    return np.stack((value * ones, slope * ones, bend / 2 * ones, c3, c4, c5), axis=-1)


def _derivatives(coefficients: Floats, x: Floats, order: int) -> list[Floats]:
    """Polynomials [..., n] and their derivatives up to ``order`` at x [..., K]."""
    by_power = np.moveaxis(coefficients, -1, 0)[..., None]
    return [polyval(x, polyder(by_power, number), tensor=False) for number in range(order + 1)]


def candidates(
    route: Route, start: Start, speeds: Floats, durations: Floats, offsets: Floats, steps: int, dt: float
) -> Candidates:
    """Every speed in every duration, to every offset.

    Args:
        route: to follow. start: where the AV is. speeds: [V] final ones, m/s. durations: [T] seconds.
        offsets: [D] final ones, metres. steps: K, the first of them ``dt`` seconds from now.
    """
    speed, duration = (grid.ravel() for grid in np.meshgrid(speeds, durations, indexing="ij"))  # [L]
    time = dt * np.arange(1, steps + 1)
    inside = np.minimum(time, duration[:, None])
    s, v, a, j = _derivatives(quartic((start.s, start.rate, start.acceleration), speed, duration), inside, 3)
    # Behind the duration the speed is constant.
    late = time - inside
    going = late <= 0
    motion = [s + late * speed[:, None], v, np.where(going, a, 0.0), np.where(going, j, 0.0)]
    return along_route(route, start, motion, offsets)


def along_route(route: Route, start: Start, motion: list[Floats], offsets: Floats) -> Candidates:
    """Motion along the route, s and its three derivatives [L, K] each, with every final offset [D]."""
    s, v, a, j = motion
    length = np.maximum(s[:, -1] - start.s, _LEAST_LENGTH)  # [L]
    coefficients = quintic(
        (start.d, start.slope, start.bend), offsets[None, :], np.repeat(length[:, None], len(offsets), 1)
    )  # [L, D, 6]
    inside = np.minimum(s - start.s, length[:, None])[:, None]  # [L, 1, K]
    inside = np.repeat(inside, len(offsets), axis=1)
    d, slope, bend = (part.reshape(-1, s.shape[1]) for part in _derivatives(coefficients, inside, 2))
    s, v, a, j = (np.repeat(part, len(offsets), axis=0) for part in (s, v, a, j))
    curvature = np.interp(s, route.distance, route.curvature, left=0.0, right=0.0)
    stretch = np.maximum(1 - curvature * d, 0.1)
    turn = np.arctan2(slope, stretch)
    cos = np.cos(turn)
    # Werling's transformation, without the route's change of curvature.
    bent = ((bend + curvature * slope * np.tan(turn)) * cos**2 / stretch + curvature) * cos / stretch
    speed = v * stretch / cos
    return Candidates(s, d, v, a, j, speed, turn, bent * speed**2, slope, bend, bent)


_REACH = 10.0
_SPACING = 0.5
# Points of edges count for what is within this length of them, metres.
_SPREAD = 2
# Edges nearer than this to the centreline run across it: above or below, or the map is wrong.
_ACROSS = 0.8
# Edges whose height differs more from the AV's are of another road, metres.
_LEVEL_GAP = 4.0


@dataclass(frozen=True)
class Corridor:
    """Distances [N] in metres from the route's points to the road's edge, on the left and on the right; 10 m where
    there is none so near."""

    left: Floats
    right: Floats

    def at(self, route: Route, s: Floats) -> tuple[Floats, Floats]:
        """Distances to the left and to the right at lengths s [...]."""
        index = np.clip(np.round(np.interp(s, route.distance, np.arange(len(route.distance)))).astype(int), 0, None)
        return self.left[index], self.right[index]


def road_corridor(scene: Scene, origin: Floats, route: Route) -> Corridor:
    """The room beside a route.

    Args:
        scene: with the map. origin: [2] to subtract from its positions.
    """
    count = len(route.distance)
    left, right = np.full(count, _REACH), np.full(count, _REACH)
    point = _edge_points(scene, origin)
    if len(point):
        distance, _ = cKDTree(route.point).query(point, distance_upper_bound=_REACH)
        s, d = route.project(point[np.isfinite(distance)])
        used = (np.abs(d) > _ACROSS) & (s > 0) & (s < route.length)
        index = np.round(np.interp(s[used], route.distance, np.arange(count))).astype(int)
        for side, sign in ((left, 1.0), (right, -1.0)):
            there = d[used] * sign > 0
            for shift in range(-_SPREAD, _SPREAD + 1):
                np.minimum.at(side, np.clip(index[there] + shift, 0, count - 1), np.abs(d[used][there]))
    return Corridor(left, right)


def _edge_points(scene: Scene, origin: Floats) -> Floats:
    """[M, 2] points of the road's edges at the AV's level, close together."""
    road, agents = scene.map, scene.agents
    row = int(agents.is_sdc.nonzero()[0])
    level = float(agents.position[row, CURRENT_INDEX, 2])
    owner, xyz = road.point_feature.numpy(), road.point.numpy().astype(np.float64)
    starts = np.searchsorted(owner, np.arange(len(road.kind) + 1))
    parts = [np.zeros((0, 2))]
    for feature in np.flatnonzero(road.kind.numpy() == MapKind.ROAD_EDGE):
        line = xyz[starts[feature] : starts[feature + 1]]
        line = line[np.abs(line[:, 2] - level) < _LEVEL_GAP, :2] - origin
        if len(line) > 1:
            parts.append(shapely.get_coordinates(shapely.segmentize(shapely.linestrings(line), _SPACING)))
    return np.concatenate(parts)
