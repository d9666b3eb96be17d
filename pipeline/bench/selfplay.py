"""Self-play's unit: controlled, valid agents times decisions executed per second (agent-steps/s), by phase."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from lightning.fabric import Fabric

from data.scene import map_tensors
from data.vocabulary import Vocabulary, VocabularyConfig, build_vocabulary
from models.policy import Policy, PolicyConfig
from models.reference.agent import ReferenceAgent
from models.reference.config import size_preset
from models.reference.network import Reference
from pipeline.bench.rows import Row, cpu_seconds, load_scenes
from pipeline.selfplay.anchor import Anchor
from pipeline.selfplay.events import find_events
from pipeline.selfplay.observation import ObservationConfig, feature_sizes, observe
from pipeline.selfplay.ppo import PPOConfig, Scorer, collect, update
from pipeline.selfplay.reward import RewardConfig
from pipeline.selfplay.simulator import decisions, places, reset, step
from pipeline.selfplay.worlds import World, build_world, stack_worlds

__all__ = ["bench"]

_WORLDS = 16
_MINIBATCH = 2048


def _simulate(world: World, vocabulary: Vocabulary, view: ObservationConfig) -> None:
    """An episode of random tokens with everything but the network: observations, motion, events."""
    generator = torch.Generator().manual_seed(0)
    who, drivers = places(world.exists), places(world.exists & (world.types == 0))
    state = reset(world, torch.zeros_like(world.exists))
    for _ in range(decisions(vocabulary)):
        observe(world, state, who, view)
        tokens = torch.randint(vocabulary.size, world.types.shape, generator=generator)
        state, motion = step(world, state, tokens, world.exists, vocabulary)
        find_events(world, state, motion, view.box_scale, drivers)


def _train(
    world: World, vocabulary: Vocabulary, view: ObservationConfig, score: Scorer | None, epochs: int
) -> None:
    """An update from beginning to end."""
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(), feature_sizes(view), vocabulary.ends)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-4)
    config = PPOConfig(minibatch=_MINIBATCH, epochs=epochs, beta=0.0 if score is None else 0.1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        episode = collect(policy.eval(), world, vocabulary, score, config, RewardConfig(), view, generator)
    if epochs:
        update(Fabric(accelerator="cpu", devices=1), policy.train(), optimizer, episode, config, generator)


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
    anchor = Anchor(ReferenceAgent(Reference(size_preset("micro"), vocabulary)), scenes)
    score = partial(anchor.log_probs, range(len(scenes)), world)
    epochs = PPOConfig().epochs
    rows = []
    for name, work in (
        ("simulator and observations alone", partial(_simulate, world, vocabulary, view)),
        ("policy in the loop", partial(_train, world, vocabulary, view, None, 0)),
        (f"trained, {epochs} epochs, no anchor", partial(_train, world, vocabulary, view, None, epochs)),
        (f"trained, {epochs} epochs, anchored to micro", partial(_train, world, vocabulary, view, score, epochs)),
    ):
        # Once without the clock: buffers are allocated, and maps encoded, which a training does once per scene.
        work()
        rows.append(Row(f"{name}, {len(scenes)} worlds, {kind}", steps / cpu_seconds(work), "agent-steps/CPU s"))
    rows.append(Row(f"worlds built, {kind}", len(scenes) / building, "scenes/CPU s"))
    rows.append(Row(f"memory of a world, {agents / len(scenes):.0f} agents, {kind}", _mebibytes(pool), "MiB"))
    return rows
