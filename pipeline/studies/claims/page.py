"""Reports as ``claims.json`` and ``claims.md``, with figures as PDF and PNG beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.files import write_json, write_text
from pipeline.evaluation.tables import markdown_table
from pipeline.studies.claims.report import Report, cell, published_source
from pipeline.viewing.figures import save_figure

__all__ = ["write_reports"]

_FIGURES = "figures"


def write_reports(reports: Sequence[Report], out: Path, about: dict[str, Any]) -> None:
    """Write everything.

    Args:
        reports: of the claims tried. out: folder. about: what was tried at which scale, plain values.
    """
    pictures = {}
    for report in reports:
        for name, figure in report.figures.items():
            pictures[name] = [path.relative_to(out) for path in save_figure(figure, out / _FIGURES, name)]
    write_json(out / "claims.json", {"about": about, "claims": [report.plain() for report in reports]})
    lines = ["# Claims", "", *_about(about), "", _summary(reports)]
    for report in reports:
        lines += ["", *_section(report, [path for name in report.figures for path in pictures[name]])]
    write_text(out / "claims.md", "\n".join(lines) + "\n")


def _about(about: dict[str, Any]) -> list[str]:
    return [f"- {name}: {value}" for name, value in about.items()]


def _summary(reports: Sequence[Report]) -> str:
    rows = [[report.title, f"**{report.verdict}**", report.says] for report in reports]
    return markdown_table([["claim", "verdict", "in words"], *rows])


def _section(report: Report, pictures: Sequence[Path]) -> list[str]:
    statements = [
        [
            statement.text,
            statement.bounds,
            cell(statement.measured, 3),
            "-" if statement.published is None else f"{statement.published:g}",
            str(statement.verdict),
        ]
        for statement in report.statements
    ]
    image = next((path for path in pictures if path.suffix == ".png"), None)
    return [
        f"## {report.title}: {report.verdict}",
        "",
        report.says,
        "",
        markdown_table([["statement", "claimed", "measured [95 %]", "paper", "verdict"], *statements]),
        "",
        markdown_table(report.table),
        "",
        f"- Behind a slash, the paper's figure: {published_source(report.name)}.",
        *(f"- {note}" for note in report.notes),
        *(["", f"![{report.title}]({image})"] if image else []),
    ]
