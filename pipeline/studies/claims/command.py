"""Command ``claims``: each claim of the paper as an experiment, with a table, a figure and a verdict."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError, expected
from data.files import write_json, write_text
from pipeline.execution.console import say
from pipeline.execution.tables import markdown_table
from pipeline.studies.claims.catalogue import CLAIMS
from pipeline.studies.claims.config import ClaimsConfig
from pipeline.studies.claims.inputs import claim_inputs
from pipeline.studies.claims.likelihood_claim import LIKELIHOOD, is_measured, likelihood_report
from pipeline.studies.claims.report import Report, published_source
from pipeline.studies.claims.study import Study
from pipeline.viewing.figures import save_figure

CLAIM_NAMES = (LIKELIHOOD, *CLAIMS)


def run_claims(
    config: ClaimsConfig,
    *,
    run: Path,
    out: Path | None = None,
    only: str = "",
    seed: int = 0,
) -> dict[str, Any]:
    """Try the paper's claims at the scale of a preset and write claims.md, claims.json and figures.

    Args:
        config: the scale.
        run: folder of a finished run, such as runs/demo; its stores, vocabulary, reference and policy are read.
        out: folder of the results, RUN/claims by default; what is done there is not done again.
        only: names of claims, separated by commas or spaces; all but ``baselines`` by default.
        seed: of the first training of every arm, and of what is drawn.

    Raises:
        UserError: the run lacks something, no such claim, or results of other settings in ``out``.
    """
    names = _wanted_claims(only)
    inputs = claim_inputs(run, policy=LIKELIHOOD in names)
    folder = out or run / "claims"
    study = Study(config, inputs, folder, seed)
    started, reports, ran = time.perf_counter(), dict[str, Report](), 0
    # What an earlier call finished is told again, so that the page is whole.
    for claim in CLAIMS.values():
        if claim.name not in names and study.is_done(claim.arms(config), claim.references(config)):
            reports[claim.name] = claim.report(study, claim)
    if LIKELIHOOD in names or is_measured(study):
        reports[LIKELIHOOD] = likelihood_report(study)
        _write(reports, folder, study)
    for name in names:
        if name == LIKELIHOOD:
            continue
        claim = CLAIMS[name]
        ran += study.run(name, claim.arms(config), claim.references(config))
        reports[name] = claim.report(study, claim)
        # After every claim, so that an interruption leaves those before it.
        _write(reports, folder, study)
    say(f"{folder / 'claims.md'} written after {time.perf_counter() - started:.0f} s")
    return {"arms_run": ran, **{name: str(report.verdict) for name, report in reports.items()}}


def _write(reports: Mapping[str, Report], folder: Path, study: Study) -> None:
    """All reports so far, in the order of claims."""
    write_reports([reports[name] for name in CLAIM_NAMES if name in reports], folder, _about(study))
    latest = list(reports.values())[-1]
    say(f"{latest.title}: {latest.verdict}")


def _wanted_claims(only: str) -> list[str]:
    wanted = [name for name in re.split(r"[,\s]+", only) if name]
    for name in wanted:
        if name not in CLAIM_NAMES:
            raise UserError(f"--only {name}: no such claim, {expected(name, CLAIM_NAMES, 'some')}")
    if not wanted:
        return [LIKELIHOOD, *(name for name, claim in CLAIMS.items() if claim.by_default)]
    return [name for name in CLAIM_NAMES if name in wanted]


def _about(study: Study) -> dict[str, Any]:
    config = study.config
    return {
        "scenes judged on": len(study.scenes),
        "futures of each": config.rollouts,
        "metric": config.metric,
        "agent-steps of each training": config.agent_steps,
        "trainings of each arm": config.seeds,
        "intervals": "95 %, bootstrap over scenes"
        + (" and trainings" if config.seeds > 1 else "; another training may differ by more"),
        "verdicts": f"of the tokens drawn among: {study.sampling_mode}",
    }


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
    rows = [[report.title, f"**{report.verdict}**", report.says] for report in reports]
    summary = markdown_table([["claim", "verdict", "in words"], *rows])
    lines = ["# Claims", "", *(f"- {name}: {value}" for name, value in about.items()), "", summary]
    for report in reports:
        lines += ["", *_section(report, [path for name in report.figures for path in pictures[name]])]
    write_text(out / "claims.md", "\n".join(lines) + "\n")


def _section(report: Report, pictures: Sequence[Path]) -> list[str]:
    statements = [
        [
            statement.text,
            statement.bounds,
            statement.measured.cell(),
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
