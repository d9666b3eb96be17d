"""The rule of verdicts on made-up numbers."""

from __future__ import annotations

import math

import pytest

from pipeline.evaluation.statistics import Interval
from pipeline.studies.claims.report import Verdict, above, below, claim_verdict, within

C, N, U = Verdict.CONFIRMED, Verdict.NOT_CONFIRMED, Verdict.NOT_DECIDABLE


def interval(low: float, high: float) -> Interval:
    return Interval((low + high) / 2, low, high, 10)


@pytest.mark.parametrize(
    ("low", "high", "is_above", "is_below", "is_within"),
    [
        (0.01, 0.02, C, N, U),
        (-0.02, -0.001, N, C, U),
        (-0.001, 0.02, U, U, U),
        (-0.005, 0.009, U, U, C),
        (0.02, 0.03, C, N, N),
        (0.0, 0.0, N, N, C),
        (math.nan, math.nan, U, U, U),
    ],
)
def test_the_interval_decides(low, high, is_above, is_below, is_within) -> None:
    found = interval(low, high)
    assert above("a", found).verdict == is_above
    assert below("b", found).verdict == is_below
    assert within("c", found, 0.015).verdict == (U if (low, high) == (0.01, 0.02) else is_within)


def test_a_claim_is_what_its_statements_are() -> None:
    good, bad, open_ = above("", interval(1, 2)), above("", interval(-2, -1)), above("", interval(-1, 1))
    assert claim_verdict([good, good]) == C
    assert claim_verdict([good, open_]) == U
    assert claim_verdict([good, open_, bad]) == N
    assert claim_verdict([]) == U
    assert above("", interval(1, 2), 3).verdict == N
    assert [s.bounds for s in (good, below("", interval(0, 1), 2), within("", interval(0, 1), 0.1))] == [
        "above 0",
        "below 2",
        "within -0.1 .. 0.1",
    ]
    assert bad.plain()["verdict"] == "not confirmed"
