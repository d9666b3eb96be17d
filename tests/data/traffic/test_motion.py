"""Box poses from front points: closed forms of the trailing box, smoothing, leaps, noise."""

from __future__ import annotations

import math

import numpy as np
import pytest

from data.traffic.motion import Motion, box_motion, with_tracking_noise

STEPS = 400


def one(
    front: np.ndarray, heading: float, lever: float = 3.0, length: float = 4.0, smoothing: float = 0.3
) -> Motion:
    recorded = np.full((1, len(front)), heading)
    recorded[np.isnan(front[None, :, 0])] = np.nan
    return box_motion(front[None], recorded, *(np.array([value]) for value in (length, lever, smoothing, 40.0)))


def test_straight_line_keeps_speed_and_heading() -> None:
    along = 7.0 * 0.1 * np.arange(STEPS)
    front = np.stack([100 + along * math.cos(0.7), -50 + along * math.sin(0.7)], axis=-1)
    motion = one(front, 0.7)
    np.testing.assert_allclose(motion.heading[0], 0.7, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(motion.velocity[0], axis=-1), 7.0, atol=1e-6)
    np.testing.assert_allclose(motion.centre[0], front - 2.0 * np.array([math.cos(0.7), math.sin(0.7)]), atol=1e-6)


def test_circle_reaches_the_tractrix_steady_state() -> None:
    radius, lever = 10.0, 3.0
    angle = 5.0 * 0.1 / radius * np.arange(STEPS)
    front = radius * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    motion = one(front, math.pi / 2, lever)
    # The trailing point runs on a smaller circle; its direction there is the heading: asin(lever / radius) behind
    # the tangent of the front. The smoothing shrinks the radius a little.
    tangent = angle + math.pi / 2
    behind = np.unwrap(tangent - motion.heading[0])[200:-20]
    assert behind % (2 * math.pi) == pytest.approx(math.asin(lever / radius), abs=0.01)
    assert motion.heading.min() >= -math.pi
    assert motion.heading.max() < math.pi


def test_standing_keeps_heading_through_sideways_jitter() -> None:
    front = np.zeros((STEPS, 2))
    front[100:, 1] = 0.4
    motion = one(front, 0.0)
    change = np.diff(np.unwrap(motion.heading[0]))
    assert np.abs(change).max() < math.radians(2), "a step aside of 0.4 m never makes the box jump"
    np.testing.assert_allclose(motion.heading[0, :80], 0.0, atol=1e-6)
    np.testing.assert_allclose(np.diff(motion.heading[0, 150:]), 0.0, atol=1e-6)


def test_absence_and_leaps() -> None:
    front = np.full((STEPS, 2), np.nan)
    front[50:300, 0] = np.arange(250) * 1.0
    front[50:300, 1] = 0.0
    front[200:300, 0] += 9.0
    motion = one(front, 0.0)
    np.testing.assert_array_equal(np.flatnonzero(motion.present[0]), np.arange(50, 200))
    assert not np.isnan(motion.centre[0, 50:200]).any()
    assert np.isnan(motion.centre[0, ~motion.present[0]]).all()
    np.testing.assert_allclose(motion.velocity[0, 50:200, 0], 10.0, atol=1e-6)


def test_seen_once() -> None:
    front = np.full((5, 2), np.nan)
    front[2] = 1.0, 2.0
    motion = one(front, 0.5)
    np.testing.assert_allclose(motion.velocity[0, 2], 0.0)
    assert motion.heading[0, 2] == pytest.approx(0.5)


def test_noise_has_the_wanted_size_and_spares_who_stands() -> None:
    rng = np.random.default_rng(0)
    heading = np.full((2, 5000), 0.3)
    velocity = np.zeros((2, 5000, 2))
    velocity[0] = 5.0
    still = Motion(np.zeros((2, 5000, 2)), heading, velocity, np.ones((2, 5000), dtype=bool))
    noisy = with_tracking_noise(rng, still, *(np.full(2, value) for value in (0.02, 0.005, 0.002)))
    along, across = (
        noisy.centre[0] @ np.array([math.cos(0.3), math.sin(0.3)]),
        noisy.centre[0] @ np.array([-math.sin(0.3), math.cos(0.3)]),
    )
    assert along.std() == pytest.approx(0.02, rel=0.1)
    assert across.std() == pytest.approx(0.005, rel=0.1)
    assert noisy.heading[0].std() == pytest.approx(0.002, rel=0.1)
    np.testing.assert_array_equal(noisy.centre[1], 0.0)
    np.testing.assert_allclose(noisy.heading[1], 0.3)


def test_velocities_at_the_ends_of_a_gap_are_one_sided() -> None:
    """Recorded but for steps 10 to 12, at a speed that grows all the time."""
    front = np.stack((0.02 * np.arange(30.0) ** 2, np.zeros(30)), axis=-1)
    front[10:13] = np.nan
    motion = one(front, 0.0)
    centre, velocity = motion.centre[0, :, 0], motion.velocity[0, :, 0]
    for step in (0, 13):
        assert velocity[step] == pytest.approx((centre[step + 1] - centre[step]) / 0.1)
    for step in (9, 29):
        assert velocity[step] == pytest.approx((centre[step] - centre[step - 1]) / 0.1)
    for step in (1, 8, 14, 28):
        assert velocity[step] == pytest.approx((centre[step + 1] - centre[step - 1]) / 0.2)
