"""Single-agent training: one agent a world is the policy's, everybody else is where the log says."""

from __future__ import annotations

import dataclasses

import torch

from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.rollout import Executed, collect
from pipeline.simulator.episode import Simulator
from pipeline.simulator.step import decisions
from pipeline.simulator.world import build_world, stack_worlds
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW


def test_exactly_one_agent_a_world_is_driven_and_the_others_follow_the_log(policy, vocabulary) -> None:
    scenes = [random_scene(seed, agents=agents) for seed, agents in ((0, 6), (1, 4), (2, 5))]
    world = stack_worlds([build_world(scene, vocabulary, VIEW.road_segments) for scene in scenes])
    generator = torch.Generator().manual_seed(3)
    uniform = torch.rand(decisions(vocabulary) + 2, *world.types.shape, generator=generator)
    seen: list[Executed] = []

    def watch(driven: Executed) -> torch.Tensor:
        seen.append(driven)
        return torch.zeros(driven.tokens.shape[-1], len(driven.agent_index[0]), vocabulary.size)

    config, simulator = PPOConfig(controlled="one"), Simulator(vocabulary, VIEW)
    episode = collect(policy, simulator, world, watch, config, uniform)
    (driven,) = seen
    assert driven.controlled.sum(-1).tolist() == [1, 1, 1]
    assert (world.moves & world.exists)[driven.controlled].all()
    assert episode.actions.shape == (40, 3)
    assert episode.agent_steps == 120
    logged = world.log[:, :, vocabulary.token_steps - 1 :: vocabulary.token_steps]
    others = world.exists & ~driven.controlled
    assert torch.equal(driven.poses[:, :, 1:][others], logged[others])
    assert not torch.allclose(driven.poses[:, :, 1:][driven.controlled], logged[driven.controlled], atol=0.5)
    again = uniform.clone()
    again[-1] = 1 - again[-1]
    collect(policy, simulator, world, watch, config, again)
    assert not torch.equal(seen[1].controlled, driven.controlled), "another draw, another agent"
    everybody = dataclasses.replace(config, controlled="all")
    collect(policy, simulator, world, watch, everybody, uniform)
    assert torch.equal(seen[2].controlled, world.exists)
