"""Self-play's unit: controlled, valid agents times decisions executed per second (agent-steps/s), by phase."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from data.scene import map_tensors
from data.vocabulary import Vocabulary, VocabularyConfig, build_vocabulary
from models.policy import Policy, PolicyConfig
from models.reference.agent import ReferenceAgent
from models.reference.config import size_preset
from models.reference.network import Reference
from pipeline.bench.rows import Row, cpu_seconds, load_scenes
from pipeline.selfplay.anchor import Anchor
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.episode import Driven, Scorer, collect
from pipeline.selfplay.observation import ObservationConfig, feature_sizes
from pipeline.selfplay.ppo import update
from pipeline.selfplay.reward import RewardConfig
from pipeline.selfplay.simulator import decisions, places, reset
from pipeline.selfplay.stepping import Stepper
from pipeline.selfplay.worlds import World, build_world, stack_worlds

__all__ = ["bench"]

_WORLDS = 16
_MINIBATCH = 2048
# PufferDrive's C environment and its policy (2025-11), random actions, agent-steps a second of one core of the kind
# of machine this project is developed on; its steps are of 0.1 s, ours of 0.2 s. Machines differ: rough ratios.
_PUFFER_SIMULATOR, _PUFFER_POLICY = 127_000.0, 3_600.0


def _simulate(world: World, vocabulary: Vocabulary, stepper: Stepper) -> None:
    """An episode of random tokens with everything but the network: observations, motion, events."""
    generator = torch.Generator().manual_seed(0)
    who, drivers = places(world.exists), places(world.exists & (world.types == 0))
    state = reset(world, torch.zeros_like(world.exists))
    for _ in range(decisions(vocabulary)):
        stepper.observe(world, state, who)
        tokens = torch.randint(vocabulary.size, world.types.shape, generator=generator)
        state, _, _ = stepper.step(world, state, tokens, world.exists, who, drivers)


@dataclass(frozen=True)
class _Trainer:
    """Updates from beginning to end; ``epochs`` 0 leaves it at driving."""

    world: World
    vocabulary: Vocabulary
    view: ObservationConfig
    compiled: bool

    def run(self, score: Scorer | None, epochs: int) -> Callable[[], None]:
        torch.manual_seed(0)
        policy = Policy(PolicyConfig(), feature_sizes(self.view), self.vocabulary.ends)
        optimizer = torch.optim.Adam(policy.parameters(), lr=1e-4)
        config = PPOConfig(minibatch=_MINIBATCH, epochs=max(1, epochs), beta=0.0 if score is None else 0.1)
        uniform = torch.rand(decisions(self.vocabulary) + 2, *self.world.types.shape)
        stepper = Stepper(self.vocabulary, self.view, self.compiled)
        driver = cast(nn.Module, torch.compile(policy, dynamic=True)) if self.compiled else policy
        fabric, generator = Fabric(accelerator="cpu", devices=1), torch.Generator()

        def work() -> None:
            policy.eval()
            episode = collect(
                driver, self.world, self.vocabulary, score, config, RewardConfig(), self.view, uniform, stepper
            )
            if epochs:
                policy.train()
                update(fabric, driver, optimizer, episode, config, generator)

        return work


def _mebibytes(worlds: Sequence[World]) -> float:
    """Mean size of the tensors of a world."""
    sizes: list[int] = []

    def count(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    for world in worlds:
        map_tensors(world, count)
    return sum(sizes) / len(worlds) / 2**20


def bench() -> list[Row]:
    """Simulator alone, with the policy, trained without and with an anchor, and what a world costs.

    The reference has random weights, which is as fast as a trained one.
    """
    kind, scenes = load_scenes(_WORLDS)
    vocabulary = build_vocabulary(scenes, VocabularyConfig(max_segments=20_000), 0)
    view = ObservationConfig()
    pool: list[World] = []
    building = cpu_seconds(lambda: pool.extend(build_world(s, vocabulary, view.road_segments) for s in scenes))
    world = stack_worlds(pool)
    agents = int(world.exists.sum())
    steps = agents * decisions(vocabulary)
    agent = ReferenceAgent(Reference(size_preset("micro"), vocabulary))
    anchor = Anchor(agent, scenes.__getitem__)

    def score(driven: Driven) -> Tensor:
        names = range(len(scenes))
        scored = anchor.log_probs(names, world, driven.tokens, driven.poses, driven.controlled, driven.present)
        return scored[driven.who].transpose(0, 1)

    epochs = PPOConfig().epochs
    rows = []
    for compiled in (False, True):
        trainer = _Trainer(world, vocabulary, view, compiled)
        simulate = partial(_simulate, world, vocabulary, Stepper(vocabulary, view, compiled))
        for name, work, theirs in (
            ("simulator and observations alone", simulate, _PUFFER_SIMULATOR),
            ("policy in the loop", trainer.run(None, 0), _PUFFER_POLICY),
            (f"trained, {epochs} epochs, no anchor", trainer.run(None, epochs), None),
            (f"trained, {epochs} epochs, anchored to micro", trainer.run(score, epochs), None),
        ):
            # Once without the clock: buffers are allocated, and maps encoded, which a training does once per scene.
            work()
            speed = steps / cpu_seconds(work)
            title = f"{name}{', compiled' if compiled else ''}, {len(scenes)} worlds, {kind}"
            ratio = None if theirs is None else speed / theirs
            rows.append(Row(title, speed, "agent-steps/CPU s", theirs, ratio))
    rows.append(Row(f"worlds built, {kind}", len(scenes) / building, "scenes/CPU s"))
    rows.append(Row(f"memory of a world, {agents / len(scenes):.0f} agents, {kind}", _mebibytes(pool), "MiB"))
    return rows
