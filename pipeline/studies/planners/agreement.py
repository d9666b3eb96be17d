"""Whether simulators agree about planners: correlations of their scores.

Three questions, each with Pearson's and Spearman's coefficient and a 95 % bootstrap interval over scenes:

- over ``planners``: of the planners' means over scenes; do the simulators rank planners alike?
- over ``pairs``: of all (planner, scene) scores at once; do they say the same of each drive?
- over ``scenes``: of the planners within a scene, averaged over scenes; do they rank planners alike in each scene?

A score that is missing (NaN) in one simulator is left out of both. Where all scores are equal there is no
correlation: the value is NaN, and ``reason`` says so.

Shape legend: S simulators, P planners, N scenes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.evaluation.statistics import EQUAL, FEWEST, Array, Method, Over, correlation, mean_of_known

__all__ = ["METHODS", "OVER", "Agreement", "agreement", "agreements"]

METHODS: tuple[Method, ...] = ("pearson", "spearman")
OVER: dict[str, Over] = {"planners": "groups", "pairs": "all", "scenes": "within"}


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


def _undefined(names: tuple[str, str], x: Array, y: Array, over: str) -> str:
    """Why two simulators' scores [P, N] have no correlation."""
    if over == "scenes":
        return f"in no scene do the scores of {FEWEST} planners vary in both"
    known = np.isfinite(x) & np.isfinite(y)
    values = [part[known] for part in (x, y)]
    if over == "planners":
        values = [mean_of_known(np.where(known, part, np.nan)[known.any(axis=1)]) for part in (x, y)]
    if len(values[0]) < FEWEST:
        return f"fewer than {FEWEST} {over}"
    equal = [name for name, part in zip(names, values, strict=True) if float(np.ptp(part)) <= EQUAL]
    return f"all scores are equal in {' and '.join(equal)}"


def agreement(scores: Array, simulators: Sequence[str], seed: int = 0) -> list[Agreement]:
    """How one score agrees between every two simulators.

    Args:
        scores: [S, P, N], NaN where there is none. simulators: S names. seed: of the bootstrap.

    Returns:
        One for each pair of simulators, each of ``OVER`` and each of ``METHODS``, in that order.
    """
    if scores.ndim != 3 or len(scores) != len(simulators):
        raise ValueError(f"scores {scores.shape} of {len(simulators)} simulators, expected [S, P, N]")
    found = []
    for a, b in itertools.combinations(range(len(simulators)), 2):
        names = simulators[a], simulators[b]
        for over, method in itertools.product(OVER, METHODS):
            value = correlation(scores[a], scores[b], method, OVER[over], seed)
            reason = "" if np.isfinite(value.value) else _undefined(names, scores[a], scores[b], over)
            found.append(Agreement(*names, over, method, value.value, value.low, value.high, value.count, reason))
    return found


def agreements(scores: Mapping[str, Array], simulators: Sequence[str], seed: int = 0) -> dict[str, list[Agreement]]:
    """``agreement`` of each part and total, by its name; all resample the same scenes."""
    return {name: agreement(values, simulators, seed) for name, values in scores.items()}
