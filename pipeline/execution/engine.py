"""Who does independent tasks: processes of this machine, or those of a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from data.errors import UserError

__all__ = ["EngineConfig", "run_on", "worker_count"]

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
_KINDS = ("local", "ray")


@dataclass(frozen=True)
class EngineConfig:
    """Who does independent tasks. Results depend on none of this.

    Args:
        kind: local, processes of this machine, or ray, those of a Ray cluster.
        address: of the cluster: auto, HOST:PORT or ray://HOST:PORT; without one Ray runs on this machine alone.
        retries: how often a task whose worker died is given to another one.
    """

    kind: str = "local"
    address: str | None = None
    retries: int = 3

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise UserError(f"--engine.kind {self.kind}: expected one of {', '.join(_KINDS)}")
        if self.address is not None and self.kind != "ray":
            raise UserError(
                f"--engine.address {self.address}: only a Ray cluster has one; give --engine.kind ray too"
            )
        if self.retries < 0:
            raise UserError(f"--engine.retries {self.retries}: expected 0 or more")


def worker_count(wanted: int) -> int:
    """``wanted`` processes, or one for each core this process may use where it is 0.

    Raises:
        UserError: a negative number.
    """
    if wanted < 0:
        raise UserError(f"--workers {wanted}: expected 0 or more")
    return wanted or len(os.sched_getaffinity(0))


def run_on(
    engine: EngineConfig,
    function: Callable[[TaskT], ResultT],
    tasks: Sequence[TaskT],
    workers: int,
    *,
    device: str = "cpu",
    folder: Path | None = None,
) -> Iterator[tuple[int, ResultT]]:
    """Yield ``(index, function(task))`` in order of completion.

    A task must be safe to do twice: when a machine is cut off, its task is given to another, and the first may yet
    end. Tasks here write their outputs atomically and with the same bytes every time.

    Args:
        engine: who does them.
        function: importable by name. tasks: its arguments, picklable, their paths absolute.
        workers: processes; 0 for one per core, or per CPU (or GPU) of the cluster.
        device: of the tasks; on cuda each takes a GPU.
        folder: where they write. Machines of a cluster are asked whether they see it.

    Raises:
        UserError: workers died too often, or what ``function`` raised.
    """
    if engine.kind == "ray":
        # Ray is an extra: whoever does not use it need not have it.
        from pipeline.execution.ray_cluster import run_on_cluster

        yield from run_on_cluster(engine.address, engine.retries, function, tasks, workers, device, folder)
        return
    # It takes torch, which takes seconds.
    from pipeline.execution.parallel import run_tasks

    count = worker_count(workers or int(device != "cpu"))
    yield from run_tasks(function, tasks, count, engine.retries)
