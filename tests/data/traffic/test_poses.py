"""SUMO's poses and ours."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.traffic.sumo import angle_of, box_pose, front_point, heading_of

METRES = st.floats(-9000, 9000)


@given(x=METRES, y=METRES, heading=st.floats(-math.pi, math.pi), length=st.floats(0.5, 20))
def test_there_and_back_again(x: float, y: float, heading: float, length: float) -> None:
    pose = np.array([x, y, heading])
    again = box_pose(front_point(pose, length), angle_of(heading), length)
    assert again[:2] == pytest.approx(pose[:2], abs=1e-9)
    assert math.cos(again[2] - heading) == pytest.approx(1.0, abs=1e-12)
    assert -math.pi <= again[2] < math.pi


@pytest.mark.parametrize(
    ("angle", "east", "north"), [(0.0, 0.0, 1.0), (90.0, 1.0, 0.0), (180.0, 0.0, -1.0), (270.0, -1.0, 0.0)]
)
def test_degrees_run_clockwise_from_north(angle: float, east: float, north: float) -> None:
    heading = float(heading_of(angle))
    assert (math.cos(heading), math.sin(heading)) == pytest.approx((east, north), abs=1e-12)
    assert float(angle_of(heading)) % 360 == pytest.approx(angle)
    # The front is half a length ahead of the centre.
    assert front_point(np.array([10.0, 20.0, heading]), 4.0) == pytest.approx((10 + 2 * east, 20 + 2 * north))
