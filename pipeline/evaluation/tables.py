"""Tables of agents against the metric, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["render_table", "result_table"]

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
