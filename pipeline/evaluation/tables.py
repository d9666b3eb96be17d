"""The tables of ``evaluate``: results by agent, and what cost the score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.evaluation.motion import SECONDS
from pipeline.execution.tables import interval_cell

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
    ("speed ratio", "motion", "speed_ratio_8s"),
    ("standing", "motion", "standing"),
)
# The title of a ratio or of the log's figure goes on from the one before.
_MOTION: tuple[tuple[str, str, str], ...] = (
    ("speed ratio 2 s", "motion", "speed_ratio_2s"),
    *((f"{second} s", "motion", f"speed_ratio_{second}s") for second in SECONDS[1:]),
    ("standing", "motion", "standing"),
    ("log", "motion", "log_standing"),
    ("progress m", "motion", "progress_m"),
    ("log", "motion", "log_progress_m"),
    ("ratio", "motion", "progress_ratio"),
    ("jerk m/s3", "motion", "jerk_mps3"),
    ("log", "motion", "log_jerk_mps3"),
)


_WORST_SCENARIOS, _WORST_LOSSES = 5, 3


def _cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _count(report: Mapping[str, Any]) -> str:
    """Of scenarios that were scored, and of those that could not be."""
    lost = len(report.get("unscorable", ()))
    return f"{report['scenarios']}{f' + {lost} unscorable' if lost else ''}"


def _figure_cells(report: Mapping[str, Any], columns: Sequence[tuple[str, str, str]]) -> list[str]:
    # Runs of earlier code have no motion.
    return [_cell(report.get(part, {}).get(name)) for _, part, name in columns]


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
                *_figure_cells(report, _COLUMNS),
                _count(report),
                f"{low:.4f} .. {high:.4f}",
            ]
        )
    return rows


def motion_table(reports: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Rows of text, header first: how the agents move whose log moves, one agent a row.

    Args:
        reports: for each agent what ``evaluate`` wrote to metrics.json.
    """
    rows = [["agents that move", *(title for title, _, _ in _MOTION), "8 s 95% interval"]]
    for agent, report in reports.items():
        ratio = report.get("motion", {}).get("speed_ratio_8s")
        cells = _figure_cells(report, _MOTION)
        rows.append(
            [_LABELS.get(agent, agent), *cells, interval_cell(ratio, report["intervals"].get("speed_ratio_8s"))]
        )
    return rows


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
