"""Stage ``validate``: is this archive what the server wants?"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from data.files import sha256_of, write_json
from data.scenes_source import open_scenes
from pipeline.progress import bar
from submission.validate import validate_archive

__all__ = ["ValidateConfig", "run_validate"]


@dataclass(frozen=True)
class ValidateConfig:
    """Checks of the archive.

    Args:
        shown: defects printed; the report lists up to 100,000.
    """

    shown: int = 50


def run_validate(
    config: ValidateConfig, *, archive: Path, scenarios: str, report: Path | None = None
) -> dict[str, float]:
    """Check a submission archive as the server would, and with Waymo's own validator, scenario by scenario.

    Args:
        config: of the stage.
        archive: the .tar.gz.
        scenarios: the evaluated set: WOMD TFRecords or an ingested store.
        report: JSON file for the result with the defects.

    Raises:
        UserError: the archive has defects; they are printed before.
    """
    source = open_scenes(scenarios)
    with bar("validate", len(source), " scenario") as progress:
        verdict = validate_archive(archive, source, progress.update)
    figures: dict[str, float] = {
        "scenarios": verdict.scenarios,
        "accepted": verdict.accepted,
        "shards": len(verdict.shards),
        "defects": verdict.count,
    }
    if report is not None:
        write_json(
            report,
            {"archive": archive.name, "sha256": sha256_of(archive), **figures, "list": verdict.defects},
        )
    if verdict.count:
        listed = verdict.defects[: config.shown]
        for line in listed:
            print(line, file=sys.stderr)
        if verdict.count > len(listed):
            print(f"... and {verdict.count - len(listed)} more (--report FILE lists them)", file=sys.stderr)
        raise UserError(f"{archive}: {verdict.count} defects")
    return figures
