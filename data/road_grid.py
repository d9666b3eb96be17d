"""Lookup grids over the road: for each cell the segments that can be nearest to a point in it, computed per scene.

Shape legend: N segments, G cells, J segments listed in a cell, W scenes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.road import Segments

# Weight of height differences in the search for the nearest edge, as in Waymo's metric.
Z_STRETCH = 3.0

# Heights are grouped in levels of this size, metres.
_LEVEL = 1.0
# Added to bounds, metres: larger than the float32 rounding within some kilometres of the origin.
_ROUNDING = 0.01
# Cells are divided into this many parts along x and y to prune their lists.
_PARTS = 4


@dataclass(frozen=True)
class RoadGrid:
    """The segments listed for each square cell of the plane.

    Points outside the grid use the list of the nearest cell, which is exact only for points in that cell.
    """

    low: Tensor  # [2] float32, corner of the first cell, metres
    shape: Tensor  # [2] int64, cells along x and y
    table: Tensor  # [G, J] int32 segment indices, -1 where padded


def _cells(low: Tensor, high: Tensor, cell: float) -> tuple[Tensor, Tensor]:
    """Cells along x and y [2], and their centres [G, 2]."""
    shape = ((high - low) / cell).ceil().clamp(min=1).long()
    return shape, _centers(low, shape, torch.arange(int(shape.prod())), cell)


def _centers(low: Tensor, shape: Tensor, index: Tensor, cell: float) -> Tensor:
    """Centres [M, 2] of cells by index [M]."""
    return low + (torch.stack((index // shape[1], index % shape[1]), dim=-1) + 0.5) * cell


def _listed(row: Tensor, column: Tensor, rows: int) -> Tensor:
    """Table [rows, J] int32 of the columns paired with each row, -1 where padded; rows ascend."""
    counts = torch.bincount(row, minlength=rows)
    slot = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
    table = torch.full((rows, max(1, int(counts.max()))), -1, dtype=torch.int32)
    table[row, slot] = column.int()
    return table


def _height_differences(edges: Segments, heights: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Smallest and largest weighted height difference [N] between segments and each level of the heights."""
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
    """Distance in metres from points (x, y) to segments by index; all broadcast."""
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
    """Test pairs of a cell and a segment again on ``_PARTS`` by ``_PARTS`` parts of the cell.

    Args:
        center: [M, 2] centres of the cells. number: [M] segment indices. row: [M] cell indices. cell: side, metres.

    Returns:
        [M, _PARTS ** 2] bool: the segment can be the nearest to a point of that part; parts vary fastest along y.
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
    """Positive where points (x, y) are on the right of lines [..., 6]."""
    return (x - line[..., 0]) * line[..., 3] - (y - line[..., 1]) * line[..., 2]


def _one_sided(edges: Segments, center: Tensor, number: Tensor, row: Tensor, cell: float) -> Tensor:
    """Which cells lie on one side of all segments listed for them, so that any one of these gives the side.

    The nearest segment gives the side of a point, at its ends together with the neighbour there. Each side is a
    linear function of the point, so its sign is constant in a cell if it is the same at the four corners.

    Args:
        center: [M, 2] centres of the cells of (cell, segment) pairs. number: [M] segment indices.
        row: [M] cell indices. cell: side, metres.

    Returns:
        [G] bool, for all cells up to the last of ``row``.
    """
    reach = cell / 2 + _ROUNDING
    offset = torch.tensor([[-reach, -reach], [-reach, reach], [reach, -reach], [reach, reach]])
    corner = center[:, None] + offset  # [M, 4, 2]
    beside = edges.neighbours[number]
    involved = torch.cat((number[:, None], torch.where(beside >= 0, beside, number[:, None])), dim=1)  # [M, 3]
    side = _starboard(corner[:, :, None, 0], corner[:, :, None, 1], edges.line[involved][:, None])  # [M, 4, 3]
    count = int(row.max()) + 1
    least, most = torch.full((count,), torch.inf), torch.full((count,), -torch.inf)
    least.scatter_reduce_(0, row, side.amin((1, 2)), "amin")
    most.scatter_reduce_(0, row, side.amax((1, 2)), "amax")
    return (least > 0) | (most < 0)


def edge_grid(
    edges: Segments, low: Tensor, high: Tensor, cell: float, heights: Tensor, sides_only: bool = False
) -> RoadGrid:
    """List for every cell all segments that can be nearest to a point in it, with heights weighted by
    ``Z_STRETCH``.

    A point of a cell is at most r from its centre. With d the planar distance of the centre to a segment, and gap
    and reach the smallest and largest difference of their heights, the distance of the segment to the point is at
    least hypot(d - r, 3 gap) and at most hypot(d + r, 3 reach). A segment whose lower bound exceeds the upper bound
    of another cannot be the nearest. Cells of sixteen times the area are tested first, then the cells, then their
    parts. A segment is dropped if it cannot be nearest in any part.

    Args:
        edges: of the road. low, high: [2] extent, metres. cell: side, metres.
        heights: [n] of the points that will be looked up, metres.
        sides_only: keep only what decides on which side of the nearest edge a point is, not its distance.
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
    # From (coarse column, coarse row, part) to the index of the cell.
    across = shape[1] // _PARTS
    column = row[pair] // across * _PARTS + part // _PARTS
    line = row[pair] % across * _PARTS + part % _PARTS
    index, number = column * shape[1] + line, number[pair]
    order = index.argsort(stable=True)
    index, number = index[order], number[order]
    center = _centers(low, shape, index, cell)
    stays = _nearest_in_parts(edges, differences, center, number, index, cell).any(1)
    index, number = index[stays], number[stays]
    if sides_only:
        first = torch.ones_like(index, dtype=torch.bool)
        first[1:] = index[1:] != index[:-1]
        needed = first | ~_one_sided(edges, center[stays], number, index, cell)[index]
        index, number = index[needed], number[needed]
    return RoadGrid(low, shape, _listed(index, number, cells))


