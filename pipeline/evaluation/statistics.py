"""Bootstrap intervals of means, paired differences, rates and correlations, over scenes and over trainings.

All are 95 % percentile intervals of ``RESAMPLES`` resamples with a fixed seed, drawn by ``scipy.stats.bootstrap``.
What is not finite is missing, and one rule holds for it:

- a value that is missing on one side of a comparison (arm, training, simulator) is left out on all sides;
- scenes without any value are left out before scenes are drawn; ``Interval.count`` says how many remain;
- a resample without a value (0 / 0, correlation of equal scores) is left out, and the interval is NaN unless at
  least half of the resamples have one.

Shape legend: S trainings (seeds), G groups (planners, kinds of futures), N scenes, B resamples, M points.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.execution.tables import interval_cell

Array = NDArray[np.float64]
Method = Literal["pearson", "spearman"]
Over = Literal["groups", "all", "within", "scenes"]

RESAMPLES = 2000
_LEVEL = 0.95
# How many numbers are resampled at a time.
_CHUNK = 2_000_000
# Scores that differ by less are equal: means of equal scores differ by what float64 rounds.
EQUAL = 1e-9
# Two points always lie on a line.
FEWEST = 3


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval, NaN where undefined.

    Attributes:
        count: of the scenes (of ``correlation``: groups, points or scenes) that have a value.
    """

    value: float
    low: float
    high: float
    count: int

    def plain(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        values = {"value": self.value, "low": self.low, "high": self.high}
        return {name: value if np.isfinite(value) else None for name, value in values.items()} | {
            "scenes": self.count
        }

    def cell(self, digits: int = 3, signed: bool = False) -> str:
        """For people: ``0.668 [0.634, 0.696]``, see ``interval_cell``."""
        return interval_cell(self.value, (self.low, self.high), digits, signed)


def percentiles(values: Array) -> tuple[float, float]:
    """95 % interval of resampled values [B]; NaN unless at least half of them are finite."""
    known = values[np.isfinite(values)]
    if not len(known) or 2 * len(known) < len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


def resample(statistic: Callable[..., Array], *sizes: int, seed: int = 0, width: int = 1) -> Array:
    """Values of a statistic on resampled rows.

    Args:
        statistic: takes indices [B, size] for each of ``sizes`` and returns [..., B].
        sizes: of the samples, which are resampled independently; one of a single row is left as it is.
        seed: of the resampling. width: numbers that the statistic needs for each index, which bounds the memory.

    Returns:
        [..., B].
    """
    # scipy.stats takes seconds to import, which every command would pay for.
    from scipy import stats

    def on_indices(*drawn: Array, axis: int) -> Array:
        following = iter(drawn)
        rows = len(drawn[0])
        return statistic(
            *(next(following).astype(np.int64) if size > 1 else np.zeros((rows, 1), np.int64) for size in sizes)
        )

    samples = [np.arange(size) for size in sizes if size > 1]
    if not samples:
        return statistic(*(np.zeros((1, 1), np.int64) for _ in sizes))
    with warnings.catch_warnings():
        # Of resamples without a value, for which ``percentiles`` has a rule of its own.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            samples,
            on_indices,
            n_resamples=RESAMPLES,
            batch=max(1, _CHUNK // (width * max(sizes))),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(seed),
        )
    return np.asarray(result.bootstrap_distribution)


def mean_intervals(rows: Sequence[Mapping[str, float]], seed: int = 0) -> dict[str, tuple[float, float]]:
    """Low and high of the mean over rows (scenes) of every field."""
    names = list(rows[0])
    table = np.array([[row[name] for name in names] for row in rows])  # [N, F]
    means = resample(lambda scenes: table[scenes].mean(axis=1).T, len(rows), seed=seed, width=len(names))
    return {name: percentiles(values) for name, values in zip(names, means, strict=True)}


def ratio_intervals(
    rows: Sequence[Mapping[str, float]], ratios: Mapping[str, tuple[str, str]], seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Low and high of ratios of sums over rows (scenes), all from the same resamples.

    Args:
        rows: sums of scenes. ratios: names of the sum above and of the sum below, which is not negative.
        seed: of the resampling.
    """
    names = list(rows[0])
    table = np.array([[row[name] for name in names] for row in rows])  # [N, F]
    above, below = ([names.index(pair[side]) for pair in ratios.values()] for side in (0, 1))

    def statistic(scenes: NDArray[np.int64]) -> Array:
        sums = table[scenes].sum(axis=1).T  # [F, B]
        return np.divide(sums[above], sums[below], out=np.full(sums[above].shape, np.nan), where=sums[below] > 0)

    values = resample(statistic, len(rows), seed=seed, width=len(names))
    return {name: percentiles(found) for name, found in zip(ratios, values, strict=True)}


def _complete(*tables: Array) -> list[Array]:
    """Tables [S, N] or [N] as [S, N], of those scenes alone of which all have every value."""
    tables = tuple(np.atleast_2d(table) for table in tables)
    known = np.all([np.isfinite(table).all(axis=0) for table in tables], axis=0)
    return [table[:, known] for table in tables]


def _means(table: Array, scenes: NDArray[np.int64], trainings: NDArray[np.int64]) -> Array:
    """[B] means of a table [S, N] over resampled scenes [B, N] and trainings [B, S]."""
    return np.asarray(table[trainings[:, :, None], scenes[:, None, :]].mean(axis=(1, 2)))


def mean(table: Array, seed: int = 0) -> Interval:
    """Of one figure over scenes, and over trainings if there are several.

    Args:
        table: [N] or [S, N]. seed: of the resampling.
    """
    (table,) = _complete(table)
    if not table.size:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    trainings, scenes = table.shape
    resampled = resample(partial(_means, table), scenes, trainings, seed=seed, width=trainings)
    return Interval(float(table.mean()), *percentiles(resampled), scenes)


def difference(first: Array, second: Array, seed: int = 0) -> Interval:
    """Of the means of two arms on the same scenes, first minus second.

    Scenes are resampled for both alike, trainings for each on its own.

    Args:
        first: [N] or [S, N]. second: [N] or [S', N], the same scenes in the same order. seed: of the resampling.
    """
    first, second = _complete(first, second)
    scenes = first.shape[1]
    if not scenes:
        return Interval(float("nan"), float("nan"), float("nan"), 0)

    def statistic(scenes: NDArray[np.int64], one: NDArray[np.int64], other: NDArray[np.int64]) -> Array:
        return _means(first, scenes, one) - _means(second, scenes, other)

    width = len(first) + len(second)
    resampled = resample(statistic, scenes, len(first), len(second), seed=seed, width=width)
    return Interval(float(first.mean() - second.mean()), *percentiles(resampled), scenes)


def rate(top: Array, bottom: Array, scale: float = 1.0, seed: int = 0) -> Interval:
    """``scale * sum(top) / sum(bottom)`` over scenes.

    Args:
        top, bottom: [N], the bottom not negative. seed: of the resampling.
    """

    def statistic(scenes: NDArray[np.int64]) -> Array:
        below = bottom[scenes].sum(axis=1)
        return np.divide(scale * top[scenes].sum(axis=1), below, out=np.full(len(below), np.nan), where=below > 0)

    if bottom.sum() <= 0:
        return Interval(float("nan"), float("nan"), float("nan"), len(top))
    resampled = resample(statistic, len(top), seed=seed)
    return Interval(float(scale * top.sum() / bottom.sum()), *percentiles(resampled), len(top))


def mean_of_known(values: Array) -> Array:
    """Mean along the last axis of what is finite, NaN where nothing is."""
    known = np.isfinite(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0.0).sum(axis=-1)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _coefficients(x: Array, y: Array, method: Method) -> Array:
    """[...] correlations along the last axis of x, y [..., M], NaN in both or none.

    NaN where there are fewer than three points or one side does not vary.
    """
    from scipy.stats import rankdata

    enough = np.isfinite(x).sum(axis=-1) >= FEWEST
    if method == "spearman":
        x, y = (rankdata(np.round(part, 9), axis=-1, nan_policy="omit") for part in (x, y))
    x, y = (part - mean_of_known(part)[..., None] for part in (x, y))
    x2, y2 = mean_of_known(x * x), mean_of_known(y * y)
    varies = enough & (x2 > EQUAL**2) & (y2 > EQUAL**2)
    product = mean_of_known(x * y)
    return np.divide(product, np.sqrt(x2 * y2), out=np.full(product.shape, np.nan), where=varies)


def _correlate(x: Array, y: Array, method: Method, over: Over) -> Array:
    """[...] of x, y [..., G, N]; see ``correlation``, but for ``within``."""
    if over == "groups":
        return _coefficients(mean_of_known(x), mean_of_known(y), method)
    if over == "all":
        return _coefficients(x.reshape(*x.shape[:-2], -1), y.reshape(*y.shape[:-2], -1), method)
    return mean_of_known(_coefficients(x, y, method))


def correlation(x: Array, y: Array, method: Method, over: Over, seed: int = 0) -> Interval:
    """Pearson's or Spearman's coefficient of two figures of G groups in N scenes.

    Scenes are resampled as a whole. There is no correlation of fewer than three points, nor where one side has
    equal values alone.

    Args:
        x, y: [G, N]. method: whose coefficient.
        over: ``groups``, of the G means over scenes; ``all``, of all G N together; ``within``, of the G groups in
            each scene, averaged over scenes; ``scenes``, of the N scenes of each group, averaged over groups.
        seed: of the resampling.
    """
    known = np.isfinite(x) & np.isfinite(y)
    some = known.any(axis=0)
    x, y = (np.where(known, part, np.nan)[:, some] for part in (x, y))
    if over == "within":
        return mean(_coefficients(x.T, y.T, method), seed)
    counts = {"groups": known.any(axis=1), "all": known, "scenes": some}
    if over not in counts:
        raise ValueError(f"over is {over!r}; expected groups, all, within or scenes")
    count = int(counts[over].sum())
    value = float(_correlate(x, y, method, over)) if some.any() else float("nan")
    if not np.isfinite(value):
        return Interval(value, float("nan"), float("nan"), count)

    def statistic(scenes: NDArray[np.int64]) -> Array:
        return _correlate(np.moveaxis(x[:, scenes], 1, 0), np.moveaxis(y[:, scenes], 1, 0), method, over)

    return Interval(value, *percentiles(resample(statistic, x.shape[1], seed=seed, width=2 * len(x))), count)
