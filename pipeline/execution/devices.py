"""The devices that a user asks for by name, whether they are there, and how work is launched on several of them."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data.errors import UserError

if TYPE_CHECKING:
    from lightning.fabric import Fabric

__all__ = ["Clock", "Devices", "check_devices", "find_devices", "is_first_process", "is_launched", "summed"]

_KNOWN = re.compile(r"auto|cpu|gpu|cuda(:\d+)?|mps")
_EXPECTED = "cpu, cuda, cuda:N, gpu, mps or auto"


@dataclass(frozen=True)
class Devices:
    """What was found.

    Attributes:
        kind: cpu, cuda or mps. index: of the one device that was named, as in cuda:3. count: how many are used.
    """

    kind: str
    index: int | None = None
    count: int = 1

    @property
    def name(self) -> str:
        """As torch takes it."""
        return self.kind if self.index is None else f"{self.kind}:{self.index}"

    def launch(self, nodes: int, precision: str) -> dict[str, Any]:
        """Options of Lightning's Trainer and Fabric.

        Args:
            nodes: machines, each with these devices.
            precision: as Lightning takes it; auto is bf16-mixed on a GPU and 32-true elsewhere.
        """
        if precision == "auto":
            precision = "bf16-mixed" if self.kind == "cuda" else "32-true"
        strategy = "auto"
        if self.count * nodes > 1:
            strategy = "ddp" if is_launched() else "ddp_spawn"
        return {
            "accelerator": self.kind,
            "devices": self.count if self.index is None else [self.index],
            "num_nodes": nodes,
            "strategy": strategy,
            "precision": precision,
        }


def is_launched() -> bool:
    """Whether torchrun or Slurm started this process, and the other ones with it."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ


def is_first_process() -> bool:
    """Whether this is the first of the processes that torchrun or Slurm started together, or the only one."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))) == 0


def summed(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The sum over the processes of all devices."""
    total = fabric.all_reduce(tensor, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def _gpus() -> int:
    """CUDA GPUs that torch can use."""
    # Asked of the driver's library: a process that has started CUDA cannot fork any more.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _why_not(kind: str) -> str:
    """Why there is no device of a kind, and what to do about it."""
    if kind == "mps":
        return "torch finds no Apple GPU"
    if torch.version.cuda is None:
        return f"this torch ({torch.__version__}) is built for CPUs alone; install one with CUDA"
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = f" and CUDA_VISIBLE_DEVICES={hidden}" if hidden is not None else ""
    return f"torch {torch.__version__} finds no CUDA GPU (see nvidia-smi{seen})"


def find_devices(asked: str, option: str = "--device", count: int = 1) -> Devices:
    """What a name stands for on this machine.

    Args:
        asked: cpu, cuda, cuda:N, gpu (CUDA or Apple's), mps, or auto for a GPU where there is one.
        option: how the user gave it, for messages. count: how many are wanted on this machine.

    Raises:
        UserError: no such device here, or fewer than wanted; says what is there.
    """
    if not _KNOWN.fullmatch(asked):
        raise UserError(f"{option} {asked}: expected {_EXPECTED}")
    several = f"{option.removesuffix('device')}devices {count}"
    if asked == "cpu":
        return Devices("cpu", count=count)
    gpus, mps = _gpus(), torch.backends.mps.is_available()
    kind = asked.partition(":")[0]
    if kind in ("auto", "gpu"):
        kind = "cuda" if gpus else "mps" if mps else "cpu"
    if kind == "cpu":
        if asked == "gpu":
            raise UserError(f"{option} gpu: there is none here: {_why_not('cuda')}, or give {option} cpu")
        if count > 1:
            raise UserError(
                f"{several}: there is no GPU here: {_why_not('cuda')}, or give {several.split()[0]} 1, or "
                f"{option} cpu for {count} processes"
            )
        return Devices("cpu")
    there = {"cuda": gpus, "mps": int(mps)}[kind]
    if not there:
        raise UserError(f"{option} {asked}: there is none here: {_why_not(kind)}, or give {option} cpu")
    index = int(asked.partition(":")[2]) if ":" in asked else None
    names = ", ".join(f"cuda:{number}" for number in range(there)) if kind == "cuda" else kind
    if index is not None and index >= there:
        raise UserError(f"{option} {asked}: there is no such GPU here, only {names}")
    if count > (1 if index is not None else there):
        raise UserError(f"{several}: {option} {asked} is {1 if index is not None else there} here ({names})")
    return Devices(kind, index, count)


def check_devices(config: Any, prefix: str = "--") -> None:
    """Raise ``UserError`` where a configuration names a device, at any depth, that is not there.

    Args:
        config: a dataclass of options. prefix: of their names.
    """
    for option, asked, count in _named(config, prefix):
        find_devices(asked, option, count)


def _named(config: Any, prefix: str) -> Iterator[tuple[str, str, int]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _named(value, f"{prefix}{field.name}.")
        elif field.name == "device":
            yield f"{prefix}device", value, getattr(config, "devices", 1)


class Clock:
    """Each lap names what was done since the one before; nothing waits until ``seconds`` is asked for.

    Args:
        device: where the work is done.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []
        self.lap("")

    def lap(self, phase: str) -> None:
        """What was done since the last lap was ``phase``."""
        if not self._on_gpu:
            self._marks.append((phase, time.perf_counter()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((phase, event))

    def seconds(self) -> dict[str, float]:
        """Of each phase."""
        if self._on_gpu:
            torch.cuda.synchronize()
        total: dict[str, float] = {}
        for (_, start), (phase, end) in zip(self._marks, self._marks[1:], strict=False):
            if isinstance(start, float) and isinstance(end, float):
                lasted = end - start
            else:
                assert isinstance(start, torch.cuda.Event)
                assert isinstance(end, torch.cuda.Event)
                lasted = start.elapsed_time(end) / 1000
            total[phase] = total.get(phase, 0.0) + lasted
        return total
