"""Rows of a benchmark, timers, and the scenarios that are measured."""

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

# Original Waymo scenarios with 50 and 84 agents, on which other programs were measured.
_KNOWN = ("637f20cafde22ff8", "ee519cf571686d19")

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        name: what was measured, on which data. value, unit: the figure.
        baseline: the figure of what it is compared with, or None. ratio: factor of improvement over the baseline.
        device: of the measurement.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    device: str = "cpu, 1 thread"


def cpu_seconds(function: Callable[[], object], repeats: int = 1) -> float:
    """Mean CPU seconds of a call; wall time would depend on other processes."""
    started = time.process_time()
    for _ in range(repeats):
        function()
    return (time.process_time() - started) / repeats


def seconds_on(device: torch.device, work: Callable[[], object], repeats: int = 1) -> float:
    """Mean seconds of a call: CPU time, or wall time until the GPU has finished."""
    if device.type != "cuda":
        return cpu_seconds(work, repeats)
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / repeats


def peak_memory_mb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fresh(function: Callable[[], ValueT]) -> ValueT:
    """Call a picklable function in a new process, so that the peak memory is its own."""
    with ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=keep_freed_memory
    ) as pool:
        return pool.submit(function).result()


def record_files(scratch: Path) -> tuple[str, list[Path]]:
    """Description and paths of real validation shards (WOMD_DATA), or of generated ones in folder ``scratch``."""
    beside = Path(__file__).resolve().parents[3] / "shared" / "womd"
    folder = Path(os.environ.get("WOMD_DATA", beside)) / "validation"
    if folder.is_dir():
        return "real scenarios", sorted(folder.iterdir())
    from pipeline.stages.traffic import TrafficConfig, run_traffic

    config = TrafficConfig(training=1, validation=12, testing=1, scenarios_per_shard=12)
    run_traffic(config, out=scratch, seed=0)
    return "generated scenarios", sorted((scratch / "validation").iterdir())


def load_scenes(count: int | None = None) -> tuple[str, list[Scene]]:
    """Description of the scenes, and the first ``count`` of them, or all."""
    # Imported here, since these need Waymo's protos.
    from data.tfrecord import read_records
    from data.womd import parse_scenario

    with tempfile.TemporaryDirectory() as folder:
        kind, files = record_files(Path(folder))
        records = (record for path in files for record in read_records(path))
        return kind, [parse_scenario(r) for r in islice(records, count) if isinstance(r, bytes)]


def known_pair(scenes: Sequence[Scene]) -> tuple[list[Scene], bool]:
    """The two known scenes in order and True, or the first two scenes and False."""
    known = [scene for name in _KNOWN for scene in scenes if scene.scenario_id == name]
    return (known, True) if len(known) == len(_KNOWN) else (list(scenes[:2]), False)
