"""Planar geometry against shapely and closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.geometry import (
    box_corners,
    box_separation,
    planar_length,
    project_on_polyline,
    rotate,
    time_to_contact,
    to_global,
    to_local,
    wrap_angle,
)

CASES = 10_000


def random_boxes(generator: torch.Generator, spread: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    center = (torch.rand(CASES, 2, generator=generator, dtype=torch.float64) - 0.5) * spread
    heading = (torch.rand(CASES, generator=generator, dtype=torch.float64) - 0.5) * 20
    half = 0.1 + 3.0 * torch.rand(CASES, 2, generator=generator, dtype=torch.float64)
    return center, heading, half


def polygons(center: torch.Tensor, heading: torch.Tensor, half: torch.Tensor) -> np.ndarray:
    """Made without the code under test: shapely turns and moves axis-aligned boxes."""
    x, y = half.numpy().T
    boxes = shapely.box(-x, -y, x, y)
    points = shapely.get_coordinates(boxes).reshape(CASES, 5, 2)
    cos, sin = np.cos(heading.numpy()), np.sin(heading.numpy())
    matrix = np.stack((np.stack((cos, -sin), -1), np.stack((sin, cos), -1)), 1)
    return shapely.polygons(np.einsum("nij,nkj->nki", matrix, points) + center.numpy()[:, None])


def test_lengths_are_rounded_once() -> None:
    """Within a unit in the last place of the length in double precision, also where torch's own root is not."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(CASES, generator=generator) * 100 for _ in range(2))
    x[0] = y[0] = 0.0
    exact = torch.hypot(x.double(), y.double())
    assert float(((planar_length(x, y) - exact).abs() / exact.clamp(min=1e-9)).max()) < 2**-23
    assert planar_length(x[:, None], y[:5]).shape == (CASES, 5)
    assert planar_length(x.double(), y.double()).dtype == torch.float64


def boxes_overlap(*boxes: torch.Tensor) -> torch.Tensor:
    """Whether boxes overlap, of centres, headings and half sizes of the first and the second."""
    center_a, heading_a, half_a, center_b, heading_b, half_b = boxes
    axis_a, axis_b = ((torch.cos(heading), torch.sin(heading)) for heading in (heading_a, heading_b))
    parts = (center_a.unbind(-1), axis_a, half_a.unbind(-1), center_b.unbind(-1), axis_b, half_b.unbind(-1))
    return box_separation(*parts) < 0


def test_overlap_of_ten_thousand_boxes_is_shapelys() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = random_boxes(generator, 8.0), random_boxes(generator, 8.0)
    area = shapely.area(shapely.intersection(polygons(*first), polygons(*second)))
    expected = torch.from_numpy(area > 0)
    assert 0.2 < float(expected.double().mean()) < 0.8
    assert torch.equal(boxes_overlap(*first, *second), expected)
    assert torch.equal(boxes_overlap(*second, *first), expected)
    # In float32 only boxes that hardly touch may be judged otherwise.
    single = boxes_overlap(*(t.float() for t in first), *(t.float() for t in second))
    away = shapely.distance(polygons(*first), polygons(*second))
    clear = torch.from_numpy((area > 1e-3) | (away > 1e-3))
    assert torch.equal(single[clear], expected[clear])


def test_touching_boxes_do_not_overlap() -> None:
    zero, half = torch.zeros(1, 2), torch.ones(1, 2)
    right = torch.tensor([[2.0, 0.0]])
    assert not boxes_overlap(zero, zero[:, 0], half, right, zero[:, 0], half)
    assert boxes_overlap(zero, zero[:, 0], half, right - 1e-3, zero[:, 0], half)


def test_corners_are_those_of_shapely_counter_clockwise_from_front_left() -> None:
    generator = torch.Generator().manual_seed(1)
    center, heading, half = random_boxes(generator, 100.0)
    corners = box_corners(center, heading, 2 * half[:, 0], 2 * half[:, 1])
    mine = shapely.polygons(corners.numpy())
    assert float(shapely.area(shapely.symmetric_difference(mine, polygons(center, heading, half))).max()) < 1e-9
    assert shapely.is_ccw(shapely.get_exterior_ring(mine)).all()
    ahead = to_local(corners[:, 0], center, heading)
    torch.testing.assert_close(ahead, half)


@given(st.floats(-1e4, 1e4), st.integers(-50, 50))
def test_wrapped_angles_are_in_range_and_equal_up_to_turns(angle: float, turns: int) -> None:
    wrapped = wrap_angle(torch.tensor([angle, angle + 2 * math.pi * turns], dtype=torch.float64))
    assert ((wrapped >= -math.pi) & (wrapped < math.pi)).all()
    assert float((wrapped.sin() - math.sin(angle)).abs().max()) < 1e-9
    assert float((wrapped.cos() - math.cos(angle)).abs().max()) < 1e-9


def test_wrapping_never_gives_pi_in_float32() -> None:
    angle = torch.full((1,), -math.pi)
    for _ in range(4):
        angle = torch.nextafter(angle, torch.tensor(-10.0))
        assert float(wrap_angle(angle)) < math.pi


