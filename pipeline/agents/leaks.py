"""Scenarios used both in training and for scores: such a score says nothing about other scenarios."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from data.completeness import some
from data.errors import UserError
from data.files import read_json
from data.places import open_path
from models.checkpoints import seen_scenes, trained_on

# What sample leaves beside its rollouts.
RECIPE = "sampling.json"
TRAINED = "trained_on"


def trained_scenes(checkpoint: Path | None, ids: Sequence[str]) -> list[str]:
    """Which of ``ids`` a checkpoint was trained on, as far as it says; none for agents that learn nothing."""
    return [] if checkpoint is None else seen_scenes(trained_on(checkpoint), ids)


def check_unseen(checkpoint: Path | None, scenarios: str | Path, ids: Sequence[str]) -> None:
    """Refuse to score a checkpoint on scenarios that it was trained on.

    Args:
        checkpoint: of an agent that learnt, or None. scenarios: where the ones with these ``ids`` are.

    Raises:
        UserError: it was trained on some of them.
    """
    seen = trained_scenes(checkpoint, ids)
    if seen:
        raise UserError(
            f"{checkpoint}: was trained on {len(seen)} of the {len(ids)} scenarios of {scenarios} ({some(seen)}); "
            "judge it on others"
        )


def check_rollouts(rollouts: str | Path) -> None:
    """Refuse to score rollouts whose agent was trained on their scenarios, as ``sample`` notes beside them.

    Raises:
        UserError: it was.
    """
    path = open_path(rollouts)
    recipe = (path if path.is_dir() else path.parent) / RECIPE
    try:
        seen = int(read_json(recipe)[TRAINED])
    except (OSError, ValueError, LookupError, TypeError):
        # Of another program, or an earlier version: not known.
        return
    if seen:
        raise UserError(
            f"{rollouts}: the agent was trained on {seen} of these scenarios, so a score says nothing of others; "
            "sample others, or score them all the same with --allow-trained"
        )
