"""Which pieces of the road matter where: segments by cell of a grid, computed once per scene.

Shape legend: N segments, G cells, J segments listed in a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.road import Segments
from data.scene import map_tensors

__all__ = ["Z_STRETCH", "RoadGrid", "cell_of", "edge_grid", "stack_grids", "view_grid"]

# Weight of differences of height when the nearest edge is looked for, as in Waymo's metric.
Z_STRETCH = 3.0

# Heights are gathered in levels of so many metres.
_LEVEL = 1.0
# Added to bounds, metres: more than float32 rounds within some kilometres.
_ROUNDING = 0.01
# Into how many parts along x and y cells are divided to find out what can be nearest in them.
_PARTS = 4


@dataclass(frozen=True)
class RoadGrid:
    """Which segments matter in a square cell of the plane.

    Places beyond the border have the list of the nearest cell, which is proven for places in that cell alone.
    """

    low: Tensor  # [2] float32, corner of the first cell, metres
    shape: Tensor  # [2] int64, cells along x and y
    table: Tensor  # [G, J] int32 segment numbers, -1 where padded


def _cells(low: Tensor, high: Tensor, cell: float) -> tuple[Tensor, Tensor]:
    """Cells along x and y [2], and their centres [G, 2]."""
    shape = ((high - low) / cell).ceil().clamp(min=1).long()
    return shape, _centers(low, shape, torch.arange(int(shape.prod())), cell)


def _centers(low: Tensor, shape: Tensor, place: Tensor, cell: float) -> Tensor:
    """Centres [M, 2] of cells by number [M]."""
    return low + (torch.stack((place // shape[1], place % shape[1]), dim=-1) + 0.5) * cell


def _listed(row: Tensor, column: Tensor, rows: int) -> Tensor:
    """Table [rows, J] int32 of the columns paired with each row, -1 where padded; rows ascend."""
    counts = torch.bincount(row, minlength=rows)
    place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    table = torch.full((rows, max(1, int(counts.max()))), -1, dtype=torch.int32)
    table[row, place] = column.int()
    return table


def _height_differences(edges: Segments, heights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Least and largest weighted difference of height [N] between segments and each level of the heights."""
    bottom, top = edges.height.amin(-1), edges.height.amax(-1)
    level = (heights / _LEVEL).floor()
    differences = []
    for value in torch.unique(level):
        inside = heights[level == value]
        gap = torch.maximum(inside.amin() - top, bottom - inside.amax()).clamp(min=0.0)
        reach = torch.maximum(inside.amax() - bottom, top - inside.amin())
        differences.append((Z_STRETCH * gap, Z_STRETCH * reach))
    return differences


def _planar_distance(x: Tensor, y: Tensor, edges: Segments, number: Tensor) -> Tensor:
    """From points (x, y) to segments of some numbers; all broadcast."""
    direction = edges.line[:, 2:4]
    squared = (direction * direction).sum(-1).clamp(min=1e-9)
    along_x, along_y = direction[number, 0], direction[number, 1]
    x, y = x - edges.start[number, 0], y - edges.start[number, 1]
    along = ((x * along_x + y * along_y) / squared[number]).clamp(0.0, 1.0)
    return torch.hypot(x - along * along_x, y - along * along_y)


def _nearest_in_parts(
    edges: Segments,
    differences: list[tuple[Tensor, Tensor]],
    center: Tensor,
    number: Tensor,
    row: Tensor,
    cell: float,
) -> Tensor:
    """Which pairs of a cell and a segment stay when cells are divided into ``_PARTS`` by ``_PARTS`` parts.

    Args:
        center: [M, 2] of the pairs' cells. number: [M] their segments. row: [M] their cells, numbered from 0.
        cell: side, metres.

    Returns:
        [M, _PARTS ** 2] bool: the segment can be the nearest to a point of that part, x before y.
    """
    offset = ((torch.arange(_PARTS) + 0.5) / _PARTS - 0.5) * cell
    part = torch.cartesian_prod(offset, offset)
    radius = cell / _PARTS * 0.5**0.5
    planar = _planar_distance(center[:, :1] + part[:, 0], center[:, 1:] + part[:, 1], edges, number[:, None])
    kept = torch.zeros_like(planar, dtype=torch.bool)
    index = row[:, None].expand_as(planar)
    for gap, reach in differences:
        most = torch.full((int(row.max()) + 1, planar.shape[1]), torch.inf)
        most.scatter_reduce_(0, index, torch.hypot(planar + radius, reach[number, None]), "amin")
        kept |= torch.hypot((planar - radius).clamp(min=0.0), gap[number, None]) <= most[row] + _ROUNDING
    return kept


