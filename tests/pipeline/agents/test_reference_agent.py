"""The reference as an agent: where its rollouts start, and on what they depend."""

from __future__ import annotations

import math

import pytest
import torch

from data.scene import generator_for
from models.reference.agent import ReferenceAgent
from pipeline.agents.reference_agent import ReferenceDriver
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene


@pytest.mark.parametrize("token_steps", [2, 5])
def test_agent_rollouts_start_where_the_agents_are_and_read_no_future(token_steps: int) -> None:
    agent = ReferenceDriver(ReferenceAgent(make_model(token_steps)))
    scene = random_scene(0)
    scene.agents.valid[4, 10] = False
    rollouts = agent.rollouts(scene, 3, seed=7)
    assert rollouts.shape == (3, 5, 80, 4)
    assert rollouts.dtype == torch.float32
    now = scene.agents.position[scene.simulated, 10]
    assert float((rollouts[:, :, 0, :2] - now[:, :2]).norm(dim=-1).max()) < 3.0
    assert bool((rollouts[..., 2] == now[:, 2].view(1, 5, 1)).all())
    assert bool((rollouts[..., 3] >= -math.pi).all())
    assert bool((rollouts[..., 3] < math.pi).all())
    scene.agents.position[:, 11:] += 50.0
    scene.agents.valid[:, 11:] = False
    scene.lights.state[:, 11:] = 0
    assert torch.equal(agent.rollouts(scene, 3, seed=7), rollouts)
    short = random_scene(0, steps=11)
    short.agents.valid[4, 10] = False
    assert torch.equal(agent.rollouts(short, 3, seed=7), rollouts), "a test scenario gives the same"


def test_rollouts_are_a_function_of_seed_and_scenario(reference: ReferenceAgent) -> None:
    agent = ReferenceDriver(reference)
    first = agent.rollouts(random_scene(0), 4, seed=1)
    agent.rollouts(random_scene(1), 2, seed=9)
    assert torch.equal(agent.rollouts(random_scene(0), 4, seed=1), first)
    assert not torch.equal(agent.rollouts(random_scene(0), 4, seed=2), first)
    torch.testing.assert_close(agent.rollouts(random_scene(0), 2, seed=1), first[:2], atol=1e-3, rtol=0)
    draws = [torch.rand(1, generator=generator_for(0, name)) for name in ("a", "b", "a")]
    assert draws[0] == draws[2] != draws[1]


def test_parts_of_many_rollouts_join(reference: ReferenceAgent, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = ReferenceDriver(reference)
    whole = agent.rollouts(random_scene(0), 5, seed=1)
    monkeypatch.setattr(agent, "max_rows", 12)
    torch.testing.assert_close(agent.rollouts(random_scene(0), 5, seed=1), whole, atol=1e-3, rtol=0)
