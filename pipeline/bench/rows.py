"""What a benchmark gives, and where its scenarios come from."""

from __future__ import annotations

import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.allocator import keep_freed_memory

__all__ = ["Row", "cpu_seconds", "fresh", "peak_memory_mb", "record_files"]

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured, on which data. value, unit: the figure.
        baseline: the same of what it is compared with, in the same run; None where there is nothing.
        ratio: how many times better than the baseline.
        device: that it ran on.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    device: str = "cpu, 1 thread"


def cpu_seconds(function: Callable[[], object], repeats: int = 1) -> float:
    """CPU seconds of one call, the mean of some; wall time lies on busy machines."""
    started = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - started) / repeats


def peak_memory_mb() -> float:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fresh(function: Callable[[], ValueT]) -> ValueT:
    """Call a picklable function in a process that has loaded nothing else, so that its peak memory is its own."""
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=keep_freed_memory
    ) as pool:
        return pool.submit(function).result()


def record_files(scratch: Path) -> tuple[str, list[Path]]:
    """Real validation shards where there are some (WOMD_DATA), else generated ones.

    Args:
        scratch: folder for generated shards.

    Returns:
        What they are, and their paths.
    """
    beside = Path(__file__).resolve().parents[3] / "shared" / "womd"
    folder = Path(os.environ.get("WOMD_DATA", beside)) / "validation"
    if folder.is_dir():
        return "real scenarios", sorted(folder.iterdir())
    from pipeline.stages.traffic import TrafficConfig, run_traffic

    config = TrafficConfig(training=1, validation=12, testing=1, scenarios_per_shard=12)
    run_traffic(config, out=scratch, seed=0)
    return "generated scenarios", sorted((scratch / "validation").iterdir())
