"""Scores of many scenes: means, buckets and bootstrap intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from submission.realism.config import BUCKETS, MetricConfig

__all__ = ["bootstrap_intervals", "buckets", "mean_metrics", "resampled"]

_RESAMPLES = 2000


def mean_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Plain mean over scenes of every field, in double precision, as the leaderboard does.

    Raises:
        ValueError: NaN or infinity in a row, which would be that of the mean.
    """
    for number, row in enumerate(rows):
        for name, value in row.items():
            if not math.isfinite(value):
                raise ValueError(f"row {number}: {name} is {value}")
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def buckets(metrics: Mapping[str, float], config: MetricConfig) -> dict[str, float]:
    """Kinematic, interactive and map-based score: likelihoods weighted within each bucket."""
    result = {"realism_meta_metric": metrics["metametric"]}
    for bucket, names in BUCKETS.items():
        weights = [config.weights[name] for name in names]
        total = sum(weight * metrics[f"{name}_likelihood"] for name, weight in zip(names, weights))
        result[bucket] = total / sum(weights)
    return result


def resampled(count: int, seed: int = 0, resamples: int = _RESAMPLES) -> NDArray[np.int64]:
    """Which of ``count`` scenes each resample of the bootstrap consists of: [resamples, count]."""
    return np.random.default_rng(seed).integers(0, count, size=(resamples, count))


def bootstrap_intervals(
    rows: Sequence[Mapping[str, float]], seed: int = 0, level: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap over scenes of the mean of every field."""
    names = list(rows[0])
    table = np.array([[row[name] for name in names] for row in rows])  # [N, F]
    means = table[resampled(len(rows), seed)].mean(axis=1)  # [resamples, F]
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high)}
