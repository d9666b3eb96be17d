"""Straight segments of map features, simplified for the simulator. For lookup see ``data.road_grid``.

Shape legend: N segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from torch import Tensor

from data.scene import MapKind, Scene

# Largest distance of a simplified polyline from the recorded one, metres. WOMD has a point every half metre.
_EDGE_TOLERANCE = 0.02
_VIEW_TOLERANCE = 0.2
_HEIGHT_TOLERANCE = 0.1
# Longer segments are cut, so that the distance to a segment's middle is meaningful.
_VIEW_LENGTH = 10.0
_POLYGONS = (MapKind.CROSSWALK, MapKind.SPEED_BUMP, MapKind.DRIVEWAY)


@dataclass(frozen=True)
class Segments:
    """Straight segments of map features, centred on the scene. A stop sign is a segment of length zero."""

    line: Tensor  # [N, 6] float32: x, y of the start, x, y from there to the end, z of start and end; metres
    middle: Tensor  # [N, 2] float32
    kind: Tensor  # [N] int64, MapKind
    neighbours: Tensor  # [N, 2] int64: segments before and after along the same feature, -1 where there is none

    @property
    def start(self) -> Tensor:
        """[N, 2]"""
        return self.line[..., :2]

    @property
    def end(self) -> Tensor:
        """[N, 2]"""
        return self.line[..., :2] + self.line[..., 2:4]

    @property
    def height(self) -> Tensor:
        """[N, 2] z of start and end"""
        return self.line[..., 4:]


@dataclass(frozen=True)
class _Lines:
    """All lines of a scene in one array of points, which is four times faster than one line after the other."""

    point: np.ndarray  # [n, 3] float64, metres
    owner: np.ndarray  # [n] int64, index of the line; ascending
    kind: np.ndarray  # [F] int64, MapKind; some may have no points

    @property
    def goes_on(self) -> np.ndarray:
        """[n - 1] bool: a point and the next one are of the same line."""
        return self.owner[1:] == self.owner[:-1]

    @property
    def size(self) -> np.ndarray:
        """[n] int64: number of points of a point's line."""
        return np.bincount(self.owner, minlength=len(self.kind))[self.owner]

    @property
    def step(self) -> np.ndarray:
        """[n, 3] metres from the point before, zero at the first of a line."""
        step = np.zeros_like(self.point)
        step[1:] = np.where(self.goes_on[:, None], np.diff(self.point, axis=0), 0.0)
        return step

    def only(self, kept: np.ndarray) -> _Lines:
        """The lines with the points selected by ``kept`` [n] bool."""
        return _Lines(self.point[kept], self.owner[kept], self.kind)


def _lines(scene: Scene, kinds: Sequence[MapKind]) -> _Lines:
    """All features of some kinds; polygons are closed."""
    road = scene.map
    kind = road.kind.numpy()
    count = np.bincount(road.point_feature.numpy(), minlength=len(kind))
    first = np.cumsum(count) - count
    (feature,) = (np.isin(kind, kinds) & (count > 0)).nonzero()
    kind, count, first = kind[feature], count[feature], first[feature]
    longer = count + np.isin(kind, _POLYGONS)
    owner = np.repeat(np.arange(len(feature)), longer)
    rank = np.arange(len(owner)) - (np.cumsum(longer) - longer)[owner]
    return _Lines(road.point.numpy()[first[owner] + rank % count[owner]].astype(np.float64), owner, kind)


def _simplified(lines: _Lines, tolerance: float) -> _Lines:
    """Drop points that are within about ``tolerance`` of the simplified line in the plane.

    The height profile is simplified too, since a bridge that is straight in the plane has a crest.
    """
    point = lines.point
    # The length of earlier lines is a constant offset, which does not change the shape.
    travelled = np.cumsum(np.linalg.norm(lines.step[:, :2], axis=1))
    kept = lines.size < 3
    (long,) = (~kept).nonzero()
    if len(long):
        number = np.unique(lines.owner[long], return_inverse=True)[1]
        for x, y, allowed in (
            (point[long, 0], point[long, 1], tolerance),
            (travelled[long], point[long, 2], max(tolerance, _HEIGHT_TOLERANCE)),
        ):
            # The index of a point is its third coordinate, which tells the points that were kept.
            line = shapely.linestrings(np.stack((x, y, long), axis=1), indices=number)
            simple = shapely.simplify(line, allowed, preserve_topology=False)
            kept[shapely.get_coordinates(simple, include_z=True)[:, 2].astype(np.int64)] = True
    return lines.only(kept)


def _cut(lines: _Lines, longest: float) -> _Lines:
    """Add points, so that no segment is longer than ``longest`` by more than a thousandth.

    The thousandth keeps rounding from deciding the number of parts of a round length.
    """
    step = lines.step
    parts = np.maximum(1, np.ceil(np.linalg.norm(step[:, :2], axis=1) / longest - 1e-3)).astype(np.int64)
    number = np.repeat(np.arange(len(parts)), parts)
    part = np.arange(1, len(number) + 1) - (np.cumsum(parts) - parts)[number]
    back = 1 - part / parts[number]
    return _Lines(lines.point[number] - back[:, None] * step[number], lines.owner[number], lines.kind)


def no_segments() -> Segments:
    """Segments of a scene without any."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Segments(torch.zeros(0, 6), torch.zeros(0, 2), nothing, nothing.new_zeros(0, 2))


def _segments(lines: _Lines, origin: Tensor) -> Segments:
    point = lines.point
    if not len(point):
        return no_segments()
    # Every point but the last of a line begins a segment; a line of one point is a segment of length zero.
    last = np.append(~lines.goes_on, True)
    (begin,) = (~last | (lines.size == 1)).nonzero()
    end = begin + ~last[begin]
    feature = lines.owner[begin]
    heads = np.unique(feature, return_index=True)[1]
    tails = np.append(heads[1:], len(feature)) - 1
    gap = np.linalg.norm(point[begin[heads]] - point[end[tails]], axis=1)
    closed = (tails - heads > 1) & (gap < 1.0)
    number = np.arange(len(begin))
    before, after = number - 1, number + 1
    before[heads], after[tails] = np.where(closed, tails, -1), np.where(closed, heads, -1)
    start, stop = point[begin], point[end]
    center = origin.double().numpy()
    parts = (start[:, :2] - center, stop[:, :2] - start[:, :2], start[:, 2:], stop[:, 2:])
    line = torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))
    return Segments(
        line=line,
        middle=line[:, :2] + line[:, 2:4] / 2,
        kind=torch.from_numpy(lines.kind[feature].astype(np.int64)),
        neighbours=torch.from_numpy(np.stack((before, after), axis=1)),
    )


def edge_segments(scene: Scene, origin: Tensor) -> Segments:
    """Road edges of a single scene, simplified within a few centimetres, minus ``origin`` [2]."""
    lines = _simplified(_lines(scene, [MapKind.ROAD_EDGE]), _EDGE_TOLERANCE)
    return _segments(lines.only(lines.size > 1), origin)


def road_segments(scene: Scene, origin: Tensor) -> Segments:
    """All map features of a single scene, simplified within 20 cm and cut to 10 m, minus ``origin`` [2]."""
    kinds = [kind for kind in MapKind if kind != MapKind.PADDING]
    return _segments(_cut(_simplified(_lines(scene, kinds), _VIEW_TOLERANCE), _VIEW_LENGTH), origin)
