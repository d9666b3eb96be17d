"""No host waits, and no more launches than counted, in a decision and in a gradient step: the code that GPUs run.

Tensors on the meta device hold no values: whatever reads one, or has a size that depends on one, fails there.
"""

from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor

from data.scene import map_tensors
from models.policy import BEYOND, Policy, PolicyConfig
from pipeline.bench.launches import LaunchCounter
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.learner import Learner, _tensors
from pipeline.selfplay.ppo import Minibatch
from pipeline.selfplay.rollout import Start, drive
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import Observation, ObservationConfig, feature_sizes
from pipeline.simulator.world import World, build_world, choose_worlds, stack_worlds
from tests.models.scenes import random_scene

PAPER = ObservationConfig(
    neighbours=63, road_segments=120, show_motion=False, show_velocity=False, show_light=False
)
META = torch.device("meta")


class Elsewhere(Fabric):
    """On a device that is not the CPU."""

    @property
    def device(self) -> torch.device:
        return META


def moved(tensor: Tensor) -> Tensor:
    return tensor.to(META)


@pytest.mark.parametrize(("view", "budget"), [(PAPER, 690), (ObservationConfig(), 755)])
def test_a_decision(vocabulary, view, budget) -> None:
    worlds = [build_world(random_scene(seed), vocabulary, view.listed_segments) for seed in (0, 1)]
    resident: World = map_tensors(stack_worlds(worlds), moved)
    agents = int(sum(world.exists.sum() for world in worlds))
    index = torch.zeros(agents, dtype=torch.int64, device=META)
    policy = Policy(PolicyConfig(dropout=0.0), feature_sizes(view), vocabulary.ends).to(META).eval()
    simulator, launched = Simulator(vocabulary.to("meta"), view, for_critic=policy.config.own_critic), []
    for decisions in (2, 4):
        uniform = torch.rand(decisions, agents, device=META)
        with LaunchCounter(META) as counter:
            world = choose_worlds(resident, torch.zeros(2, dtype=torch.int64, device=META))
            begin = Start(world.exists, (index, index), torch.zeros_like(world.exists), uniform, agents)
            drive(policy, simulator, world, begin)
        assert not counter.waits
        launched.append(counter.launched)
    assert (launched[1] - launched[0]) / 2 <= budget


def test_a_gradient_step(vocabulary) -> None:
    view, size = ObservationConfig(), 64
    policy = Policy(PolicyConfig(), feature_sizes(view), vocabulary.ends).to(META)
    learner = Learner(Elsewhere(accelerator="cpu", devices=1), policy, PPOConfig(beta=0.1))
    ego, neighbour, road = feature_sizes(view)

    def some(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.zeros(shape, dtype=dtype, device=META)

    batch = Minibatch(
        observations=Observation(
            ego=some(size, ego),
            neighbour=some(size, view.neighbours, neighbour),
            neighbour_seen=some(size, view.neighbours, dtype=torch.bool),
            road=some(size, view.road_segments, road),
            road_seen=some(size, view.road_segments, dtype=torch.bool),
            type=some(size, dtype=torch.int64),
            motion=some(size, 3),
            beyond=some(size, BEYOND),
        ),
        actions=some(size, dtype=torch.int64),
        logprobs=some(size),
        advantages=some(size),
        returns=some(size),
        log_reference=some(size, vocabulary.size),
        covered=some(size, dtype=torch.bool),
        real=some(size, dtype=torch.bool),
        count=some(),
        covered_count=some(),
    )
    with LaunchCounter(META) as counter:
        learner._gradients(some(), *_tensors(batch))
    assert not counter.waits
    assert counter.launched <= 290
