"""Signed distance to the nearest road edge (wosac metric, map features), with exact pruning.

The nearest segment has the smallest distance with heights weighted three times. The result is the planar distance,
negative on the road, which is on the left of an edge.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.scene import MapKind, RoadMap
from submission.realism.kinematics import norm, relative
from submission.realism.objects import rotated
from submission.realism.search import block_elements, first_nearest

_Z_STRETCH = 3.0
_CYCLIC_TOLERANCE = 1.0
# Side of the cells that query points are grouped in, metres (heights divided by the stretch).
_CELL = 2.0
# Added to the pruning bound, metres: larger than the rounding of float32 coordinates of a few kilometres.
_MARGIN = 0.02
# Elements of one block of the pairwise tables, which fits into CPU caches.
_BLOCK = 1 << 19


@dataclass(frozen=True)
class RoadEdges:
    """Segments of all road edges, in the order of features and points.

    Attributes:
        start, end: [N, 3] metres.
        before, after: [N] index of the neighbouring segment, -1 where there is none.
        convex_before, convex_after: [N] bool, left turn between the neighbour and this segment.
    """

    start: Tensor
    end: Tensor
    before: Tensor
    after: Tensor
    convex_before: Tensor
    convex_after: Tensor


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def prepare_edges(road: RoadMap, bug_compatible: bool = True) -> RoadEdges:
    """Collect the segments of a map.

    Args:
        road: of a single scene.
        bug_compatible: a closed edge wraps around only if it is the longest of the map, as in Waymo's code, whose
            padding separates the ends of shorter ones.
    """
    device = road.point.device
    feature = road.point_feature
    length = torch.bincount(feature, minlength=len(road.kind))  # [F]
    usable = (road.kind == MapKind.ROAD_EDGE) & (length >= 2)
    index = torch.arange(len(feature), device=device)
    is_start = usable[feature] & (index + 1 < len(feature))
    is_start[:-1] &= feature[:-1] == feature[1:]
    first_point = torch.cumsum(length, 0) - length
    starts = index[is_start]
    owner = feature[starts]
    start, end = road.point[starts], road.point[starts + 1]
    longest = int(length[usable].max()) if bool(usable.any()) else 0
    last_point = first_point + length - 1
    gap = torch.zeros(len(length), device=device)
    gap[usable] = (road.point[first_point[usable]] - road.point[last_point[usable]]).square().sum(-1)
    closed = usable & (gap < _CYCLIC_TOLERANCE)
    if bug_compatible:
        closed &= length == longest
    number = torch.arange(len(starts), device=device)
    is_first, is_last = starts == first_point[owner], starts + 1 == last_point[owner]
    segments = length[owner] - 1
    wraps = closed[owner]
    before = torch.where(is_first, torch.where(wraps, number + segments - 1, -1), number - 1)
    after = torch.where(is_last, torch.where(wraps, number - segments + 1, -1), number + 1)
    direction = end[:, :2] - start[:, :2]
    return RoadEdges(
        start=start,
        end=end,
        before=before,
        after=after,
        convex_before=_cross(direction[before], direction) > 0.0,
        convex_after=_cross(direction, direction[after]) > 0.0,
    )


def _project(point: Tensor, start: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Relative coordinate along segments, and the vector from the nearest point of the segment in the plane.

    All arguments broadcast: [..., 3]. Returns rel_t [...], offset [..., 3], start_to_point [..., 3].
    """
    to_point, direction = point - start, end - start
    rel_t = relative(to_point, direction)
    return rel_t, to_point - direction * rel_t.clamp(0.0, 1.0).unsqueeze(-1), to_point


def _stretched(offset: Tensor) -> Tensor:
    """Length of vectors with weighted heights."""
    return norm(torch.cat((offset[..., :2], offset[..., 2:] * _Z_STRETCH), dim=-1))


