"""Counts of what a device is asked to do: kernels launched, and moments at which the host waits for the device.

``LaunchCounter`` counts on any device, without a card, so that tests can hold a budget. ``reported_waits`` and
``kernels`` ask CUDA itself, and need a card.
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

__all__ = ["Kernels", "LaunchCounter", "kernels", "project_line", "reported_waits"]

_ROOT = Path(__file__).resolve().parents[2]
# Operators that hand a value to Python, or whose result has a size that depends on values.
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
# A tensor of Python numbers: on a device, a copy from memory that the host must not touch until it is done.
_FROM_PYTHON = "lift_fresh"
# These neither compute nor copy on the device.
_NO_KERNEL = frozenset({"_local_scalar_dense", "detach", "empty", "empty_like", "empty_strided", _FROM_PYTHON})
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})


def _callers() -> Iterator[tuple[str, int]]:
    """File and line of every frame outside this module, the innermost first."""
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
    """Functions that look at values on a CPU and not on a GPU; what they do there is not counted."""

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
            self._counter.launches["one_hot"] += 2  # zeros, and ones among them


class LaunchCounter(TorchDispatchMode):
    """Counts within ``with``; every ATen call that is no view is taken for one launch.

    On a CPU the counts are those of the paths that a CPU takes; some code takes others on a GPU.

    Args:
        device: reads of tensors elsewhere are no waits.

    Attributes:
        launches: operator to calls. waits: ``OPERATOR at FILE:LINE`` to times that the host waits, or would on a
            GPU.
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
        """Launches of all operators."""
        return self.launches.total()

    @property
    def waited(self) -> int:
        """Waits at all places."""
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
        # A mask is turned into row numbers, whose count must be known.
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return name == "_to_copy" and _comes_back(first, result)


def _comes_back(source: Any, result: Any) -> bool:
    """Whether something is copied from a card to the host."""
    return isinstance(source, Tensor) and isinstance(result, Tensor) and source.is_cuda and not result.is_cuda


@contextmanager
def reported_waits() -> Iterator[Counter[str]]:
    """Within ``with``, count ``FILE:LINE`` of every wait that CUDA's sync debug mode reports; nothing elsewhere."""
    found: Counter[str] = Counter()
    if not torch.cuda.is_available():
        yield found
        return

    def note(message: Warning | str, *_: object, **__: object) -> None:
        if "synchroniz" in str(message):
            found[project_line()] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")


@dataclass(frozen=True)
class Kernels:
    """What a profiler saw on a card: how many kernels, their seconds, and the seconds that passed."""

    count: int
    busy: float
    seconds: float
    longest: tuple[str, ...]


def kernels(work: Callable[[], object]) -> Kernels:
    """Profile one call on a card; the clock runs without the profiler, which slows the host down."""
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
