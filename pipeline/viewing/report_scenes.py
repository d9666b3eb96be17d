"""Scenes that a report shows: the worst and the best of an agent, packed for the browser, with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import atomic_write
from data.scenes_source import open_scenes
from data.vocabulary import Vocabulary
from models.reference.agent import ReferenceAgent
from pipeline.agents.policy_agent import open_policy
from pipeline.viewing.explaining import Explainer, Explanation
from pipeline.viewing.judging import Judgement, judge, log_events
from pipeline.viewing.scene_pack import RolloutSet, pack_scene
from submission.archive import Entry, index_rollouts
from submission.protos import Rollouts, from_proto, parse_rollouts, rollout_files
from submission.realism import SceneContext, load_config, prepare_scene, unscorable_reason

_REASONS = 3


@dataclass(frozen=True)
class SceneTask:
    """One scene to pack, in any process.

    Attributes:
        scenarios: where scenes are. scenario_id: which. title: why it is shown.
        rollouts: by agent, where its rollouts lie.
        metric: name of its configuration.
        policy, reference: checkpoints that are asked. explained: rollouts of each agent that they are asked about.
        target: the packed file.
    """

    scenarios: str
    scenario_id: str
    title: str
    rollouts: Mapping[str, Entry]
    metric: str
    policy: Path | None
    reference: Path | None
    explained: int
    target: Path


@dataclass(frozen=True)
class ShownScene:
    """A packed scene: id, why it is shown, the reasons in words, and its bytes."""

    scenario_id: str
    title: str
    reason: str
    content: bytes


def choose_scenes(values: Mapping[str, float], count: int) -> list[tuple[str, str]]:
    """Ids and titles of the worst and best scenes by value, the worst ones first; all if there are not more."""
    ranked = sorted(values, key=lambda name: (values[name], name))
    worst = min(len(ranked), count - count // 2)
    best = min(len(ranked) - worst, count // 2)
    titled = [(name, f"worst {rank}") for rank, name in enumerate(ranked[:worst], 1)]
    return titled + [(name, f"best {rank}") for rank, name in enumerate(reversed(ranked[len(ranked) - best :]), 1)]


def find_rollouts(path: Path, wanted: Sequence[str]) -> dict[str, Entry]:
    """Where the rollouts of some scenarios lie.

    Raises:
        UserError: none there, or damaged files.
    """
    names, found = set(wanted), dict[str, Entry]()
    for file in rollout_files(path):
        for entry in index_rollouts(file, lambda message, where: None):
            if entry.scenario_id in names:
                found[entry.scenario_id] = entry
        if len(found) == len(names):
            break
    return found


def load_explainer(policy: Path | None, reference: Path | None) -> Explainer | None:
    """Models that are asked about rollouts; None without any. The policy counts where vocabularies differ."""
    net, judge_model = None, None
    vocabulary: Vocabulary | None = None
    if policy is not None:
        loaded, vocabulary, view = open_policy(policy)
        net = loaded, view
    if reference is not None:
        judge_model = ReferenceAgent.from_checkpoint(reference)
        if vocabulary is None:
            vocabulary = judge_model.vocabulary
        elif judge_model.vocabulary.poses.shape != vocabulary.poses.shape or bool(
            (judge_model.vocabulary.poses != vocabulary.poses).any()
        ):
            judge_model = None
    return None if vocabulary is None else Explainer(vocabulary, net, judge_model)


def _reasons(judgement: Judgement) -> list[dict[str, Any]]:
    """What cost most: agent, feature, loss."""
    losses = [
        {"agent": agent, "feature": feature, "loss": round(loss, 4)}
        for agent, row in judgement.losses.items()
        for feature, loss in row.items()
    ]
    return sorted(losses, key=lambda item: -float(str(item["loss"])))[:_REASONS]


def read_entry(entry: Entry) -> Rollouts:
    """The rollouts that ``find_rollouts`` found.

    Raises:
        UserError: damaged.
    """
    return from_proto(parse_rollouts(entry.payload(), str(entry.file)), str(entry.file))


def pack_task(task: SceneTask) -> str:
    """Do it; returns the scenario id.

    Raises:
        UserError: a scene or rollouts that cannot be read, or rollouts of other objects.
    """
    try:
        scene = open_scenes(task.scenarios).get(task.scenario_id)
    except KeyError as error:
        raise UserError(f"{task.scenarios}: scenario {task.scenario_id} is not there") from error
    metric = load_config(task.metric)
    context: SceneContext | None = None if unscorable_reason(scene) else prepare_scene(scene)
    explainer = load_explainer(task.policy, task.reference) if task.explained else None
    ids = scene.agents.id[scene.simulated].tolist()
    sets, reasons = [], {}
    for agent, entry in task.rollouts.items():
        rollouts = read_entry(entry)
        if (states := rollouts.of(ids)) is None:
            raise UserError(f"{entry.file}: scenario {task.scenario_id}: not the objects that are to be simulated")
        judgement = None if context is None else judge(context, rollouts, metric)
        told: dict[int, Explanation] = {}
        # Motion of these is no token.
        if explainer is not None and agent not in ("log", "constant_velocity"):
            told = {number: explainer.explain(scene, one) for number, one in enumerate(states[: task.explained])}
        sets.append(RolloutSet(agent, states, judgement, told))
        if judgement is not None:
            reasons[agent] = _reasons(judgement)
    events = None if context is None else log_events(context)
    packed = pack_scene(scene, sets, events, {"title": task.title, "reasons": reasons})
    atomic_write(task.target, lambda file: file.write(packed))
    return task.scenario_id
