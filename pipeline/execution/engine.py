"""Independent tasks, done by processes of this machine or of a Ray cluster.

Torch is imported late here: it takes seconds, and the command line reads this module for its options.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from data.errors import UserError
from pipeline.execution.processes import die_with_parent, end_workers, keep_freed_memory

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized

    from pipeline.execution.devices import Devices

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")
_KINDS = ("local", "ray")


@dataclass(frozen=True)
class EngineConfig:
    """Workers for independent tasks. Results do not depend on them.

    Args:
        kind: local for processes of this machine, or ray for those of a Ray cluster.
        address: of the cluster: auto, HOST:PORT or ray://HOST:PORT; without one Ray runs on this machine alone.
        retries: how often a task is given to another worker after its worker died.
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
    devices: Devices | None = None,
    folder: Path | None = None,
) -> Iterator[tuple[int, ResultT]]:
    """Yield ``(index, function(task))`` in order of completion.

    A task must be safe to do twice: when a machine is cut off, its task is given to another machine, and both may
    finish it. Tasks here write their outputs atomically and with the same bytes every time.

    Args:
        engine: the workers.
        function: importable by name. tasks: its arguments, picklable, their paths absolute.
        workers: processes; 0 for one per core or per GPU, of this machine or of the cluster.
        devices: of the tasks, none for the CPU. On this machine ``cuda`` is another GPU in each process, as evenly
            as may be; of a cluster each process has a GPU for itself.
        folder: where they write; every machine of a cluster must see it.

    Raises:
        UserError: workers died too often, or what ``function`` raised.
    """
    if engine.kind == "ray":
        # Ray is optional.
        from pipeline.execution.ray_cluster import run_on_cluster

        on_gpus = devices is not None and devices.kind != "cpu"
        yield from run_on_cluster(engine.address, engine.retries, function, tasks, workers, on_gpus, folder)
        return
    count = worker_count(workers) if devices is None else devices.processes(workers)
    gpus = 1 if devices is None else devices.dealt
    yield from run_tasks(function, tasks, count, engine.retries, gpus)


def prepare_worker(parent: int, gpus: int = 1, started: Synchronized[int] | None = None) -> None:
    """Set up a fresh worker: it ends with its parent, ignores Ctrl-C, and uses one thread and one GPU.

    Args:
        parent: process id. gpus: of this machine, to be shared. started: counts the workers that are there.
    """
    # Both signals reach the whole process group; the parent alone decides what follows.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    import torch

    die_with_parent(parent)
    keep_freed_memory()
    torch.set_num_threads(1)
    take_gpu(gpus, started)
    # The parent ends workers with SIGTERM; an exit removes their temporary files. Not before there may be some:
    # the pool prints the traceback of an exit in here.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def take_gpu(gpus: int, started: Synchronized[int] | None) -> None:
    """Let this process see one of the machine's GPUs, the next in turn; arguments as ``prepare_worker``."""
    if gpus == 1 or started is None:
        return
    with started.get_lock():
        place = started.value
        started.value += 1
    # By the environment: that starts nothing of CUDA, so that the worker may fork.
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus)))).split(",")
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[place % gpus]


def run_tasks(
    function: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], workers: int, retries: int = 0, gpus: int = 1
) -> Iterator[tuple[int, ResultT]]:
    """Yield ``(index, function(task))`` in order of completion.

    Args:
        function: importable by name, so that a fresh process can find it.
        tasks: its arguments, picklable.
        workers: processes; with 1, or for a single task, everything runs in this process. Torch uses one thread
            in each of them, so that results do not depend on the number of workers.
        retries: how often to go on with one process fewer after a worker was killed, most often because memory
            ran out.
        gpus: dealt out to the processes.

    Raises:
        UserError: workers were killed more often than that.
        Exception: whatever ``function`` raised first; tasks not yet started are dropped.
    """
    if workers == 1 or len(tasks) <= 1:
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield from ((index, function(task)) for index, task in enumerate(tasks))
        finally:
            torch.set_num_threads(threads)
        return
    left = dict(enumerate(tasks))
    while left:
        try:
            for index, result in _run_pool(function, left, workers, gpus):
                del left[index]
                yield index, result
        except BrokenProcessPool as error:
            if retries <= 0:
                raise UserError(
                    "a worker process was killed (often for want of memory): run the same command again to go on, "
                    "with fewer workers"
                ) from error
            retries, workers = retries - 1, max(1, workers - 1)
            print(f"a worker process was killed; going on with {workers}", file=sys.stderr, flush=True)


def _run_pool(
    function: Callable[[TaskT], ResultT], tasks: Mapping[int, TaskT], workers: int, gpus: int
) -> Iterator[tuple[int, ResultT]]:
    # Fresh processes: forking one with threads of torch or Arrow may deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)),
        mp_context=context,
        initializer=prepare_worker,
        initargs=(os.getpid(), gpus, context.Value("i", 0)),
    )
    try:
        futures: dict[Future[ResultT], int] = {pool.submit(function, task): index for index, task in tasks.items()}
        pending = set(futures)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            # Finished results count, even if another worker died before.
            for future in sorted(done, key=lambda future: (future.exception() is not None, futures[future])):
                if isinstance(future.exception(), SystemExit):
                    raise BrokenProcessPool("a worker was told to end")
                yield futures[future], future.result()
    except (KeyboardInterrupt, GeneratorExit):
        # Tasks may take minutes: they are cut off, and done again later.
        end_workers()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
