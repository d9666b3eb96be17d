"""The table at the end of a run: every agent against the realism metric, and where the archive is."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.files import read_json
from pipeline.graph import ARCHIVE, Run
from pipeline.manifest import Manifest

__all__ = ["print_summary", "render_table", "result_table"]

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
                str(report["scenarios"]),
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


def _time_table(manifests: Mapping[str, Manifest]) -> list[list[str]]:
    rows = [["stage", "seconds", "peak MB"]]
    rows += [[name, f"{m.seconds:.0f}", f"{m.peak_memory_mb:.0f}"] for name, m in manifests.items()]
    rows.append(["all", f"{sum(m.seconds for m in manifests.values()):.0f}", ""])
    return rows


def print_summary(run: Run, manifests: Mapping[str, Manifest]) -> None:
    """Print times, the result table and the archive's path, as far as the stages have been run."""
    print(render_table(_time_table(manifests)), file=sys.stderr)
    if "evaluate" in manifests:
        reports = {agent: read_json(run.path("evaluate") / agent / "metrics.json") for agent in run.config.agents}
        print()
        print(render_table(result_table(reports)))
    if "validate" in manifests:
        archive: Path = run.path("package") / ARCHIVE
        accepted = manifests["validate"].figures.get("accepted")
        print()
        print(f"{archive}  ({archive.stat().st_size / 1e6:.1f} MB, {accepted} scenarios accepted by Waymo)")
