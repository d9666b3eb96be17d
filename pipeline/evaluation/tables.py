"""Tables for people and programs: as aligned text, Markdown or CSV; and those of ``evaluate``."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError

__all__ = [
    "csv_table",
    "interval_cell",
    "loss_table",
    "markdown_table",
    "numbers",
    "print_losses",
    "read_table",
    "render_table",
    "result_table",
]

_LABELS = {
    "log": "log replay",
    "constant_velocity": "constant velocity",
    "reference": "reference",
    "policy": "policy (self-play)",
}
_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("realism", "metrics", "metametric"),
    ("kinematic", "buckets", "kinematic_metrics"),
    ("interactive", "buckets", "interactive_metrics"),
    ("map-based", "buckets", "map_based_metrics"),
    ("minADE m", "metrics", "min_average_displacement_error"),
    ("collision", "metrics", "simulated_collision_rate"),
    ("off-road", "metrics", "simulated_offroad_rate"),
    ("red light", "metrics", "simulated_traffic_light_violation_rate"),
)


_WORST_SCENARIOS, _WORST_LOSSES = 5, 3


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _count(report: Mapping[str, Any]) -> str:
    """Of scenarios that were scored, and of those that could not be."""
    lost = len(report.get("unscorable", ()))
    return f"{report['scenarios']}{f' + {lost} unscorable' if lost else ''}"


def result_table(reports: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of text, header first: one agent a row, realism with its bootstrap interval.

    Args:
        reports: for each agent what ``evaluate`` wrote to metrics.json.
    """
    rows = [["agent", *(title for title, _, _ in _COLUMNS), "scenarios", "realism 95% interval"]]
    for agent, report in reports.items():
        low, high = report["intervals"]["metametric"]
        rows.append(
            [
                _LABELS.get(agent, agent),
                *(_cell(report[part].get(name)) for _, part, name in _COLUMNS),
                _count(report),
                f"{low:.4f} .. {high:.4f}",
            ]
        )
    return rows


def render_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, numbers to the right, a rule below the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, header first."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_table(rows: Iterable[Sequence[Any]]) -> str:
    """The content of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file.

    Raises:
        UserError: it cannot be read as one.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            return list(reader.fieldnames or []), rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); run its stage again") from error


def numbers(row: Mapping[str, str]) -> dict[str, float]:
    """Those cells of a row that are numbers."""
    found = {}
    for name, text in row.items():
        with contextlib.suppress(TypeError, ValueError):
            found[name] = float(text)
    return found


def interval_cell(
    value: float | None, bounds: Sequence[float] | None = None, digits: int = 3, signed: bool = False
) -> str:
    """``0.668 [0.634, 0.696]``; the figure alone if it has no interval, and a dash if it is not defined."""
    form = f"{'+' if signed else ''}.{digits}f"
    if value is None or not math.isfinite(value):
        return "-"
    if bounds is None or not all(map(math.isfinite, bounds)):
        return f"{value:{form}}"
    low, high = bounds
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


def _worst_first(scored: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(scored, key=lambda row: row["values"]["metametric"])


def loss_table(scored: Sequence[Mapping[str, Any]]) -> list[list[Any]]:
    """A row for every agent and feature: worst scenarios first, in them the largest losses first.

    Args:
        scored: rows with ``values`` and ``losses`` (``submission.realism.Loss``).
    """
    rows: list[list[Any]] = [["scenario_id", "metametric", "agent_id", "feature", "loss", "likelihood"]]
    for row in _worst_first(scored):
        score = f"{row['values']['metametric']:.6f}"
        for loss in row["losses"]:
            numbers = (f"{loss[name]:.6f}" for name in ("loss", "likelihood"))
            rows.append([row["scenario_id"], score, loss["agent_id"], loss["feature"], *numbers])
    return rows


def print_losses(scored: Sequence[Mapping[str, Any]]) -> None:
    """Print what features lost on average, and the worst scenarios with their largest losses."""
    print("  where the score was lost, on average over scenarios:")
    totals: dict[str, float] = {}
    for row in scored:
        for loss in row["losses"]:
            totals[loss["feature"]] = totals.get(loss["feature"], 0.0) + loss["loss"] / len(scored)
    for name, total in sorted(totals.items(), key=lambda item: -item[1]):
        print(f"    {name:40} {total:.4f}")
    print("  the worst scenarios:")
    for row in _worst_first(scored)[:_WORST_SCENARIOS]:
        losses = row["losses"][:_WORST_LOSSES]
        worst = ", ".join(f"object {loss['agent_id']} {loss['feature']} {loss['loss']:.3f}" for loss in losses)
        print(f"    {row['scenario_id']}  {row['values']['metametric']:.4f}  ({worst})")
