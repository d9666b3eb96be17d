"""The devices that a user asks for by name, whether they are there, and how work is launched on several of them."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from data.errors import UserError
from pipeline.execution.console import say
from pipeline.execution.engine import worker_count

if TYPE_CHECKING:
    from lightning.fabric import Fabric

_KNOWN = re.compile(r"auto|cpu|gpu|cuda(:\d+)?|mps")
_EXPECTED = "cpu, cuda, cuda:N, gpu, mps or auto"
# Signs of an NVIDIA driver, whatever torch makes of it.
_DRIVER = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"))
# Values of CUDA_VISIBLE_DEVICES by which a user asks for the CPU.
_HIDDEN = ("", "-1", "NoDevFiles")

# How many devices: a number, or all that are seen.
Count = int | Literal["auto"]


@dataclass(frozen=True)
class Devices:
    """What was found.

    Attributes:
        kind: cpu, cuda or mps. index: of the one device that was named, as in cuda:3. count: how many are used.
        reason: why it is the CPU although a GPU would have been taken.
    """

    kind: str
    index: int | None = None
    count: int = 1
    reason: str = field(default="", compare=False)

    @property
    def name(self) -> str:
        """As torch takes it."""
        return self.kind if self.index is None else f"{self.kind}:{self.index}"

    def precision(self, asked: str) -> str:
        """As Lightning takes it; auto is bf16-mixed on a GPU and 32-true elsewhere."""
        return asked if asked != "auto" else "bf16-mixed" if self.kind == "cuda" else "32-true"

    def launch(self, nodes: int, precision: str) -> dict[str, Any]:
        """Options of Lightning's Trainer and Fabric.

        Args:
            nodes: machines, each with these devices.
            precision: see ``Devices.precision``.
        """
        strategy = "auto"
        if self.count * nodes > 1:
            strategy = "ddp" if is_launched() else "ddp_spawn"
        return {
            "accelerator": self.kind,
            "devices": self.count if self.index is None else [self.index],
            "num_nodes": nodes,
            "strategy": strategy,
            "precision": self.precision(precision),
        }

    @property
    def dealt(self) -> int:
        """GPUs to be dealt out to processes that each see one of them; 1 where all see the same."""
        return self.count if self.kind == "cuda" and self.index is None else 1

    def processes(self, workers: int) -> int:
        """Processes for independent tasks: so many as asked for, or where that is 0 one a GPU, one a CPU core."""
        return worker_count(workers or (0 if self.kind == "cpu" else self.count))

    def describe(self, *, precision: str = "", nodes: int = 1, processes: int = 0) -> str:
        """What work runs on, in words; for the line that each stage begins with.

        Args:
            precision: of a training, as it was asked for. nodes: machines.
            processes: of independent tasks; 0 for a training.
        """
        if self.kind == "cpu":
            number = processes or (self.count if self.count > 1 else 0)
            words = f"the CPU, {_processes(number) if number else _threads()}"
        elif self.kind == "mps":
            words = "the Apple GPU"
        else:
            first = self.index or 0
            last = first + self.count - 1
            which = f"cuda:{first}" if last == first else f"cuda:{first} to cuda:{last}"
            words = f"{which}, {self.count} of {_gpus()} {_gpu_names()}"
            words += f", {_processes(processes)}" if processes else ""
        if nodes > 1:
            words += f", on each of {nodes} machines"
        if precision:
            words += f", {self.precision(precision)}"
        return f"runs on {words}" + (f"; no GPU is seen: {self.reason}" if self.reason else "")

    def tell(self, stage: str, **how: Any) -> None:
        """Say once, in the first process, what a stage runs on; arguments as of ``describe``."""
        if is_first_process():
            say(f"{stage}: {self.describe(**how)}")


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


def _gpu_names() -> str:
    """What the machine's GPUs are called; "GPUs" where nvidia-smi is missing."""
    # torch would start CUDA for that, after which a process cannot fork.
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return "GPUs"
    return " or ".join(dict.fromkeys(line.strip() for line in lines if line.strip())) or "GPUs"


def _driver_cuda() -> int | None:
    """The newest CUDA that the driver's library supports, as 12040 for 12.4; None where the library is missing."""
    # This call alone needs no initialisation, which would forbid forks.
    try:
        library, version = ctypes.CDLL("libcuda.so.1"), ctypes.c_int()
        failed = library.cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else version.value


