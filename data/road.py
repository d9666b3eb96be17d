"""The road as moving agents need it: nearby segments by cell of a grid, computed once per scene.

Shape legend: N segments, G cells, J segments listed in a cell.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from torch import Tensor

from data.scene import MapKind, Scene, map_tensors

__all__ = ["RoadGrid", "Segments", "cell_of", "edge_segments", "grid_of", "road_segments", "stack_grids"]

# How far a simplified polyline may be from the recorded one, metres. WOMD has a point every half metre.
_EDGE_TOLERANCE = 0.02
_VIEW_TOLERANCE = 0.2
# Longer segments are cut, so that nearness to a segment's middle says something.
_VIEW_LENGTH = 10.0
_POLYGONS = (MapKind.CROSSWALK, MapKind.SPEED_BUMP, MapKind.DRIVEWAY)


@dataclass(frozen=True)
class Segments:
    """Straight pieces of map features, centred on the scene. A stop sign is a piece of length zero."""

    start: Tensor  # [N, 2] float32, metres
    end: Tensor  # [N, 2]
    height: Tensor  # [N, 2] z of start and end
    kind: Tensor  # [N] int64, MapKind
    turn: Tensor  # [N, 2] int64: neighbours before and after along the same feature, -1 where there is none


@dataclass(frozen=True)
class RoadGrid:
    """Which segments matter in a square cell of the plane; cells beyond the border count as the nearest one."""

    low: Tensor  # [2] float32, corner of the first cell, metres
    shape: Tensor  # [2] int64, cells along x and y
    table: Tensor  # [G, J] int64 segment numbers, -1 where padded


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
    """Fewer points of a polyline [n, 3], none of the others farther than ``tolerance`` in the plane."""
    if len(points) < 3:
        return points
    line = shapely.simplify(shapely.linestrings(points), tolerance, preserve_topology=False)
    return shapely.get_coordinates(line, include_z=True)


def _cut(points: np.ndarray, longest: float) -> np.ndarray:
    """More points, so that no segment is longer than ``longest``."""
    pieces = [points[:1]]
    for first, second in itertools.pairwise(points):
        count = max(1, int(np.ceil(np.linalg.norm(second[:2] - first[:2]) / longest)))
        share = np.arange(1, count + 1)[:, None] / count
        pieces.append(first + share * (second - first))
    return np.concatenate(pieces)


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
        empty = torch.zeros(0, 2)
        return Segments(
            empty, empty, empty, torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, dtype=torch.int64)
        )
    start, end = (np.concatenate(part).astype(np.float64) for part in (starts, ends))
    center = origin.double().numpy()
    return Segments(
        start=torch.from_numpy((start[:, :2] - center).astype(np.float32)),
        end=torch.from_numpy((end[:, :2] - center).astype(np.float32)),
        height=torch.from_numpy(np.stack((start[:, 2], end[:, 2]), axis=1).astype(np.float32)),
        kind=torch.from_numpy(np.concatenate(kinds).astype(np.int64)),
        turn=torch.from_numpy(np.concatenate(turns).astype(np.int64)),
    )


def edge_segments(scene: Scene, origin: Tensor) -> Segments:
    """Road edges of a single scene, simplified within 2 cm, minus ``origin`` [2]."""
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


def grid_of(
    segments: Segments, low: Tensor, high: Tensor, cell: float, size: int, height: Tensor | None = None
) -> RoadGrid:
    """List for every cell the segments that can be nearest to a point in it.

    A point of a cell is at most r from its centre, so its nearest segment is at most 2 r farther from the centre
    than the centre's nearest. Of these the ``size`` nearest are kept; with ``height``, in metres, segments whose
    heights are all more than 4 m away from it are put last.

    Args:
        segments: of the road. low, high: [2] extent, metres. cell: side, metres. size: J.
        height: scalar, or None for every segment near enough, up to ``size``.
    """
    shape = ((high - low) / cell).ceil().clamp(min=1).long()
    columns = torch.arange(int(shape[0])) + 0.5
    rows = torch.arange(int(shape[1])) + 0.5
    centers = low + torch.cartesian_prod(columns, rows).view(-1, 2) * cell
    count = len(segments.kind)
    if not count:
        return RoadGrid(low, shape, torch.full((len(centers), 1), -1))
    direction = segments.end - segments.start
    squared = (direction * direction).sum(-1).clamp(min=1e-9)
    offset = centers[:, None] - segments.start  # [G, N, 2]
    along = ((offset * direction).sum(-1) / squared).clamp(0.0, 1.0)
    distance = (offset - along.unsqueeze(-1) * direction).norm(dim=-1)
    if height is not None:
        far = (segments.height - height).abs().amin(-1) > 4.0
        distance = distance + far * 1e4
    kept = distance.topk(min(size, count), dim=1, largest=False)
    table = kept.indices
    if height is not None:
        reach = kept.values[:, :1] + cell * 2**0.5 + 0.1
        table = torch.where(kept.values <= reach, table, -1)
        table = table[:, : max(1, int((table >= 0).sum(1).max()))]
    return RoadGrid(low, shape, table)


def cell_of(grid: RoadGrid, position: Tensor, cell: float) -> Tensor:
    """Cell number of points.

    Args:
        grid: batched, [W, ...]. position: [W, A, 2] metres.

    Returns:
        [W, A] int64.
    """
    place = ((position - grid.low.unsqueeze(1)) / cell).floor().long()
    place = torch.minimum(place.clamp(min=0), grid.shape.unsqueeze(1) - 1)
    return place[..., 0] * grid.shape[:, 1, None] + place[..., 1]


def _pad(tensors: Sequence[Tensor], fill: int) -> Tensor:
    size = [max(tensor.shape[axis] for tensor in tensors) for axis in range(tensors[0].dim())]
    result = tensors[0].new_full((len(tensors), *size), fill)
    for row, tensor in zip(result, tensors):
        row[tuple(slice(0, length) for length in tensor.shape)] = tensor
    return result


def stack_grids(parts: Sequence[tuple[Segments, RoadGrid]]) -> tuple[Segments, RoadGrid]:
    """Batch segments and grids of several scenes; there is always one more segment, far away, for padding."""

    def far(value: float, *shape: int) -> Tensor:
        return torch.full(shape, value)

    segments = []
    for part, _ in parts:
        segments.append(
            Segments(
                torch.cat((part.start, far(1e5, 1, 2))),
                torch.cat((part.end, far(1e5, 1, 2))),
                torch.cat((part.height, far(0.0, 1, 2))),
                torch.cat((part.kind, torch.zeros(1, dtype=torch.int64))),
                torch.cat((part.turn, torch.full((1, 2), -1))),
            )
        )
    merged = Segments(
        start=_pad([s.start for s in segments], 100_000),
        end=_pad([s.end for s in segments], 100_000),
        height=_pad([s.height for s in segments], 0),
        kind=_pad([s.kind for s in segments], 0),
        turn=_pad([s.turn for s in segments], -1),
    )
    tables = []
    for (part, grid), _ in zip(parts, segments):
        tables.append(torch.where(grid.table >= 0, grid.table, len(part.kind)))
    width = max(table.shape[1] for table in tables)
    tables = [
        torch.nn.functional.pad(table, (0, width - table.shape[1]), value=len(part.kind))
        for table, (part, _) in zip(tables, parts)
    ]
    grid = RoadGrid(
        low=torch.stack([grid.low for _, grid in parts]),
        shape=torch.stack([grid.shape for _, grid in parts]),
        table=_pad(tables, 0),
    )
    return map_tensors(merged, lambda t: t.contiguous()), grid
