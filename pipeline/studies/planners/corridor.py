"""How much room the road leaves on either side of a route."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import shapely
from scipy.spatial import cKDTree

from data.scene import CURRENT_INDEX, MapKind, Scene
from pipeline.studies.planners.interface import Floats
from pipeline.studies.planners.route import Route

__all__ = ["Corridor", "road_corridor"]

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