def _cells(points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Group points in cells: cell [Q] of every point, smallest and largest coordinates [C, 3] of every cell."""
    scale = points.new_tensor([1.0, 1.0, _Z_STRETCH]) / _CELL
    key = torch.floor(points * scale).to(torch.int64)
    key = key - key.amin(0)
    extent = key.amax(0) + 1
    _, cell = torch.unique((key[:, 0] * extent[1] + key[:, 1]) * extent[2] + key[:, 2], return_inverse=True)
    spread = cell.unsqueeze(-1).expand(-1, 3)
    count = int(cell.max()) + 1
    low = points.new_full((count, 3), torch.inf).scatter_reduce(0, spread, points, "amin")
    high = points.new_full((count, 3), -torch.inf).scatter_reduce(0, spread, points, "amax")
    return cell, low, high


def _candidates(points: Tensor, edges: RoadEdges) -> tuple[Tensor, Tensor]:
    """For every point the segments that can be its nearest.

    The points of a cell are within r of its centre in the plane. So the stretched distance of a segment from any of
    them is at least sqrt(max(0, d - r)^2 + (3 gap)^2) and at most sqrt((d + r)^2 + (3 reach)^2), with d the planar
    distance from the centre, gap and reach the smallest and largest height difference between cell and segment. A
    segment is no candidate if its lower bound exceeds the smallest upper bound.

    Returns:
        cell [Q] of every point, and table [C, K] of ascending segment indices, N where padded.
    """
    cell, low, high = _cells(points)
    center = ((low + high) / 2)[:, :2]
    radius = norm((high - low)[:, :2]) / 2
    bottom = torch.minimum(edges.start[:, 2], edges.end[:, 2])
    top = torch.maximum(edges.start[:, 2], edges.end[:, 2])
    start, direction = edges.start[:, :2], edges.end[:, :2] - edges.start[:, :2]
    squared_length = (direction * direction).sum(-1)
    inverse = torch.where(squared_length == 0, torch.zeros_like(squared_length), 1.0 / squared_length)
    number = len(start)
    rows, columns = [], []
    block = max(1, _BLOCK // number)
    for first in range(0, len(low), block):
        part = slice(first, first + block)
        x = center[part, 0, None] - start[:, 0]  # [C', N]
        y = center[part, 1, None] - start[:, 1]
        along = ((x * direction[:, 0] + y * direction[:, 1]) * inverse).clamp_(0.0, 1.0)
        planar = torch.hypot(x - along * direction[:, 0], y - along * direction[:, 1])
        gap = torch.maximum(low[part, 2, None] - top, bottom - high[part, 2, None]).clamp_(min=0.0)
        reach = torch.maximum(high[part, 2, None] - bottom, top - low[part, 2, None])
        r = radius[part, None]
        lower = torch.hypot((planar - r).clamp_(min=0.0), _Z_STRETCH * gap)
        upper = torch.hypot(planar + r, _Z_STRETCH * reach)
        row, column = (lower <= upper.amin(1, keepdim=True) + _MARGIN).nonzero(as_tuple=True)
        rows.append(row + first)
        columns.append(column)
    row, column = torch.cat(rows), torch.cat(columns)
    per_cell = torch.bincount(row, minlength=len(low))
    slot = torch.arange(len(row), device=row.device) - (torch.cumsum(per_cell, 0) - per_cell)[row]
    table = torch.full((len(low), int(per_cell.max())), number, device=row.device)
    table[row, slot] = column
    return cell, table


@torch.no_grad()
def _nearest_of_all(points: Tensor, edges: RoadEdges) -> Tensor:
    """Index [Q] of the nearest segment of all; shapes do not depend on values."""
    nearest = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    best = torch.full_like(points[:, 0], torch.inf)
    # In planes and in place, since the time is that of moving memory.
    x, y, z = points.T.contiguous().unsqueeze(-1)
    size = max(1, block_elements(points.device) // len(points))
    for first in range(0, len(edges.start), size):
        start = edges.start[first : first + size].T.contiguous()
        direction = edges.end[first : first + size].T - start
        squared_length = direction[0] * direction[0] + direction[1] * direction[1]
        dx, dy, dz = x - start[0], y - start[1], z - start[2]  # [Q, N']
        along = dx * direction[0]
        along.add_(dy * direction[1]).div_(squared_length.masked_fill(squared_length == 0, 1.0)).clamp_(0.0, 1.0)
        dx.sub_(direction[0] * along)
        dy.sub_(direction[1] * along)
        dz.sub_(along.mul_(direction[2])).mul_(_Z_STRETCH)
        squared = dx.mul_(dx).add_(dy.mul_(dy)).add_(dz.mul_(dz))
        least, row = first_nearest(squared)
        # Ties go to the first segment, here to the earlier block.
        nearest = torch.where(least < best, first + row, nearest)
        best = torch.minimum(least, best)
    return nearest


def _nearest_of_candidates(points: Tensor, edges: RoadEdges) -> Tensor:
    """Index [Q] of the nearest segment among the candidates."""
    cell, table = _candidates(points, edges)
    # A padding segment far away.
    far = points.new_full((1, 3), 1e8)
    start, end = torch.cat((edges.start, far)), torch.cat((edges.end, far))
    nearest = torch.empty(len(points), dtype=torch.int64, device=points.device)
    # Most cells have few candidates, so points are sorted by their number of candidates.
    width = (table < len(edges.start)).sum(1)[cell]
    order = torch.argsort(width, stable=True)
    block = max(1, _BLOCK // (8 * table.shape[1]))
    for first in range(0, len(points), block):
        part = order[first : first + block]
        candidates = table[cell[part], : int(width[part[-1]])]  # [Q', K']
        _, offset, _ = _project(points[part, None], start[candidates], end[candidates])
        distance = _stretched(offset)
        # Ties go to the first segment.
        is_least = distance == distance.amin(1, keepdim=True)
        nearest[part] = torch.where(is_least, candidates, len(edges.start)).amin(1)
    return nearest


def signed_distance(points: Tensor, edges: RoadEdges, exhaustive: bool = False) -> Tensor:
    """Planar distance [Q] to the nearest road edge in metres, negative on the road.

    Args:
        points: [Q, 3] metres. edges: with at least one segment.
        exhaustive: search all segments, with shapes that do not depend on values, so that a GPU never waits.
    """
    nearest = _nearest_of_all(points, edges) if exhaustive else _nearest_of_candidates(points, edges)
    rel_t, offset, to_point = _project(points, edges.start[nearest], edges.end[nearest])
    planar = norm(offset[:, :2])

    def side(segment: Tensor) -> Tensor:
        return torch.sign(_cross(points[:, :2] - edges.start[segment, :2], _direction(edges, segment)))

    own = torch.sign(_cross(to_point, _direction(edges, nearest)))
    before, after = edges.before[nearest], edges.after[nearest]
    beside_before, beside_after = side(before.clamp(min=0)), side(after.clamp(min=0))
    sign_before = torch.where(
        edges.convex_before[nearest], torch.maximum(own, beside_before), torch.minimum(own, beside_before)
    )
    sign_after = torch.where(
        edges.convex_after[nearest], torch.maximum(own, beside_after), torch.minimum(own, beside_after)
    )
    sign = torch.where(
        (rel_t < 0.0) & (before >= 0), sign_before, torch.where((rel_t > 1.0) & (after >= 0), sign_after, own)
    )
    return sign * planar


def _direction(edges: RoadEdges, segment: Tensor) -> Tensor:
    return edges.end[segment, :2] - edges.start[segment, :2]


def box_distance(
    position: Tensor, heading: Tensor, size: Tensor, edges: RoadEdges, exhaustive: bool = False
) -> Tensor:
    """Signed distance [...] of boxes in metres: that of the bottom corner farthest off the road.

    Args:
        position: [..., 3] box centres. heading: [...]. size: [..., 3] length, width, height.
        edges, exhaustive: see ``signed_distance``.
    """
    length, width, height = (size * 0.5).unbind(-1)
    x = torch.stack((length, -length, -length, length), dim=-1)
    y = torch.stack((width, width, -width, -width), dim=-1)
    cos, sin = torch.cos(heading).unsqueeze(-1), torch.sin(heading).unsqueeze(-1)
    z = (-height).unsqueeze(-1).expand_as(x)
    corners = torch.cat((rotated(x, y, cos, sin), z.unsqueeze(-1)), dim=-1) + position.unsqueeze(-2)
    return signed_distance(corners.reshape(-1, 3), edges, exhaustive).view(corners.shape[:-1]).amax(-1)
