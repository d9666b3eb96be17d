"""What drives add up to: scores by planner and simulator, agreement of simulators, reactivity.

Whether simulators agree about planners is answered in three ways, each with Pearson's and Spearman's coefficient
and a 95 % bootstrap interval over scenes:

- over ``planners``: of the planners' means over scenes; do the simulators rank planners alike?
- over ``pairs``: of all (planner, scene) scores at once; do they say the same of each drive?
- over ``scenes``: of the planners within a scene, averaged over scenes; do they rank planners alike in each scene?

A score that is missing (NaN) in one simulator is left out of both. Where all scores are equal there is no
correlation: the value is NaN, and ``reason`` says so.

Shape legend: S simulators, P planners, N scenes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.errors import UserError
from pipeline.evaluation.statistics import (
    EQUAL,
    FEWEST,
    Array,
    Interval,
    Method,
    Over,
    correlation,
    mean,
    mean_of_known,
)
from pipeline.studies.planners.manoeuvres import MANOEUVRES
from pipeline.studies.planners.scores import SCORE_NAMES

Rows = Mapping[str, Mapping[str, Mapping[str, Any]]]


@dataclass(frozen=True)
class Summary:
    """Of all drives.

    Attributes:
        simulators, planners, scenes: names, in the order of the arrays.
        left_out: scenes that could not be driven, and why.
        scores: [S, P, N] for each of ``SCORE_NAMES``.
        means: of the planners' scores over scenes, by simulator, planner and score.
        struck: fraction of drives in which the AV was struck from behind, or otherwise without being at fault, by
            simulator; its intervals are over scenes.
        agreement: of the simulators, by score.
        reactions: of the agent behind an AV that brakes or cuts in, by simulator, manoeuvre and measure.
    """

    simulators: tuple[str, ...]
    planners: tuple[str, ...]
    scenes: tuple[str, ...]
    left_out: Mapping[str, str]
    scores: Mapping[str, Array]
    means: Mapping[str, Mapping[str, Mapping[str, Interval]]]
    struck: Mapping[str, Mapping[str, Interval]]
    agreement: Mapping[str, Sequence[Agreement]]
    reactions: Mapping[str, Mapping[str, Mapping[str, Interval]]]

    def plain(self) -> dict[str, Any]:
        """As plain values for JSON, without the scores of single drives."""
        return {
            "simulators": self.simulators,
            "planners": self.planners,
            "scenes": len(self.scenes),
            "left_out": self.left_out,
            "means": _plain(self.means),
            "struck": _plain(self.struck),
            "agreement": {name: [_plain(one) for one in found] for name, found in self.agreement.items()},
            "reactions": _plain(self.reactions),
        }


def _plain(value: Any) -> Any:
    """Dataclasses and mappings as dictionaries, and null for what is not a number."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rows_by_simulator(found: Sequence[tuple[str, dict[str, Any]]]) -> tuple[Rows, dict[str, str]]:
    """(simulator, row of ``drive_task``) by simulator and scenario id, and reasons of what could not be driven.

    What could not be driven in one simulator is left out of all.
    """
    left_out = {row["scenario_id"]: row["reason"] for _, row in found if "reason" in row}
    rows: dict[str, dict[str, dict[str, Any]]] = {}
    for simulator, row in found:
        if row["scenario_id"] not in left_out:
            rows.setdefault(simulator, {})[row["scenario_id"]] = row
    return rows, left_out


def summarise(rows: Rows, left_out: Mapping[str, str], planners: Sequence[str], seed: int) -> Summary:
    """Add up.

    Args:
        rows, left_out: of ``rows_by_simulator``. planners: names, in the order of tables. seed: of the bootstrap.

    Raises:
        UserError: no scene was driven.
    """
    if not rows:
        name, reason = next(iter(left_out.items()))
        raise UserError(f"no scene could be driven ({name}: {reason})")
    simulators = tuple(rows)
    scenes = tuple(sorted(next(iter(rows.values()))))
    scores = {
        name: np.array(
            [
                [[rows[simulator][scene]["planners"][planner][name] for scene in scenes] for planner in planners]
                for simulator in simulators
            ],
            dtype=np.float64,
        )
        for name in SCORE_NAMES
    }
    means = {
        simulator: {
            planner: {name: mean(scores[name][s, p], seed) for name in SCORE_NAMES}
            for p, planner in enumerate(planners)
        }
        for s, simulator in enumerate(simulators)
    }
    return Summary(
        simulators=simulators,
        planners=tuple(planners),
        scenes=scenes,
        left_out=left_out,
        scores=scores,
        means=means,
        struck={simulator: _struck(rows[simulator], scenes, planners, seed) for simulator in simulators},
        agreement={name: agreement(values, simulators, seed) for name, values in scores.items()},
        reactions={
            simulator: _reactions([rows[simulator][scene]["manoeuvres"] for scene in scenes], seed)
            for simulator in simulators
        },
    )


def _reactions(scenes: Sequence[Mapping[str, Any]], seed: int) -> dict[str, dict[str, Interval]]:
    """By manoeuvre and measure, over the scenes in which the manoeuvre concerns somebody."""
    result = {}
    for name in MANOEUVRES:
        if found := [scene[name] for scene in scenes if name in scene]:
            # None, for what is not defined, becomes NaN.
            tables = {measure: np.array([one[measure] for one in found], dtype=np.float64) for measure in found[0]}
            result[name] = {measure: mean(values, seed) for measure, values in tables.items()}
    return result


def _struck(
    rows: Mapping[str, Mapping[str, Any]], scenes: Sequence[str], planners: Sequence[str], seed: int
) -> dict[str, Interval]:
    """Fraction of a scene's planners that an agent hit without their being at fault, averaged over scenes."""

    def fraction(key: str, value: bool) -> Interval:
        each = [
            np.mean([any(one[key] is value for one in rows[scene]["planners"][p]["collisions"]) for p in planners])
            for scene in scenes
        ]
        return mean(np.array(each, dtype=np.float64), seed)

    return {"from_behind": fraction("rear_hit", True), "not_at_fault": fraction("at_fault", False)}


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
