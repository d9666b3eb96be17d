"""Scenes as an agent sees them, rollouts scored against the scenes as they were; means, differences and tables.

A trial is the unit of work, in any process, with its result on the disk.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError, warn_once
from data.files import sha256_of
from data.scene import Scene
from data.scenes_source import SceneSource, content_digest, open_scenes
from models.sampling import SamplingConfig
from pipeline.agents.agent import Agent
from pipeline.agents.catalogue import AGENT_NAMES, LEARNT, make_agent
from pipeline.evaluation.statistics import mean_intervals
from pipeline.execution.devices import Count, Devices
from pipeline.execution.engine import EngineConfig
from pipeline.execution.result_cache import code_version, digest_of, run_kept
from pipeline.execution.tables import csv_table, interval_cell
from pipeline.studies.robustness.spoiling import Condition, spoil
from submission.realism import (
    METRIC_FIELDS,
    MetricConfig,
    SceneContext,
    buckets,
    load_config,
    mean_metrics,
    prepare_scene,
    score,
    unscorable_reason,
)

_PARTS = "parts"
# Prepared scenes that a process keeps: an experiment has some dozens.
_CONTEXTS = 128


@dataclass(frozen=True)
class ComparisonConfig:
    """What is compared.

    Args:
        agents: of constant_velocity, reference and policy. The first learns nothing: it says how hard scenes are.
        scenes: of every run, drawn at random among those that can be scored; 0 for all.
        rollouts: of every scene and agent; with 32 the figures are those of evaluate.
        sampling: how a learnt agent draws its tokens.
        metric: 2025, 2024 or 2025_scenario_gen.
        chunk: scenes of a task; a run that is interrupted repeats at most the tasks that were being done.
        workers: processes; 0 for one per core, or per GPU.
        device: of a learnt agent: cpu, cuda, cuda:N, mps, or auto for a GPU where there is one.
        devices: GPUs among which the scenes are dealt out; auto for all of this machine.
    """

    agents: list[str] = field(default_factory=lambda: ["constant_velocity", "reference", "policy"])
    scenes: int = 0
    rollouts: int = 32
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    metric: str = "2025"
    chunk: int = 4
    workers: int = 0
    device: str = "auto"
    devices: Count = "auto"

    def __post_init__(self) -> None:
        for name, least in (("scenes", 0), ("rollouts", 1), ("chunk", 1), ("workers", 0)):
            if (value := getattr(self, name)) < least:
                raise UserError(f"--{name} {value}: expected {least} or more")
        known = [name for name in AGENT_NAMES if name != "log"]
        agents = self.agents
        if not agents or len(set(agents)) != len(agents) or not set(agents) <= set(known):
            raise UserError(f"--agents {agents}: expected some of {', '.join(known)}, each once")


@dataclass(frozen=True)
class Contestant:
    """An agent under test: its kind, its checkpoint, and what tells changed ones apart."""

    agent: str
    checkpoint: Path | None
    digest: str | None


@dataclass(frozen=True)
class Scenes:
    """Scenarios under test: where they are, what tells changed ones apart, and the ids that are used.

    Attributes:
        unscorable: (id, reason) of those that were drawn and cannot be scored.
    """

    path: str
    digest: str
    ids: tuple[str, ...]
    unscorable: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Trial:
    """An agent in some scenes under one condition.

    Attributes:
        scenes, contestant, condition: see there.
        rollouts: of every scene. seed: of rollouts and of what is spoilt.
        sampling: how a learnt agent draws. device: of a learnt agent. metric: realism metric by name.
    """

    scenes: Scenes
    contestant: Contestant
    condition: Condition
    rollouts: int
    seed: int
    sampling: SamplingConfig
    device: str
    metric: str

    @property
    def name(self) -> str:
        """Of everything that decides the result, and of nothing else."""
        # Paths do not: what they held is in the digests.
        where = dataclasses.replace(self.scenes, path="", unscorable=())
        who = dataclasses.replace(self.contestant, checkpoint=None)
        return digest_of(dataclasses.replace(self, scenes=where, contestant=who), code=code_version(__name__))

    @property
    def size(self) -> int:
        """Number of scenes."""
        return len(self.scenes.ids)


def contestant(agent: str, checkpoint: Path | None) -> Contestant:
    """Raises UserError where the checkpoint is missing."""
    if agent not in LEARNT:
        return Contestant(agent, None, None)
    if checkpoint is None or not checkpoint.is_file():
        raise UserError(f"--{agent} {checkpoint}: no such file; expected {agent}.ckpt")
    return Contestant(agent, checkpoint.absolute(), sha256_of(checkpoint))


def choose_scenes(path: str, count: int, seed: int) -> Scenes:
    """Scenes that can be scored, drawn at random; those of a higher count include those of a lower one.

    Args:
        path: WOMD TFRecords or an ingested store. count: how many at most, 0 for all. seed: of the draw.

    Raises:
        UserError: no scene of it can be scored.
    """
    source = open_scenes(path)
    order = torch.randperm(len(source), generator=torch.Generator().manual_seed(seed))
    ids: list[str] = []
    left_out: dict[str, str] = {}
    for index in order.tolist():
        scene = source[index]
        reason = unscorable_reason(scene)
        if reason is None:
            ids.append(str(scene.scenario_id))
        else:
            left_out[str(scene.scenario_id)] = reason
        if len(ids) == (count or len(source)):
            break
    first = ": ".join(next(iter(left_out.items()), ("", "")))
    if not ids:
        raise UserError(f"{path}: no scenario can be scored ({first})")
    if left_out:
        warn_once(f"{path}: {len(left_out)} scenarios cannot be scored and do not count ({first})")
    return Scenes(str(path), content_digest(path), tuple(ids), tuple(left_out.items()))


def split(scenes: Scenes, size: int) -> list[Scenes]:
    """Chunks of at most ``size`` scenes."""
    starts = range(0, len(scenes.ids), size)
    return [dataclasses.replace(scenes, ids=scenes.ids[start : start + size]) for start in starts]


@lru_cache(maxsize=2)
def _source(path: str, digest: str) -> SceneSource:
    return open_scenes(path)


@lru_cache(maxsize=_CONTEXTS)
def _context(path: str, digest: str, scenario_id: str) -> SceneContext:
    return prepare_scene(_source(path, digest).get(scenario_id))


@lru_cache(maxsize=4)
def _agent(contestant: Contestant, sampling: SamplingConfig, device: str) -> Agent:
    return make_agent(contestant.agent, contestant.checkpoint, sampling, device)


def _same(first: Scene, second: Scene) -> bool:
    """Whether two scenes hold the same tensors."""
    pairs = ((getattr(first, part), getattr(second, part)) for part in ("agents", "map", "lights"))
    values = ((getattr(a, field.name), getattr(b, field.name)) for a, b in pairs for field in dataclasses.fields(a))
    return all(torch.equal(a, b) for a, b in values)


def _run_trial(trial: Trial) -> list[dict[str, Any]]:
    """Scores by scene. What a condition leaves as it is has the scores of the clean scene, and none here."""
    path, digest = trial.scenes.path, trial.scenes.digest
    rows: dict[str, dict[str, Any]] = {}
    driven: list[Scene] = []
    for scenario_id in trial.scenes.ids:
        scene = _source(path, digest).get(scenario_id)
        seen = spoil(scene, trial.condition, trial.seed)
        spoilt = seen is not scene and not _same(seen, scene)
        rows[scenario_id] = {"scenario_id": scenario_id, "spoilt": spoilt}
        if spoilt or seen is scene:
            driven.append(seen)
    agent = _agent(trial.contestant, trial.sampling, trial.device)
    for seen, states in agent.rollouts_of(driven, trial.rollouts, trial.seed):
        rows[str(seen.scenario_id)]["values"] = _scores(trial, seen, states)
    return list(rows.values())


def _scores(trial: Trial, seen: Scene, states: Tensor) -> dict[str, float]:
    path, scenario_id = trial.scenes.path, str(seen.scenario_id)
    context = _context(path, trial.scenes.digest, scenario_id)
    result = score(context, seen.agents.id[seen.simulated], states, load_config(trial.metric))
    values = {name: float(value) for name, value in result.values.items()}
    odd = next((name for name, value in values.items() if not math.isfinite(value)), None)
    if odd is not None:
        raise UserError(f"{path}: scenario {scenario_id}: {odd} is {values[odd]}; leave the scenario out")
    return values


def run_trials(
    trials: Sequence[Trial], out: Path, description: str, workers: int, engine: EngineConfig, devices: Devices
) -> Mapping[Trial, list[dict[str, Any]]]:
    """Rows (scenario_id, spoilt, values) of every trial; what an earlier run has done is not done again.

    Args:
        trials: what to do. out: folder; results are kept in ``parts`` of it. description: of the progress bar.
        workers: processes, see ``run_on``. engine: who does the work. devices: of the agents.
    """
    rows = run_kept(_run_trial, trials, out / _PARTS, description, workers, engine, devices)
    return dict(zip(trials, rows, strict=True))


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
        for name in METRIC_FIELDS:
            cells += [summary.metrics[name], *summary.intervals[name]]
            compared = bool(summary.differences)
            cells += [summary.differences[name], *summary.difference_intervals[name]] if compared else ["", "", ""]
        table.append([*values, summary.scenes, *cells])
    return csv_table(table)
