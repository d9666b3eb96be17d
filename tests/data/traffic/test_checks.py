"""The generator's own rule checks, on cases whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely

from data.traffic.signals import SignalLane
from data.traffic.window import Boxes, _direction, off_road, overlaps, runs_red_light

RED, GREEN = 4, 6


def boxes(*tracks: list[tuple[float, float, float]], size: tuple[float, float] = (4.0, 2.0)) -> Boxes:
    pose = np.array(tracks, dtype=float)
    return Boxes(pose[..., :2], pose[..., 2], np.array([size] * len(tracks)), np.ones(pose.shape[:2], dtype=bool))


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((3.9, 0.0, 0.0), True),
        ((4.1, 0.0, 0.0), False),
        # Sharp corners would overlap here by 0.1 m both ways; the rounded ones are apart.
        ((3.9, 1.9, 0.0), False),
        ((3.6, 1.6, 0.0), True),
        ((0.0, 2.9, math.pi / 2), True),
        ((0.0, 3.1, math.pi / 2), False),
    ],
)
def test_rounded_boxes(other: tuple[float, float, float], expected: bool) -> None:
    hits = overlaps(boxes([(0.0, 0.0, 0.0)], [other]))
    assert hits.tolist() == [[False, expected], [expected, False]]


def test_overlap_needs_both_valid() -> None:
    pair = boxes([(0, 0, 0), (0, 0, 0)], [(9, 0, 0), (1, 0, 0)])
    assert overlaps(pair)[0, 1]
    pair.valid[1, 1] = False
    assert not overlaps(pair).any()


def test_one_corner_over_the_edge_is_off_the_road() -> None:
    road = shapely.box(0, 0, 100, 7)
    tracks = boxes([(50, 3.5, 0.0)], [(50, 6.2, 0.0)], [(50, 5.9, 0.3)], [(97.9, 3.5, 0.0)], [(98.5, 3.5, 0.0)])
    assert off_road(tracks, road).tolist() == [False, True, True, False, True]
    tracks.valid[1] = False
    assert not off_road(tracks, road)[1]


def test_red_light_counts_only_crossings_on_the_lane_at_red() -> None:
    east, west, aside = 0.0, math.pi, 3.0

    def drive(y: float, heading: float) -> list[tuple[float, float, float]]:
        step = math.cos(heading)
        return [(step * (t - 2.5), y, heading) for t in range(6)]

    tracks = boxes(drive(0, east), drive(aside, east), drive(0, west), [(-1.0, 0.0, east)] * 6)
    # The lane begins eastward and turns off to port.
    start = [_direction(np.array([[0.0, 0.0], [3.0, 0.0], [3.0, 9.0]]))]
    red = [SignalLane(1, np.zeros(2), np.full(6, RED))]
    assert runs_red_light(tracks, red, start).tolist() == [True, False, False, False]
    assert not runs_red_light(boxes(drive(-aside, east)), red, start).any(), "on either side"
    turning = [SignalLane(1, np.zeros(2), np.array([GREEN, GREEN, GREEN, GREEN, RED, RED]))]
    assert not runs_red_light(tracks, turning, start).any()
    # A signal that is never red hides none behind it.
    green = [SignalLane(2, np.zeros(2), np.full(6, GREEN))]
    assert runs_red_light(tracks, green + red, start * 2).tolist() == [True, False, False, False]
