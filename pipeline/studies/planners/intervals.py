"""Means over scenes that may lack a value, with bootstrap intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from submission.realism import resampled

__all__ = ["Interval", "mean_over_scenes", "percentiles", "scene_weights"]

Floats = NDArray[np.float64]

RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval; NaN where undefined.

    Attributes:
        count: of the scenes that have a value.
    """

    value: float
    low: float
    high: float
    count: int


def scene_weights(scenes: int, seed: int = 0, resamples: int = RESAMPLES) -> Floats:
    """How often each scene is in each resample: [resamples, scenes]."""
    chosen = resampled(scenes, seed, resamples) + scenes * np.arange(resamples)[:, None]
    return np.bincount(chosen.ravel(), minlength=resamples * scenes).reshape(resamples, scenes).astype(np.float64)


def percentiles(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """Interval of resampled values [R]; NaN unless at least half of them are defined."""
    known = values[np.isfinite(values)]
    if 2 * len(known) < len(values):
        return math.nan, math.nan
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def mean_over_scenes(values: Floats, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Mean of values [scenes], those of NaN left out, and its interval over resampled scenes."""
    known = np.isfinite(values)
    if not known.any():
        return Interval(math.nan, math.nan, math.nan, 0)
    filled = np.where(known, values, 0.0)
    weights = scene_weights(len(values), seed, resamples)
    count = weights @ known
    means = np.divide(weights @ filled, count, out=np.full(len(weights), np.nan), where=count > 0)
    return Interval(float(filled.sum() / known.sum()), *percentiles(means), int(known.sum()))
