"""Road edges of maps that have none: the outline of their drivable area, or of their lanes.

As in WOMD the road is on the left of an edge: outer rings run counter-clockwise, holes clockwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from data.assembly import RecordError

Doubles = NDArray[np.float64]

# Half the width of a lane whose source tells none, metres.
_HALF_LANE = 1.75
# Gaps between neighbouring lanes narrower than twice this (metres) are no islands.
_GAP = 0.5
# Rings around less (m^2) are slivers of a union of polygons.
_MIN_AREA = 1.0
# Metres between points at most, so that an edge can be cut where its neighbourhood ends.
_SPACING = 5.0
# Metres. All road edges within 500 m of a place are some 20 km long.
_MOST_LENGTH = 1e6


def _edges(area: BaseGeometry) -> list[Doubles]:
    """Rings [N, 2] of all polygons of an area; the last point is the first.

    Raises:
        RecordError: longer than any map.
    """
    polygons = [part for part in shapely.get_parts(area) if part.geom_type == "Polygon"]
    rings = [
        ring
        for polygon in polygons
        for oriented in [shapely.orient_polygons(polygon)]
        for ring in (oriented.exterior, *oriented.interiors)
    ]
    rings = [ring for ring in rings if shapely.Polygon(ring).area >= _MIN_AREA]
    if (length := sum(ring.length for ring in rings)) > _MOST_LENGTH:
        raise RecordError(
            "map", f"the outline of the map's roads is {length / 1000:.3g} km long; its coordinates are wrong"
        )
    return [shapely.get_coordinates(shapely.segmentize(ring, _SPACING)) for ring in rings]


def _finite(lines: Sequence[Doubles], least: int) -> list[Doubles]:
    """The planar points [N, 2] of lines that are finite and have enough of them."""
    return [line[:, :2] for line in lines if len(line) >= least and np.isfinite(line[:, :2]).all()]


def outline_of_area(rings: Sequence[Doubles]) -> list[Doubles]:
    """Edges of the area that closed lines [N, 2] bound: what an odd number of them surrounds is road."""
    lines = [shapely.LinearRing(ring) for ring in _finite(rings, 3)]
    return _edges(shapely.build_area(shapely.GeometryCollection(lines))) if lines else []


def outline_of_lanes(polygons: Sequence[Doubles], centres: Sequence[Doubles]) -> list[Doubles]:
    """Edges of the union of lane polygons [N, 2], and of lanes of 3.5 m width around centre lines [N, 2]."""
    parts = [shapely.make_valid(shapely.Polygon(ring)) for ring in _finite(polygons, 3)]
    parts += [shapely.LineString(line).buffer(_HALF_LANE, cap_style="flat") for line in _finite(centres, 2)]
    if not parts:
        return []
    return _edges(shapely.union_all(parts).buffer(_GAP, join_style="mitre").buffer(-_GAP, join_style="mitre"))
