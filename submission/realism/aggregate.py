"""Scores of many scenes: means and buckets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from submission.realism.config import BUCKETS, MetricConfig

__all__ = ["buckets", "mean_metrics"]


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
