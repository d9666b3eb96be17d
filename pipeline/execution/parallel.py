"""Independent tasks over local processes: results as they come, errors as they were, Ctrl-C without remains."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from data.errors import UserError
from pipeline.execution.allocator import keep_freed_memory
from pipeline.execution.interruption import end_workers
from pipeline.execution.isolation import die_with_parent

__all__ = ["prepare_worker", "run_tasks"]

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


def prepare_worker(parent: int) -> None:
    """What a fresh process does first: end with its parent, leave Ctrl-C to it, use one thread."""
    # Both reach the whole process group; the parent alone decides what follows.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    # The parent ends it so: temporary files are removed on the way out.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    die_with_parent(parent)
    keep_freed_memory()
    torch.set_num_threads(1)


def run_tasks(
    function: Callable[[TaskT], ResultT], tasks: Sequence[TaskT], workers: int, retries: int = 0
) -> Iterator[tuple[int, ResultT]]:
    """Yield ``(index, function(task))`` in order of completion.

    Args:
        function: importable by name, so that a fresh process can find it.
        tasks: its arguments, picklable.
        workers: processes; with 1, or for a single task, everything runs in this process. Torch uses one thread
            in each of them, so that results do not depend on the number of workers.
        retries: how often to begin again with what is left, one process fewer each time, when a worker was killed:
            most often that was for want of memory.

    Raises:
        UserError: workers were killed more often than that.
        Exception: whatever ``function`` raised first; tasks not yet started are dropped.
    """
    if workers == 1 or len(tasks) <= 1:
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
            for index, result in _run_pool(function, left, workers):
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
    function: Callable[[TaskT], ResultT], tasks: Mapping[int, TaskT], workers: int
) -> Iterator[tuple[int, ResultT]]:
    # Fresh processes: forking one with threads of torch or Arrow may deadlock.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(workers, len(tasks)), mp_context=context, initializer=prepare_worker, initargs=(os.getpid(),)
    )
    try:
        futures: dict[Future[ResultT], int] = {pool.submit(function, task): index for index, task in tasks.items()}
        pending = set(futures)
        while pending:
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            # What is finished counts, though another worker's death may have come first.
            for future in sorted(done, key=lambda future: (future.exception() is not None, futures[future])):
                if isinstance(future.exception(), SystemExit):
                    raise BrokenProcessPool("a worker was told to end")
                yield futures[future], future.result()
    except (KeyboardInterrupt, GeneratorExit):
        # Tasks may take minutes; what they have done so far is done again.
        end_workers()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
