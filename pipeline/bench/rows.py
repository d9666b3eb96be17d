"""What a benchmark gives, and where its scenarios come from."""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch

from data.scene import Scene
from pipeline.execution.processes import keep_freed_memory

__all__ = [
    "Row",
    "cpu_seconds",
    "fresh",
    "known_pair",
    "load_scenes",
    "peak_memory_mb",
    "record_files",
    "seconds_on",
]

# Original Waymo protos with many agents, 50 and 84, on which other programs were measured.
_KNOWN = ("637f20cafde22ff8", "ee519cf571686d19")

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


def seconds_on(device: torch.device, work: Callable[[], object], repeats: int = 1) -> float:
    """Of one call, the mean of some: of a core, or of the clock until the GPU is done."""
    if device.type != "cuda":
        return cpu_seconds(work, repeats)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / repeats


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


def load_scenes(count: int | None = None) -> tuple[str, list[Scene]]:
    """What the scenes are, and the first ``count`` of them, or all."""
    # Readers of records need Waymo's protos, which a machine that is only measured need not have.
    from data.tfrecord import read_records
    from data.womd import parse_scenario

    with tempfile.TemporaryDirectory() as folder:
        kind, files = record_files(Path(folder))
        records = (record for path in files for record in read_records(path))
        return kind, [parse_scenario(r) for r in islice(records, count) if isinstance(r, bytes)]


def known_pair(scenes: Sequence[Scene]) -> tuple[list[Scene], bool]:
    """The two scenes that other programs were measured on, in order, and True; the first two where they lack."""
    known = [scene for name in _KNOWN for scene in scenes if scene.scenario_id == name]
    return (known, True) if len(known) == len(_KNOWN) else (list(scenes[:2]), False)
