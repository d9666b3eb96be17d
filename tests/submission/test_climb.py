"""Heights that the way travelled explains, and those that it does not."""

from __future__ import annotations

import numpy as np
import pytest

from submission.suspicion import Recorded, suspicions


def climbing(speed: float, slope: float, rise: float, jump: float = 0.0) -> list[str]:
    """What is odd about one object that drives up a slope, rises besides, metres by the end, and jumps once."""
    time = 0.1 * np.arange(1, 81)
    states = np.zeros((2, 1, 80, 4), dtype=np.float32)
    states[..., 0] = speed * time
    states[..., 2] = slope * speed * time + rise * time / 8
    states[:, :, 40, 2] += jump
    # Two joint scenes that are the same are odd themselves.
    states[1, ..., 1] = 0.01
    recorded = Recorded(
        now=np.zeros((1, 3), dtype=np.float32),
        future=np.zeros((1, 0, 3), dtype=np.float32),
        valid=np.zeros((1, 0), dtype=np.bool_),
        heading=np.zeros(1, dtype=np.float32),
        velocity=np.array([[speed, 0.0]], dtype=np.float32),
        height=np.full(1, 1.6, dtype=np.float32),
        past=np.zeros((1, 10, 2), dtype=np.float32),
        past_valid=np.zeros((1, 10), dtype=np.bool_),
        kind=np.ones(1, dtype=np.int64),
        is_sdc=np.zeros(1, dtype=np.bool_),
    )
    return [str(found) for found in suspicions([7], states, recorded)]


@pytest.mark.parametrize("slope", [0.05, -0.05, 0.3])
def test_who_drives_up_a_hill_is_not_odd(slope: float) -> None:
    """60 m at 5 % are 3 m, more than any single step explains."""
    assert climbing(7.5, slope, 0.0) == []


@pytest.mark.parametrize(("speed", "slope", "rise"), [(0.0, 0.0, 1.5), (0.0, 0.0, -3.0), (1.0, 0.05, 6.0)])
def test_who_rises_without_a_way_is_odd(speed: float, slope: float, rise: float) -> None:
    (line,) = climbing(speed, slope, rise)
    assert "above or below where it started" in line


@pytest.mark.parametrize(("rise", "kinds"), [(0.9, 0), (1.5, 1)])
def test_heights_that_jump_in_a_step(rise: float, kinds: int) -> None:
    """Up and down again within a step each, on a way that explains the height."""
    found = [line for line in climbing(7.5, 0.0, 0.0, jump=rise) if "changes its height" in line]
    assert len(found) == kinds
