"""The road as moving agents need it: straight pieces of map features. Nearness: ``data.road_grid``.

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

__all__ = [
    "Segments",
    "edge_segments",
    "no_segments",
    "road_segments",
]

# How far a simplified polyline may be from the recorded one, metres. WOMD has a point every half metre.
_EDGE_TOLERANCE = 0.02
_VIEW_TOLERANCE = 0.2
_HEIGHT_TOLERANCE = 0.1
# Longer segments are cut, so that nearness to a segment's middle says something.
_VIEW_LENGTH = 10.0
_POLYGONS = (MapKind.CROSSWALK, MapKind.SPEED_BUMP, MapKind.DRIVEWAY)


@dataclass(frozen=True)
class Segments:
    """Straight pieces of map features, centred on the scene. A stop sign is a piece of length zero."""

    line: Tensor  # [N, 6] float32: x, y of the start, x, y from there to the end, z of start and end; metres
    middle: Tensor  # [N, 2] float32, kept since it is what is looked for
    kind: Tensor  # [N] int64, MapKind
    turn: Tensor  # [N, 2] int64: neighbours before and after along the same feature, -1 where there is none

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


def _features(scene: Scene, kinds: Sequence[MapKind]) -> list[tuple[int, np.ndarray]]:
    """(kind, points [n, 3]) of all features of some kinds; polygons are closed."""
    road = scene.map
    point, owner = road.point.numpy(), road.point_feature.numpy()
    starts = np.searchsorted(owner, np.arange(len(road.kind) + 1))
    result = []
    for index, kind in enumerate(road.kind.tolist()):
        if kind not in kinds or starts[index] == starts[index + 1]:
            continue
        points = point[starts[index] : starts[index + 1]]
        if kind in _POLYGONS:
            points = np.concatenate((points, points[:1]))
        result.append((kind, points))
    return result


def _simplified(points: np.ndarray, tolerance: float) -> np.ndarray:
    """Fewer points of a polyline [n, 3], none of the others farther than about ``tolerance`` in the plane.

    The profile over the length travelled is kept too, since a straight bridge has a crest.
    """
    if len(points) < 3:
        return points
    number = np.arange(len(points))
    travelled = np.cumsum(np.linalg.norm(np.diff(points[:, :2], axis=0, prepend=points[:1, :2]), axis=1))
    kept: set[int] = set()
    for x, y, allowed in (
        (points[:, 0], points[:, 1], tolerance),
        (travelled, points[:, 2], max(tolerance, _HEIGHT_TOLERANCE)),
    ):
        # The number of a point rides along as a third coordinate and tells which points were kept.
        line = shapely.linestrings(np.stack((x, y, number), axis=1))
        simple = shapely.simplify(line, allowed, preserve_topology=False)
        kept.update(shapely.get_coordinates(simple, include_z=True)[:, 2].astype(int).tolist())
    return points[sorted(kept)]


def _cut(points: np.ndarray, longest: float) -> np.ndarray:
    """More points, so that no segment is longer than ``longest``.

    By a thousandth it may be, so that rounding does not decide into how many parts a round length is cut.
    """
    step = np.diff(points, axis=0)
    count = np.maximum(1, np.ceil(np.linalg.norm(step[:, :2], axis=1) / longest - 1e-3)).astype(int)
    owner = np.repeat(np.arange(len(step)), count)
    share = np.arange(1, len(owner) + 1) - (np.cumsum(count) - count)[owner]
    return np.concatenate((points[:1], points[owner] + (share / count[owner])[:, None] * step[owner]))


def no_segments() -> Segments:
    """Of a scene without any."""
    nothing = torch.zeros(0, dtype=torch.int64)
    return Segments(torch.zeros(0, 6), torch.zeros(0, 2), nothing, nothing.new_zeros(0, 2))


def _segments(features: list[tuple[int, np.ndarray]], origin: Tensor) -> Segments:
    starts, ends, kinds, turns = [], [], [], []
    count = 0
    for kind, points in features:
        first, second = (points, points) if len(points) == 1 else (points[:-1], points[1:])
        size = len(first)
        number = np.arange(count, count + size)
        before, after = number - 1, number + 1
        closed = size > 2 and np.linalg.norm(points[0] - points[-1]) < 1.0
        before[0] = number[-1] if closed else -1
        after[-1] = number[0] if closed else -1
        starts.append(first)
        ends.append(second)
        kinds.append(np.full(size, kind))
        turns.append(np.stack((before, after), axis=1))
        count += size
    if not count:
        return no_segments()
    start, end = (np.concatenate(part).astype(np.float64) for part in (starts, ends))
    center = origin.double().numpy()
    parts = (start[:, :2] - center, end[:, :2] - start[:, :2], start[:, 2:], end[:, 2:])
    line = torch.from_numpy(np.concatenate(parts, axis=1).astype(np.float32))
    return Segments(
        line=line,
        middle=line[:, :2] + line[:, 2:4] / 2,
        kind=torch.from_numpy(np.concatenate(kinds).astype(np.int64)),
        turn=torch.from_numpy(np.concatenate(turns).astype(np.int64)),
    )


def edge_segments(scene: Scene, origin: Tensor) -> Segments:
    """Road edges of a single scene, simplified within a few centimetres, minus ``origin`` [2]."""
    features = [
        (kind, _simplified(points, _EDGE_TOLERANCE)) for kind, points in _features(scene, [MapKind.ROAD_EDGE])
    ]
    return _segments([(kind, points) for kind, points in features if len(points) > 1], origin)


def road_segments(scene: Scene, origin: Tensor) -> Segments:
    """All map features of a single scene in pieces of at most 10 m, simplified within 20 cm, minus ``origin``."""
    kinds = [kind for kind in MapKind if kind != MapKind.PADDING]
    features = [
        (kind, _cut(_simplified(points, _VIEW_TOLERANCE), _VIEW_LENGTH)) for kind, points in _features(scene, kinds)
    ]
    return _segments(features, origin)
