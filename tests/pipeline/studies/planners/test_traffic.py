"""Traffic around an AV: the same people as in a rollout, told of the AV only what has happened."""

from __future__ import annotations

import pytest
import torch

from data.errors import UserError
from data.scene import CURRENT_INDEX
from data.tokenizer import scene_origin
from models.policy import save_policy
from models.reference.agent import ReferenceAgent
from models.reference.checkpoint import save_reference
from pipeline.agents.agent import Agent
from pipeline.agents.baselines import LogReplay
from pipeline.agents.catalogue import open_agent
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.studies.planners.drive import Traffic
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy

SEED = 3


@pytest.fixture(scope="module")
def reference() -> ReferenceDriver:
    return ReferenceDriver(ReferenceAgent(make_model(2)))


@pytest.fixture(scope="module")
def policy(reference) -> PolicyAgent:
    vocabulary = reference.reference.vocabulary
    return PolicyAgent(make_policy(vocabulary), vocabulary, VIEW)


@pytest.fixture(params=["policy", "reference"])
def agent(request, policy, reference) -> Agent:
    return policy if request.param == "policy" else reference


def drive(agent: Agent, scene, ego: torch.Tensor) -> torch.Tensor:
    """[P, A, 80, 3] of everybody while the AV goes ``ego`` [P, 80, 3]."""
    traffic, steps, parts = Traffic(agent, scene, len(ego), SEED), agent.token_steps, []
    for first in range(0, 80, steps):
        moved, there = traffic.decide()
        assert there.shape == moved.shape[:3]
        mine = ego[:, first : first + steps]
        moved = moved.clone()
        moved[:, 0] = mine
        parts.append(moved)
        traffic.happened(mine)
    return torch.cat(parts, dim=2)


def rollout(agent: Agent, scene) -> torch.Tensor:
    """[A, 80, 3] from the scene's origin."""
    states = agent.rollouts(scene, 1, SEED)[0].double()
    states[..., :2] -= scene_origin(scene)
    return states[..., [0, 1, 3]].float()


def test_an_av_that_does_what_the_agent_would_do_changes_nothing(agent) -> None:
    for number in range(3):
        scene = random_scene(number)
        expected = rollout(agent, scene)
        found = drive(agent, scene, expected[None, 0].expand(2, -1, -1))
        torch.testing.assert_close(found, expected.expand_as(found), atol=2e-2, rtol=0)


def test_others_answer_to_the_av_from_the_next_token_on(agent) -> None:
    scene = random_scene(1)
    ego = rollout(agent, scene)[0].expand(2, -1, -1).clone()
    # Into the middle of the others, where nobody can overlook it, at the third token.
    moment, steps = 2 * agent.token_steps, agent.token_steps
    ego[1, moment:, :2] = 0.0
    found = drive(agent, scene, ego)
    same = (found[0] - found[1])[1:, : moment + steps].abs()
    assert float(same.max()) == 0.0
    assert float((found[0] - found[1])[1:, moment + steps :].abs().max()) > 0.05


def test_the_log_is_deaf() -> None:
    scene = random_scene(0)
    chosen, origin = scene.simulated, scene_origin(scene)
    found = drive(LogReplay(), scene, torch.zeros(2, 80, 3))
    recorded = scene.agents.position[chosen, CURRENT_INDEX + 1 :, :2] - origin
    assert torch.equal(found[1, 1:, :, :2], recorded[1:])
    _, there = Traffic(LogReplay(), scene, 1, 0).decide()
    assert torch.equal(there[0, :, 0], scene.agents.valid[chosen, CURRENT_INDEX + 1])


def test_the_log_needs_a_future() -> None:
    with pytest.raises(UserError, match="needs a future"):
        Traffic(LogReplay(), random_scene(0, steps=11), 1, 0)


def test_traffic_by_the_kind_of_its_checkpoint(tmp_path, policy, reference) -> None:
    import dataclasses

    save_policy(tmp_path / "p.ckpt", policy.policy, policy.vocabulary, dataclasses.asdict(VIEW))
    save_reference(tmp_path / "r.ckpt", reference.reference.model)
    assert isinstance(open_agent(tmp_path / "p.ckpt"), PolicyAgent)
    assert isinstance(open_agent(tmp_path / "r.ckpt"), ReferenceDriver)
    with pytest.raises(UserError, match="no such checkpoint"):
        open_agent(tmp_path / "missing.ckpt")
