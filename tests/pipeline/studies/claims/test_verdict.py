"""The rule of verdicts on made-up numbers, and intervals against closed form and other people's code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from pipeline.studies.claims.intervals import Interval, correlation, difference, mean, pearson, spearman
from pipeline.studies.claims.verdict import Verdict, above, below, claim_verdict, within

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


def test_intervals_of_means_are_those_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, (1, 400))
    found = mean(values)
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert found.scenes == 400
    # Trainings vary, too: four of them with a spread of 1 are worth an error of one half and more.
    four = values + np.array([[-1.5], [-0.5], [0.5], [1.5]])
    wide = mean(four)
    assert wide.value == pytest.approx(found.value)
    expected = 1.96 * math.hypot(error, np.std([-1.5, -0.5, 0.5, 1.5]) / 2)
    assert (wide.high - wide.low) / 2 == pytest.approx(expected, rel=0.1)


def test_differences_are_paired() -> None:
    generator = np.random.default_rng(2)
    hard = generator.normal(0, 5, (1, 50))
    first, second = hard + generator.normal(0.5, 0.1, (1, 50)), hard
    found = difference(first, second)
    assert 0.4 < found.low < found.value < found.high < 0.6
    assert mean(first).low < mean(second).high, "apart from each other they do not differ"
    first[0, :3] = np.nan
    assert difference(first, second).scenes == 47
    assert math.isnan(difference(np.full((1, 3), np.nan), np.zeros((1, 3))).value)


def test_correlations() -> None:
    generator = np.random.default_rng(3)
    x, y = generator.normal(size=30), generator.normal(size=30)
    y = y + x
    y[4] = y[7]
    assert pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert math.isnan(pearson(x, np.ones(30)))
    # Three kinds: x ranks them in every scene, but within a kind it says nothing.
    level = np.array([[0.0], [5.0], [10.0]])
    x, y = level + generator.normal(size=(3, 40)), level + generator.normal(size=(3, 40))
    assert correlation(x, y, spearman, "kinds").value == 1.0
    inside = correlation(x, y, spearman, "within")
    assert inside.value == pytest.approx(np.mean([stats.spearmanr(x[:, n], y[:, n]).statistic for n in range(40)]))
    assert inside.low > 0.9
    scenes = correlation(x, y, pearson, "scenes")
    assert scenes.value == pytest.approx(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)]))
    assert scenes.low < 0 < scenes.high
    assert correlation(x, y, pearson, "all").value == pytest.approx(np.corrcoef(x.ravel(), y.ravel())[0, 1])
    assert correlation(x, y, pearson, "kinds", rows=[0, 1]).value == pytest.approx(1.0)
    with pytest.raises(ValueError, match="over"):
        correlation(x, y, pearson, "agents")
