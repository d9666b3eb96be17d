"""Agents of every kind behind one protocol: sampled, and driven step by step beside others."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from data.errors import UserError
from data.scene import FUTURE_STEPS, Scene, generator_for
from data.tokenizer import apply_token, scene_origin
from models.policy import save_policy
from models.reference.agent import ReferenceAgent
from models.reference.checkpoint import save_reference
from pipeline.agents.agent import Agent, Drive
from pipeline.agents.baselines import LogReplay
from pipeline.agents.catalogue import AGENT_NAMES, LEARNT, make_agent
from pipeline.agents.reference_agent import ReferenceDriver
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy

SEED = 5


@pytest.fixture(scope="module")
def checkpoints(reference: ReferenceAgent, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path | None]:
    folder = tmp_path_factory.mktemp("checkpoints")
    save_reference(folder / "reference.ckpt", reference.model)
    vocabulary = reference.vocabulary
    save_policy(folder / "policy.ckpt", make_policy(vocabulary), vocabulary, dataclasses.asdict(VIEW))
    return {name: folder / f"{name}.ckpt" if name in LEARNT else None for name in AGENT_NAMES}


@pytest.fixture(params=AGENT_NAMES)
def agent(request: pytest.FixtureRequest, checkpoints: dict[str, Path | None]) -> Agent:
    return make_agent(request.param, checkpoints[request.param])


def driven_alone(agent: Agent, scene: Scene, count: int) -> Tensor:
    """[R, A, 80, 3] by the calls of the protocol, with the random numbers of ``rollouts``."""
    shape = (count, FUTURE_STEPS // agent.token_steps, int(scene.simulated.sum()))
    uniform = torch.rand(shape, generator=generator_for(SEED, str(scene.scenario_id)))
    drive, parts = agent.start(agent.prepare(scene), count), []
    for number in range(shape[1]):
        pose, present = drive.step(uniform[:, number])
        assert present.shape == pose.shape[:-1] == (count, shape[2], agent.token_steps)
        assert present.dtype == torch.bool
        # Only the log has agents that are not seen.
        assert bool(present.all()) or isinstance(agent, LogReplay)
        assert pose.shape[-1] == 3
        drive.observe(pose)
        parts.append(pose)
    return torch.cat(parts, dim=2)


def test_driving_alone_is_sampling(agent: Agent) -> None:
    scene = random_scene(2)
    states = agent.rollouts(scene, 3, SEED)
    assert states.shape == (3, int(scene.simulated.sum()), FUTURE_STEPS, 4)
    pose = driven_alone(agent, scene, 3)
    torch.testing.assert_close(pose[..., :2] + scene_origin(scene), states[..., :2], atol=2e-3, rtol=0)
    turn = pose[..., 2] - states[..., 3]
    assert float(torch.atan2(turn.sin(), turn.cos()).abs().max()) < 1e-4


@pytest.mark.parametrize("name", LEARNT)
def test_agents_that_others_drive_are_where_they_are_set(name: str, checkpoints: dict[str, Path | None]) -> None:
    """The first agent is set down far away in one rollout: there the second decides otherwise from then on."""
    agent, scene = make_agent(name, checkpoints[name]), random_scene(1)
    count = int(scene.simulated.sum())
    driven = torch.arange(count) > 0
    drive = agent.start(agent.prepare(scene), 2, driven)
    uniform = torch.rand(10, 1, count, generator=torch.Generator().manual_seed(1)).expand(-1, 2, -1)
    apart = []
    for number in range(10):
        pose, _ = drive.step(uniform[number].contiguous())
        apart.append(float((pose[0] - pose[1])[1:].abs().max()))
        pose = pose.clone()
        pose[:, 0] = 0.0
        pose[1, 0, :, 0] = 90.0
        drive.observe(pose)
    assert apart[0] == 0.0
    assert max(apart[1:]) > 0.0


def test_the_reference_reads_where_others_went_as_the_nearest_token(
    reference: ReferenceAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, agent = random_scene(1), ReferenceDriver(reference)
    count = int(scene.simulated.sum())
    drive = agent.start(agent.prepare(scene), 2, torch.arange(count) != 1)
    pose, _ = drive.step(torch.full((2, count), 0.3))
    drawn, taken = drive._tokens.clone(), []
    vocabulary, unrolling = reference.vocabulary, drive._unrolling
    others = (drawn + 7) % vocabulary.size
    other = apply_token(vocabulary, unrolling.pose, others, unrolling.types)
    pose[:, 1] = other[:, 1]
    execute = unrolling.execute

    def watched(ids: Tensor, motion: Tensor | None = None) -> Tensor:
        taken.append(ids)
        return execute(ids, motion)

    monkeypatch.setattr(unrolling, "execute", watched)
    drive.observe(pose)
    expected = drawn.clone()
    expected[:, 1] = others[:, 1]
    assert torch.equal(taken[0], expected)
    assert torch.equal(drive._tokens, drawn), "what was drawn stays"
    assert torch.equal(unrolling.pose, pose[:, :, -1])


def test_absent_agents_are_not_seen(checkpoints: dict[str, Path | None]) -> None:
    agent, scene = make_agent("policy", checkpoints["policy"]), random_scene(1)
    count = int(scene.simulated.sum())
    uniform = torch.rand(64, count, generator=torch.Generator().manual_seed(2))

    def second(first_stays: bool, place: float) -> Tensor:
        drive = agent.start(agent.prepare(scene), 64)
        pose, present = drive.step(uniform)
        pose, present = pose.clone(), present.clone()
        pose[:, 0] += place
        present[:, 0] = first_stays
        drive.observe(pose, present)
        return drive.step(uniform)[0][:, 1:]

    assert torch.equal(second(False, 0.0), second(False, 50.0))
    assert not torch.equal(second(True, 0.0), second(True, 50.0))


def test_scenes_driven_at_once_are_each_alone(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of different sizes, padded, as many as the memory allows; a CPU drives one after the other."""
    scenes = [random_scene(seed, agents=count) for seed, count in ((0, 4), (1, 7), (2, 3), (3, 2))]
    expected = [agent.rollouts(scene, 3, SEED) for scene in scenes]
    together: list[int] = []
    prepare = type(agent).prepare

    def noted(self: Agent, *given: Scene) -> Any:
        together.append(len(given))
        return prepare(self, *given)

    monkeypatch.setattr(type(agent), "prepare", noted)
    for scene, (same, states), own in zip(scenes, agent.rollouts_of(iter(scenes), 3, SEED), expected, strict=True):
        assert same is scene
        assert torch.equal(states, own)
    assert set(together) <= {1}
    if isinstance(agent, LogReplay):
        with pytest.raises(UserError, match="one scene at a time, not in 2"):
            agent.prepare(*scenes[:2])
        return
    together.clear()
    # What a GPU does: 3 rollouts of at most 7 agents, two scenes at a time.
    monkeypatch.setattr(ReferenceAgent, "prepare", lambda self, *given: self.prepare_together(given))
    agent.joins_scenes, agent.max_rows = True, 45
    for (_, states), own in zip(agent.rollouts_of(scenes, 3, SEED), expected, strict=True):
        torch.testing.assert_close(states, own, atol=2e-3, rtol=0)
    assert together == [2, 2]


