"""Bootstrap intervals against closed form, plain loops and the rule for what is missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr

from pipeline.evaluation import statistics
from pipeline.evaluation.statistics import (
    Interval,
    correlation,
    difference,
    mean,
    mean_intervals,
    percentiles,
    rate,
    resample,
)


def test_intervals_of_fields_are_those_of_their_means() -> None:
    """Of 400 normal numbers the mean is normal, too; and the draws are those of a plain loop."""
    values = np.random.default_rng(1).normal(size=400)
    rows = [{"a": float(value), "b": 3.0} for value in values]
    found = mean_intervals(rows)
    half = 1.96 * values.std() / 20
    assert found["a"] == pytest.approx((values.mean() - half, values.mean() + half), abs=0.15 * half)
    assert found["b"] == (3.0, 3.0)
    assert found != mean_intervals(rows, seed=1)
    table = np.array([list(row.values()) for row in rows])
    drawn = np.random.default_rng(0).integers(0, 400, (2000, 400))
    low, high = np.quantile(table[drawn].mean(axis=1), [0.025, 0.975], axis=0)
    assert found == {"a": (low[0], high[0]), "b": (low[1], high[1])}


def test_memory_is_bounded_and_the_draws_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).normal(size=37)
    whole = resample(lambda rows: values[rows].sum(axis=1), 37, seed=3)
    sizes = []

    def watched(rows):
        sizes.append(rows.size)
        return values[rows].sum(axis=1)

    monkeypatch.setattr(statistics, "_CHUNK", 37 * 13)
    assert (resample(watched, 37, seed=3) == whole).all()
    assert max(sizes) == 37 * 13


def test_intervals_of_means_are_those_of_the_normal_law() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, (1, 400))
    found = mean(values)
    error = values.std() / 20
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert found.count == 400
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
    assert difference(first, second).count == 47
    assert math.isnan(difference(np.full((1, 3), np.nan), np.zeros((1, 3))).value)


def test_what_one_arm_or_training_lacks_is_left_out_of_all_before_scenes_are_drawn() -> None:
    values = np.array([1.0, np.nan, 3.0, 5.0, np.nan])
    assert mean(values, seed=2) == mean(values[[0, 2, 3]], seed=2)
    assert (mean(values).value, mean(values).count) == (3.0, 3)
    two = np.stack((values, [0.0, 1.0, np.inf, 3.0, 4.0]))
    assert mean(two, seed=2) == mean(two[:, [0, 3]], seed=2)
    nothing = mean(np.full(4, np.nan))
    assert math.isnan(nothing.value)
    assert nothing.count == 0
    assert nothing.plain() == {"value": None, "low": None, "high": None, "scenes": 0}


def test_a_single_scene_has_no_spread() -> None:
    assert mean(np.array([2.0])) == Interval(2.0, 2.0, 2.0, 1)
    assert difference(np.array([[2.0]]), np.array([[1.0], [1.0]])) == Interval(1.0, 1.0, 1.0, 1)


def test_an_interval_needs_half_of_the_resamples() -> None:
    values = np.linspace(0.0, 1.0, 101)
    assert percentiles(values) == pytest.approx((0.025, 0.975))
    values[40:] = np.nan
    assert all(math.isnan(bound) for bound in percentiles(values))


def test_rates_without_a_denominator_are_left_out() -> None:
    """One world in three drove at all: 19 of 27 resamples have it."""
    found = rate(np.array([2.0, 0.0, 0.0]), np.array([4.0, 0.0, 0.0]), 10.0)
    assert found == Interval(5.0, 5.0, 5.0, 3)
    rare = rate(np.eye(9)[0], np.eye(9)[0])
    assert rare.value == rare.low == 1.0
    assert math.isnan(rate(np.ones(3), np.zeros(3)).value)


def test_correlations() -> None:
    generator = np.random.default_rng(3)
    # Three kinds: x ranks them in every scene, but within a kind it says nothing.
    level = np.array([[0.0], [5.0], [10.0]])
    x, y = level + generator.normal(size=(3, 40)), level + generator.normal(size=(3, 40))
    assert correlation(x, y, "spearman", "groups").value == pytest.approx(1.0)
    inside = correlation(x, y, "spearman", "within")
    assert inside.value == pytest.approx(np.mean([spearmanr(x[:, n], y[:, n]).statistic for n in range(40)]))
    assert inside.low > 0.9
    scenes = correlation(x, y, "pearson", "scenes")
    assert scenes.value == pytest.approx(np.mean([pearsonr(a, b).statistic for a, b in zip(x, y, strict=True)]))
    assert scenes.low < 0 < scenes.high
    assert correlation(x, y, "pearson", "all").value == pytest.approx(pearsonr(x.ravel(), y.ravel()).statistic)
    assert math.isnan(correlation(x[:2], y[:2], "pearson", "groups").value), "two points always lie on a line"
    assert math.isnan(correlation(x, np.ones_like(y), "pearson", "all").value)
    with pytest.raises(ValueError, match="over"):
        correlation(x, y, "pearson", "agents")  # type: ignore[arg-type]
