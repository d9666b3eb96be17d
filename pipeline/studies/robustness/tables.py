"""From scores of scenes to means, paired differences and intervals, and these as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.evaluation.statistics import mean_intervals
from pipeline.evaluation.tables import csv_table, interval_cell
from submission.realism import METRIC_FIELDS, MetricConfig, buckets, mean_metrics

__all__ = ["SCORE_TITLES", "Summary", "csv_text", "scores_row", "summarise"]

_COLUMNS = {
    "min_average_displacement_error": "minADE, m",
    "simulated_collision_rate": "collision",
    "simulated_offroad_rate": "off-road",
    "simulated_traffic_light_violation_rate": "red light",
}
SCORE_TITLES = ("realism", "difference", *_COLUMNS.values())


Scores = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Summary:
    """Scores of an agent under a condition, over scenes.

    Attributes:
        scenes: how many.
        metrics: mean of every field. buckets: kinematic, interactive and map-based score, and the meta-metric.
        intervals: 95 % bootstrap intervals over scenes of ``metrics``.
        differences: mean over scenes of every field minus that of the baseline in the same scene, and
            difference_intervals: their bootstrap intervals; both empty for the baseline itself.
    """

    scenes: int
    metrics: Mapping[str, float]
    buckets: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    differences: Mapping[str, float]
    difference_intervals: Mapping[str, tuple[float, float]]


def summarise(scores: Scores, baseline: Scores | None, config: MetricConfig, seed: int) -> Summary:
    """Summarise fields by scenario id.

    Args:
        scores: fields (``METRIC_FIELDS``) by scenario id. baseline: of the same scenarios, or None.
        config: of the metric. seed: of the bootstrap.

    Raises:
        ValueError: the baseline has other scenarios.
    """
    ids = sorted(scores)
    rows = [scores[name] for name in ids]
    metrics = mean_metrics(rows)
    differences: list[dict[str, float]] = []
    if baseline is not None:
        if sorted(baseline) != ids:
            raise ValueError("a paired difference needs the same scenarios on both sides")
        differences = [
            {field: scores[name][field] - baseline[name][field] for field in METRIC_FIELDS} for name in ids
        ]
    return Summary(
        scenes=len(ids),
        metrics=metrics,
        buckets=buckets(metrics, config),
        intervals=mean_intervals(rows, seed),
        differences=mean_metrics(differences) if differences else {},
        difference_intervals=mean_intervals(differences, seed) if differences else {},
    )


def scores_row(summary: Summary) -> list[str]:
    """Cells under ``SCORE_TITLES``: realism and its difference with intervals, and what can be seen of it."""
    realism = interval_cell(summary.metrics["metametric"], summary.intervals["metametric"])
    difference = ""
    if summary.differences:
        bounds = summary.difference_intervals["metametric"]
        difference = interval_cell(summary.differences["metametric"], bounds, signed=True)
    rest = [f"{summary.metrics[name]:.3f}" for name in _COLUMNS]
    return [realism, difference, *rest]


def csv_text(labels: Sequence[str], rows: Sequence[tuple[Sequence[Any], Summary]]) -> str:
    """All figures as CSV: labels, scenes, and of every field its mean, its interval, and its difference's.

    Args:
        labels: names of the first columns. rows: their values, and the summary.
    """
    parts = ("", "_low", "_high", "_difference", "_difference_low", "_difference_high")
    table: list[list[Any]] = [[*labels, "scenes", *(f"{field}{part}" for field in METRIC_FIELDS for part in parts)]]
    for values, summary in rows:
        cells: list[Any] = []
        for field in METRIC_FIELDS:
            cells += [summary.metrics[field], *summary.intervals[field]]
            compared = bool(summary.differences)
            cells += (
                [summary.differences[field], *summary.difference_intervals[field]] if compared else ["", "", ""]
            )
        table.append([*values, summary.scenes, *cells])
    return csv_table(table)
