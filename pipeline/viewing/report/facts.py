"""Everything a report says of a run, read from the run's folder. What is not there yet is left out."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import read_json
from data.store import SceneInfo, SceneStore, is_store
from data.vocabulary import Vocabulary
from pipeline.execution.manifest import Manifest, read_manifest
from pipeline.run.run_folder import ARCHIVE, POLICY, PRETRAINED, REFERENCE, VERDICT, VOCABULARY
from pipeline.run.stage_table import STAGES

__all__ = ["AgentResult", "Curve", "RunFacts", "gather"]

_SPLITS = ("training", "validation", "testing")
# In this order agents are compared; others follow.
_AGENTS = ("log", "constant_velocity", "reference", "policy")


@dataclass(frozen=True)
class Curve:
    """A training: columns of its metrics.csv, numbers where a row has them."""

    stage: str
    columns: Sequence[str]
    rows: Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class AgentResult:
    """What ``evaluate`` said of an agent: metrics.json, and fields by scenario id, of which metametric is one."""

    agent: str
    report: Mapping[str, Any]
    scenarios: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class RunFacts:
    """Of one run.

    Attributes:
        name: of the run. folder: where it is.
        manifests: of finished stages, in order. unfinished: names of the other stages.
        infos: of every scene, by split. vocabulary: of motion.
        curves: of trainings. results: of agents on the validation split.
        validation: what ``validate`` wrote, and archive: what it was about.
    """

    name: str
    folder: Path
    manifests: Mapping[str, Manifest]
    unfinished: Sequence[str]
    infos: Mapping[str, Sequence[SceneInfo]]
    vocabulary: Vocabulary | None
    curves: Sequence[Curve]
    results: Sequence[AgentResult]
    validation: Mapping[str, Any] | None
    archive: Path | None

    def store(self, split: str) -> Path:
        return self.folder / "tokenize" / split

    def rollouts(self, agent: str) -> Path:
        return self.folder / "sample" / "validation" / agent

    @property
    def reference(self) -> Path | None:
        return self._checkpoint(REFERENCE, PRETRAINED)

    @property
    def policy(self) -> Path | None:
        return self._checkpoint(POLICY)

    def _checkpoint(self, *names: str) -> Path | None:
        """Of the first stage that is done; another one's may be changing."""
        found = (self.folder / name for name in names if name.partition("/")[0] in self.manifests)
        return next((path for path in found if path.is_file()), None)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file.

    Raises:
        UserError: it cannot be read as one.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            return list(reader.fieldnames or []), rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); run its stage again") from error


def _numbers(row: Mapping[str, str]) -> dict[str, float]:
    values = {name: _number(text) for name, text in row.items() if isinstance(text, str)}
    return {name: value for name, value in values.items() if value is not None}


def _curve(folder: Path, stage: str) -> Curve | None:
    path = folder / stage / "metrics.csv"
    if not path.is_file():
        return None
    columns, rows = read_table(path)
    return Curve(stage, columns, [_numbers(row) for row in rows])


def _result(folder: Path) -> AgentResult:
    columns, rows = read_table(folder / "per_scenario.csv")
    scenarios = {row["scenario_id"]: _numbers(row) for row in rows if "scenario_id" in row}
    if not all("metametric" in row for row in scenarios.values()) or "metametric" not in columns:
        raise UserError(f"{folder / 'per_scenario.csv'}: not what evaluate writes (no metametric); run it again")
    try:
        report = read_json(folder / "metrics.json")
        # What every part of a report relies on.
        _ = (
            report["metrics"]["metametric"],
            report["buckets"],
            report["intervals"]["metametric"],
            report["metric"],
        )
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f"{folder / 'metrics.json'}: not what evaluate writes ({error}); run it again") from error
    return AgentResult(folder.name, report, scenarios)


def _results(folder: Path) -> list[AgentResult]:
    if not folder.is_dir():
        return []
    names = [path.name for path in folder.iterdir() if (path / "metrics.json").is_file()]
    known = [name for name in _AGENTS if name in names]
    return [_result(folder / name) for name in known + sorted(set(names) - set(known))]


def gather(folder: Path) -> RunFacts:
    """Read a run.

    Raises:
        UserError: no run there, or files that its stages did not write.
    """
    manifests = {}
    # Whether traffic was generated shows in the folder itself.
    generated = (folder / "traffic").is_dir()
    others = {"report"} if generated else {"report", "traffic"}
    stages = [stage.name for stage in STAGES if stage.name not in others]
    for stage in stages:
        if (manifest := read_manifest(folder / stage)) is not None:
            manifests[stage] = manifest
    if not manifests:
        raise UserError(
            f"{folder}: no finished stage of a run here; expected the folder of a run, such as runs/demo"
        )
    stores = {split: folder / "tokenize" / split for split in _SPLITS}
    vocabulary = folder / VOCABULARY
    report = folder / VERDICT
    archive = folder / ARCHIVE
    curves = [_curve(folder, stage) for stage in ("pretrain", "finetune", "selfplay")]
    return RunFacts(
        name=folder.resolve().name,
        folder=folder,
        manifests=manifests,
        unfinished=[stage for stage in stages if stage not in manifests],
        infos={split: SceneStore(path).infos for split, path in stores.items() if is_store(path)},
        vocabulary=Vocabulary.load(vocabulary) if vocabulary.is_file() else None,
        curves=[curve for curve in curves if curve is not None],
        results=_results(folder / "evaluate"),
        validation=read_json(report) if report.is_file() else None,
        archive=archive if archive.is_file() else None,
    )
