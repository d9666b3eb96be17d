"""Independent tasks over the machines of a Ray cluster, of which any may die at any time.

A worker is an actor, so that it opens scenarios and loads a model (and, on a GPU, compiles it) once for all its
tasks. There is one task at a worker at a time; what is left waits here, so that the cluster holds no queue and the
task of a dead worker is simply given to another.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import sys
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from data.completeness import inherited
from data.errors import UserError
from data.places import is_remote

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")

_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("data", "models", "submission", "pipeline")
# How often the cluster is asked whether it has grown, and after how long without a worker that is said, seconds.
_LOOK_EVERY, _SAY_AFTER = 2.0, 30.0
# How long a machine may take to answer, seconds.
_KNOCK = 10.0


class _Worker:
    """A process of the cluster."""

    def __init__(self, token: str | None) -> None:
        from pipeline.execution.processes import keep_freed_memory

        import torch  # isort: skip  (after the environment is set)

        keep_freed_memory()
        torch.set_num_threads(1)
        self._token = token

    def ready(self) -> str | None:
        """Name of this machine if it does not see the folder that tasks write to."""
        if self._token is None or os.path.exists(self._token):
            return None
        return socket.gethostname()

    def work(self, function: Callable[[Any], Any], task: Any) -> Any:
        return function(task)


@dataclass
class _Crew:
    """Workers, their tasks, and the tasks that wait for one.

    Attributes:
        starting, busy: references to what workers are doing, with the worker and, of busy ones, the task's number.
        idle: workers without a task. waiting: numbers of tasks. deaths: of workers, by the task they had.
    """

    actor: Any
    token: str | None
    waiting: deque[int]
    starting: dict[Any, Any] = field(default_factory=dict)
    busy: dict[Any, tuple[Any, int]] = field(default_factory=dict)
    idle: list[Any] = field(default_factory=list)
    deaths: Counter[int] = field(default_factory=Counter)

    @property
    def size(self) -> int:
        return len(self.starting) + len(self.busy) + len(self.idle)

    def grow(self, slots: int) -> None:
        """As many workers as there are places for, but no more than tasks."""
        while self.size < min(slots, len(self.waiting) + len(self.busy)):
            worker = self.actor.remote(self.token)
            self.starting[worker.ready.remote()] = worker

    def everyone(self) -> list[Any]:
        return [*self.starting.values(), *(worker for worker, _ in self.busy.values()), *self.idle]


def run_on_cluster(
    address: str | None,
    retries: int,
    function: Callable[[TaskT], ResultT],
    tasks: Sequence[TaskT],
    workers: int,
    on_gpus: bool,
    folder: Path | None,
) -> Iterator[tuple[int, ResultT]]:
    """Yield ``(index, function(task))`` in order of completion; see ``pipeline.execution.engine.run_on``."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(
            "--engine.kind ray: Ray is not installed; run make setup-ray, or pip install -r requirements-ray.txt"
        )
    if not tasks:
        return
    import ray

    _connect(ray, address, workers)
    token = _leave_token(folder)
    actor = ray.remote(num_cpus=1, num_gpus=int(on_gpus), max_restarts=0)(_Worker)
    crew = _Crew(actor, None if token is None else str(token), deque(range(len(tasks))))
    try:
        yield from _drive(ray, crew, retries, function, tasks, workers, "GPU" if on_gpus else "CPU")
    finally:
        for worker in crew.everyone():
            ray.kill(worker)
        ray.shutdown()
        if token is not None:
            token.unlink(missing_ok=True)


def _connect(ray: Any, address: str | None, workers: int) -> None:
    """Join a cluster, or start one of this machine alone.

    Raises:
        UserError: no cluster answers there.
    """
    # Ray counts its users unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    shared: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address is None:
        ray.init(num_cpus=workers or None, include_dashboard=False, **shared)
        return
    # The code travels with the job: machines need the packages of requirements.txt, not this checkout.
    packages = [str(_ROOT / name) for name in _PACKAGES]
    try:
        _knock(address)
        ray.init(address=address, runtime_env={"py_modules": packages, "env_vars": inherited()}, **shared)
    except (ConnectionError, ValueError, RuntimeError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"--engine.address {address}: no Ray cluster answers there ({reason}); start one with ray start --head"
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where nobody listens: Ray itself would try for minutes, and ends the process then."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if separator:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK).close()


def _leave_token(folder: Path | None) -> Path | None:
    """A file by which machines tell whether they see a folder; none for a URL, which all see alike."""
    if folder is None or is_remote(folder):
        return None
    folder.mkdir(parents=True, exist_ok=True)
    token = folder / f".{uuid.uuid4().hex}.part"
    token.touch()
    return token


def _drive(
    ray: Any,
    crew: _Crew,
    retries: int,
    function: Callable[[TaskT], ResultT],
    tasks: Sequence[TaskT],
    workers: int,
    resource: str,
) -> Iterator[tuple[int, ResultT]]:
    looked, alone_since, said = -_LOOK_EVERY, time.monotonic(), False
    slots = 0
    while crew.waiting or crew.busy:
        now = time.monotonic()
        if now - looked >= _LOOK_EVERY:
            # Asked again and again: machines come and go.
            slots, looked = workers or int(ray.cluster_resources().get(resource, 0)), now
        crew.grow(slots)
        while crew.idle and crew.waiting:
            worker, index = crew.idle.pop(), crew.waiting.popleft()
            crew.busy[worker.work.remote(function, tasks[index])] = (worker, index)
        if crew.busy:
            alone_since = now
        elif now - alone_since > _SAY_AFTER and not said:
            print(f"waiting for a free {resource} of the Ray cluster ...", file=sys.stderr, flush=True)
            said = True
        pending = [*crew.starting, *crew.busy]
        if not pending:
            time.sleep(_LOOK_EVERY)
            continue
        done, _ = ray.wait(pending, num_returns=1, timeout=_LOOK_EVERY)
        for reference in done:
            if reference in crew.starting:
                _greet(ray, crew, reference)
            else:
                yield from _collect(ray, crew, reference, retries)


def _greet(ray: Any, crew: _Crew, reference: Any) -> None:
    """A worker has started, or died while starting."""
    worker = crew.starting.pop(reference)
    try:
        blind = ray.get(reference)
    except ray.exceptions.RayActorError:
        return
    except ray.exceptions.RuntimeEnvSetupError as error:
        raise UserError(f"a machine of the cluster cannot be set up: {str(error).splitlines()[-1]}") from error
    if blind is not None:
        crew.idle.append(worker)
        raise UserError(
            f"{Path(crew.token or '').parent}: machine {blind} of the cluster does not see this folder; write to "
            "one that all share, or to a URL"
        )
    crew.idle.append(worker)


def _collect(ray: Any, crew: _Crew, reference: Any, retries: int) -> Iterator[tuple[int, Any]]:
    """A worker has finished its task, or died over it."""
    worker, index = crew.busy.pop(reference)
    try:
        result = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        crew.idle.append(worker)
        if isinstance(error.cause, (UserError, OSError)):
            raise error.cause from None
        raise
    except ray.exceptions.RayError as error:
        crew.deaths[index] += 1
        if crew.deaths[index] > retries:
            raise UserError(
                f"task {index}: {crew.deaths[index]} workers died over it ({_reason(error)}); run the same command "
                "again to go on"
            ) from error
        # At once: whatever is about this task should show before the others are done.
        crew.waiting.appendleft(index)
        return
    crew.idle.append(worker)
    yield index, result


def _reason(error: BaseException) -> str:
    """The first sentence of one of Ray's long texts."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
