"""From intervals to a verdict, by a rule that is stated before anything is measured.

A statement says that a figure (mostly a difference of two arms) lies above, below, or within bounds. Its 95 %
interval decides: all of it where the statement has it, and the statement is *confirmed*; all of it outside, and it
is *not confirmed*; otherwise it is *not decidable at this scale*. A claim is confirmed if all its statements are,
not confirmed if one of them is not, and not decidable otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from pipeline.evaluation.statistics import Interval

__all__ = ["Statement", "Verdict", "above", "below", "claim_verdict", "within"]


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
