"""What ``planners`` found, as text, Markdown and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.execution.tables import csv_table, interval_cell, markdown_table, render_table
from pipeline.studies.planners.scores import SCORE_NAMES, TOTALS
from pipeline.studies.planners.summary import Summary

Table = list[list[str]]

_TITLES = {
    "log": "log replay",
    "reference": "reference",
    "policy": "SPACeR",
    "plain": "plain self-play",
    "no_at_fault_collision": "no collision at fault",
    "drivable_area": "drivable area",
    "driving_direction": "direction",
    "progress": "progress",
    "ttc": "TTC",
    "speed_limit": "speed limit",
    "comfort": "comfort",
    "pdm": "PDM",
    "pdm_mean": "PDM, mean of parts",
}
# The paper's figures 4 and A.7 (Pearson or Spearman, over planners or drives: not stated).
_PUBLISHED = {
    ("log", "policy"): {
        "no_at_fault_collision": 0.36,
        "comfort": 0.90,
        "drivable_area": 0.92,
        "pdm_mean": 0.72,
        "progress": 0.95,
        "ttc": 0.73,
    },
    ("reference", "policy"): {
        "no_at_fault_collision": 0.42,
        "comfort": 0.89,
        "drivable_area": 0.92,
        "pdm_mean": 0.81,
        "progress": 0.95,
        "ttc": 0.87,
    },
    ("log", "reference"): {
        "no_at_fault_collision": 0.51,
        "comfort": 0.92,
        "drivable_area": 0.94,
        "pdm_mean": 0.78,
        "progress": 0.97,
        "ttc": 0.77,
    },
}


# Of reactions, with their digits.
_MEASURES = (
    ("false_rear_end", 2),
    ("min_gap", 1),
    ("min_ttc", 1),
    ("strongest_deceleration", 1),
    ("reaction_time", 1),
)


def title_of(name: str) -> str:
    """A name as people read it."""
    return _TITLES.get(name, name)


def planner_table(summary: Summary, score: str) -> Table:
    """A planner a row, its mean score in every simulator."""
    rows = [["planner", *map(title_of, summary.simulators)]]
    rows += [
        [planner, *(summary.means[simulator][planner][score].cell() for simulator in summary.simulators)]
        for planner in summary.planners
    ]
    return rows


def part_table(summary: Summary) -> Table:
    """A simulator a row, means of all scores over all planners and scenes."""
    rows = [["simulator", *map(title_of, SCORE_NAMES), "struck from behind, %", "struck, not at fault, %"]]
    for index, simulator in enumerate(summary.simulators):
        struck = summary.struck[simulator]
        rows.append(
            [
                title_of(simulator),
                *(interval_cell(float(summary.scores[name][index].mean())) for name in SCORE_NAMES),
                *(interval_cell(100 * struck[key].value, digits=1) for key in ("from_behind", "not_at_fault")),
            ]
        )
    return rows


def agreement_table(summary: Summary) -> Table:
    """A score and pair of simulators a row."""
    rows = [["score", "simulators", "planners: Pearson", "Spearman", "drives: Pearson", "Spearman", "paper"]]
    for score in (*TOTALS, *(name for name in SCORE_NAMES if name not in TOTALS)):
        cells: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
        for one in summary.agreement[score]:
            text = interval_cell(one.value, (one.low, one.high), 2)
            cells.setdefault((one.first, one.second), {})[one.over, one.method] = text
        for pair, found in cells.items():
            published = _PUBLISHED.get(pair, {}).get(score)
            rows.append(
                [
                    title_of(score),
                    " - ".join(map(title_of, pair)),
                    *(found[over, method] for over in ("planners", "pairs") for method in ("pearson", "spearman")),
                    "" if published is None else f"{published:.2f}",
                ]
            )
    return rows


def reaction_table(summary: Summary) -> Table:
    """A manoeuvre and simulator a row."""
    rows = [
        [
            "AV",
            "simulator",
            "scenes",
            "struck from behind",
            "least gap, m",
            "least TTC, s",
            "follower brakes by, m/s²",
            "after, s",
        ]
    ]
    names = list(dict.fromkeys(name for found in summary.reactions.values() for name in found))
    for name in names:
        for simulator in summary.simulators:
            reaction = summary.reactions[simulator].get(name)
            if reaction is None:
                continue
            rows.append(
                [
                    name.replace("_", " "),
                    title_of(simulator),
                    str(reaction["false_rear_end"].count),
                    *(reaction[measure].cell(digits) for measure, digits in _MEASURES),
                ]
            )
    return rows


def case_table(cases: Sequence[Mapping[str, Any]]) -> Table:
    """A false collision of log replay a row."""
    rows = [["film", "scenario", "planner", "struck at, s", "from behind", "log replay", "SPACeR"]]
    rows += [
        [
            case["film"],
            case["scenario_id"],
            case["planner"],
            f"{case['seconds']:.1f}",
            "yes" if case["rear_hit"] else "no",
            interval_cell(case["log_score"]),
            interval_cell(case["score"]),
        ]
        for case in cases
    ]
    return rows


def _sections(summary: Summary, cases: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, Table]]:
    """Title, explanation and table of all that is printed."""
    count = len(summary.scenes)
    sections = [
        ("Planners", f"PDM, mean over {count} scenes.", planner_table(summary, "pdm")),
        ("Planners, mean of parts", "The weighted mean of all parts.", planner_table(summary, "pdm_mean")),
        ("Simulators", "Means over all planners and scenes.", part_table(summary)),
        (
            "Agreement of simulators",
            "Correlation of planners' means over scenes, and of all drives.",
            agreement_table(summary),
        ),
        ("Reactivity", "What follows an AV that brakes, stops or cuts in.", reaction_table(summary)),
        (
            "False collisions of log replay",
            "No fault in the replay, and no collision where agents react; the mean of parts.",
            case_table(cases),
        ),
    ]
    return [section for section in sections if len(section[2]) > 1]


def _left_out(summary: Summary) -> str:
    if not summary.left_out:
        return ""
    name, reason = next(iter(summary.left_out.items()))
    return f"{len(summary.left_out)} scenes are left out ({name}: {reason})."


def markdown_report(summary: Summary, cases: Sequence[Mapping[str, Any]]) -> str:
    """All tables; intervals are 95 %, by bootstrap over scenes."""
    parts = ["# Planner evaluation", "Intervals are 95 %, by bootstrap over scenes.", _left_out(summary)]
    for title, text, table in _sections(summary, cases):
        parts += [f"## {title}", text, markdown_table(table)]
    return "\n\n".join(filter(None, parts)) + "\n"


def text_report(summary: Summary, cases: Sequence[Mapping[str, Any]]) -> str:
    """The same for a terminal."""
    parts = [_left_out(summary)]
    for title, text, table in _sections(summary, cases):
        parts += [f"{title}. {text}\n{render_table(table)}"]
    return "\n\n".join(filter(None, parts))


def csv_tables(summary: Summary) -> dict[str, str]:
    """``planners`` with every score of every drive, and ``agreement`` with every coefficient."""
    drives = [["simulator", "planner", "scenario_id", *SCORE_NAMES]]
    for s, simulator in enumerate(summary.simulators):
        for p, planner in enumerate(summary.planners):
            for n, scene in enumerate(summary.scenes):
                values = (f"{summary.scores[name][s, p, n]:.6g}" for name in SCORE_NAMES)
                drives.append([simulator, planner, scene, *values])
    pairs = [["score", "first", "second", "over", "method", "value", "low", "high", "count", "reason"]]
    for score, found in summary.agreement.items():
        for one in found:
            numbers = (interval_cell(value, digits=6) for value in (one.value, one.low, one.high))
            pairs.append([score, one.first, one.second, one.over, one.method, *numbers, str(one.count), one.reason])
    return {"drives": csv_table(drives), "agreement": csv_table(pairs)}
