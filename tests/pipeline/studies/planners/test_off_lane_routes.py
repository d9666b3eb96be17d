"""Routes along drives that keep to no lane: into the lane in which they end, or straight on."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.studies.planners.lanes import Lane, Taken
from pipeline.studies.planners.route import _along_drive, _cut


def in_a_row(*ends: float) -> list[Lane]:
    """Lanes along the x axis from 0 to each of the ends, with limits of 10, 20 and 30 m/s."""
    starts = (0.0, *ends)
    return [
        Lane(
            point=np.array([[first, 0.0], [last, 0.0]]),
            travelled=np.array([0.0, last - first]),
            heading=np.zeros(1),
            speed_limit=10.0 * (row + 1),
            successors=(row + 1,) if row + 1 < len(ends) else (),
        )
        for row, (first, last) in enumerate(zip(starts, ends))
    ]


def drive_to(x: float, y: float, heading: float = 0.0) -> np.ndarray:
    """[21, 3] 20 m straight to a pose."""
    back = np.arange(20.0, -1.0, -1.0)
    return np.stack((x - back * np.cos(heading), y - back * np.sin(heading), np.full(21, heading)), axis=-1)


@pytest.mark.parametrize(
    ("ends", "limits"),
    [
        ((100.0, 160.0, 400.0), {26: 10, 98: 10, 102: 20, 158: 20, 162: 30, 285: 30}),
        ((20.0, 80.0, 400.0), {27: 20, 78: 20, 82: 30}),
        ((10.2, 15.0, 400.0), {27: 30, 285: 30}),
        # A metre of a lane or less is left out.
        ((25.9, 80.0, 400.0), {25: 0, 26.1: 20, 82: 30}),
        ((27.0, 80.0, 400.0), {26: 10, 28: 20, 82: 30}),
        # Straight on behind the end of the map.
        ((40.0,), {26: 10, 285: 10}),
        # Nothing of the lane is left to go over to.
        ((20.0,), {26: 0, 285: 0}),
        ((25.0,), {26: 0, 285: 0}),
    ],
)
def test_a_drive_that_ends_in_a_lane_goes_on_in_it(ends: tuple[float, ...], limits: dict[float, float]) -> None:
    """It ends at x = 10, and has reached the lane, or one of those behind, at x = 25."""
    lanes, driven = in_a_row(*ends), drive_to(10.0, 0.0)
    route = _along_drive(lanes, [Taken(0, 0.0, ends[0], False)], driven[0], driven)
    x = route.point[:, 0]
    for place, limit in {-15.0: 0, 9: 0, 12: 0, 24: 0, **limits}.items():
        assert route.speed_limit[np.abs(x - place).argmin()] == limit, place
    np.testing.assert_allclose(route.point[:, 1], 0.0, atol=1e-6)
    assert x[0] == pytest.approx(-20.0, abs=1.0), "ten metres behind the AV"
    assert x[-1] == pytest.approx(-10.0 + 300.0, abs=1.5)
    np.testing.assert_allclose(np.diff(route.distance), 1.0, atol=0.02)


def test_from_a_drive_to_the_lane_beside_it_the_route_is_a_curve() -> None:
    driven = drive_to(10.0, 2.0)
    x, y, _, _ = _along_drive(in_a_row(100.0), [Taken(0, 0.0, 100.0, False)], driven[0], driven).at(
        np.arange(0.0, 90.0, 0.1)
    )
    wanted = np.interp([0.0, 9.0, 13.75, 17.5, 21.25, 27.0, 60.0], x, y)
    np.testing.assert_allclose(wanted, [2.0, 2.0, 1.6875, 1.0, 0.3125, 0.0, 0.0], atol=0.05)


def test_a_drive_without_lanes_is_rounded_off_and_begins_behind_the_car() -> None:
    """A turn of half a radian at a point, smoothed with a standard deviation of 2 m, and as any route with 1 m."""
    before, after = drive_to(0.0, 0.0, 0.5), drive_to(20.0, 0.0)
    driven = np.concatenate((before, after[1:]))
    route = _along_drive([], [], driven[0], driven)
    behind = driven[0, :2] - 10.0 * np.array([np.cos(0.5), np.sin(0.5)])
    assert np.linalg.norm(route.point[0] - behind) < 1.001
    assert np.abs(route.curvature).max() == pytest.approx(0.5 / np.sqrt(2 * np.pi * (2.0**2 + 1.0**2)), rel=0.05)


@pytest.mark.parametrize(
    ("aside", "heading", "joins"),
    [
        (2.9, 0.0, True), (-2.9, 0.0, True), (3.1, 0.0, False), (-3.1, 0.0, False),
        (0.0, 1.04, True), (0.0, -1.04, True), (0.0, 1.06, False), (0.0, -1.06, False), (0.0, np.pi, False),
    ],
)  # fmt: skip
def test_only_a_drive_that_ends_near_a_lane_goes_on_in_it(aside: float, heading: float, joins: bool) -> None:
    lanes, driven = in_a_row(500.0), drive_to(100.0, aside, heading)
    route = _along_drive(lanes, [Taken(0, 0.0, 500.0, False)], driven[0], driven)
    assert (route.speed_limit > 0).any() == joins
    assert (abs(route.heading[-1]) < 1e-3) == (joins or heading == 0)
    assert not _along_drive(lanes, [], driven[0], driven).speed_limit.any()


@pytest.mark.parametrize("turn", [1.0, -1.0])
def test_directions_of_lane_and_drive_are_compared(turn: float) -> None:
    """Both as much turned from the x axis, or to either side of it by more than a right angle together."""
    along = np.array([np.cos(turn), np.sin(turn)])
    lane = Lane(np.stack((0.0 * along, 500.0 * along)), np.array([0.0, 500.0]), np.array([turn]), 10.0, ())
    for heading in (turn, -turn):
        driven = drive_to(100.0 * along[0], 100.0 * along[1], heading)
        route = _along_drive([lane], [Taken(0, 0.0, 500.0, False)], driven[0], driven)
        assert (route.speed_limit > 0).any() == (heading == turn)
        assert route.heading[-1] == pytest.approx(heading, abs=1e-3)


def test_a_polyline_goes_on_as_its_last_metre_does() -> None:
    now = np.zeros(3)
    kinked = _cut(np.array([[-5.0, 0.0], [10.0, 0.0], [10.0001, 0.0001]]), np.array([3.0, 4.0, 5.0]), now)
    np.testing.assert_allclose(kinked.point[:, 1], 0.0, atol=5e-3)
    assert kinked.limit_at(np.array([2.0, 200.0])).tolist() == [3.0, 5.0]
    turned = _cut(np.array([[-5.0, 0.0], [9.0, 0.0], [10.0, 1.0]]), np.zeros(3), now)
    assert turned.heading[-1] == pytest.approx(np.pi / 4, abs=1e-3)
    # Of less than two metres, half of it.
    short = _cut(np.array([[5.0, 0.0], [5.5, 0.0], [5.8, 0.3]]), np.zeros(3), np.array([5.0, 0.0, 0.0]))
    ahead = short.point[-1] - short.point[-100]
    assert np.arctan2(ahead[1], ahead[0]) == pytest.approx(np.arctan2(0.3, 0.8), abs=1e-3)


def test_a_route_is_three_hundred_metres_from_the_car_or_from_its_begin() -> None:
    long, ending = np.array([[0.0, 0.0], [900.0, 0.0]]), np.array([[-50.0, 0.0], [0.3, 0.0]])
    cases = ((long, 400.5, 390.5, 700.5), (long, 5.0, 0, 305), (long, -50, 0, 300), (ending, 0, -10, 300))
    for line, x, first, last in cases:
        route = _cut(line, np.zeros(2), np.array([x, 0.0, 0.0]))
        assert first <= route.point[0, 0] < first + 1.001
        assert last <= route.point[-1, 0] < last + 1.001
        assert route.distance[0] == 0.0
