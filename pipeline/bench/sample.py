"""``sample``: complete sets of 32 rollouts of 8 s, by the policy and by the reference it is anchored to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from data.scene import Scene
from data.vocabulary import VocabularyConfig, build_vocabulary
from models.policy import Policy, PolicyConfig
from models.reference.agent import ReferenceAgent
from models.reference.config import size_preset
from models.reference.network import Reference
from pipeline.agents.agent import Agent
from pipeline.agents.policy_agent import PolicyAgent, open_policy
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.bench.rows import Row, cpu_seconds, load_scenes
from pipeline.simulator.observation import ObservationConfig, feature_sizes

_SCENES = 6
_ROLLOUTS = 32
_SIZE = "mini"


def bench(policy: Path | None = None, reference: Path | None = None) -> list[Row]:
    """Scenarios per second, plain and compiled, and number of parameters.

    Args:
        policy, reference: checkpoints. Without them weights are random; the reference is of size mini and as fast
            as a trained one. A trained policy is faster than a random one, since its parked agents stand still and
            see the same road again.
    """
    kind, scenes = load_scenes(_SCENES)
    vocabulary = build_vocabulary(scenes, VocabularyConfig(max_segments=20_000), 0)
    torch.manual_seed(0)
    if policy is None:
        view = ObservationConfig()
        student, words = Policy(PolicyConfig(), feature_sizes(view), vocabulary.ends), vocabulary
    else:
        student, words, view = open_policy(policy)
    if reference is None:
        network = Reference(size_preset(_SIZE), vocabulary)
    else:
        network = ReferenceAgent.from_checkpoint(reference).model
    mean = sum(int(scene.simulated.sum()) for scene in scenes) / len(scenes)
    about = f"{_ROLLOUTS} rollouts, {kind}, {mean:.0f} agents"

    def rate(agent: Agent) -> float:
        work = _sampling(agent, scenes)
        # The first call compiles and is not timed.
        work()
        return len(scenes) / cpu_seconds(work)

    rows = []
    for compiled in (False, True):
        ours = rate(PolicyAgent(student, words, view, compiled=compiled))
        theirs = rate(ReferenceDriver(ReferenceAgent(network, compiled)))
        name = f"sample, policy against {'reference' if reference else _SIZE}{', compiled' if compiled else ''}"
        rows.append(Row(f"{name}, {about}", ours, "scenarios/CPU s", theirs, ours / theirs))
    own, other = _parameters(student), _parameters(network)
    rows.append(Row("parameters, policy against reference", own, "", other, other / own))
    return rows


def _sampling(agent: Agent, scenes: Sequence[Scene]) -> Callable[[], object]:
    return lambda: [agent.rollouts(scene, _ROLLOUTS, 0) for scene in scenes]


def _parameters(network: nn.Module) -> float:
    return float(sum(parameter.numel() for parameter in network.parameters()))
