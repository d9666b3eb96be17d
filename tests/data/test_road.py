"""Segments and grids of the road against brute force over all segments and against shapely."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import shapely
import torch
from torch import Tensor

from data.road import Segments, edge_segments, road_segments
from data.road_grid import Z_STRETCH, RoadGrid, as_batch, cell_of, edge_grid, join_roads, view_grid
from data.scene import MapKind, Scene
from tests.scenes import Mover, circle, hand_made

CELL = 2.5
ORIGIN = torch.zeros(2)
SINGLE = torch.zeros(1, dtype=torch.int64)


def random_lines(seed: int) -> list[list[tuple[float, ...]]]:
    """Wandering polylines at two levels, sharp corners, closed rings, a slope, and lines of two points."""
    rng = np.random.default_rng(seed)
    lines: list[list[tuple[float, ...]]] = []
    for index in range(14):
        steps = rng.normal(size=(int(rng.integers(2, 30)), 2)) * rng.uniform(0.3, 6.0)
        points = rng.uniform(-50, 50, 2) + np.cumsum(steps, axis=0)
        z = 6.0 * (index % 2) + rng.normal(scale=0.3) + np.linspace(0, rng.normal(scale=2.0), len(points))
        lines.append([(float(x), float(y), float(h)) for (x, y), h in zip(points, z)])
    lines += [circle(r, n, (float(x), float(-x)), 0.0) for r, n, x in ((3.0, 5, 20), (12.0, 60, -25), (0.8, 9, 5))]
    return lines


def scene_of(lines: Sequence[Sequence[tuple[float, ...]]]) -> Scene:
    return hand_made([Mover()], [(MapKind.ROAD_EDGE, line) for line in lines])


def brute_rank(edges: Segments, point: Tensor, height: Tensor) -> Tensor:
    """[Q, N] distance with heights weighted, of every point to every segment, in float64 with shapely."""
    lines = shapely.linestrings(torch.stack((edges.start, edges.end), 1).double().numpy())
    places = shapely.points(point.double().numpy())[:, None]
    planar = shapely.distance(places, lines[None])
    length = np.maximum(shapely.length(lines), 1e-9)
    share = shapely.line_locate_point(lines[None], places) / length
    z = edges.height.double().numpy()
    level = z[:, 0] + share * (z[:, 1] - z[:, 0])
    return torch.from_numpy(np.hypot(planar, Z_STRETCH * (height.double().numpy()[:, None] - level)))


def lists(segments: Segments, grid: RoadGrid, point: Tensor, cell: float) -> Tensor:
    """The lists [Q, J] of points [Q, 2], -1 where padded."""
    return as_batch(segments, grid)[1].near(SINGLE, point.unsqueeze(0), cell)[0] - 1


def assert_none_is_lost(edges: Segments, heights: Tensor, seed: int) -> Tensor:
    """The lists [Q, J] of random points, in which the nearest segment of all is."""
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([-45.0, -60.0]), torch.tensor([52.0, 41.0])
    grid = edge_grid(edges, low, high, CELL, heights)
    point = low + (high - low) * torch.rand(1500, 2, generator=generator)
    height = heights[torch.randint(len(heights), (1500,), generator=generator)]
    near = lists(edges, grid, point, CELL)
    rank = brute_rank(edges, point, height)
    listed = rank.gather(1, near.clamp(min=0)).masked_fill(near < 0, math.inf)
    torch.testing.assert_close(listed.amin(1), rank.amin(1), atol=1e-3, rtol=0)
    return near


@pytest.mark.parametrize("seed", range(4))
def test_no_nearest_edge_is_lost(seed: int) -> None:
    edges = edge_segments(scene_of(random_lines(seed)), ORIGIN)
    near = assert_none_is_lost(edges, torch.tensor([-0.4, 0.3, 3.1, 5.8]), seed)
    # And the lists are worth having.
    assert float((near >= 0).sum(1).double().mean()) < 0.1 * len(edges.kind)


@pytest.mark.parametrize(("shift", "rise"), [(0.0, 1.0), (1.25, 0.3)])
def test_none_is_lost_that_is_a_little_higher(shift: float, rise: float) -> None:
    """Edges that go on at another height in the very middle of a cell, or of one of its parts.

    At the middle the lower one is nearest; a few metres along the higher one it is that.
    """
    lines = []
    for x in np.arange(-40.0, 50.0, 10.0) + shift:
        for y in np.arange(-55.0, 40.0, 10.0) + shift:
            lines += [[(x - 4.0, y, 0.0), (x, y, 0.0)], [(x, y, rise), (x + 4.0, y, rise)]]
    edges = edge_segments(scene_of(lines), ORIGIN)
    assert_none_is_lost(edges, torch.tensor([0.0]), 5)


@pytest.mark.parametrize("seed", range(4))
def test_the_side_is_told_by_shorter_lists(seed: int) -> None:
    """Cells on one side of all that may be nearest keep one segment, which has the cell on that side."""
    lines = [circle(30.0 + seed, 80, (5.0, 3.0), 0.0), circle(8.0, 40, (5.0, 3.0), 0.0)[::-1]]
    edges = edge_segments(scene_of(lines), ORIGIN)
    low, high, heights = torch.tensor([-45.0, -60.0]), torch.tensor([52.0, 41.0]), torch.tensor([0.3, 5.8])
    full, short = (edge_grid(edges, low, high, CELL, heights, sides_only) for sides_only in (False, True))
    counts, fewer = (full.table >= 0).sum(1), (short.table >= 0).sum(1)
    cut = fewer < counts
    assert float(cut.double().mean()) > 0.2
    assert (fewer[cut] == 1).all()
    width, sides = short.table.shape[1], set()
    assert torch.equal(short.table[~cut], full.table[~cut, :width])
    for row in cut.nonzero().flatten()[::37].tolist():
        corner = low + CELL * torch.tensor([row // int(full.shape[1]), row % int(full.shape[1])])
        point = (corner + CELL * torch.rand(50, 2, generator=torch.Generator().manual_seed(row)))[:, None]
        line = edges.line[full.table[row][full.table[row] >= 0].long()]
        cross = (point[..., 0] - line[:, 0]) * line[:, 3] - (point[..., 1] - line[:, 1]) * line[:, 2]
        assert int(cross.sign().unique().numel()) == 1
        sides.add(int(cross.sign()[0, 0]))
    assert sides == {-1, 1}, "on and off the road"


def test_heights_decide_which_of_two_levels_is_listed() -> None:
    above, below = [(-20.0, 0.1, 6.0), (20.0, 0.1, 6.0)], [(-20.0, 4.0, 0.0), (20.0, 4.0, 0.0)]
    edges = edge_segments(scene_of([above, below]), ORIGIN)
    low, high = torch.tensor([-10.0, -5.0]), torch.tensor([10.0, 5.0])
    for height, expected in ((0.0, 1), (6.0, 0)):
        table = edge_grid(edges, low, high, CELL, torch.tensor([height])).table
        assert table[table >= 0].unique().tolist() == [expected]
    both = edge_grid(edges, low, high, CELL, torch.tensor([0.0, 6.0])).table
    assert both[both >= 0].unique().tolist() == [0, 1]


def test_a_road_without_edges_has_empty_lists() -> None:
    edges = edge_segments(hand_made([Mover()]), ORIGIN)
    assert len(edges.kind) == 0
    grid = edge_grid(edges, torch.tensor([-5.0, -5.0]), torch.tensor([5.0, 5.0]), CELL, torch.zeros(1))
    assert (grid.table == -1).all()
    assert (view_grid(edges, grid.low, -grid.low, CELL, 4).table == -1).all()
    segments, stacked = as_batch(edges, grid)
    assert segments.kind.tolist() == [0]
    assert stacked.near(SINGLE, torch.zeros(1, 3, 2), CELL).tolist() == [[[0]] * 3]


@pytest.mark.parametrize("size", [1, 6, 1000])
def test_view_lists_hold_the_nearest_middles(size: int) -> None:
    segments = road_segments(scene_of(random_lines(7)), ORIGIN)
    low, high = torch.tensor([-45.0, -60.0]), torch.tensor([52.0, 41.0])
    grid = view_grid(segments, low, high, 6.0, size)
    point = low + (high - low) * torch.rand(1000, 2, generator=torch.Generator().manual_seed(3))
    distance = torch.cdist(point.double(), ((segments.start + segments.end) / 2).double())
    near = lists(segments, grid, point, 6.0)
    listed = distance.gather(1, near.clamp(min=0)).masked_fill(near < 0, math.inf)
    count = min(size, len(segments.kind))
    nearest = distance.topk(count, dim=1, largest=False).values
    torch.testing.assert_close(listed.topk(count, dim=1, largest=False).values, nearest, atol=1e-3, rtol=0)


def test_cells_are_numbered_along_y_first_and_clamped() -> None:
    grid = view_grid(road_segments(scene_of(random_lines(1)), ORIGIN), ORIGIN, torch.tensor([12.0, 8.0]), 4.0, 2)
    # A whole number of pairs.
    assert grid.shape.tolist() == [4, 2]
    point = torch.tensor([[[1.0, 1.0], [1.0, 5.0], [5.0, 1.0], [11.0, 7.0], [-90.0, 99.0], [99.0, -1.0]]])
    segments = road_segments(scene_of(random_lines(1)), ORIGIN)
    cells = cell_of(as_batch(segments, grid)[1], SINGLE, point, 4.0)
    assert cells.tolist() == [[0, 1, 2, 5, 1, 6]]


def test_simplified_edges_stay_within_tolerance_in_plan_and_profile() -> None:
    along = np.linspace(0, 60, 241)
    bend = np.stack((along, 8 * np.sin(along / 15), 0.5 * np.cos(along / 5)), 1)
    bridge = np.stack((along, np.full_like(along, -30.0), 5 * np.exp(-(((along - 30) / 12) ** 2))), 1)
    for line in (bend, bridge):
        points: list[tuple[float, ...]] = [tuple(map(float, point)) for point in line]
        edges = edge_segments(scene_of([points]), ORIGIN)
        assert len(edges.kind) < 80
        kept = torch.cat((edges.start, edges.end[-1:])).double().numpy()
        assert shapely.hausdorff_distance(shapely.linestrings(kept), shapely.linestrings(line[:, :2])) < 0.05
        heights = np.concatenate((edges.height[:, 0].numpy(), edges.height[-1:, 1].numpy()))
        assert float(np.abs(np.interp(line[:, 0], kept[:, 0], heights) - line[:, 2]).max()) < 0.25
    straight = edge_segments(scene_of([[(0.5 * i, 0.0, 0.0) for i in range(100)]]), ORIGIN)
    assert len(straight.kind) == 1


def test_neighbours_along_open_and_closed_edges() -> None:
    square = [(0.0, 0.0, 0.0), (9.0, 0.0, 0.0), (9.0, 9.0, 0.0), (0.0, 9.0, 0.0), (0.0, 0.0, 0.0)]
    hook = [(20.0, 0.0, 0.0), (29.0, 0.0, 0.0), (29.0, 9.0, 0.0)]
    edges = edge_segments(scene_of([square, hook]), ORIGIN)
    assert edges.neighbours.tolist() == [[3, 1], [0, 2], [1, 3], [2, 0], [-1, 5], [4, -1]]


def test_seen_road_is_cut_in_pieces_that_lie_on_it() -> None:
    line = [(0.0, 0.0, 0.0), (25.0, 0.0, 5.0), (25.0, 4.0, 5.0)]
    crosswalk = [(40.0, 0.0), (44.0, 0.0), (44.0, 9.0), (40.0, 9.0)]
    scene = hand_made(
        [Mover()], [(MapKind.LANE, line), (MapKind.CROSSWALK, crosswalk), (MapKind.STOP_SIGN, [(1.0, 2.0)])]
    )
    pieces = road_segments(scene, torch.tensor([5.0, 1.0]))
    lane = pieces.kind == MapKind.LANE
    start, end = pieces.start[lane] + torch.tensor([5.0, 1.0]), pieces.end[lane] + torch.tensor([5.0, 1.0])
    third = 25 / 3
    torch.testing.assert_close(start, torch.tensor([[0.0, 0], [third, 0], [2 * third, 0], [25, 0]]))
    torch.testing.assert_close(end, torch.tensor([[third, 0.0], [2 * third, 0], [25, 0], [25, 4]]))
    torch.testing.assert_close(pieces.height[lane][:, 0], torch.tensor([0.0, 5 / 3, 10 / 3, 5]))
    # A polygon is closed, a sign is a point.
    assert int((pieces.kind == MapKind.CROSSWALK).sum()) == 4
    sign = pieces.kind == MapKind.STOP_SIGN
    assert torch.equal(pieces.start[sign], pieces.end[sign])


def test_roads_of_several_scenes_are_joined_and_chosen() -> None:
    """Every list names the same segments as that of its own scene, and padding a segment far away."""
    extent, batches, singles = torch.tensor([50.0, 40.0]), [], []
    for seed in (1, 2, 3):
        edges = edge_segments(scene_of(random_lines(seed)), ORIGIN)
        singles.append((edges, edge_grid(edges, -extent, extent, CELL, torch.zeros(1))))
        batches.append(as_batch(*singles[-1]))
    empty = edge_segments(hand_made([Mover()]), ORIGIN)
    singles.append((empty, edge_grid(empty, -extent, extent, CELL, torch.zeros(1))))
    batches.append(as_batch(*singles[-1]))
    # Joined in two steps, as a batch of batches.
    merged, joined = join_roads([join_roads(batches[:2]), *batches[2:]])
    assert len(merged.kind) == 1 + sum(len(edges.kind) for edges, _ in singles)
    assert float(merged.start[0].amin()) > 9e4
    assert int(merged.kind[0]) == 0
    for row, (edges, grid) in enumerate(singles):
        point = torch.rand(200, 2, generator=torch.Generator().manual_seed(row)) * 2 * extent - extent
        near = joined.near(torch.tensor([row]), point.unsqueeze(0), CELL)[0]
        own = as_batch(edges, grid)[1].near(SINGLE, point.unsqueeze(0), CELL)[0]
        width = own.shape[1]
        assert (near[:, width:] == 0).all()
        assert torch.equal(near[:, :width] > 0, own > 0)
        alone = as_batch(edges, grid)[0]
        assert torch.equal(merged.line[near[:, :width]], alone.line[own])
        beside, expected = merged.neighbours[near[:, :width]], alone.neighbours[own]
        assert torch.equal(beside < 0, expected < 0)
        assert torch.equal(
            merged.line[beside.clamp(min=0)][beside >= 0], alone.line[expected.clamp(min=0)][beside >= 0]
        )


def test_short_edges_are_not_closed() -> None:
    """Of one or two segments, though their ends are within a metre of each other."""
    short = [(0.0, 0.0, 0.0), (0.6, 0.0, 0.0)]
    hook = [(20.0, 0.0, 0.0), (29.0, 0.0, 0.0), (20.3, 0.3, 0.0)]
    edges = edge_segments(scene_of([short, hook]), ORIGIN)
    assert edges.neighbours.tolist() == [[-1, -1], [-1, 2], [1, -1]]
