"""Correlations against scipy's on data that are really repeated, and cases in which there is none."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr

from pipeline.evaluation import statistics
from pipeline.studies.planners.summary import METHODS, OVER, Agreement, agreement

Floats = NDArray[np.float64]
DIRECT = {"pearson": pearsonr, "spearman": spearmanr}


def made(planners: int = 7, scenes: int = 12, missing: float = 0.1, steps: int = 4) -> Floats:
    """Two simulators' scores of few different values, so that there are ties, some of them missing."""
    generator = np.random.default_rng(3)
    quality = generator.uniform(size=(1, planners, 1))
    values = np.round(steps * np.clip(quality + 0.3 * generator.normal(size=(2, planners, scenes)), 0, 1)) / steps
    values[generator.uniform(size=values.shape) < missing] = np.nan
    return values


def found(scores: Floats, over: str, method: str, **options: int) -> Agreement:
    rows = agreement(scores, ("a", "b"), **options)
    (row,) = [row for row in rows if (row.over, row.method) == (over, method)]
    return row


def direct(scores: Floats, over: str, method: str) -> float:
    """Plain loops over planners and scenes."""
    x, y = scores
    known = np.isfinite(x) & np.isfinite(y)
    if over == "pairs":
        return float(DIRECT[method](x[known], y[known]).statistic)
    if over == "planners":
        means = [[part[p, known[p]].mean() for p in range(len(x)) if known[p].any()] for part in (x, y)]
        return float(DIRECT[method](*np.round(means, 12)).statistic)
    each = []
    for scene in range(x.shape[1]):
        a, b = x[known[:, scene], scene], y[known[:, scene], scene]
        if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0:
            each.append(DIRECT[method](a, b).statistic)
    return float(np.mean(each))


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("method", METHODS)
def test_values_are_scipys(over: str, method: str) -> None:
    scores = made()
    assert found(scores, over, method).value == pytest.approx(direct(scores, over, method), abs=1e-12)


@pytest.mark.parametrize("over", OVER)
@pytest.mark.parametrize("method", METHODS)
def test_intervals_are_those_of_scenes_drawn_with_replacement(
    over: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every resample made in earnest, scene by scene, and given to scipy."""
    monkeypatch.setattr(statistics, "RESAMPLES", 60)
    scores = made()
    if over == "scenes":
        # Scenes in which nothing varies are left out before scenes are drawn.
        scores = np.delete(
            scores,
            [n for n in range(12) if not math.isfinite(found(scores[:, :, [n]], over, method).value)],
            axis=2,
        )
    count = scores.shape[2]
    draws = np.random.default_rng(5).integers(0, count, (60, count))
    drawn = [direct(scores[:, :, draw], over, method) for draw in draws]
    expected = np.quantile(drawn, [0.025, 0.975])
    row = found(scores, over, method, seed=5)
    assert (row.low, row.high) == pytest.approx(tuple(expected), abs=1e-12)
    assert row.low < row.value < row.high


def test_perfect_and_opposite_agreement() -> None:
    scores = np.random.default_rng(0).uniform(size=(1, 5, 6))
    both = np.concatenate((scores, 0.3 * scores + 0.1))
    opposite = np.concatenate((scores, 1 - scores))
    for row in agreement(both, ("a", "b")):
        assert (row.value, row.low, row.high) == pytest.approx((1.0, 1.0, 1.0))
    for row in agreement(opposite, ("a", "b")):
        assert (row.value, row.low, row.high) == pytest.approx((-1.0, -1.0, -1.0))


def test_a_monotone_but_crooked_relation_is_told_by_spearman_alone() -> None:
    scores = np.linspace(0.3, 1.0, 30).reshape(1, 5, 6)
    rows = {(row.over, row.method): row.value for row in agreement(np.concatenate((scores, scores**8)), ("a", "b"))}
    assert rows["pairs", "spearman"] == pytest.approx(1.0)
    assert rows["pairs", "pearson"] < 0.85


def test_constant_scores_have_no_correlation_and_it_is_said_why() -> None:
    """A planner mean of 0.7 by different sums is constant, too."""
    varied = np.random.default_rng(1).uniform(size=(4, 5))
    constant = np.full((4, 5), 0.7)
    for row in agreement(np.stack((varied, constant)), ("log replay", "policy")):
        assert all(math.isnan(number) for number in (row.value, row.low, row.high))
        if row.over == "scenes":
            assert row.reason == "in no scene do the scores of 3 planners vary in both"
        else:
            assert row.reason == "all scores are equal in policy"
    shuffled = np.stack([np.roll([0.1, 0.2, 0.3, 0.7, 0.9], shift) for shift in range(4)])
    row = found(np.stack((varied, shuffled)), "planners", "pearson")
    assert row.reason == "all scores are equal in b"
    assert not found(np.stack((varied, shuffled)), "pairs", "pearson").reason


def test_too_few_planners_have_no_correlation() -> None:
    row = found(np.random.default_rng(0).uniform(size=(2, 2, 9)), "planners", "spearman")
    assert math.isnan(row.value)
    assert row.reason == "fewer than 3 planners"
    missing = made()
    missing[0, 2:] = np.nan
    row = found(missing, "planners", "pearson")
    assert (row.count, row.reason) == (2, "fewer than 3 planners")


def test_all_simulators_scores_and_counts() -> None:
    scores = np.concatenate((made(), made(missing=0.0)[:1]))
    scores[0, 3] = np.nan
    table = agreement(scores, ("a", "b", "c"))
    assert [(row.first, row.second) for row in table[:: len(OVER) * len(METHODS)]] == [
        ("a", "b"), ("a", "c"), ("b", "c"),
    ]  # fmt: skip
    known = np.isfinite(scores[0]) & np.isfinite(scores[2])
    counts = {row.over: row.count for row in table if (row.first, row.second) == ("a", "c")}
    assert (counts["planners"], counts["pairs"]) == (6, int(known.sum()))
    with pytest.raises(ValueError, match="of 2 simulators"):
        agreement(scores, ("a", "b"))


def test_the_size_of_the_study_takes_seconds() -> None:
    """40 planners in 244 scenes; measured 8 s on one core."""
    scores = np.round(np.random.default_rng(0).uniform(size=(2, 40, 244)), 2)
    start = time.process_time()
    agreement(scores, ("a", "b"))
    assert time.process_time() - start < 60.0
