"""Counts of kernel launches and of waits of the host for the device.

``LaunchCounter`` works on any device without a GPU, so that tests can check a limit. ``reported_waits`` and
``kernels`` use CUDA and need a GPU.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_ROOT = Path(__file__).resolve().parents[2]
# Operators that read a value, or whose result has a size that depends on values.
_READS = frozenset(
    {
        "_local_scalar_dense",
        "bincount",
        "equal",
        "is_nonzero",
        "masked_select",
        "nonzero",
        "repeat_interleave",
        "unique_consecutive",
        "unique_dim",
        "_unique2",
    }
)
# A tensor of Python numbers: on a GPU a copy from host memory, which waits.
_FROM_PYTHON = "lift_fresh"
# Operators without a kernel.
_NO_KERNEL = frozenset({"_local_scalar_dense", "detach", "empty", "empty_like", "empty_strided", _FROM_PYTHON})
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})


def _callers() -> Iterator[tuple[str, int]]:
    """File and line of every frame outside this module, innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename != __file__:
            yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def project_line() -> str:
    """``FILE:LINE`` of the innermost frame of this project outside this module; "elsewhere" if there is none."""
    for name, line in _callers():
        if name.startswith(f"{_ROOT}{os.sep}") and "site-packages" not in name:
            return f"{os.path.relpath(name, _ROOT)}:{line}"
    return "elsewhere"


class _HostChecks(TorchFunctionMode):
    """Pauses counting in functions that read values on a CPU but not on a GPU."""

    def __init__(self, counter: LaunchCounter) -> None:
        super().__init__()
        self._counter = counter

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not torch.nn.functional.one_hot or args[0].is_cuda:
            return func(*args, **(kwargs or {}))
        self._counter.paused = True
        try:
            return func(*args, **(kwargs or {}))
        finally:
            self._counter.paused = False
            self._counter.launches["one_hot"] += 2  # zeros, and scattered ones


class LaunchCounter(TorchDispatchMode):
    """Counts within ``with``; every ATen call that is not a view counts as one launch.

    On a CPU these are the counts of the code for CPUs, which differs from that for GPUs in some places.

    Args:
        device: reads of tensors on other devices are not waits.

    Attributes:
        launches: calls by operator. waits: number of waits, on a GPU, by ``OPERATOR at FILE:LINE``.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        super().__init__()
        self._kind = torch.device(device).type
        self._checks = _HostChecks(self)
        self.paused = False
        self.launches: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __enter__(self) -> LaunchCounter:
        self._checks.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._checks.__exit__(*raised)

    @property
    def launched(self) -> int:
        """Number of launches of all operators."""
        return self.launches.total()

    @property
    def waited(self) -> int:
        """Number of waits."""
        return self.waits.total()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.paused:
            return result
        name = func._schema.name.removeprefix("aten::")
        # Optimisers count their steps on the host.
        if _waits(name, args, result, self._kind) and not any(
            "/torch/optim/" in f for f, _ in islice(_callers(), 5)
        ):
            self.waits[f"{name} at {project_line()}"] += 1
        is_view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not is_view and name not in _NO_KERNEL:
            self.launches[name] += 1
        return result


def _waits(name: str, args: tuple[Any, ...], result: Any, kind: str) -> bool:
    first = args[0] if args else None
    if isinstance(first, Tensor) and first.device.type != kind:
        return name == "copy_" and _comes_back(args[1], result)
    if name in _READS or name == _FROM_PYTHON:
        return True
    if name in _INDEXING:
        # A mask is converted to indices, whose number is read.
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return name == "_to_copy" and _comes_back(first, result)


def _comes_back(source: Any, result: Any) -> bool:
    """Whether a tensor is copied from a GPU to the host."""
    return isinstance(source, Tensor) and isinstance(result, Tensor) and source.is_cuda and not result.is_cuda


@contextmanager
def reported_waits() -> Iterator[Counter[str]]:
    """Waits within ``with`` that CUDA's sync debug mode reports, by ``FILE:LINE``; empty without CUDA."""
    waits: Counter[str] = Counter()
    if not torch.cuda.is_available():
        yield waits
        return

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "synchroniz" in str(message):
            waits[project_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")


@dataclass(frozen=True)
class Kernels:
    """Profile of a GPU: number of kernels, their total seconds, the wall time, and the longest kernels."""

    count: int
    busy: float
    seconds: float
    longest: tuple[str, ...]


def kernels(work: Callable[[], object]) -> Kernels:
    """Profile one call on a GPU; wall time is measured without the profiler, which slows the host."""
    torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profiler:
        work()
        torch.cuda.synchronize()
    seen: Counter[str] = Counter()
    spent: Counter[str] = Counter()
    for event in profiler.events() or []:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            seen[event.name] += 1
            spent[event.name] += event.time_range.elapsed_us()
    longest = tuple(f"{us / 1000:.1f} ms in {seen[name]} x {name[:60]}" for name, us in spent.most_common(5))
    return Kernels(seen.total(), spent.total() / 1e6, seconds, longest)
