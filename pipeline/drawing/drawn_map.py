"""A scene as it is drawn: lines of the map without what no eye can see, and which colour they have.

Kinds of lines are the project's own, few enough to be told apart in a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import shapely
from numpy.typing import NDArray

from data.scene import MapKind, Scene

# Centre lines and edges of roads may be this far from the drawn line, metres.
_TOLERANCE = 0.06


class Line(IntEnum):
    """How a piece of the map is drawn."""

    LANE = 0
    WHITE = 1
    YELLOW = 2
    EDGE = 3
    CROSSWALK = 4
    SPEED_BUMP = 5
    DRIVEWAY = 6
    STOP_SIGN = 7
    WHITE_BROKEN = 8
    YELLOW_BROKEN = 9


_KINDS = {
    MapKind.LANE: Line.LANE,
    MapKind.ROAD_LINE: Line.WHITE,
    MapKind.ROAD_EDGE: Line.EDGE,
    MapKind.STOP_SIGN: Line.STOP_SIGN,
    MapKind.CROSSWALK: Line.CROSSWALK,
    MapKind.SPEED_BUMP: Line.SPEED_BUMP,
    MapKind.DRIVEWAY: Line.DRIVEWAY,
}
_AREAS = frozenset({MapKind.CROSSWALK, MapKind.SPEED_BUMP, MapKind.DRIVEWAY})
# ``RoadLineType`` of map.proto: from BROKEN_SINGLE_YELLOW on they are yellow.
_ROAD_LINES = {1: Line.WHITE_BROKEN, 4: Line.YELLOW_BROKEN, 5: Line.YELLOW_BROKEN, 8: Line.YELLOW_BROKEN}
_FIRST_YELLOW = 4


@dataclass(frozen=True)
class DrawnMap:
    """Lines of a map; areas are closed.

    Attributes:
        points: [P, 2] float64 metres, global. starts: [L + 1] where lines begin. kinds: [L] ``Line``.
    """

    points: NDArray[np.float64]
    starts: NDArray[np.int64]
    kinds: NDArray[np.uint8]

    def lines(self, kind: Line) -> list[NDArray[np.float64]]:
        """All lines [n, 2] of a kind."""
        rows = np.flatnonzero(self.kinds == kind)
        return [self.points[self.starts[index] : self.starts[index + 1]] for index in rows]


def drawn_map(scene: Scene) -> DrawnMap:
    """Simplify the map of a single scene for drawing."""
    road = scene.map
    points, owner = road.point[:, :2].double().numpy(), road.point_feature.numpy()
    bounds = np.searchsorted(owner, np.arange(len(road.kind) + 1))
    pieces, kinds = [], []
    for index, (kind, subtype) in enumerate(zip(road.kind.tolist(), road.subtype.tolist(), strict=True)):
        piece = points[bounds[index] : bounds[index + 1]]
        drawn = _KINDS.get(MapKind(kind))
        if drawn is None or not len(piece):
            continue
        if kind in _AREAS:
            piece = np.concatenate((piece, piece[:1]))
        elif len(piece) > 2:
            piece = shapely.get_coordinates(shapely.simplify(shapely.linestrings(piece), _TOLERANCE))
        if kind == MapKind.ROAD_LINE:
            drawn = _ROAD_LINES.get(subtype, Line.YELLOW if subtype >= _FIRST_YELLOW else Line.WHITE)
        pieces.append(piece)
        kinds.append(drawn)
    return DrawnMap(
        points=np.concatenate(pieces) if pieces else np.zeros((0, 2)),
        starts=np.cumsum([0, *(len(piece) for piece in pieces)], dtype=np.int64),
        kinds=np.array(kinds, dtype=np.uint8),
    )
