"""Inputs of the checks: the folder that ``prepare`` made, the device, and the sizes."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from data.errors import is_out_of_memory
from data.scene import Scene, map_tensors
from data.store import SceneStore
from data.vocabulary import Vocabulary
from models.policy import Policy, PolicyConfig
from models.reference.agent import ReferenceAgent
from models.reference.checkpoint import load_reference
from models.reference.config import size_preset
from models.reference.network import Reference
from pipeline.agents.policy_agent import open_policy
from pipeline.bench.rows import Row
from pipeline.run.presets import load_preset
from pipeline.selfplay.config import PPOConfig
from pipeline.simulator.observation import ObservationConfig
from pipeline.simulator.world import World, build_world, stack_worlds, with_empty_agent

MovedT = TypeVar("MovedT")


@dataclass(frozen=True)
class Scale:
    """Sizes of the checks.

    Attributes:
        scenes: number of scenes. compared: number of these that are compared between devices.
        worlds: numbers of worlds in a batch, ascending; launches are counted for the first. minibatch: transitions.
        epochs: of PPO. sizes: of the reference. batch: scenes in its training step. rollouts: per scene.
        updates: of the self-play that is killed and resumed. fit_steps: the same for pretraining.
        repeats: of timed calls. learning_worlds, learning_steps: of the training that is shown.
        workers: processes that build its worlds.
    """

    scenes: int
    compared: int
    worlds: tuple[int, ...]
    minibatch: int
    epochs: int
    sizes: tuple[str, ...]
    batch: int
    rollouts: int
    updates: int
    fit_steps: int
    repeats: int
    learning_worlds: int
    learning_steps: int
    workers: int


FULL = Scale(64, 8, (100, 300), 8192, 4, ("mini", "tiny"), 16, 32, 4, 20, 3, 300, 24_000_000, 12)
TINY = Scale(2, 2, (2,), 512, 1, ("micro",), 2, 2, 2, 2, 1, 2, 3000, 0)


@dataclass(frozen=True)
class Size:
    """Settings of the paper's self-play, read from its preset."""

    view: ObservationConfig
    policy: PolicyConfig
    ppo: PPOConfig
    worlds: int


def _paper() -> Size:
    preset = load_preset("paper")["selfplay"]
    return Size(
        ObservationConfig(**preset["view"]),
        PolicyConfig(**preset["policy"]),
        PPOConfig(**preset["ppo"]),
        int(preset["worlds"]),
    )


@dataclass(frozen=True)
class Inputs:
    """Inputs of the checks, loaded on first use and cached in the process.

    Attributes:
        data: folder that ``prepare`` made. scratch: temporary folder. out: of files to keep. device: to be checked.
    """

    data: Path
    scratch: Path
    out: Path
    device: torch.device
    scale: Scale

    @property
    def store_folder(self) -> Path:
        return self.data / "store"

    @property
    def reference_file(self) -> Path:
        return self.data / "reference.ckpt"

    @property
    def policy_file(self) -> Path:
        return self.data / "policy.ckpt"

    @cached_property
    def paper(self) -> Size:
        return _paper()

    @cached_property
    def vocabulary(self) -> Vocabulary:
        """On the CPU."""
        return Vocabulary.load(self.data / "vocabulary.pt")

    @cached_property
    def scenes(self) -> Sequence[Scene]:
        """Scenes spread over the store, with at most 64 agents, the limit of the paper."""
        store = SceneStore(self.store_folder)
        usable = [
            row for row, info in enumerate(store.infos) if info.simulated <= 64 and not info.unscorable_reason
        ]
        count = min(self.scale.scenes, len(usable))
        return [store[usable[index * len(usable) // count]] for index in range(count)]

    @cached_property
    def built(self) -> Sequence[World]:
        """The world of each scene."""
        return [build_world(scene, self.vocabulary, self.paper.view.listed_segments) for scene in self.scenes]

    @cached_property
    def resident(self) -> World:
        """The worlds of all scenes on the checked device."""
        whole = stack_worlds(self.built)
        return self.moved(with_empty_agent(whole) if self.on_gpu else whole)

    def names(self, worlds: int) -> list[int]:
        """Scene index of each world of a batch."""
        return [index % len(self.scenes) for index in range(worlds)]

    def world(self, worlds: int, device: torch.device | None = None) -> World:
        """A batch of worlds on a device, by default the checked one."""
        stacked = stack_worlds([self.built[name] for name in self.names(worlds)])
        return self.moved(stacked, device)

    def moved(self, value: MovedT, device: torch.device | None = None) -> MovedT:
        """A dataclass of tensors on a device, by default the checked one."""
        target = device or self.device
        return map_tensors(value, lambda tensor: tensor.to(target))

    def network(self, size: str, device: torch.device | None = None) -> Reference:
        """A reference with random weights of seed 0, which is as fast as a trained one."""
        torch.manual_seed(0)
        return Reference(size_preset(size), self.vocabulary).to(device or self.device)

    def reference(self, device: torch.device | None = None) -> ReferenceAgent:
        """The trained reference."""
        return ReferenceAgent(load_reference(self.reference_file, device or self.device))

    def policy(self, device: torch.device | None = None) -> tuple[Policy, ObservationConfig]:
        """The trained policy and its observation."""
        policy, _, view = open_policy(self.policy_file)
        return policy.to(device or self.device), view

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def start_memory(self) -> None:
        """Reset the peak of GPU memory."""
        if self.on_gpu:
            # Graphs of earlier checks are in cycles of references.
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gb(self) -> float:
        """Peak of GPU memory since ``start_memory`` in GB; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.on_gpu else 0.0


def largest(one: Tensor, other: Tensor, where: Tensor | None = None) -> float:
    """Largest absolute difference of two tensors on any devices, where a mask is true.

    Values that are not finite in both do not differ; values that are not finite in one differ by infinity.
    """
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    finite, also = torch.isfinite(one), torch.isfinite(other)
    apart = torch.where(finite & also, (one - other).abs(), torch.where(finite == also, 0.0, torch.inf))
    if where is not None:
        apart = torch.where(where.cpu(), apart, 0.0)
    return float(apart.max()) if apart.numel() else 0.0


def or_too_large(about: str, rows: Iterable[Row]) -> Iterator[Row | str]:
    """The rows up to an out-of-memory error, which is reported as a note and not as a failure."""
    try:
        yield from rows
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        yield f"{about}: does not fit in the memory of this GPU"
