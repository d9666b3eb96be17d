"""Stage ``validate``: is this archive what the server wants?"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.completeness import SPLITS, Origin, partial_allowed
from data.errors import UserError
from data.files import sha256_of, write_json
from data.places import open_path
from data.scenes_source import open_scenes
from data.store import SceneStore, is_store
from pipeline.execution.console import bar
from submission.suspicion import Suspicion
from submission.validate import Verdict, validate_archive

# Of a report, as ``write_json`` writes it.
_BEGINNING = b'{\n  "archive": '


@dataclass(frozen=True)
class ValidateConfig:
    """Checks of the archive.

    Args:
        shown: defects printed; the report lists up to 100,000 of them, and as many suspicions.
        strict: suspicions are defects.
        json: print the report on standard output, whatever is found.
    """

    shown: int = 50
    strict: bool = False
    json: bool = False


def run_validate(
    config: ValidateConfig, *, archive: Path, scenarios: str, report: Path | None = None
) -> dict[str, Any]:
    """Check a submission archive as the server would, and with Waymo's own validator, scenario by scenario.

    Defects are what the server or the rules refuse. Suspicions are accepted and almost surely a mistake: objects
    that jump or leave the ground, futures that are all the same or follow the log, conventions that do not fit the
    current state, metadata that were not filled in. They are printed by kind.

    Args:
        config: of the stage.
        archive: the .tar.gz.
        scenarios: the evaluated set: WOMD TFRecords or an ingested store.
        report: JSON file for the result with the defects.

    Raises:
        UserError: the archive has defects; they are printed before. ``report`` is a file of another kind.
    """
    if report is not None:
        _check_report(open_path(report))
    source = open_scenes(scenarios)
    with bar("validate", len(source), " scenario") as progress:
        verdict = validate_archive(archive, source, progress.update, _siblings(open_path(scenarios)))
    _check_set(verdict, archive.name, source.origin)
    figures: dict[str, float] = {
        "scenarios": verdict.scenarios,
        "accepted": verdict.accepted,
        "shards": len(verdict.shards),
        "defects": verdict.count,
        "suspicions": verdict.suspected,
        **source.origin.figures(),
    }
    whole: dict[str, Any] = {"archive": archive.name, "sha256": sha256_of(archive), **figures}
    whole |= {"list": verdict.defects, "suspicion_list": verdict.suspicions}
    if report is not None:
        write_json(report, whole)
    _show(verdict.defects, verdict.count, config.shown)
    verdict.kinds.show()
    refused = bool(verdict.count or (config.strict and verdict.suspected))
    if refused and config.json:
        print(json.dumps(whole, indent=2))
    if verdict.count:
        raise UserError(f"{archive}: {verdict.count} defects")
    if refused:
        raise UserError(f"{archive}: {verdict.suspected} suspicions (--strict)")
    return whole if config.json else figures


def _check_report(report: Path) -> None:
    """Refuse to write over anything but a report of before: the archive itself, metadata, a shard."""
    if not report.exists():
        return
    if report.is_file():
        with report.open("rb") as file:
            if file.read(len(_BEGINNING)) in (_BEGINNING, b""):
                return
    raise UserError(f"--report {report}: no report, and not to be written over; name another file")


def _check_set(verdict: Verdict, archive: str, origin: Origin) -> None:
    """Compare what the evaluated set is made of with what the server has, as far as that is known."""
    count = verdict.scenarios
    lacking = [f"{count} scenarios, but {origin.rejection}"] if origin.lost else []
    if lacking and not partial_allowed():
        verdict.add(f"{archive}: holds {lacking.pop()}")
    if found := origin.shortage(count) or (f"{count} scenarios" if origin.absence else ""):
        lacking.append("; ".join(filter(None, (found, origin.absence))))
    if lacking:
        verdict.suspect(archive, Suspicion("holds a part of the split", lacking))


def _show(lines: list[str], count: int, shown: int) -> None:
    for line in lines[:shown]:
        print(line, file=sys.stderr)
    if count > shown:
        print(f"... and {count - min(shown, len(lines))} more (--report FILE lists them)", file=sys.stderr)


def _siblings(scenarios: Path) -> dict[str, list[str]]:
    """Ids of the stores of other splits that lie beside one: there, looking is quick."""
    folders = [scenarios.parent / split for split in SPLITS]
    if not is_store(scenarios):
        return {}
    return {str(folder): SceneStore(folder).ids for folder in folders if folder != scenarios and is_store(folder)}