@pytest.mark.parametrize("angle", [0.0, math.pi / 2, -2.0])
def test_rotation_is_that_of_complex_numbers(angle: float) -> None:
    vector = torch.tensor([[3.0, -1.0], [0.5, 2.0]], dtype=torch.float64)
    turned = torch.view_as_complex(vector) * complex(math.cos(angle), math.sin(angle))
    torch.testing.assert_close(rotate(vector, torch.tensor(angle).double()), torch.view_as_real(turned))


def test_frames_are_inverse_to_each_other() -> None:
    point, origin = torch.randn(2, 50, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    heading = torch.linspace(-3, 3, 50, dtype=torch.float64)
    torch.testing.assert_close(to_global(to_local(point, origin, heading), origin, heading), point)
    ahead = origin + torch.stack((heading.cos(), heading.sin()), -1)
    expected = torch.tensor([1.0, 0.0]).double().expand(50, 2)
    torch.testing.assert_close(to_local(ahead, origin, heading), expected)


def test_time_to_contact_is_when_shapelys_boxes_meet() -> None:
    """A moment before they are apart and a moment after they overlap; those that never meet are apart whenever one
    looks."""
    generator = torch.Generator().manual_seed(4)
    first, second = random_boxes(generator, 60.0), random_boxes(generator, 60.0)
    velocity = 20.0 * torch.randn(CASES, 2, generator=generator, dtype=torch.float64)
    velocity[::7, 0], velocity[::5, 1] = 0.0, 0.0
    arguments = [
        (center.unbind(-1), (heading.cos(), heading.sin()), half.unbind(-1))
        for center, heading, half in (first, second)
    ]
    seconds = time_to_contact(*arguments[0], *arguments[1], velocity.unbind(-1))

    def area(time: torch.Tensor) -> np.ndarray:
        moved = second[0] + time[:, None] * velocity
        return shapely.area(shapely.intersection(polygons(*first), polygons(moved, *second[1:])))

    meets, now = seconds.isfinite(), seconds == 0
    assert 0.05 < float(meets.double().mean()) < 0.8
    assert torch.equal(now, torch.from_numpy(area(torch.zeros(CASES)) > 0))
    later = (meets & ~now).numpy()
    finite = torch.where(meets, seconds, 0.0)
    assert (area(finite - 1e-6)[later] == 0).all()
    # Corners that only graze leave again at once.
    assert (area(finite + 1e-4)[later] > 0).mean() > 0.999
    for time in (0.2, 0.9, 2.5):
        assert (area(torch.full((CASES,), time))[~meets.numpy()] == 0).all()


def test_boxes_without_relative_motion_touch_now_or_never() -> None:
    box = (torch.ones(1), torch.zeros(1)), (torch.full((1,), 2.0), torch.ones(1))
    still = (torch.zeros(1), torch.zeros(1))
    near, far = (torch.full((1,), 3.0), torch.zeros(1)), (torch.full((1,), 5.0), torch.zeros(1))
    assert float(time_to_contact(still, *box, near, *box, still)) == 0.0
    assert float(time_to_contact(still, *box, far, *box, still)) == math.inf


def test_projection_on_polylines_is_shapelys_between_the_ends() -> None:
    generator = np.random.default_rng(5)
    line = np.cumsum(generator.normal(size=(12, 2)) + np.array([3.0, 0.0]), axis=0)
    points = np.stack(
        (generator.uniform(line[0, 0] + 1, line[-1, 0] - 1, 500), generator.normal(size=500) * 4), axis=1
    )
    along, aside, segment = project_on_polyline(torch.from_numpy(points), torch.from_numpy(line))
    truth = shapely.LineString(line)
    expected = shapely.line_locate_point(truth, shapely.points(points))
    inner = (expected > 0) & (expected < truth.length)
    assert inner.sum() > 450
    np.testing.assert_allclose(along.numpy()[inner], expected[inner], atol=1e-9)
    lengths = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))))
    assert (lengths[segment.numpy()] <= along.numpy() + 1e-9)[inner].all()
    assert (along.numpy() <= lengths[segment.numpy() + 1] + 1e-9)[inner].all()
    ring = shapely.distance(truth, shapely.points(points))
    assert (np.abs(aside.numpy()) <= ring + 1e-9)[inner].all()


def test_projection_goes_straight_on_beyond_the_ends_and_has_port_positive() -> None:
    line = torch.tensor([[0.0, 0.0], [10.0, 0.0], [10.0, 0.0], [10.0, 10.0]])  # a repeated point changes nothing
    point = torch.tensor([[-3.0, 1.0], [4.0, -2.0], [9.0, 15.0], [12.0, -2.0]])
    along, aside, segment = project_on_polyline(point, line)
    assert along.tolist() == [-3.0, 4.0, 25.0, 10.0]
    assert aside[:3].tolist() == [1.0, -2.0, 1.0]
    assert segment[:3].tolist() == [0, 0, 2]
