"""The bicycle model against the circle and the straight line."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.studies.planners.interface import LARGEST_STEERING, WHEELBASE, Control, execute


def test_a_straight_line_is_the_closed_form() -> None:
    pose, speed = np.array([3.0, -1.0, 0.6]), 5.0
    for _ in range(30):
        pose, speed = execute(pose, speed, Control(1.5, 0.0))
    travelled = 5.0 * 3.0 + 1.5 / 2 * 3.0**2
    np.testing.assert_allclose(pose, [3 + travelled * np.cos(0.6), -1 + travelled * np.sin(0.6), 0.6], atol=1e-9)
    assert speed == pytest.approx(9.5)


@pytest.mark.parametrize("steering", [0.05, -0.2, 0.5])
def test_constant_steering_is_a_circle(steering: float) -> None:
    slip = np.arctan(np.tan(steering) / 2)
    radius = WHEELBASE / (np.cos(slip) * np.tan(steering))  # signed, left positive
    start = np.array([1.0, 2.0, 0.4])
    center = start[:2] + radius * np.array([-np.sin(0.4 + slip), np.cos(0.4 + slip)])
    pose, speed = start, 6.0
    for step in range(1, 61):
        pose, speed = execute(pose, speed, Control(0.0, steering))
        assert np.linalg.norm(pose[:2] - center) == pytest.approx(abs(radius), abs=1e-9)
        assert pose[2] == pytest.approx(0.4 + 0.6 * step / radius, abs=1e-9)
    assert speed == 6.0


def test_braking_ends_in_standing() -> None:
    pose, speed = np.zeros(3), 2.0
    for _ in range(20):
        pose, speed = execute(pose, speed, Control(-4.0, 0.3))
    assert speed == 0.0
    fine = np.zeros(3)
    for _ in range(500):
        fine, _ = execute(fine, 1.0, Control(0.0, 0.3), dt=0.001)
    # v^2 / 2a = 0.5 m, on the same arc.
    np.testing.assert_allclose(pose, fine, atol=1e-6)
    np.testing.assert_array_equal(execute(pose, 0.0, Control(-1.0, 0.0))[0], pose)


def test_wheels_turn_only_so_far() -> None:
    much, most = (execute(np.zeros(3), 5.0, Control(0.0, angle))[0] for angle in (2.0, LARGEST_STEERING))
    np.testing.assert_array_equal(much, most)
