"""The paved surface of a SUMO network as polygons, and its outline as road edges.

Road edges follow WOMD's convention: the road is on the left of an edge. The outline of the union of all drivable
polygons, with outer rings counter-clockwise and holes clockwise, has that property for any junction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

FloatArray = NDArray[np.float64]

POINT_SPACING = 0.5  # metres between points of a polyline, as in WOMD
# Radius of kerbs at corners; gaps in the surface narrower than twice this are filled.
_CORNER_RADIUS = 4.0
# Notches and tips of kerbs narrower than twice this are removed.
_NOTCH = 1.2
# Slivers thinner than twice this are artefacts of the union of polygons.
_SLIVER = 0.25
# Islands smaller than this (m^2) are filled.
_MIN_ISLAND = 4.0
# Tolerance of the simplification of road edges, metres; well below the margin of the checks.
_SIMPLIFY = 0.01
# The end of a street at the fringe is not a kerb; edge points this near to it (m) are dropped.
_CAP_MARGIN = 0.4


@dataclass(frozen=True)
class Surface:
    """Polygons of a world in metres.

    Attributes:
        road: where vehicles may drive, with parking strips; with a shared surface also pavements.
        walks: pavements. medians: the strips between the directions of wide streets.
        caps: cross lines at the dead ends of the world.
    """

    road: BaseGeometry
    walks: BaseGeometry
    medians: BaseGeometry
    caps: BaseGeometry


@dataclass(frozen=True)
class EdgeLine:
    """One road edge: points [N, 2] in metres with the road on the left; ``median`` for islands and medians."""

    points: FloatArray
    median: bool


def lane_class(lane: Any) -> str:
    """Class of a lane of an ordinary edge: driving, bike, sidewalk, parking or median."""
    allowed = set(lane.getPermissions())
    if "passenger" in allowed:
        return "driving"
    if "bicycle" in allowed:
        return "bike"
    if "pedestrian" in allowed:
        return "sidewalk"
    driving = [other.getIndex() for other in lane.getEdge().getLanes() if "passenger" in other.getPermissions()]
    return "median" if lane.getIndex() > max(driving) else "parking"


def is_driving_lane(lane: Any) -> bool:
    """Whether vehicles or bicycles drive on the lane, which may be inside a junction."""
    return not {"passenger", "bicycle"}.isdisjoint(lane.getPermissions())


def is_fringe(node: Any) -> bool:
    """Whether a node is a dead end, where traffic enters and leaves the world."""
    return len({other.getID() for other in node.getNeighboringNodes()}) <= 1


def lane_polygon(lane: Any) -> BaseGeometry:
    """The strip of a lane: its centre line widened with flat ends."""
    return shapely.buffer(shapely.LineString(lane.getShape()), lane.getWidth() / 2, cap_style="flat")


def build_surface(net: Any, shared: bool) -> Surface:
    """Join lanes and junctions to the paved surface.

    Args:
        net: a ``sumolib`` net read with internal edges.
        shared: pavements are flush with the road, so that the road edge runs behind them.
    """
    roads: list[BaseGeometry] = []
    walks: list[BaseGeometry] = []
    medians: list[BaseGeometry] = []
    caps: list[BaseGeometry] = []
    for edge in net.getEdges(withInternal=True):
        function = edge.getFunction()
        for lane in edge.getLanes():
            if function == "walkingarea":
                walks.append(shapely.Polygon(lane.getShape()).buffer(0))
            elif function == "internal":
                roads.append(lane_polygon(lane))
            elif function == "":
                kind = lane_class(lane)
                target = {"sidewalk": walks, "median": medians}.get(kind, roads)
                target.append(lane_polygon(lane))
        if function == "":
            caps += _caps(edge)
    # The polygon of a junction on a roundabout covers part of its island, so only the lanes are used there.
    ring = {name for roundabout in net.getRoundabouts() for name in roundabout.getNodes()}
    junctions = [
        shapely.Polygon(node.getShape()).buffer(0)
        for node in net.getNodes()
        if len(node.getShape()) > 2 and node.getID() not in ring
    ]
    walk, median = shapely.union_all(walks), shapely.union_all(medians)
    road = shapely.union_all([shapely.union_all(junctions).difference(walk), *roads])
    if shared:
        road = shapely.union_all([road, walk])
    road = road.buffer(_CORNER_RADIUS).buffer(-_CORNER_RADIUS - _NOTCH).buffer(_NOTCH).difference(median)
    road = road.buffer(-_SLIVER).buffer(_SLIVER, join_style="mitre")
    return Surface(_without_islands(road), walk, median, shapely.union_all(caps))


def _caps(edge: Any) -> list[BaseGeometry]:
    """Cross lines where an edge begins or ends at the fringe of the world."""
    lines = []
    for node, index in ((edge.getFromNode(), 0), (edge.getToNode(), -1)):
        if not is_fringe(node):
            continue
        lanes = edge.getLanes()
        for lane in lanes:
            shape = np.array(lane.getShape())
            along = shape[1] - shape[0] if index == 0 else shape[-1] - shape[-2]
            across = np.array([-along[1], along[0]]) / np.linalg.norm(along) * (lane.getWidth() / 2 + 0.1)
            lines.append(shapely.LineString([shape[index] - across, shape[index] + across]))
    return lines


def _polygons(geometry: BaseGeometry) -> Iterable[BaseGeometry]:
    return [part for part in shapely.get_parts(geometry) if part.geom_type == "Polygon"]


def _without_islands(road: BaseGeometry) -> BaseGeometry:
    kept = []
    for polygon in _polygons(road):
        holes = [ring for ring in polygon.interiors if shapely.Polygon(ring).area >= _MIN_ISLAND]
        kept.append(shapely.Polygon(polygon.exterior, holes))
    return shapely.union_all(kept)


def edge_lines(surface: Surface) -> list[EdgeLine]:
    """Outline of the surface, resampled to ``POINT_SPACING`` and open at the fringe of the world.

    The last point of a closed ring is its first. The seam is at the straightest point, because the metric knows no
    neighbour across a seam and could pick the wrong side at a corner.
    """
    lines = []
    near_caps = surface.caps.buffer(_CAP_MARGIN)
    shapely.prepare(near_caps)
    for polygon in _polygons(shapely.orient_polygons(surface.road)):
        for ring in [polygon.exterior, *polygon.interiors]:
            points = _resample_ring(shapely.get_coordinates(ring))
            island = shapely.Polygon(ring)
            median = ring is not polygon.exterior and _is_island(island, surface)
            outside = ~shapely.contains_xy(near_caps, points[:, 0], points[:, 1])
            lines += [EdgeLine(run, median) for run in split_runs(points, outside, closed=True)]
    return lines


def _is_island(hole: BaseGeometry, surface: Surface) -> bool:
    """Whether a hole is a median or a small island, not a block of houses."""
    return hole.area < 1200 and (hole.intersects(surface.medians) or hole.area < 150)


def _resample_ring(ring: FloatArray) -> FloatArray:
    """A closed ring with about even spacing, corners kept, seam at the straightest vertex."""
    outline = shapely.simplify(shapely.LinearRing(ring), _SIMPLIFY)
    points = shapely.get_coordinates(shapely.segmentize(outline, POINT_SPACING))[:-1]
    before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    turn = np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0])
    # The neighbours count as well, so that the seam is in the middle of a straight piece.
    bend = turn + np.roll(turn, 1) + np.roll(turn, -1)
    points = np.roll(points, -int(np.argmin(bend)), axis=0)
    return np.concatenate([points, points[:1]])


def split_runs(points: FloatArray, keep: NDArray[np.bool_], closed: bool = False) -> list[FloatArray]:
    """Consecutive kept points as separate polylines of at least two points.

    Args:
        points: [N, D]. keep: [N] bool. closed: the last point equals the first, and a run may cross the seam.
    """
    if keep.all():
        return [points] if len(points) > 1 else []
    if closed:
        start = int(np.argmin(keep))
        points = np.roll(points[:-1], -start, axis=0)
        keep = np.roll(keep[:-1], -start)
    padded = np.concatenate([[False], keep, [False]])
    starts = np.flatnonzero(~padded[:-1] & padded[1:])
    ends = np.flatnonzero(padded[:-1] & ~padded[1:])
    return [points[a:b] for a, b in zip(starts, ends) if b - a > 1]
