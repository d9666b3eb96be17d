"""How far a policy is from a reference, against a computation by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from data.vocabulary import VocabularyConfig, build_vocabulary
from models.policy import Policy, PolicyConfig
from models.reference.agent import ReferenceAgent
from models.reference.config import ReferenceConfig
from models.reference.network import Reference
from pipeline.selfplay import anchor as anchor_module
from pipeline.selfplay.anchor import SceneDivergence, mean_divergence, scene_divergences
from pipeline.selfplay.rollout import collect
from pipeline.simulator.observation import ObservationConfig, feature_sizes
from tests.models.scenes import random_scene

VIEW = ObservationConfig(neighbours=3, road_segments=4)


@pytest.fixture
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
    found = mean_divergence(scene_divergences(policy, agent, [random_scene(3)], VIEW, seed=0))
    assert found["kl"] == pytest.approx(0.0, abs=1e-6)
    assert found["entropy"] == pytest.approx(math.log(8), abs=1e-5)
    assert found["log_likelihood"] == pytest.approx(-math.log(8), abs=1e-5)
    assert 0.9 < found["coverage"] <= 1.0


def test_scenes_add_up(models: tuple[Policy, ReferenceAgent]) -> None:
    policy, agent = models
    scenes = [random_scene(seed, agents=agents) for seed, agents in ((0, 6), (1, 4), (2, 5))]
    parts = scene_divergences(policy, agent, scenes, VIEW, seed=0)
    assert [part.decided for part in parts] == [40 * int(scene.simulated.sum()) for scene in scenes]
    whole = mean_divergence(scene_divergences(policy, agent, scenes, VIEW, seed=0))
    covered = sum(part.covered for part in parts)
    assert whole["kl"] == pytest.approx(sum(part.kl for part in parts) / covered)
    assert whole["coverage"] == pytest.approx(covered / sum(part.decided for part in parts))


def test_the_kl_to_a_uniform_reference_is_what_entropy_lacks(models: tuple[Policy, ReferenceAgent]) -> None:
    """KL(policy || uniform) = log K - entropy; the other way round it is something else."""
    policy, agent = models
    for model in (policy, agent.model):
        uniform(model)
    with torch.no_grad():
        policy.actor.bias.copy_(2 * torch.randn(24, generator=torch.Generator().manual_seed(0)))
    scenes = [random_scene(seed, agents=3) for seed in range(5)]
    found = mean_divergence(scene_divergences(policy, agent, scenes, VIEW, seed=0))
    assert found["entropy"] < 0.8 * math.log(8)
    assert found["kl"] == pytest.approx(math.log(8) - found["entropy"], abs=1e-5)


def test_goals_are_shown(models: tuple[Policy, ReferenceAgent], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watch(*arguments: Any) -> Any:
        seen.append(collect(*arguments))
        return seen[-1]

    monkeypatch.setattr(anchor_module, "collect", watch)
    scene_divergences(*models, [random_scene(0)], VIEW, seed=0)
    assert (seen[0].observations.ego[:, 3:5].abs().amax(-1) > 0).all()


def test_scenes_of_another_group_of_worlds_have_draws_of_their_own(models: tuple[Policy, ReferenceAgent]) -> None:
    # Two groups of equal size: draws for fewer worlds would be others from any seed.
    scenes = [random_scene(0, agents=3)] * 8
    parts = scene_divergences(*models, scenes, VIEW, seed=0)
    assert parts == scene_divergences(*models, scenes, VIEW, seed=0)
    assert len({part.log_likelihood for part in parts}) == 8
    assert parts[0] != scene_divergences(*models, scenes, VIEW, seed=1)[0]


def test_means_are_over_the_decisions_that_are_covered() -> None:
    one, none = SceneDivergence(3.0, 2.0, -1.0, covered=1, decided=4), SceneDivergence(0.0, 0.0, 0.0, 0, 0)
    assert mean_divergence([one, none]) == {"kl": 3.0, "entropy": 2.0, "log_likelihood": -1.0, "coverage": 0.25}
    assert mean_divergence([none]) == {"kl": 0.0, "entropy": 0.0, "log_likelihood": 0.0, "coverage": 0.0}
