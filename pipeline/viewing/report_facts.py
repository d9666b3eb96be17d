"""Everything a report says of a run, read from the run's folder. What is not there yet is left out."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from data.files import read_json
from data.sources import SPLITS
from data.store import SceneInfo, SceneStore
from data.vocabulary import Vocabulary
from pipeline.execution.manifest import Manifest
from pipeline.execution.tables import numbers, read_table
from pipeline.run.run_folder import ARCHIVE, VERDICT, VOCABULARY, RunFolder
from pipeline.run.stage_table import STAGES, TRAININGS

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
class RunFacts(RunFolder):
    """Of one run.

    Attributes:
        name: of the run.
        manifests: of finished stages, in order. unfinished: names of the other stages.
        infos: of every scene, by split. remarks: lines about what their sources lack. vocabulary: of motion.
        curves: of trainings, also of unfinished ones. results: of agents on the validation split.
        validation: what ``validate`` wrote, and archive: what it was about.
    """

    name: str
    manifests: Mapping[str, Manifest]
    unfinished: Sequence[str]
    infos: Mapping[str, Sequence[SceneInfo]]
    remarks: Sequence[str]
    vocabulary: Vocabulary | None
    curves: Sequence[Curve]
    results: Sequence[AgentResult]
    validation: Mapping[str, Any] | None
    archive: Path | None


def _curve(folder: Path, stage: str) -> Curve | None:
    path = folder / stage / "metrics.csv"
    if not path.is_file():
        return None
    columns, rows = read_table(path)
    return Curve(stage, columns, [numbers(row) for row in rows])


def _result(folder: Path) -> AgentResult:
    columns, rows = read_table(folder / "per_scenario.csv")
    scenarios = {row["scenario_id"]: numbers(row) for row in rows if "scenario_id" in row}
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
    names = [path.name for path in folder.iterdir() if (path / "metrics.json").is_file()]
    known = [name for name in _AGENTS if name in names]
    return [_result(folder / name) for name in known + sorted(set(names) - set(known))]


def gather(folder: Path) -> RunFacts:
    """Read a run.

    Raises:
        UserError: no run there, or files that its stages did not write.
    """
    run = RunFolder.opened(folder)
    # Whether traffic was generated shows in the folder itself.
    others = {"report"} if run.path("traffic").is_dir() else {"report", "traffic"}
    if run.manifest("sample") is not None and not run.path("selfplay").is_dir():
        # A run without the policy among its agents.
        others.add("selfplay")
    stages = [stage.name for stage in STAGES if stage.name not in others]
    found = {stage: run.manifest(stage) for stage in stages}
    manifests = {stage: manifest for stage, manifest in found.items() if manifest is not None}
    vocabulary, verdict = run.finished(VOCABULARY), run.finished(VERDICT)
    stores = {split: SceneStore(run.store(split)) for split in SPLITS if run.finished(f"tokenize/{split}")}
    curves = [_curve(folder, stage) for stage in TRAININGS]
    return RunFacts(
        folder=folder,
        name=folder.resolve().name,
        manifests=manifests,
        unfinished=[stage for stage in stages if stage not in manifests],
        infos={split: store.infos for split, store in stores.items()},
        remarks=[line for split, store in stores.items() for line in store.origin.remarks.lines(split)],
        vocabulary=Vocabulary.load(vocabulary) if vocabulary else None,
        curves=[curve for curve in curves if curve is not None],
        results=_results(run.path("evaluate")) if "evaluate" in manifests else [],
        validation=read_json(verdict) if verdict else None,
        archive=run.finished(ARCHIVE),
    )


_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("torch", "lightning", "waymo-open-dataset-tf-2-12-0")


def _processor() -> str:
    """Model of the CPU, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def machine_facts() -> dict[str, str]:
    """Names and values for a table."""
    cores = os.cpu_count()
    facts = {"processor": f"{_processor()}, {cores} cores", "Python": platform.python_version()}
    if torch.cuda.is_available():
        facts["GPU"] = torch.cuda.get_device_name()
    return facts | {name: _version(name) for name in _PACKAGES}


def source_commit() -> str | None:
    """Commit of the source, with a note where files differ from it; None outside a git checkout."""
    try:
        answers = [
            subprocess.run(
                ["git", "-C", str(_ROOT), *words], capture_output=True, text=True, timeout=20, check=True
            )
            for words in (
                ["rev-parse", "--show-toplevel", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    top, commit = answers[0].stdout.split()
    # A checkout around this folder says nothing of this code.
    if Path(top).resolve() != _ROOT:
        return None
    return commit[:12] + (" with changes" if answers[1].stdout.strip() else "")
