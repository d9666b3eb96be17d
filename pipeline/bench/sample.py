"""``sample``: complete sets of 32 rollouts of 8 s, by the policy and by the reference it is anchored to."""

from __future__ import annotations

from collections.abc import Callable

import torch

from data.vocabulary import VocabularyConfig, build_vocabulary
from models.policy import Policy, PolicyConfig
from models.reference.agent import ReferenceAgent
from models.reference.config import size_preset
from models.reference.network import Reference
from pipeline.bench.rows import Row, cpu_seconds, load_scenes
from pipeline.sampling.agents import SimAgent
from pipeline.sampling.policy_agent import PolicyAgent
from pipeline.selfplay.observation import ObservationConfig, feature_sizes

__all__ = ["bench"]

_SCENES = 6
_ROLLOUTS = 32
_SIZES = ("micro", "mini")


def bench() -> list[Row]:
    """Scenarios a second; networks have random weights, which are as fast as trained ones."""
    kind, scenes = load_scenes(_SCENES)
    vocabulary = build_vocabulary(scenes, VocabularyConfig(max_segments=20_000), 0)
    view = ObservationConfig()
    torch.manual_seed(0)
    agents: dict[str, SimAgent] = {
        "policy": PolicyAgent(Policy(PolicyConfig(), feature_sizes(view), vocabulary.ends), vocabulary, view)
    }
    for size in _SIZES:
        agents[f"reference {size}"] = ReferenceAgent(Reference(size_preset(size), vocabulary))
    mean = sum(int(scene.simulated.sum()) for scene in scenes) / len(scenes)

    def sampling(agent: SimAgent) -> Callable[[], object]:
        return lambda: [agent.rollouts(scene, _ROLLOUTS, 0) for scene in scenes]

    rates = {}
    for name, agent in agents.items():
        agent.rollouts(scenes[0], 1, 0)
        rates[name] = len(scenes) / cpu_seconds(sampling(agent))
    what = f"{_ROLLOUTS} rollouts, {kind}, {mean:.0f} agents"
    ours = rates.pop("policy")
    return [
        Row(f"sample, policy against {name}, {what}", ours, "scenarios/CPU s", rate, ours / rate)
        for name, rate in rates.items()
    ]
