"""What a claim came to: statements with verdicts, a table beside the paper's figures, and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from pipeline.evaluation.statistics import Interval, mean
from pipeline.execution.tables import interval_cell
from pipeline.studies.claims.arms import Arm
from pipeline.studies.claims.study import Study

_PUBLISHED = Path(__file__).with_name("published.yaml")
# Field, title, digits; those with an interval in the table for people (JSON has them all).
_COLUMNS = (
    ("likelihood", "log-likelihood, nats", 3, True),
    ("vehicle", "vehicles", 3, False),
    ("pedestrian", "pedestrians", 3, False),
    ("cyclist", "cyclists", 3, False),
    ("coverage", "coverage", 3, False),
    ("reference", "reference's realism", 3, True),
    ("realism", "realism", 3, True),
    ("kinematic", "kinematic", 3, False),
    ("interactive", "interactive", 3, False),
    ("map", "map", 3, False),
    ("minade", "minADE, m", 2, True),
    ("collision", "collision", 3, False),
    ("off_road", "off-road", 3, False),
    ("kl", "KL", 2, True),
    ("entropy", "entropy", 2, True),
)
_ARM_FIELDS = ("realism", "kinematic", "interactive", "map", "minade", "collision", "off_road", "kl", "entropy")


@dataclass(frozen=True)
class Row:
    """A line of a table: what was measured, how tokens were drawn if that matters, and what the paper prints."""

    name: str
    drawn: str
    measured: Mapping[str, Interval]
    published: Mapping[str, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "drawn": self.drawn,
            "measured": {name: value.plain() for name, value in self.measured.items()},
            "published": dict(self.published),
        }


@dataclass(frozen=True)
class Report:
    """Of one claim.

    Attributes:
        name, title: of the claim. says: what is claimed. statements: that decide it.
        table: header and rows for people. rows: the same with all intervals.
        notes: what a reader must know. figures: matplotlib figures by name.
    """

    name: str
    title: str
    says: str
    statements: Sequence[Statement]
    table: Sequence[Sequence[str]]
    rows: Sequence[Row]
    notes: Sequence[str] = ()
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        return claim_verdict(self.statements)

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "says": self.says,
            "verdict": str(self.verdict),
            "statements": [statement.plain() for statement in self.statements],
            "rows": [row.plain() for row in self.rows],
            "published_source": published_source(self.name),
            "notes": list(self.notes),
        }


@lru_cache(maxsize=1)
def _all_published() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(_PUBLISHED.read_text())
    return values


def published(claim: str, row: str) -> dict[str, float]:
    """The paper's figures of an arm; empty where it has none."""
    found: dict[str, float] = _all_published()[claim]["rows"].get(row, {})
    return found


def published_source(claim: str) -> str:
    """Where in the paper they are."""
    return str(_all_published()[claim]["source"])


def arm_rows(
    study: Study,
    claim: str,
    arms: Sequence[Arm],
    targets: Sequence[str] = ("all",),
    modes: Sequence[str] | None = None,
) -> list[Row]:
    """A row for each arm, targets and sampling mode, beside the paper's figures in the paper's mode."""
    rows = []
    for arm in arms:
        for name in targets:
            if name not in study.present_targets:
                continue
            label = arm.name if name == "all" else f"{arm.name}, {name}"
            for mode in modes or study.sampling_modes:
                # KL and entropy are of all agents, however tokens are drawn.
                fields = [column for column in _ARM_FIELDS if column not in ("kl", "entropy") or name == "all"]
                measured = {column: mean(study.table(arm, column, mode, name)) for column in fields}
                theirs = published(claim, label) or (published(claim, arm.name) if len(targets) == 1 else {})
                rows.append(Row(label, mode, measured, theirs if mode == study.sampling_mode else {}))
    return rows


def render_rows(rows: Sequence[Row], first: str = "trained") -> list[list[str]]:
    """Header and cells: measured with intervals, the paper's figure behind a slash."""
    shown = [column for column in _COLUMNS if any(column[0] in row.measured for row in rows)]
    drawn = any(row.drawn for row in rows)
    table = [[first, *(["drawn"] if drawn else []), *(title for _, title, _, _ in shown)]]
    for row in rows:
        cells = []
        for name, _, digits, with_interval in shown:
            text, found = "-", row.measured.get(name)
            if found is not None:
                text = found.cell(digits) if with_interval else interval_cell(found.value, digits=digits)
            if name in row.published:
                text += f" / {row.published[name]:.{digits}f}"
            cells.append(text)
        table.append([row.name, *([row.drawn] if drawn else []), *cells])
    return table


class Verdict(StrEnum):
    CONFIRMED = "confirmed"
    NOT_CONFIRMED = "not confirmed"
    NOT_DECIDABLE = "not decidable at this scale"


@dataclass(frozen=True)
class Statement:
    """What is claimed of one figure.

    Attributes:
        text: in words. measured: the figure. low, high: between which it is claimed to lie.
        published: the paper's own figure, if it prints it.
    """

    text: str
    measured: Interval
    low: float = -math.inf
    high: float = math.inf
    published: float | None = None

    @property
    def verdict(self) -> Verdict:
        found = self.measured
        if not math.isfinite(found.low + found.high):
            return Verdict.NOT_DECIDABLE
        if found.low > self.low and found.high < self.high:
            return Verdict.CONFIRMED
        if found.high <= self.low or found.low >= self.high:
            return Verdict.NOT_CONFIRMED
        return Verdict.NOT_DECIDABLE

    @property
    def bounds(self) -> str:
        """In words: above 0, below 1, within -0.01 .. 0.01."""
        if math.isinf(self.low):
            return f"below {self.high:g}"
        if math.isinf(self.high):
            return f"above {self.low:g}"
        return f"within {self.low:g} .. {self.high:g}"

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "statement": self.text,
            "expected": self.bounds,
            "measured": self.measured.plain(),
            "published": self.published,
            "verdict": str(self.verdict),
        }


def above(text: str, measured: Interval, bound: float = 0.0, published: float | None = None) -> Statement:
    return Statement(text, measured, low=bound, published=published)


def below(text: str, measured: Interval, bound: float = 0.0, published: float | None = None) -> Statement:
    return Statement(text, measured, high=bound, published=published)


def within(text: str, measured: Interval, margin: float, published: float | None = None) -> Statement:
    """That two arms do not differ by more than a margin."""
    return Statement(text, measured, low=-margin, high=margin, published=published)


def claim_verdict(statements: Sequence[Statement]) -> Verdict:
    """Of all statements of a claim."""
    found = [statement.verdict for statement in statements]
    if Verdict.NOT_CONFIRMED in found:
        return Verdict.NOT_CONFIRMED
    if found and all(verdict == Verdict.CONFIRMED for verdict in found):
        return Verdict.CONFIRMED
    return Verdict.NOT_DECIDABLE
