"""The table at the end of a run: every agent against the realism metric, and where the archive is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data.files import read_json
from pipeline.evaluation.tables import render_table, result_table
from pipeline.execution.console import say
from pipeline.execution.manifest import Manifest
from pipeline.run.names import ARCHIVE, REPORT
from pipeline.run.stage_table import Run
from submission.metadata import load_metadata, metadata_message, placeholders

__all__ = ["print_summary"]

_EXAMPLE = "submission/metadata.example.yaml"


def _time_table(manifests: Mapping[str, Manifest]) -> list[list[str]]:
    rows = [["stage", "seconds", "peak MB"]]
    rows += [[name, f"{m.seconds:.0f}", f"{m.peak_memory_mb:.0f}"] for name, m in manifests.items()]
    rows.append(["all", f"{sum(m.seconds for m in manifests.values()):.0f}", ""])
    return rows


def print_summary(run: Run, manifests: Mapping[str, Manifest]) -> None:
    """Print times, the result table and the archive's path, as far as the stages have been run."""
    say(render_table(_time_table(manifests)))
    if "evaluate" in manifests:
        reports = {agent: read_json(run.path("evaluate") / agent / "metrics.json") for agent in run.config.agents}
        print()
        print(render_table(result_table(reports)))
    if "validate" in manifests:
        archive: Path = run.path("package") / ARCHIVE
        accepted = manifests["validate"].figures.get("accepted")
        print()
        print(f"{archive}  ({archive.stat().st_size / 1e6:.1f} MB, {accepted} scenarios accepted by Waymo)")
        if left := placeholders(metadata_message(load_metadata(run.config.metadata))):
            print(
                f"before an upload: fill in {', '.join(left)} in a copy of {_EXAMPLE}, "
                'and give it with --metadata FILE (make stages ARGS="--metadata FILE")'
            )
    if "report" in manifests:
        print(f"{run.path('report') / REPORT}  (open it in a browser)")