def _fault() -> str | None:
    """Why torch cannot use the GPU of a machine with an NVIDIA driver, and what to do about it.

    None where it can, where there is no driver, and where CUDA_VISIBLE_DEVICES says that CPUs are wanted.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in _HIDDEN or not (any(path.exists() for path in _DRIVER) or shutil.which("nvidia-smi")):
        return None
    if torch.version.cuda is None:
        return _why_not("cuda")
    supported = _driver_cuda()
    if supported is None:
        return "its library libcuda.so.1 cannot be loaded; in a container, start that with --gpus all"
    # Within a major version of CUDA older drivers will do.
    if supported // 1000 < int(torch.version.cuda.partition(".")[0]):
        return (
            f"it supports CUDA {supported // 1000}.{supported % 1000 // 10} and this torch ({torch.__version__}) "
            f"needs {torch.version.cuda}; install a newer driver, or a torch built for an older CUDA"
        )
    return None if _gpus() else _why_not("cuda")


def _why_not(kind: str) -> str:
    """Why there is no device of a kind, and what to do about it."""
    if kind == "mps":
        return "torch finds no Apple GPU"
    if torch.version.cuda is None:
        release = torch.__version__.partition("+")[0]
        return (
            f"this torch ({torch.__version__}) is built for CPUs alone; install one with CUDA "
            f"(pip install --force-reinstall torch=={release})"
        )
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = f" and CUDA_VISIBLE_DEVICES={hidden}" if hidden is not None else ""
    return f"torch {torch.__version__} finds no CUDA GPU (see nvidia-smi{seen})"


def _no_gpu() -> str:
    """Why ``auto`` is the CPU, in a few words."""
    if torch.version.cuda is None:
        return "torch is built for CPUs alone"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in _HIDDEN:
        return "CUDA_VISIBLE_DEVICES hides all"
    return "this machine has no NVIDIA driver"


def _processes(number: int) -> str:
    return "1 process" if number == 1 else f"{number} processes"


def _threads() -> str:
    number = torch.get_num_threads()
    return "1 thread" if number == 1 else f"{number} threads"


def _started_here() -> int:
    """Processes that torchrun or Slurm started on this machine."""
    for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE"):
        if number := os.environ.get(name):
            return int(number)
    return int(os.environ.get("SLURM_NTASKS", "1")) // int(os.environ.get("SLURM_NNODES", "1"))


def _all_of(seen: int, share: Callable[[int], None] | None) -> int:
    """As many devices as can be used.

    Raises:
        UserError: torchrun or Slurm started a number of processes that cannot share the work.
    """
    if share is None:
        return seen
    if is_launched():
        share(_started_here())
        return _started_here()
    for count in range(seen, 1, -1):
        with contextlib.suppress(UserError):
            share(count)
            return count
    return 1


def find_devices(
    asked: str, option: str = "--device", count: Count = 1, share: Callable[[int], None] | None = None
) -> Devices:
    """What a name stands for on this machine.

    Args:
        asked: cpu, cuda, cuda:N, gpu (CUDA or Apple's), mps, or auto for a GPU where there is one.
        option: how the user gave it, for messages.
        count: how many are wanted on this machine; auto for all GPUs, or for as many processes as were started
            together.
        share: of a training: raises UserError where so many devices cannot share its work. Of auto, the largest
            number is taken that can.

    Raises:
        UserError: no such device here, or fewer than wanted; says what is there. A driver whose GPU torch cannot
            use is an error too, unless the CPU is asked for.
    """
    if not _KNOWN.fullmatch(asked):
        raise UserError(f"{option} {asked}: expected {_EXPECTED}")
    several = f"{option.removesuffix('device')}devices {count}"
    if asked == "cpu":
        # One process uses all cores; several are for those who ask for them.
        return Devices("cpu", count=_all_of(1, share) if count == "auto" else count)
    gpus, mps = _gpus(), torch.backends.mps.is_available()
    kind = asked.partition(":")[0]
    if kind != "mps" and (fault := _fault()):
        raise UserError(f"{option} {asked}: there is an NVIDIA driver here, but {fault}; or give --device cpu")
    if kind in ("auto", "gpu"):
        kind = "cuda" if gpus else "mps" if mps else "cpu"
    if kind == "cpu":
        if asked == "gpu":
            raise UserError(f"{option} gpu: there is none here: {_why_not('cuda')}, or give {option} cpu")
        if count == "auto":
            return Devices("cpu", count=_all_of(1, share), reason=_no_gpu())
        if count > 1:
            raise UserError(
                f"{several}: there is no GPU here: {_why_not('cuda')}, or give {several.split()[0]} 1, or "
                f"{option} cpu for {count} processes"
            )
        return Devices("cpu", reason=_no_gpu())
    there = {"cuda": gpus, "mps": int(mps)}[kind]
    if not there:
        raise UserError(f"{option} {asked}: there is none here: {_why_not(kind)}, or give {option} cpu")
    index = int(asked.partition(":")[2]) if ":" in asked else None
    names = ", ".join(f"cuda:{number}" for number in range(there)) if kind == "cuda" else kind
    if index is not None and index >= there:
        raise UserError(f"{option} {asked}: there is no such GPU here, only {names}")
    usable = 1 if index is not None else there
    number = _all_of(usable, share) if count == "auto" else count
    if number > usable:
        raise UserError(f"{several}: {option} {asked} is {usable} here ({names})")
    return Devices(kind, index, number)


def check_devices(config: Any, prefix: str = "--") -> None:
    """Raise ``UserError`` where a dataclass of options names a device, at any depth, that is not there."""
    for option, asked, count in _named(config, prefix):
        find_devices(asked, option, count)


def _named(config: Any, prefix: str) -> Iterator[tuple[str, str, Count]]:
    for option in dataclasses.fields(config):
        value = getattr(config, option.name)
        if dataclasses.is_dataclass(value):
            yield from _named(value, f"{prefix}{option.name}.")
        elif option.name == "device":
            yield f"{prefix}device", value, getattr(config, "devices", 1)


class Clock:
    """Each lap names what was done since the one before; nothing waits until ``seconds`` is asked for."""

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
