"""The steps of the check, by value: what would be worst not to know comes first."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["STEPS", "Step"]


@dataclass(frozen=True)
class Step:
    """Some checks, ``MODULE:FUNCTION`` in this package, each of which may fail alone.

    Attributes:
        limit: seconds after which the step is ended. needs: seconds without which it is not begun.
        spoils: it leaves settings or a broken card behind, so that its process is not used again.
    """

    name: str
    checks: tuple[str, ...]
    limit: float
    needs: float
    spoils: bool = False


STEPS = (
    Step("machine", ("machine:versions", "machine:ceilings"), 40, 0),
    Step(
        "agreement",
        (
            "agreement:simulator",
            "agreement:policy",
            "agreement:teacher_forcing",
            "agreement:decoding",
            "agreement:tokens",
            "agreement:metric",
            "agreement:learning",
            "agreement:paths",
            "agreement:aligned",
        ),
        120,
        15,
    ),
    # Lightning leaves the whole process deterministic, which is slower.
    Step("resume", ("resume:selfplay", "resume:fit", "resume:finetune"), 140, 40, spoils=True),
    Step("self-play", ("selfplay:plain",), 120, 20),
    Step("training and anchor", ("reference:training", "reference:anchor"), 90, 20),
    Step("futures and metric", ("scoring:metric", "reference:futures"), 90, 20),
    Step(
        "launches and waits",
        (
            "waits:decision",
            "waits:update",
            "waits:preparing",
            "waits:training",
            "waits:decoding",
            "waits:metric",
        ),
        90,
        20,
    ),
    Step("graph", ("machine:fake", "machine:graph"), 40, 10, spoils=True),
    Step("self-play, compiled", ("selfplay:compiled",), 150, 60),
    Step("futures, compiled", ("reference:futures_compiled",), 120, 50),
)