class Standing(Agent):
    """What a new agent takes: nobody moves."""

    token_steps = 10

    def start(self, prepared: Scene, count: int, driven: Tensor | None = None) -> Drive:
        agents = prepared.agents
        place = agents.position[prepared.simulated, 10, :2] - scene_origin(prepared)
        pose = torch.cat((place, agents.heading[prepared.simulated, 10, None]), dim=-1)
        return _Standing(pose.expand(count, -1, -1))


class _Standing:
    def __init__(self, pose: Tensor) -> None:
        self._pose = pose

    def step(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        pose = self._pose.unsqueeze(2).expand(-1, -1, 10, -1)
        return pose, torch.ones(pose.shape[:-1], dtype=torch.bool)

    def observe(
        self, pose: Tensor, present: Tensor | None = None, velocity: Tensor | None = None, red: Tensor | None = None
    ) -> None:
        self._pose = pose[:, :, -1]


def test_a_new_agent_is_sampled_by_the_base_class() -> None:
    scene = random_scene(0)
    states = Standing().rollouts(scene, 2, SEED)
    now = scene.agents.position[scene.simulated, 10, :2]
    torch.testing.assert_close(states[..., :2], now[None, :, None].expand(2, -1, 80, -1), atol=1e-3, rtol=0)


def test_unknown_agents_and_missing_checkpoints_are_named() -> None:
    with pytest.raises(UserError, match="did you mean policy"):
        make_agent("polcy", None)
    with pytest.raises(UserError, match=r"reference, policy$"):
        make_agent("xyz", None)
    with pytest.raises(UserError, match="needs --checkpoint"):
        make_agent("policy", None)
