"""Bootstrap intervals of means, differences and correlations: over scenes, and over trainings if there are several.

Shape legend: S trainings (seeds), N scenes, G groups, B resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

__all__ = ["Interval", "correlation", "difference", "mean", "pearson", "spearman"]

Array = npt.NDArray[np.float64]

_RESAMPLES = 2000
_LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % percentile interval, and of how many scenes it is; NaN where nothing is known."""

    value: float
    low: float
    high: float
    scenes: int

    def plain(self) -> dict[str, float | None]:
        """For JSON, which has no NaN."""
        return {
            name: value if np.isfinite(value) else None
            for name, value in (("value", self.value), ("low", self.low), ("high", self.high))
        } | {"scenes": self.scenes}


def _interval(value: float, resampled: Array, scenes: int) -> Interval:
    known = resampled[np.isfinite(resampled)]
    if not len(known) or not np.isfinite(value):
        return Interval(float("nan"), float("nan"), float("nan"), scenes)
    low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(float(value), float(low), float(high), scenes)


def _counts(generator: np.random.Generator, size: int) -> Array:
    """[B, size] shares that resampling with replacement gives each of ``size`` things."""
    return generator.multinomial(size, np.full(size, 1 / size), _RESAMPLES) / size


def _known(*tables: Array) -> npt.NDArray[np.bool_]:
    """[N] scenes of which every table [S, N] has a number for every training."""
    return np.all([np.isfinite(table).all(axis=0) for table in tables], axis=0)


def _means(table: Array, scenes: Array, generator: np.random.Generator) -> Array:
    """[B] means of a table [S, N] with resampled trainings, if there are several, and the scenes given."""
    trainings = _counts(generator, len(table)) if len(table) > 1 else np.ones((_RESAMPLES, 1))
    return np.einsum("bs,sn,bn->b", trainings, table, scenes)


def mean(table: Array, seed: int = 0) -> Interval:
    """Of one figure.

    Args:
        table: [S, N], NaN where a scene does not have it; only scenes that all trainings have count.
        seed: of the resampling.
    """
    table = table[:, _known(table)]
    if not table.size:
        return _interval(float("nan"), np.zeros(0), 0)
    generator = np.random.default_rng(seed)
    scenes = _counts(generator, table.shape[1])
    return _interval(float(table.mean()), _means(table, scenes, generator), table.shape[1])


def difference(first: Array, second: Array, seed: int = 0) -> Interval:
    """Of the means of two arms on the same scenes, first minus second: scenes are resampled for both alike,
    trainings for each on its own.

    Args:
        first: [S, N]. second: [S', N], the same scenes in the same order. seed: of the resampling.
    """
    known = _known(first, second)
    first, second = first[:, known], second[:, known]
    if not first.size or not second.size:
        return _interval(float("nan"), np.zeros(0), 0)
    generator = np.random.default_rng(seed)
    scenes = _counts(generator, first.shape[1])
    resampled = _means(first, scenes, generator) - _means(second, scenes, generator)
    return _interval(float(first.mean() - second.mean()), resampled, first.shape[1])


def pearson(x: Array, y: Array) -> float:
    """Correlation of two rows; NaN where one of them does not vary."""
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def spearman(x: Array, y: Array) -> float:
    """Correlation of ranks; ties have their mean rank."""
    return pearson(rankdata(x), rankdata(y))


def correlation(
    x: Array,
    y: Array,
    kind: Callable[[Array, Array], float],
    over: str,
    seed: int = 0,
    rows: Sequence[int] | None = None,
) -> Interval:
    """Correlation of two figures of G kinds of futures in N scenes; scenes are resampled as a whole.

    Args:
        x, y: [G, N]. kind: ``pearson`` or ``spearman``.
        over: ``kinds``, of the G means over scenes; ``scenes``, of the N scenes of each kind, averaged over kinds;
            ``within``, of the G kinds in each scene, averaged over scenes; ``all``, of all G N together.
        seed: of the resampling. rows: of the kinds that count; all by default.
    """
    if rows is not None:
        x, y = x[list(rows)], y[list(rows)]
    known = _known(x, y)
    x, y = x[:, known], y[:, known]
    count = x.shape[1]
    if count < 2:
        return _interval(float("nan"), np.zeros(0), count)
    generator = np.random.default_rng(seed)
    chosen = generator.integers(0, count, (_RESAMPLES, count))
    if over == "within":
        each = np.array([kind(x[:, scene], y[:, scene]) for scene in range(count)])
        each = np.where(np.isfinite(each), each, 0.0)
        return _interval(float(each.mean()), each[chosen].mean(axis=1), count)
    if over not in ("kinds", "scenes", "all"):
        raise ValueError(f"over is {over!r}; expected kinds, scenes, within or all")

    def figure(x: Array, y: Array) -> float:
        if over == "kinds":
            return kind(x.mean(axis=1), y.mean(axis=1))
        if over == "all":
            return kind(x.ravel(), y.ravel())
        parts = [kind(a, b) for a, b in zip(x, y, strict=True)]
        known = [part for part in parts if np.isfinite(part)]
        return float(np.mean(known)) if known else float("nan")

    resampled = np.array([figure(x[:, draw], y[:, draw]) for draw in chosen])
    return _interval(figure(x, y), resampled, count)
