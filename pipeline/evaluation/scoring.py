"""Scoring one file of rollouts: the unit of work of ``evaluate``, in any process."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from data.scene import AgentType, Scene
from data.scenes_source import SceneSource, open_scenes
from pipeline.evaluation.motion import motion_sums
from pipeline.execution.result_cache import digest_of
from submission.checks import suspicions_of
from submission.protos import Rollouts, file_messages, from_proto
from submission.realism import (
    MetricConfig,
    SceneContext,
    SceneScore,
    diagnose,
    load_config,
    load_context,
    prepare_scene,
    save_context,
    score,
    unscorable_reason,
)

# Whose likelihoods count, among the agents that a scenario asks to be evaluated: types, or None for all of them.
TARGETS: dict[str, tuple[int, ...] | None] = {
    "all": None,
    "vehicle": (int(AgentType.VEHICLE),),
    "vru": (int(AgentType.PEDESTRIAN), int(AgentType.CYCLIST)),
}


@dataclass(frozen=True)
class ScoringTask:
    """One file of rollouts to score.

    Attributes:
        file: of rollouts. scenarios: where their scenarios are; digest: tells changed ones apart.
        metric, ttc_all_types: the metric. mended: score without documented defects too.
        targets: whose likelihoods count, a name in ``TARGETS``.
        losses: say which agents and features lost how much.
        cache: folder of prepared scenes, or None. device: of the metric, as torch takes it.
        version: tells a changed file, or other code, apart.
    """

    file: Path
    scenarios: str
    digest: str
    metric: str
    ttc_all_types: bool
    mended: bool
    targets: str
    losses: bool
    cache: Path | None
    version: str
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Stands for all that decides the rows."""
        return digest_of(dataclasses.replace(self, cache=None, device=""))

    @property
    def size(self) -> int:
        return 1


@lru_cache(maxsize=1)
def _source(scenarios: str, digest: str) -> SceneSource:
    """Opened once in a process; ``digest`` tells changed files apart."""
    return open_scenes(scenarios)


def with_targets(scene: Scene, targets: str) -> Scene:
    """The scene with those evaluated agents alone whose types count; the others are there as before."""
    if TARGETS[targets] is None:
        return scene
    agents = scene.agents
    counted = torch.isin(agents.type, torch.tensor(TARGETS[targets]))
    return dataclasses.replace(
        scene,
        agents=dataclasses.replace(agents, is_sdc=agents.is_sdc & counted, to_predict=agents.to_predict & counted),
    )


def _prepared(scene: Scene, bug_compatible: bool, cache: Path | None, targets: str) -> SceneContext:
    if cache is None:
        return prepare_scene(scene, bug_compatible)
    # Not the id itself: it is input, and may lead to any folder.
    name = hashlib.sha256(str(scene.scenario_id).encode()).hexdigest()
    counted = "" if targets == "all" else f".{targets}"
    path = cache / f"{name}{counted}{'' if bug_compatible else '.mended'}.pt"
    context = load_context(path)
    if context is None:
        context = prepare_scene(scene, bug_compatible)
        save_context(path, context)
    return context


def _events_by_kind(scene: Scene, context: SceneContext, result: SceneScore) -> dict[str, dict[str, float]]:
    """Of every kind of evaluated agent how many there are, and the sums of their rates."""
    kind_of = dict(zip(scene.agents.id.tolist(), scene.agents.type.tolist(), strict=True))
    kinds = [AgentType(kind_of[agent]).name.lower() for agent in context.agent_id[: context.evaluated].tolist()]
    rates = {name: happened.float().mean(0).tolist() for name, happened in result.agent_events.items()}
    return {
        kind: {
            "agents": kinds.count(kind),
            **{
                name: sum(rate for rate, other in zip(row, kinds, strict=True) if other == kind)
                for name, row in rates.items()
            },
        }
        for kind in sorted(set(kinds))
    }


def _row(rollouts: Rollouts, scene: Scene, metric: MetricConfig, task: ScoringTask) -> dict[str, Any]:
    """Scores of a scenario."""
    row: dict[str, Any] = {
        "scenario_id": rollouts.scenario_id,
        "joint_scenes": len(rollouts.states),
        "suspicions": [asdict(found) for found in suspicions_of(rollouts.agent_id, rollouts.states, scene)],
    }
    if (reason := scene.unscorable_reason) is not None:
        return row | {"reason": reason}
    scene = with_targets(scene, task.targets)
    if not bool(scene.evaluated.any()):
        return row | {"reason": f"no target of --targets {task.targets}", "expected": True}
    if (reason := unscorable_reason(scene, task.ttc_all_types)) is not None:
        return row | {"reason": reason}
    for name, bug_compatible in (("values", True), ("mended", False)):
        if not (bug_compatible or task.mended):
            continue
        context = _prepared(scene, bug_compatible, task.cache, task.targets).to(task.device)
        states = rollouts.states.to(task.device)
        result = score(context, rollouts.agent_id, states, metric, task.ttc_all_types)
        row[name] = {field: float(value) for field, value in result.values.items()}
        odd = [field for field, value in row[name].items() if not math.isfinite(value)]
        if odd:
            # Of coordinates whose squares are beyond float32, for one.
            reason = f"{'' if bug_compatible else 'mended '}{odd[0]} is {row[name][odd[0]]}"
            return {key: row[key] for key in ("scenario_id", "joint_scenes")} | {"reason": reason}
        if bug_compatible:
            row["kinds"] = _events_by_kind(scene, context, result)
        if bug_compatible and task.losses:
            row["losses"] = [asdict(loss) for loss in diagnose(context, result, metric)]
    row["motion"] = motion_sums(scene, rollouts.agent_id, rollouts.states, TARGETS[task.targets])
    return row


def score_file(task: ScoringTask) -> list[dict[str, Any]]:
    """Score every scenario of a file; a row for each.

    What is damaged becomes a row that says so, and the rest of the file is scored as far as it can be read.
    """
    source, metric = _source(task.scenarios, task.digest), load_config(task.metric)
    known = set(source.ids)
    rows: list[dict[str, Any]] = []
    messages = file_messages(task.file)
    while True:
        try:
            message, where = next(messages)
        except StopIteration:
            break
        except UserError as error:
            rows.append({"broken": str(error)})
            break
        try:
            if message.scenario_id not in known:
                raise UserError(f"{where}: scenario {message.scenario_id or '(no id)'} is not in {task.scenarios}")
            rollouts = from_proto(message, where)
            rows.append(_row(rollouts, source.get(rollouts.scenario_id), metric, task))
        except UserError as error:
            rows.append({"broken": str(error), "of": message.scenario_id})
        except ValueError as error:
            rows.append({"broken": f"{where}: {error}", "of": message.scenario_id})
    return rows