def view_grid(segments: Segments, low: Tensor, high: Tensor, cell: float, size: int) -> RoadGrid:
    """List for every cell all segments whose middles can be among the ``size`` nearest to a point in it.

    Cells of four times the area are tested first, then the cells, then their quarters. A segment is dropped if it
    is not among the nearest in any quarter.

    Args:
        segments: of the road. low, high: [2] extent, metres. cell: side, metres. size: number of neighbours.
    """
    shape, coarse = _cells(low, high, 2 * cell)
    shape = 2 * shape
    cells = int(shape.prod())
    if not len(segments.kind):
        return RoadGrid(low, shape, torch.full((cells, 1), -1, dtype=torch.int32))
    # x and y apart, for contiguous memory.
    planes = zip(segments.middle.unbind(-1), coarse.unbind(-1), strict=True)
    squares = [(plane - center[:, None]).square() for plane, center in planes]
    row, number = _among_nearest(squares[0].add_(squares[1]), size, 2 * cell).nonzero(as_tuple=True)
    listed = _listed(row, number, len(coarse)).long()
    number = torch.arange(cells)
    column, line = number // shape[1], number % shape[1]
    listed = listed[column // 2 * (shape[1] // 2) + line // 2]  # [G, J]
    offset = torch.tensor([-0.25, 0.25]) * cell
    center_x, center_y = _centers(low, shape, number, cell).unsqueeze(-1).unbind(1)
    # -1 points at an additional segment at infinity.
    x, y = torch.cat((segments.middle, torch.full((1, 2), torch.inf))).unbind(-1)
    from_x, from_y = x[listed] - center_x, y[listed] - center_y
    squares_y = [(from_y - aside).square() for aside in offset]
    kept = torch.zeros_like(listed, dtype=torch.bool)
    for aside in offset:
        square_x = (from_x - aside).square()
        for square_y in squares_y:
            kept |= _among_nearest(square_x + square_y, size, cell / 2)
    row, slot = (kept & (listed >= 0)).nonzero(as_tuple=True)
    return RoadGrid(low, shape, _listed(row, listed[row, slot], cells))


def single_cell(segments: Segments) -> RoadGrid:
    """A grid of one cell that lists all segments: nothing to make, and every look goes through all of them."""
    number = torch.arange(len(segments.kind), dtype=torch.int32).unsqueeze(0)
    return RoadGrid(torch.zeros(2), torch.ones(2, dtype=torch.int64), number)


def _among_nearest(squared: Tensor, size: int, cell: float) -> Tensor:
    """Which of the segments listed for a cell can be among the ``size`` nearest to a point in it.

    A point is at most r from the centre. The segment of rank ``size`` at the centre is at most r farther from the
    point, and any other segment is at most r nearer to it. So those more than 2 r farther than that one are out.

    Args:
        squared: [G, J] squared distances from the centres of the cells, infinite where there is no segment.
        size: number of neighbours. cell: side, metres.

    Returns:
        [G, J] bool, undefined where there is no segment.
    """
    last = squared.kthvalue(min(size, squared.shape[1]), dim=1, keepdim=True).values
    return squared <= (last.sqrt() + cell * 2**0.5 + _ROUNDING).square()


def cell_of(grid: RoadLists, row: Tensor, position: Tensor, cell: float) -> Tensor:
    """Number [N, P] int64 of the cells of points among the cells of all scenes.

    Args:
        grid: of W scenes. row: [N] scenes of the points. position: [N, P, 2] metres. cell: side, metres.
    """
    shape = grid.shape[row].unsqueeze(1)
    column_line = ((position - grid.low[row].unsqueeze(1)) / cell).floor().long()
    column_line = torch.minimum(column_line.clamp(min=0), shape - 1)
    return column_line[..., 0] * shape[..., 1] + column_line[..., 1] + grid.first[row].unsqueeze(1)


@dataclass(frozen=True)
class RoadLists:
    """The grids of W scenes, whose lists stand one behind the other: scenes can be chosen without copying them."""

    low: Tensor  # [W, 2] float32, corners of the first cells, metres
    shape: Tensor  # [W, 2] int64, cells along x and y
    first: Tensor  # [W] int64, numbers of the first cells
    start: Tensor  # [G + 1] int64, where the list of a cell begins; it ends where the next one begins
    entry: Tensor  # [E] int32, rows of the segments of all scenes; the first entry and row 0 are padding
    longest: int  # entries of the longest list, at least 1

    def of_scenes(self, rows: Tensor) -> RoadLists:
        """The lists of some scenes [n]."""
        return replace(self, low=self.low[rows], shape=self.shape[rows], first=self.first[rows])

    def near(self, row: Tensor, position: Tensor, cell: float) -> Tensor:
        """Rows [N, P, J] int64 of the segments listed for points, filled up with row 0; see ``cell_of``."""
        number = cell_of(self, row, position, cell)
        index = self.start[number].unsqueeze(-1) + torch.arange(self.longest, device=row.device)
        index = torch.where(index < self.start[number + 1].unsqueeze(-1), index, 0)
        return self.entry.index_select(0, index.flatten()).view(index.shape).long()


def as_batch(segments: Segments, grid: RoadGrid) -> tuple[Segments, RoadLists]:
    """The road of a single scene as that of a batch of one, with a segment far away in row 0."""
    far = segments.line.new_zeros(1, 6)
    far[:, :2] = 1e5
    neighbours = torch.where(segments.neighbours >= 0, segments.neighbours + 1, -1)
    padded = Segments(
        torch.cat((far, segments.line)),
        torch.cat((far[:, :2], segments.middle)),
        torch.nn.functional.pad(segments.kind, (1, 0)),
        torch.nn.functional.pad(neighbours, (0, 0, 1, 0), value=-1),
    )
    listed = grid.table >= 0
    lists = RoadLists(
        low=grid.low.unsqueeze(0),
        shape=grid.shape.unsqueeze(0),
        first=torch.zeros(1, dtype=torch.int64),
        start=torch.nn.functional.pad(listed.sum(1).cumsum(0) + 1, (1, 0), value=1),
        entry=torch.nn.functional.pad(grid.table[listed] + 1, (1, 0)),
        longest=max(1, int(listed.sum(1).amax())),
    )
    return padded, lists


def join_roads(parts: Sequence[tuple[Segments, RoadLists]]) -> tuple[Segments, RoadLists]:
    """The roads of several batches as one."""
    segments, grids = zip(*parts, strict=True)
    rows = cells = entries = 0
    # Row 0, cell 0 and entry 0 of every part are the same padding.
    neighbours, first = [segments[0].neighbours[:1]], []
    start, entry = [grids[0].start[:1]], [grids[0].entry[:1]]
    for road, grid in parts:
        neighbours.append(torch.where(road.neighbours >= 0, road.neighbours + rows, -1)[1:])
        first.append(grid.first + cells)
        start.append(grid.start[1:] + entries)
        entry.append((grid.entry + rows)[1:])
        rows += len(road.kind) - 1
        cells += len(grid.start) - 1
        entries += len(grid.entry) - 1
    joined = Segments(
        line=torch.cat([segments[0].line[:1], *(road.line[1:] for road in segments)]),
        middle=torch.cat([segments[0].middle[:1], *(road.middle[1:] for road in segments)]),
        kind=torch.cat([segments[0].kind[:1], *(road.kind[1:] for road in segments)]),
        neighbours=torch.cat(neighbours),
    )
    lists = RoadLists(
        low=torch.cat([grid.low for grid in grids]),
        shape=torch.cat([grid.shape for grid in grids]),
        first=torch.cat(first),
        start=torch.cat(start),
        entry=torch.cat(entry),
        longest=max(grid.longest for grid in grids),
    )
    return joined, lists
