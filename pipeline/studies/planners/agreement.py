"""Whether simulators agree about planners: correlations of their scores.

Three questions, each with Pearson's and Spearman's coefficient (scipy) and a 95 % bootstrap interval over scenes:

- over ``planners``: of the planners' means over scenes; do the simulators rank planners alike?
- over ``pairs``: of all (planner, scene) scores at once; do they say the same of each drive?
- over ``scenes``: of the planners within a scene, averaged over scenes; do they rank planners alike in each scene?

A score that lacks (NaN) in one simulator is left out of both. Where all scores are equal there is no correlation:
the value is NaN, and ``reason`` says so. The bootstrap draws scenes with replacement, all planners and simulators
of a scene together; it weights what is drawn more than once, which equals repeating it (tested).

Shape legend: S simulators, P planners, N scenes, R resamples, M (planner, scene) pairs, G different values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import pearsonr, rankdata, spearmanr

from pipeline.studies.planners.intervals import RESAMPLES, percentiles, scene_weights

__all__ = ["METHODS", "OVER", "Agreement", "agreement", "agreements"]

Floats = NDArray[np.float64]

METHODS = ("pearson", "spearman")
OVER = ("planners", "pairs", "scenes")
# Scores that differ by less are equal: means of equal scores differ by what float64 rounds.
_EQUAL = 1e-9
# Two points always lie on a line.
_FEWEST = 3
# How many numbers of the bootstrap are held at a time.
_CHUNK = 2_000_000


@dataclass(frozen=True)
class Agreement:
    """How one score agrees between two simulators.

    Attributes:
        first, second: the simulators. over: one of ``OVER``. method: one of ``METHODS``.
        value, low, high: coefficient and its 95 % interval, NaN where undefined.
        count: of the planners, pairs or scenes behind the value. reason: why it is undefined, or empty.
    """

    first: str
    second: str
    over: str
    method: str
    value: float
    low: float
    high: float
    count: int
    reason: str = ""


def _pearson(x: Floats, y: Floats, weight: Floats | None = None) -> Floats:
    """Coefficients [...] along the last axis, weighted; NaN where either does not vary or is NaN."""
    weight = np.ones_like(x) if weight is None else weight
    total = weight.sum(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        x = x - (weight * x).sum(-1, keepdims=True) / total
        y = y - (weight * y).sum(-1, keepdims=True) / total
        total = total[..., 0]
        x2, y2 = (weight * x * x).sum(-1) / total, (weight * y * y).sum(-1) / total
        result: Floats = (weight * x * y).sum(-1) / total / np.sqrt(x2 * y2)
    return np.where((x2 > _EQUAL**2) & (y2 > _EQUAL**2), result, np.nan)


def _weighted_ranks(values: Floats, weight: Floats) -> Floats:
    """Mean ranks [R, M] of values [M] if each is there ``weight`` [R, M] times; those of weight 0 mean nothing."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.concatenate(([True], np.diff(values[order]) > _EQUAL)))  # [G]
    each = np.add.reduceat(weight[:, order], starts, axis=1)  # [R, G]
    middle = np.cumsum(each, axis=1) - each + (each + 1) / 2
    group = np.zeros(len(values), dtype=np.int64)
    group[order] = np.repeat(np.arange(len(starts)), np.diff(np.append(starts, len(values))))
    return middle[:, group]


def _coefficient(method: str, x: Floats, y: Floats) -> float:
    return float((pearsonr if method == "pearson" else spearmanr)(x, y).statistic)


def _means(scores: Floats, known: NDArray[np.bool_], weights: Floats) -> Floats:
    """[R, P] means of scores [P, N] over weighted scenes [R, N], NaN where a planner has none."""
    total, count = weights @ np.where(known, scores, 0.0).T, weights @ known.T
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _over_planners(method: str, x: Floats, y: Floats, known: NDArray[np.bool_], weights: Floats) -> Floats:
    """[R] coefficients of planners' means."""
    x, y = _means(x, known, weights), _means(y, known, weights)
    if method == "spearman":
        # Rounded, so that equal means tie.
        x, y = (rankdata(np.round(part, 9), axis=-1, nan_policy="propagate") for part in (x, y))
    return _pearson(x, y)


