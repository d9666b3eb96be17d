"""Where the score was lost: a table of all losses, and the worst of them for people."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import write_text

__all__ = ["print_diagnosis", "write_diagnosis"]

_COLUMNS = ("scenario_id", "metametric", "agent_id", "feature", "loss", "likelihood")
_SCENARIOS, _LOSSES = 5, 3


def _worst_first(scored: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(scored, key=lambda row: row["values"]["metametric"])


def write_diagnosis(path: Path, scored: Sequence[Mapping[str, Any]]) -> None:
    """Write one line for every agent and feature: worst scenarios first, in them the largest losses first.

    Args:
        path: of the CSV file. scored: rows with ``values`` and ``losses`` (``submission.realism.Loss``).
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for row in _worst_first(scored):
        score = f"{row['values']['metametric']:.6f}"
        for loss in row["losses"]:
            writer.writerow(
                [
                    row["scenario_id"],
                    score,
                    loss["agent_id"],
                    loss["feature"],
                    f"{loss['loss']:.6f}",
                    f"{loss['likelihood']:.6f}",
                ]
            )
    write_text(path, table.getvalue())


def print_diagnosis(scored: Sequence[Mapping[str, Any]]) -> None:
    """Print the worst scenarios with their largest losses, and what the features lost on average."""
    print("  where the score was lost, on average over scenarios:")
    totals: dict[str, float] = {}
    for row in scored:
        for loss in row["losses"]:
            totals[loss["feature"]] = totals.get(loss["feature"], 0.0) + loss["loss"] / len(scored)
    for name, total in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"    {name:40} {total:.4f}")
    print("  the worst scenarios:")
    for row in _worst_first(scored)[:_SCENARIOS]:
        worst = ", ".join(
            f"object {loss['agent_id']} {loss['feature']} {loss['loss']:.3f}" for loss in row["losses"][:_LOSSES]
        )
        print(f"    {row['scenario_id']}  {row['values']['metametric']:.4f}  ({worst})")
