"""A suspicion: what the server accepts and is almost surely a mistake, in one scenario and over all of them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["EXAMPLES", "Suspicion", "Tally"]

# Examples that are given of a kind.
EXAMPLES = 2


@dataclass(frozen=True)
class Suspicion:
    """One kind of oddity in one scenario.

    Attributes:
        kind: what is odd, the same text in every scenario.
        examples: the first ``EXAMPLES`` cases, each with its object and joint scene, the value found and, where
            there is one, the value expected.
        count, of: odd trajectories, and those that were looked at; 0 where the scenario is odd as a whole.
    """

    kind: str
    examples: Sequence[str]
    count: int = 0
    of: int = 0

    def __str__(self) -> str:
        share = f" ({self.count} of {self.of} trajectories)" if self.of else ""
        return f"{self.kind}{share}: {'; '.join(self.examples)}"


@dataclass
class _Total:
    scenarios: int = 0
    count: int = 0
    of: int = 0
    examples: list[str] = field(default_factory=list)


def _extent(total: _Total) -> str:
    scenarios = f"{total.scenarios} scenario{'s' if total.scenarios > 1 else ''}"
    if total.of:
        return f" ({total.count} of {total.of} trajectories in {scenarios})"
    return f" ({scenarios})" if total.scenarios > 1 else ""


class Tally:
    """Suspicions of many scenarios by kind, in a few lines whatever their number."""

    def __init__(self) -> None:
        self._totals: dict[str, _Total] = {}

    def add(self, place: str, suspicion: Suspicion) -> None:
        """Count a suspicion; ``place`` names the scenario."""
        total = self._totals.setdefault(suspicion.kind, _Total())
        total.scenarios += 1
        total.count += suspicion.count
        total.of += suspicion.of
        # Two of one scenario only while it is the only one.
        room = EXAMPLES if total.scenarios == 1 else 1
        if total.scenarios <= EXAMPLES:
            kept = total.examples[: EXAMPLES - room]
            total.examples = kept + [f"{place}: {text}" for text in suspicion.examples[:room]]

    def lines(self) -> list[str]:
        """One line a kind: how many trajectories and scenarios, and two examples."""
        return [f"{kind}{_extent(total)}: {'; '.join(total.examples)}" for kind, total in self._totals.items()]

    def show(self) -> None:
        """Print the lines on stderr."""
        for line in self.lines():
            print(f"suspicious: {line}", file=sys.stderr, flush=True)
