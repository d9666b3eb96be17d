"""Likelihoods of futures against the reference's own rollouts, and disturbances against their law."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from data.scene import CURRENT_INDEX
from data.tokenizer import scene_origin, tokenize_scene
from models.reference.agent import ReferenceAgent
from pipeline.agents.baselines import ConstantVelocity, LogReplay
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.simulator.world import moving_agents
from pipeline.studies.claims.likelihood import (
    futures_of,
    kind_names,
    perturbed,
    score_futures,
    smooth_noise,
)
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy
from tests.scenes import Mover, hand_made


@pytest.fixture(scope="module")
def reference() -> ReferenceAgent:
    return ReferenceAgent(make_model(2))


def test_smooth_noise_has_unit_variance_and_a_second_of_memory() -> None:
    noise = smooth_noise((4000, 80), torch.Generator().manual_seed(0))
    assert noise.shape == (4000, 80)
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.02)
    assert torch.allclose(noise.square().mean(0), torch.ones(80), atol=0.15)
    # Of white noise behind a Gaussian of deviation s, the correlation at a distance d is exp(-d^2 / 4 s^2).
    for distance in (5, 10, 20):
        found = float((noise[:, distance:] * noise[:, :-distance]).mean())
        assert found == pytest.approx(math.exp(-(distance**2) / 400), abs=0.03)


def test_disturbed_futures_begin_at_the_record_and_leave_the_parked_alone() -> None:
    states = torch.zeros(3, 80, 4)
    states[1, :, 3] = 3.1
    moving = torch.tensor([True, True, False])
    found = perturbed(states, moving, 0.5, 2000, torch.Generator().manual_seed(1))
    assert torch.equal(found[:, 2], states[2].expand(2000, -1, -1))
    assert torch.equal(found[..., 2], states[..., 2].expand(2000, -1, -1))
    moved = (found - states)[:, 0]
    assert float(moved[:, 0, :2].std()) < 0.03
    assert torch.allclose(moved[:, 25:, :2].std(0), torch.full((55, 2), 0.5), atol=0.05)
    assert float(moved[:, 40, 3].std()) == pytest.approx(0.05, abs=0.005)
    assert float(found[..., 3].max()) < math.pi
    assert float(found[..., 3].min()) >= -math.pi


def test_the_log_scores_as_its_tokens_do(reference: ReferenceAgent) -> None:
    """Another way to the same numbers: tokens of the whole scene, one scene a batch."""
    scene = random_scene(1)
    chosen, future = scene.simulated, slice(CURRENT_INDEX + 1, None)
    states = LogReplay().rollouts(scene, 2, 0)
    found, known = score_futures(reference, scene, states, scene.agents.valid[chosen, future])
    assert found.shape == known.shape == (2, int(chosen.sum()), 40)
    # A matrix library may sum equal rows of a batch in different orders: differences of 3e-6 nats were seen.
    torch.testing.assert_close(found[0], found[1], atol=2e-5, rtol=2e-5)
    assert torch.equal(known[0], known[1])
    tokens = tokenize_scene(reference.vocabulary, scene, scene_origin(scene))
    from data.batch import collate

    batch = collate([scene])
    expected = reference.score(
        reference.encode_map(batch), batch, tokens.ids[None], tokens.valid[None], tokens.poses[None]
    )[0].gather(-1, tokens.ids.unsqueeze(-1))[..., 0]
    assert torch.equal(known[0], tokens.valid[chosen, 5:])
    assert not known[0].all()
    torch.testing.assert_close(found[0][known[0]], expected[chosen, 5:][known[0]], atol=1e-4, rtol=1e-4)


def test_the_references_own_futures_score_as_its_entropy_says(reference: ReferenceAgent) -> None:
    """What is drawn from a distribution has its negative entropy as mean log-likelihood; naive futures less."""
    scene = random_scene(2)
    present = torch.ones(int(scene.simulated.sum()), 80, dtype=torch.bool)
    own, known = score_futures(reference, scene, ReferenceDriver(reference).rollouts(scene, 24, 0), present)
    assert known.all(), "executed tokens are matched exactly"
    uniform = -math.log(reference.vocabulary.size)
    assert float(own.mean()) > uniform
    straight, fits = score_futures(reference, scene, ConstantVelocity().rollouts(scene, 1, 0), present)
    assert float(straight[fits].mean()) < float(own.mean())


def test_kinds_of_futures(reference: ReferenceAgent) -> None:
    scene = random_scene(0)
    policy = PolicyAgent(make_policy(reference.vocabulary), reference.vocabulary, VIEW)
    levels = (0.1, 0.5)
    found = futures_of(scene, ReferenceDriver(reference), policy, levels, 3, seed=0)
    assert list(found) == kind_names(levels)
    shape = (3, int(scene.simulated.sum()), 80, 4)
    assert {tuple(states.shape) for states in found.values()} == {shape}
    log = found["log"]
    moving = moving_agents(scene)
    errors = [
        float((found[name] - log)[:, moving, 30:, :2].norm(dim=-1).mean()) for name in kind_names(levels)[1:3]
    ]
    # The mean distance of a two-dimensional Gaussian is sigma times the root of pi / 2.
    assert errors == pytest.approx([0.1 * math.sqrt(math.pi / 2), 0.5 * math.sqrt(math.pi / 2)], rel=0.35)
    again = futures_of(scene, ReferenceDriver(reference), policy, levels, 3, seed=0)
    assert all(torch.equal(states, again[name]) for name, states in found.items())


def test_who_moves() -> None:
    scene = hand_made([Mover(), Mover(x=9.0, speed=1.0), Mover(x=20.0, speed=0.02)])
    assert moving_agents(scene).tolist() == [False, True, False]
    left = dataclasses.replace(scene.agents, valid=scene.agents.valid & (torch.arange(91) < 12))
    assert moving_agents(dataclasses.replace(scene, agents=left)).tolist() == [False, False, False]
