"""Road edges from polygons: side of the road, seams, open ends, cutting."""

from __future__ import annotations

import numpy as np
import shapely
from hypothesis import given
from hypothesis import strategies as st

from data.traffic.roadmap import resample
from data.traffic.surface import POINT_SPACING, Surface, edge_lines, split_runs

NOTHING = shapely.Polygon()


def ring_road(caps: shapely.Geometry = NOTHING) -> Surface:
    outer = shapely.box(0, 0, 60, 40)
    return Surface(outer.difference(shapely.box(10, 10, 50, 30)), NOTHING, NOTHING, caps)


def test_road_is_on_the_left_of_outer_and_inner_edges() -> None:
    surface = ring_road()
    lines = edge_lines(surface)
    assert len(lines) == 2
    for line in lines:
        middle, step = (line.points[1:] + line.points[:-1]) / 2, np.diff(line.points, axis=0)
        length = np.linalg.norm(step, axis=1, keepdims=True)
        assert length.max() <= POINT_SPACING + 1e-9
        normal = np.stack([-step[:, 1], step[:, 0]], axis=-1) / length
        left, right = middle + 0.1 * normal, middle - 0.1 * normal
        assert shapely.contains_xy(surface.road, left[:, 0], left[:, 1]).all()
        assert not shapely.contains_xy(surface.road, right[:, 0], right[:, 1]).any()


def test_seam_lies_on_a_straight_piece() -> None:
    for line in edge_lines(ring_road()):
        np.testing.assert_array_equal(line.points[0], line.points[-1])
        before, after = line.points[-1] - line.points[-2], line.points[1] - line.points[0]
        assert abs(before[0] * after[1] - before[1] * after[0]) < 1e-9
        corners = np.array([[0, 0], [60, 0], [60, 40], [0, 40], [10, 10], [50, 10], [50, 30], [10, 30]])
        assert np.linalg.norm(corners - line.points[0], axis=1).min() > 0.4


def test_no_edge_across_the_end_of_a_street() -> None:
    lines = edge_lines(ring_road(caps=shapely.LineString([(0, 0), (0, 40)])))
    ends = np.concatenate([line.points for line in lines])
    assert not ((ends[:, 0] < 0.3) & (ends[:, 1] > 0.5) & (ends[:, 1] < 39.5)).any()
    open_lines = [line for line in lines if not np.array_equal(line.points[0], line.points[-1])]
    assert len(open_lines) == 1
    assert open_lines[0].points[:, 0].max() == 60


def test_small_islands_count_as_medians() -> None:
    road = shapely.box(0, 0, 60, 40).difference(shapely.box(20, 19, 40, 21)).difference(shapely.box(5, 25, 30, 38))
    strip = shapely.box(20, 19, 40, 21)
    assert sorted(line.median for line in edge_lines(Surface(road, NOTHING, strip, NOTHING))) == [
        False,
        False,
        True,
    ]


@given(st.lists(st.booleans(), min_size=2, max_size=30))
def test_runs_are_the_kept_points(keep: list[bool]) -> None:
    points = np.arange(2.0 * len(keep)).reshape(-1, 2)
    runs = split_runs(points, np.array(keep))
    assert all(len(run) > 1 for run in runs)
    found = {float(x) for run in runs for x in run[:, 0]}
    expected = {
        float(points[i, 0])
        for i, kept in enumerate(keep)
        if kept and ((i > 0 and keep[i - 1]) or (i + 1 < len(keep) and keep[i + 1]))
    }
    assert found == expected
    for run in runs:
        np.testing.assert_array_equal(np.diff(run[:, 0]), 2.0)


def test_a_run_passes_over_the_seam_of_a_ring() -> None:
    ring = np.array([[0, 0], [1, 0], [2, 0], [2, 1], [0, 1], [0, 0]], dtype=float)
    (run,) = split_runs(ring, np.array([True, True, False, False, True, True]), closed=True)
    np.testing.assert_array_equal(run, [[0, 1], [0, 0], [1, 0]])


def test_resampled_lines_keep_their_ends_and_length() -> None:
    angle = np.linspace(0, 2, 400)
    arc = 20 * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    even = resample(arc)
    np.testing.assert_allclose(even[[0, -1]], arc[[0, -1]])
    gaps = np.linalg.norm(np.diff(even, axis=0), axis=1)
    assert gaps.sum() > 39.9
    np.testing.assert_allclose(gaps, 0.5, atol=1e-3)
