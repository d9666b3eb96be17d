"""What the checks work on: the folder that ``prepare`` made, a device, and how much of everything."""

from __future__ import annotations

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
from pipeline.simulator.world import World, build_world, stack_worlds

__all__ = ["FULL", "TINY", "Inputs", "Scale", "Size", "largest", "or_too_large"]

MovedT = TypeVar("MovedT")


@dataclass(frozen=True)
class Scale:
    """How much is done.

    Attributes:
        scenes: distinct ones. together: of them, compared between devices.
        worlds: simulated at once, ascending; the first is also counted. minibatch: transitions. epochs: of PPO.
        sizes: of the reference. batch: scenes in its training step. rollouts: of a scene.
        updates: of self-play that is killed and resumed. fit_steps: of training likewise.
        repeats: of what is timed.
    """

    scenes: int
    together: int
    worlds: tuple[int, ...]
    minibatch: int
    epochs: int
    sizes: tuple[str, ...]
    batch: int
    rollouts: int
    updates: int
    fit_steps: int
    repeats: int


FULL = Scale(64, 8, (100, 300, 600), 8192, 4, ("mini", "tiny"), 16, 32, 4, 20, 3)
TINY = Scale(2, 2, (2,), 512, 1, ("micro",), 2, 2, 2, 2, 1)


@dataclass(frozen=True)
class Size:
    """The paper's self-play, read from its preset."""

    view: ObservationConfig
    policy: PolicyConfig
    ppo: PPOConfig
    worlds: int


def _paper() -> Size:
    asked = load_preset("paper")["selfplay"]
    return Size(
        ObservationConfig(**asked["view"]),
        PolicyConfig(**asked["policy"]),
        PPOConfig(**asked["ppo"]),
        int(asked["worlds"]),
    )


@dataclass(frozen=True)
class Inputs:
    """Read when first asked for, and kept for later checks in the same process.

    Attributes:
        data: folder that ``prepare`` made. scratch: a folder of this run. device: what is checked.
    """

    data: Path
    scratch: Path
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
        """Spread over the store; no larger than the paper's limit of 64 agents."""
        store = SceneStore(self.store_folder)
        usable = [
            row for row, info in enumerate(store.infos) if info.simulated <= 64 and not info.unscorable_reason
        ]
        count = min(self.scale.scenes, len(usable))
        return [store[usable[index * len(usable) // count]] for index in range(count)]

    @cached_property
    def built(self) -> Sequence[World]:
        """A world of each scene."""
        return [build_world(scene, self.vocabulary, self.paper.view.road_segments) for scene in self.scenes]

    def names(self, worlds: int) -> list[int]:
        """Numbers of scenes in so many worlds."""
        return [index % len(self.scenes) for index in range(worlds)]

    def world(self, worlds: int, device: torch.device | None = None) -> World:
        """So many worlds as a batch on a device, the checked one by default."""
        stacked = stack_worlds([self.built[name] for name in self.names(worlds)])
        return self.moved(stacked, device)

    def moved(self, value: MovedT, device: torch.device | None = None) -> MovedT:
        """A dataclass of tensors on a device, the checked one by default."""
        target = device or self.device
        return map_tensors(value, lambda tensor: tensor.to(target))

    def network(self, size: str, device: torch.device | None = None) -> Reference:
        """A reference of a size with the weights of seed 0, which is as fast as a trained one."""
        torch.manual_seed(0)
        return Reference(size_preset(size), self.vocabulary).to(device or self.device)

    def reference(self, device: torch.device | None = None) -> ReferenceAgent:
        """The trained reference."""
        return ReferenceAgent(load_reference(self.reference_file, device or self.device))

    def policy(self, device: torch.device | None = None) -> tuple[Policy, ObservationConfig]:
        """The trained policy, and what it sees."""
        policy, _, view = open_policy(self.policy_file)
        return policy.to(device or self.device), view

    @property
    def on_gpu(self) -> bool:
        return self.device.type == "cuda"

    def start_memory(self) -> None:
        """From here on the largest use of the card's memory is looked for."""
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gb(self) -> float:
        """Largest use of the card's memory since ``start_memory``; 0 on a CPU."""
        return torch.cuda.max_memory_allocated(self.device) / 1e9 if self.on_gpu else 0.0


def largest(one: Tensor, other: Tensor, where: Tensor | None = None) -> float:
    """Largest absolute difference of two tensors, of any devices, where a mask is true.

    What is not finite in both does not differ; what is not finite in one alone differs by infinity.
    """
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    finite, also = torch.isfinite(one), torch.isfinite(other)
    apart = torch.where(finite & also, (one - other).abs(), torch.where(finite == also, 0.0, torch.inf))
    if where is not None:
        apart = torch.where(where.cpu(), apart, 0.0)
    return float(apart.max()) if apart.numel() else 0.0


def or_too_large(about: str, rows: Iterable[Row]) -> Iterator[Row | str]:
    """The rows, up to where a card's memory is too small, which is a finding and no failure."""
    try:
        yield from rows
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        yield f"{about}: does not fit in the memory of this card"
