"""How far a policy is from a reference, against a computation by hand."""

from __future__ import annotations

import math

import pytest
import torch

from data.vocabulary import VocabularyConfig, build_vocabulary
from models.policy import Policy, PolicyConfig
from models.reference.agent import ReferenceAgent
from models.reference.config import ReferenceConfig
from models.reference.network import Reference
from pipeline.selfplay.divergence import divergence, scene_divergences
from pipeline.selfplay.observation import ObservationConfig, feature_sizes
from tests.models.scenes import random_scene

VIEW = ObservationConfig(neighbours=3, road_segments=4)


@pytest.fixture(scope="module")
def models() -> tuple[Policy, ReferenceAgent]:
    torch.manual_seed(0)
    vocabulary = build_vocabulary([random_scene(seed) for seed in range(2)], VocabularyConfig(size=8), 0)
    network = Reference(ReferenceConfig(hidden=8, heads=1, relation=8, layers=1, inertia=False), vocabulary)
    policy = Policy(PolicyConfig(embedding=4, hidden=8, inertia=False), feature_sizes(VIEW), vocabulary.ends)
    return policy.eval(), ReferenceAgent(network.eval())


def uniform(module: torch.nn.Module) -> None:
    """All logits zero."""
    for parameter in module.parameters():
        torch.nn.init.zeros_(parameter)


def test_two_uniform_distributions_do_not_differ(models: tuple[Policy, ReferenceAgent]) -> None:
    policy, agent = models
    for model in (policy, agent.model):
        uniform(model)
    found = divergence(policy, agent, [random_scene(3)], VIEW, seed=0)
    assert found["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["entropy"] == pytest.approx(math.log(8), abs=1e-5)
    assert found["log_likelihood"] == pytest.approx(-math.log(8), abs=1e-5)
    assert 0.9 < found["coverage"] <= 1.0


def test_scenes_add_up(models: tuple[Policy, ReferenceAgent]) -> None:
    policy, agent = models
    scenes = [random_scene(seed, agents=agents) for seed, agents in ((0, 6), (1, 4), (2, 5))]
    parts = scene_divergences(policy, agent, scenes, VIEW, seed=0)
    assert [part.decided for part in parts] == [40 * int(scene.simulated.sum()) for scene in scenes]
    whole = divergence(policy, agent, scenes, VIEW, seed=0)
    covered = sum(part.covered for part in parts)
    assert whole["kl"] == pytest.approx(sum(part.kl for part in parts) / covered)
    assert whole["coverage"] == pytest.approx(covered / sum(part.decided for part in parts))
