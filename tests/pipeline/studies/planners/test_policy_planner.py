"""A policy as planner does what the same policy does as a simulated agent."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from data.scene import Scene, until_now
from data.tokenizer import scene_origin
from data.vocabulary import Vocabulary
from models.policy import save_policy
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.simulator.observation import ObservationConfig
from pipeline.simulator.step import State, decisions, reset
from pipeline.simulator.world import build_world
from pipeline.studies.planners.catalogue import load_planner
from pipeline.studies.planners.interface import Mission, Situation
from pipeline.studies.planners.policy_planner import PolicyPlanner
from pipeline.studies.planners.route import make_route
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return make_model(2).vocabulary


def mission_for(scene: Scene, seed: int = 0) -> Mission:
    ego = int(scene.agents.is_sdc[scene.simulated].nonzero()[0])
    route = make_route(np.array([[0.0, 0.0], [100.0, 0.0]]))
    return Mission(until_now(scene), scene_origin(scene).double().numpy(), ego, route, np.zeros((80, 3)), seed)


def situation(world, state: State, step: int) -> Situation:
    """The simulator's state as a planner is told it."""
    return Situation(
        step,
        state.pose[0].double().numpy(),
        state.velocity[0].double().numpy(),
        world.size[0, :, :2].double().numpy(),
        world.types[0].numpy(),
        state.present[0].numpy(),
        0.0,
        0.0,
        np.zeros((0, 3)),
        np.zeros(0, dtype=bool),
    )


@pytest.mark.parametrize("view", [VIEW, dataclasses.replace(VIEW, history=3)], ids=["plain", "with history"])
def test_the_same_tokens_as_a_simulated_agent(vocabulary: Vocabulary, view: ObservationConfig) -> None:
    scene = random_scene(3)
    agent = PolicyAgent(make_policy(vocabulary, view), vocabulary, view)
    world = agent.prepare(scene)
    mission = mission_for(scene)
    uniform = torch.rand(decisions(vocabulary), world.types.shape[1], generator=torch.Generator().manual_seed(7))
    planner = PolicyPlanner(mission, agent, uniform[:, mission.ego])
    drive = agent.start(world, 1)
    moved, touched = 0.0, 0
    for index in range(decisions(vocabulary)):
        answer = planner.plan(situation(world, drive.state, index * planner.period))
        path, _ = drive.step(uniform[index][None])
        drive.observe(path)
        # One agent alone and all of the scene: other shapes, the same token.
        np.testing.assert_allclose(answer.pose, path[0, mission.ego].double().numpy(), atol=1e-4, rtol=0)
        moved += float(np.linalg.norm(answer.pose[-1, :2] - answer.pose[0, :2]))
        touched += int(drive.state.collided[0, mission.ego])
    assert moved > 5.0
    assert touched < decisions(vocabulary)


def test_a_planner_draws_with_its_own_seed(vocabulary: Vocabulary, tmp_path: Path) -> None:
    path = tmp_path / "policy.ckpt"
    save_policy(path, make_policy(vocabulary), vocabulary, dataclasses.asdict(VIEW))
    scene = random_scene(1)
    world = build_world(until_now(scene), vocabulary, VIEW.road_segments, with_edges=False)
    start = situation(world, reset(world, torch.ones_like(world.exists)), 0)

    def first(name: str, seed: int) -> tuple[float, ...]:
        planner = load_planner(name)(mission_for(scene, seed))
        assert planner.period == vocabulary.token_steps
        return tuple(np.ravel(planner.plan(start).pose))  # type: ignore[union-attr]

    drawn = [first(str(path), seed) for seed in range(4)]
    assert len(set(drawn)) > 1
    assert drawn[0] == first(str(path), 0)


def test_others_are_taken_to_come_straight_and_the_ego_as_planned(
    vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = random_scene(3)
    agent = PolicyAgent(make_policy(vocabulary), vocabulary, VIEW)
    world, mission = agent.prepare(scene), mission_for(scene)
    planner = PolicyPlanner(mission, agent)
    begin = reset(world, torch.ones_like(world.exists))
    planned = planner.plan(situation(world, begin, 0))
    told: list[torch.Tensor] = []
    monkeypatch.setattr(planner._drive, "observe", lambda path, *_: told.append(path))
    now = begin.pose + torch.tensor([2.0, -1.0, 0.5])
    now[..., 2] += 2 * np.pi
    planner.plan(situation(world, dataclasses.replace(begin, pose=now), planner.period))
    [[path]] = told
    others = torch.arange(len(path)) != mission.ego
    assert planner.period == path.shape[1] == 2
    halfway = begin.pose[0] + torch.tensor([1.0, -0.5, 0.25])
    torch.testing.assert_close(path[others, 0], halfway[others], atol=1e-4, rtol=0)
    assert torch.equal(path[others, -1], now[0, others])
    np.testing.assert_array_equal(path[mission.ego, :-1].double().numpy(), planned.pose[:-1])
    assert torch.equal(path[mission.ego, -1], now[0, mission.ego]), "where it got to, not where it wanted"