def _starboard(x: Tensor, y: Tensor, line: Tensor) -> Tensor:
    """Positive where points (x, y) lie on the starboard side of lines [..., 6]."""
    return (x - line[..., 0]) * line[..., 3] - (y - line[..., 1]) * line[..., 2]


def _one_sided(edges: Segments, center: Tensor, number: Tensor, row: Tensor, cell: float) -> Tensor:
    """Which cells lie on one side of all that is listed for them, so that any of it tells the side.

    The side of a point is told by the nearest segment, at its ends together with the neighbour there; all are
    linear functions of the point, whose signs are constant in a cell if they are at its corners.

    Args:
        center: [M, 2] of the cells of pairs of a cell and a segment. number: [M] their segments.
        row: [M] their cells. cell: side, metres.

    Returns:
        [G] bool, for all cells up to the last of ``row``.
    """
    reach = cell / 2 + _ROUNDING
    offset = torch.tensor([[-reach, -reach], [-reach, reach], [reach, -reach], [reach, reach]])
    corner = center[:, None] + offset  # [M, 4, 2]
    turn = edges.turn[number]
    involved = torch.cat((number[:, None], torch.where(turn >= 0, turn, number[:, None])), dim=1)  # [M, 3]
    side = _starboard(corner[:, :, None, 0], corner[:, :, None, 1], edges.line[involved][:, None])  # [M, 4, 3]
    count = int(row.max()) + 1
    least, most = torch.full((count,), torch.inf), torch.full((count,), -torch.inf)
    least.scatter_reduce_(0, row, side.amin((1, 2)), "amin")
    most.scatter_reduce_(0, row, side.amax((1, 2)), "amax")
    return (least > 0) | (most < 0)


def edge_grid(
    edges: Segments, low: Tensor, high: Tensor, cell: float, heights: Tensor, sides_only: bool = False
) -> RoadGrid:
    """List for every cell all segments that can be nearest to a point in it, heights counting ``Z_STRETCH`` times.

    A point of a cell is at most r from its centre. With d the planar distance of the centre to a segment, and gap
    and reach the least and largest difference of their heights, the segment's distance to the point is at least
    hypot(d - r, 3 gap) and at most hypot(d + r, 3 reach). What is at least farther than another is at most cannot
    be the nearest. Cells of sixteen times the area are tried first, then these, then their parts: what can be
    nearest in no part is out, and none that can is lost.

    Args:
        edges: of the road. low, high: [2] extent, metres. cell: side, metres.
        heights: [n] of the points that will be asked for, metres.
        sides_only: keep only what tells on which side of the nearest edge a point lies, not how far from it.
    """
    shape, coarse = _cells(low, high, cell * _PARTS)
    shape = shape * _PARTS
    cells = int(shape.prod())
    count = len(edges.kind)
    if not count:
        return RoadGrid(low, shape, torch.full((cells, 1), -1, dtype=torch.int32))
    differences = _height_differences(edges, heights)
    every = torch.arange(count)
    radius = cell * _PARTS * 0.5**0.5
    planar = _planar_distance(coarse[:, :1], coarse[:, 1:], edges, every[None])  # [G / 16, N]
    possible = torch.zeros_like(planar, dtype=torch.bool)
    for gap, reach in differences:
        most = torch.hypot(planar + radius, reach).amin(1, keepdim=True)
        possible |= torch.hypot((planar - radius).clamp(min=0.0), gap) <= most + _ROUNDING
    row, number = possible.nonzero(as_tuple=True)
    kept = _nearest_in_parts(edges, differences, coarse[row], number, row, cell * _PARTS)
    pair, part = kept.nonzero(as_tuple=True)
    # From (coarse column, coarse row, part) to the number of the cell.
    across = shape[1] // _PARTS
    column = row[pair] // across * _PARTS + part // _PARTS
    line = row[pair] % across * _PARTS + part % _PARTS
    place, number = column * shape[1] + line, number[pair]
    order = place.argsort(stable=True)
    place, number = place[order], number[order]
    center = _centers(low, shape, place, cell)
    stays = _nearest_in_parts(edges, differences, center, number, place, cell).any(1)
    place, number = place[stays], number[stays]
    if sides_only:
        first = torch.ones_like(place, dtype=torch.bool)
        first[1:] = place[1:] != place[:-1]
        needed = first | ~_one_sided(edges, center[stays], number, place, cell)[place]
        place, number = place[needed], number[needed]
    return RoadGrid(low, shape, _listed(place, number, cells))


