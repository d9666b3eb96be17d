"""The nearest of many against roots of all squares, and the nearest lane against the rank of each segment."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from submission.realism.red_light import Lanes, _nearest_lane, _rank
from submission.realism.search import first_nearest


@given(st.integers(0, 2**31), st.sampled_from([0.0, 1e-30, 0.3, 1.0, 1.9, 2.0, 3.99, 7e5, 1e20]))
def test_the_first_of_equal_roots_is_found(seed: int, base: float) -> None:
    """Squares that are a few units in the last place apart often have one root."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.tensor([base]).view(torch.int32) + torch.randint(
        6, (64, 9), generator=generator, dtype=torch.int32
    )
    squared = bits.view(torch.float32)
    roots = squared.double().sqrt().float()
    distance, index = first_nearest(squared)
    expected = roots.amin(1)
    assert torch.equal(distance, expected)
    assert index.tolist() == [
        row.index(least) for row, least in zip(roots.tolist(), expected.tolist(), strict=True)
    ]


@given(st.integers(0, 2**31), st.booleans())
def test_the_lane_of_the_least_rank_is_the_nearest(seed: int, bug_compatible: bool) -> None:
    """Before the start of a segment, beside it, and beyond its end; some have no length."""
    generator = torch.Generator().manual_seed(seed)
    start, direction = (
        torch.randint(-8, 9, (12, 2), generator=generator) / 2,
        torch.randint(-4, 5, (12, 2), generator=generator) / 2,
    )
    points = torch.randint(-12, 13, (40, 2), generator=generator) / 2
    lanes = Lanes(start, direction, lane=torch.arange(100, 112))
    rank = _rank(points[:, None], start, direction, bug_compatible)
    found = _nearest_lane(points, lanes, bug_compatible) - 100
    least = rank.amin(-1)
    torch.testing.assert_close(rank[torch.arange(40), found], least, atol=1e-5, rtol=0)
