"""Moving vehicles are driven among recorded others."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from data.scene import CURRENT_INDEX, AgentType, Scene
from pipeline.agents.agent import Agent
from pipeline.agents.among_logs import AmongLogs, moving_vehicles
from pipeline.agents.baselines import ConstantVelocity, StraightDrive, recorded_future
from tests.models.scenes import random_scene


class Watching(Agent):
    """Drives straight on, and keeps what it is told."""

    token_steps = 5

    def __init__(self) -> None:
        self.told: list[tuple[Tensor, Tensor]] = []

    def prepare(self, *scenes: Scene) -> tuple[Tensor, Tensor]:
        return ConstantVelocity().prepare(*scenes)

    def start(self, prepared: tuple[Tensor, Tensor], count: int, driven: Tensor | None = None) -> StraightDrive:
        agent = self
        assert driven is not None
        self.driven = driven

        class Drive(StraightDrive):
            def observe(self, pose: Tensor, present: Tensor | None = None, *_: object) -> None:
                assert present is not None
                agent.told.append((pose, present))
                super().observe(pose)

        straight = ConstantVelocity().start(prepared, count)
        return Drive(straight._pose, straight._velocity, self.token_steps)


def test_moving_vehicles_are_driven_and_all_others_replay_the_log() -> None:
    scene = random_scene(3, agents=8)
    driven = moving_vehicles(scene)
    assert driven.tolist() == (scene.agents.type[scene.simulated] == AgentType.VEHICLE).tolist()
    inner = Watching()
    states = AmongLogs(inner).rollouts(scene, 2, 0)
    log, valid = recorded_future(scene)
    assert states.shape == (2, *log.shape)
    apart = (states[..., :2] - log[..., :2]).norm(dim=-1)
    assert apart[:, ~driven][:, valid[~driven]].max() < 0.01
    # Who is not recorded at a time meets nobody.
    assert not valid[~driven].all()
    assert apart[:, ~driven][:, ~valid[~driven]].min() > 5000
    straight = ConstantVelocity().rollouts(scene, 2, 0)
    torch.testing.assert_close(states[:, driven, :, :2], straight[:, driven, :, :2], atol=0.01, rtol=0)
    # The agent was told so, and who is there.
    assert torch.equal(inner.driven, driven[None])
    assert len(inner.told) == 15
    present = torch.cat([told for _, told in inner.told], dim=-1)
    assert torch.equal(present[0], (valid | driven[:, None])[:, :75])


def test_several_scenes_at_once_are_each_alone() -> None:
    scenes = [random_scene(3, agents=8), random_scene(4, agents=5)]
    agent = AmongLogs(Watching())
    for scene, states in zip(scenes, agent._driven(scenes, 2, 0), strict=True):
        assert torch.equal(states, agent.rollouts(scene, 2, 0))


def test_vehicles_that_stay_replay_the_log() -> None:
    scene = random_scene(3, agents=8)
    agents = scene.agents
    position = agents.position.clone()
    vehicle = int((agents.type == AgentType.VEHICLE).nonzero()[0])
    position[vehicle] = position[vehicle, CURRENT_INDEX] + 0.1 * torch.rand(91, 3) / 2
    still = dataclasses.replace(scene, agents=dataclasses.replace(agents, position=position))
    assert moving_vehicles(scene)[vehicle]
    assert not moving_vehicles(still)[vehicle]