def view_grid(segments: Segments, low: Tensor, high: Tensor, cell: float, size: int) -> RoadGrid:
    """List for every cell all segments whose middles can be among the ``size`` nearest to a point in it.

    Cells of four times the area are tried first, then these, then their quarters: what is among the nearest in no
    quarter is out.

    Args:
        segments: of the road. low, high: [2] extent, metres. cell: side, metres. size: how many are looked for.
    """
    shape, coarse = _cells(low, high, 2 * cell)
    shape = 2 * shape
    cells = int(shape.prod())
    if not len(segments.kind):
        return RoadGrid(low, shape, torch.full((cells, 1), -1, dtype=torch.int32))
    # A plane for each number.
    planes = zip(segments.middle.unbind(-1), coarse.unbind(-1), strict=True)
    squares = [(plane - center[:, None]).square() for plane, center in planes]
    row, number = _among_nearest(squares[0].add_(squares[1]), size, 2 * cell).nonzero(as_tuple=True)
    listed = _listed(row, number, len(coarse)).long()
    number = torch.arange(cells)
    column, line = number // shape[1], number % shape[1]
    listed = listed[column // 2 * (shape[1] // 2) + line // 2]  # [G, J]
    offset = torch.tensor([-0.25, 0.25]) * cell
    center_x, center_y = _centers(low, shape, number, cell).unsqueeze(-1).unbind(1)
    # One more, nowhere, to which -1 points.
    x, y = torch.cat((segments.middle, torch.full((1, 2), torch.inf))).unbind(-1)
    from_x, from_y = x[listed] - center_x, y[listed] - center_y
    squares_y = [(from_y - aside).square() for aside in offset]
    kept = torch.zeros_like(listed, dtype=torch.bool)
    for aside in offset:
        square_x = (from_x - aside).square()
        for square_y in squares_y:
            kept |= _among_nearest(square_x + square_y, size, cell / 2)
    row, place = (kept & (listed >= 0)).nonzero(as_tuple=True)
    return RoadGrid(low, shape, _listed(row, listed[row, place], cells))


def _among_nearest(squared: Tensor, size: int, cell: float) -> Tensor:
    """Which of the segments listed for a cell can be among the ``size`` nearest to a point in it.

    The one of rank ``size`` around the centre is at most r farther from a point that is r away, and any other one
    is at most r nearer: those more than 2 r farther than it are out.

    Args:
        squared: [G, J] distances from the cells' centres, squared, infinite where there is no segment.
        size: how many are looked for. cell: side, metres.

    Returns:
        [G, J] bool; where there is no segment, whatever it is.
    """
    last = squared.kthvalue(min(size, squared.shape[1]), dim=1, keepdim=True).values
    return squared <= (last.sqrt() + cell * 2**0.5 + _ROUNDING).square()


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

    far = torch.tensor([[1e5, 1e5, 0.0, 0.0, 0.0, 0.0]])
    segments = [
        Segments(
            torch.cat((part.line, far)),
            torch.cat((part.middle, far[:, :2])),
            torch.cat((part.kind, torch.zeros(1, dtype=torch.int64))),
            torch.cat((part.turn, torch.full((1, 2), -1))),
        )
        for part, _ in parts
    ]
    longest = max(len(part.kind) for part in segments)
    merged = Segments(
        line=torch.stack([torch.cat((s.line, far.expand(longest - len(s.line), -1))) for s in segments]),
        middle=torch.stack([torch.cat((s.middle, far[:, :2].expand(longest - len(s.line), -1))) for s in segments]),
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
