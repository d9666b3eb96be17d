"""Speed of self-play in agent-steps/s (controlled valid agents times decisions per second), by phase.

Seconds are CPU time of one core, or wall time until the GPU has finished.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import torch
from lightning.fabric import Fabric
from torch import Tensor

from data.scene import Scene, map_tensors
from data.vocabulary import Vocabulary, VocabularyConfig, build_vocabulary
from models.policy import Policy, PolicyConfig
from models.reference.agent import ReferenceAgent
from models.reference.config import size_preset
from models.reference.network import Reference
from pipeline.bench.rows import Row, cpu_seconds, load_scenes, seconds_on
from pipeline.run.presets import override, read_settings
from pipeline.selfplay.anchor import ReferenceScorer
from pipeline.selfplay.config import PPOConfig, SelfPlayConfig
from pipeline.selfplay.driver import Driver
from pipeline.selfplay.learner import Learner
from pipeline.selfplay.rollout import Scorer
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import ObservationConfig, feature_sizes
from pipeline.simulator.step import decisions
from pipeline.simulator.world import World, build_world, choose_worlds, stack_worlds, with_empty_agent

_SCENES = 16
# Worlds in a batch (repeating the scenes) and transitions of a minibatch, suited to each device.
_WORLDS = {"cpu": 16, "cuda": 256}
_MINIBATCH = {"cpu": 2048, "cuda": 8192}
_REFERENCE = {"cpu": "micro", "cuda": "mini"}
_RECIPE = override(SelfPlayConfig(), read_settings("recipe"))
_NETS = ((PolicyConfig(), False), (PolicyConfig(), True), (_RECIPE.policy, False))
_PAPER_STEPS = 1e9
# PufferDrive's C environment and its policy (2025-11), random actions, agent-steps per second of one core of an AMD
# EPYC. Its steps are 0.1 s, ours 0.2 s. Machines differ, so the ratios are approximate.
_PUFFER_SIMULATOR, _PUFFER_POLICY = 127_000.0, 3_600.0


@dataclass
class Track:
    """Worlds and a policy, and the time of each phase of the last update.

    Attributes:
        resident: worlds on the device; on a GPU they end with an agent that does not exist (``with_empty_agent``).
        rows: of the worlds of an update.
    """

    resident: World
    rows: Sequence[int]
    vocabulary: Vocabulary
    view: ObservationConfig
    compiled: bool
    minibatch: int
    policy: PolicyConfig = field(default_factory=PolicyConfig)

    def __post_init__(self) -> None:
        self.device = self.resident.pose.device
        self.phases: dict[str, float] = {}
        compiled = self.compiled and self.device.type == "cpu"
        self.simulator = Simulator(self.vocabulary, self.view, compiled=compiled, for_critic=self.policy.own_critic)
        self.world = choose_worlds(self.resident, torch.tensor(self.rows, device=self.device))

    @property
    def steps(self) -> int:
        """Agent-steps of an update."""
        return int(self.world.exists.sum()) * decisions(self.vocabulary)

    def simulate(self) -> None:
        """An episode with random tokens: observations, motion, events and rewards, without the network."""
        world, simulator = self.world, self.simulator
        generator = torch.Generator(self.device).manual_seed(0)
        simulator.reset(world, world.exists, torch.zeros_like(world.exists))
        while not simulator.over:
            simulator.observe()
            tokens = torch.randint(self.vocabulary.size, world.types.shape, generator=generator, device=self.device)
            simulator.step(tokens)

    def trainer(
        self,
        config: PPOConfig,
        precision: Literal["bf16-mixed", "32-true"] = "32-true",
        recorded: bool = True,
    ) -> tuple[Policy, Learner, Driver]:
        """A new policy, its learner, and who drives it; not ``recorded`` is without CUDA graphs."""
        torch.manual_seed(0)
        fabric = Fabric(accelerator=self.device.type, devices=1, precision=precision)
        policy = Policy(self.policy, feature_sizes(self.view), self.vocabulary.ends.cpu()).to(self.device)
        learner = Learner(fabric, policy, config, self.compiled, recorded)
        return policy, learner, Driver(learner, self.simulator, self.resident if recorded else None)

    def learn(self, score: Scorer | None, epochs: int, config: PPOConfig | None = None) -> Callable[[], None]:
        """A function that makes a whole update, by default of PPO; with ``epochs`` 0 only the rollout."""
        on_gpu = self.device.type == "cuda"
        beta = 0.0 if score is None else 0.1
        config = config or PPOConfig(minibatch=self.minibatch, epochs=max(1, epochs), beta=beta)
        policy, learner, driver = self.trainer(config, "bf16-mixed" if on_gpu else "32-true")
        uniform = torch.rand(decisions(self.vocabulary) + 2, *self.world.types.shape).to(self.device)
        generator = torch.Generator()

        def work() -> None:
            policy.eval()
            rollout = driver.collect(self.rows, self.world, score, uniform, None)
            self.phases = dict(rollout.seconds)
            if epochs:
                policy.train()
                started = time.perf_counter()
                # It reads its figures at the end, and so waits for the GPU.
                learner.update(rollout, generator)
                self.phases["learn"] = time.perf_counter() - started

        return work


def _mebibytes(worlds: Sequence[World]) -> float:
    """Mean size of the tensors of a world."""
    sizes: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel() * tensor.element_size())
        return tensor

    for world in worlds:
        map_tensors(world, count)
    return sum(sizes) / len(worlds) / 2**20


def _devices() -> list[torch.device]:
    return [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]


def bench() -> list[Row]:
    """Speed of the simulator, with the policy, and of training without and with an anchor; cost of a world.

    Then the fraction of each phase in an anchored update, and the hours for the paper's billion agent-steps. The
    reference has random weights, which is as fast as a trained one. A GPU is measured too if there is one.
    """
    kind, scenes = load_scenes(_SCENES)
    vocabulary = build_vocabulary(scenes, VocabularyConfig(max_segments=20_000), 0)
    view = ObservationConfig()
    pool: list[World] = []
    building = cpu_seconds(lambda: pool.extend(build_world(s, vocabulary, view.listed_segments) for s in scenes))
    agents = sum(int(world.exists.sum()) for world in pool) / len(pool)
    rows = [
        Row(f"worlds built, {kind}", len(scenes) / building, "scenes/CPU s"),
        Row(f"memory of a world, {agents:.0f} agents, {kind}", _mebibytes(pool), "MiB"),
    ]
    for device in _devices():
        for policy, compiled in _NETS:
            rows += _of_device(device, policy, compiled, kind, scenes, pool, vocabulary, view)
    return rows


def _of_device(
    device: torch.device,
    policy: PolicyConfig,
    compiled: bool,
    kind: str,
    scenes: Sequence[Scene],
    pool: Sequence[World],
    vocabulary: Vocabulary,
    view: ObservationConfig,
) -> list[Row]:
    """Rates on one device, with a policy, plain or compiled, and the fractions of an anchored update's phases."""
    count, size = _WORLDS[device.type], _REFERENCE[device.type]
    names = [index % len(scenes) for index in range(count)]
    whole = stack_worlds(pool)
    resident = map_tensors(whole if device.type == "cpu" else with_empty_agent(whole), lambda t: t.to(device))
    words = vocabulary.to(str(device))
    track = Track(resident, names, words, view, compiled, _MINIBATCH[device.type], policy)
    reference = ReferenceAgent(Reference(size_preset(size), vocabulary).to(device))
    score = partial(ReferenceScorer(reference, scenes.__getitem__).scores, names, track.world)

    epochs, steps = PPOConfig().epochs, track.steps
    on_cpu = device.type == "cpu"
    unit, place = ("agent-steps/CPU s", "cpu, 1 thread") if on_cpu else ("agent-steps/s", _name(device))
    net = ", the recipe's net" if policy == _RECIPE.policy else ""
    about = f"{', compiled' if compiled else ''}{net}, {count} worlds, {kind}"
    rows, speed = [], 0.0
    two = dataclasses.replace(_RECIPE.ppo, epochs=2)
    by_recipe = [
        ("trained as in the recipe", track.learn(score, _RECIPE.ppo.epochs, _RECIPE.ppo), None),
        ("trained as in the recipe, 2 epochs", track.learn(score, two.epochs, two), None),
    ]
    for name, work, theirs in (
        *(by_recipe if net else []),
        ("simulator and observations alone", track.simulate, _PUFFER_SIMULATOR),
        ("policy in the loop", track.learn(None, 0), _PUFFER_POLICY),
        (f"trained, {epochs} epochs, no anchor", track.learn(None, epochs), None),
        (f"trained, {epochs} epochs, anchored to {size}", track.learn(score, epochs), None),
    ):
        # The first call is not timed: it allocates buffers and encodes maps, as a training does once per scene.
        work()
        speed = steps / seconds_on(device, work)
        baseline = theirs if on_cpu else None
        ratio = None if baseline is None else speed / baseline
        rows.append(Row(f"{name}{about}", speed, unit, baseline, ratio, place))
    total = sum(track.phases.values())
    for phase, seconds in track.phases.items():
        rows.append(Row(f"share of {phase} in the anchored{about}", 100 * seconds / total, "%", device=place))
    hours = _PAPER_STEPS / speed / 3600
    rows.append(Row(f"the paper's 1e9 agent-steps at the anchored{about}", hours, "h", device=place))
    return rows


def _name(device: torch.device) -> str:
    return str(torch.cuda.get_device_name(device))