def _over_pairs(method: str, x: Floats, y: Floats, known: NDArray[np.bool_], weights: Floats) -> Floats:
    """[R] coefficients of all scores at once."""
    scene = np.broadcast_to(np.arange(x.shape[1]), x.shape)[known]
    x, y = x[known], y[known]
    result = []
    for part in np.array_split(weights, math.ceil(len(weights) * len(x) / _CHUNK)):
        weight = part[:, scene]  # [r, M]
        if method == "spearman":
            result.append(_pearson(_weighted_ranks(x, weight), _weighted_ranks(y, weight), weight))
        else:
            result.append(_pearson(x, y, weight))
    return np.concatenate(result)


def _varies(*values: Floats) -> bool:
    return all(len(part) >= _FEWEST and float(np.ptp(part)) > _EQUAL for part in values)


def _within_scenes(method: str, x: Floats, y: Floats, known: NDArray[np.bool_]) -> Floats:
    """[N] coefficients of the planners of each scene, NaN where undefined."""
    result = np.full(x.shape[1], np.nan)
    for scene in range(x.shape[1]):
        a, b = x[known[:, scene], scene], y[known[:, scene], scene]
        if _varies(a, b):
            result[scene] = _coefficient(method, a, b)
    return result


def _undefined(names: Sequence[str], values: Sequence[Floats], things: str) -> str:
    if len(values[0]) < _FEWEST:
        return f"fewer than {_FEWEST} {things}"
    equal = [name for name, part in zip(names, values) if float(np.ptp(part)) <= _EQUAL]
    return f"all scores are equal in {' and '.join(equal)}" if equal else ""


def _agree(method: str, over: str, names: tuple[str, str], x: Floats, y: Floats, weights: Floats) -> Agreement:
    """Two simulators' scores [P, N]."""
    known = np.isfinite(x) & np.isfinite(y)

    def undefined(count: int, reason: str) -> Agreement:
        return Agreement(names[0], names[1], over, method, math.nan, math.nan, math.nan, count, reason)

    def defined(value: float, resamples: Floats, count: int) -> Agreement:
        return Agreement(names[0], names[1], over, method, value, *percentiles(resamples), count)

    if over == "scenes":
        each = _within_scenes(method, x, y, known)
        some = np.isfinite(each)
        if not some.any():
            return undefined(0, f"in no scene do the scores of {_FEWEST} planners vary in both")
        means = _means(each[None], some[None], weights)[:, 0]
        return defined(float(each[some].mean()), means, int(some.sum()))
    if over == "planners":
        some = known.any(1)
        x, y, known = x[some], y[some], known[some]
        every = np.ones((1, x.shape[1]))
        values = [_means(part, known, every)[0] for part in (x, y)]
    else:
        values = [x[known], y[known]]
    count = len(values[0])
    reason = _undefined(names, values, over)
    if reason:
        return undefined(count, reason)
    if method == "spearman":
        # Equal means tie, whatever float64 rounds.
        values = [np.round(part, 9) for part in values]
    resample = _over_planners if over == "planners" else _over_pairs
    return defined(_coefficient(method, *values), resample(method, x, y, known, weights), count)


def agreement(
    scores: Floats, simulators: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> list[Agreement]:
    """How one score agrees between every two simulators.

    Args:
        scores: [S, P, N], NaN where there is none. simulators: S names. seed, resamples: of the bootstrap.

    Returns:
        One for each pair of simulators, each of ``OVER`` and each of ``METHODS``, in that order.
    """
    if scores.ndim != 3 or len(scores) != len(simulators):
        raise ValueError(f"scores {scores.shape} of {len(simulators)} simulators, expected [S, P, N]")
    weights = scene_weights(scores.shape[2], seed, resamples)
    return [
        _agree(method, over, (simulators[a], simulators[b]), scores[a], scores[b], weights)
        for a, b in itertools.combinations(range(len(simulators)), 2)
        for over in OVER
        for method in METHODS
    ]


def agreements(
    scores: Mapping[str, Floats], simulators: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, list[Agreement]]:
    """``agreement`` of each part and total, by its name; all resample the same scenes."""
    return {name: agreement(values, simulators, seed, resamples) for name, values in scores.items()}
