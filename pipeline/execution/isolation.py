"""Run a function in a child process of its own, so that memory, threads and random states of one stage never
reach the next, and a crash of native code ends as an error message."""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from data.errors import OUT_OF_MEMORY, UserError, is_out_of_memory
from pipeline.execution.interruption import ENDING, GRACE_SECONDS, end_workers, obey_parent_alone

__all__ = ["Outcome", "ProcessDied", "die_with_parent", "measured", "run_isolated"]

_PR_SET_PDEATHSIG = 1


class ProcessDied(UserError):
    """A child ended without a word; ``exit_code`` is negative where a signal of that number ended it."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Outcome:
    """What a child returned, its wall time, and the peak memory of the largest process it was or started."""

    value: Any
    seconds: float
    peak_memory_mb: float


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, even by ``kill -9`` (Linux; elsewhere no effect).

    Orphans would go on writing into folders that the next run is using.

    Args:
        parent: its process id; if it is dead already, this process ends at once.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # It may have died while this process was starting, before there was anybody to ask.
        if os.getppid() != parent:
            os._exit(1)


def _child(function: Callable[[], Any], write_end: int, parent: int) -> NoReturn:
    """Run ``function`` and send ("ok", value), ("error", message) or ("crash", traceback); never returns."""
    status = 1
    try:
        try:
            obey_parent_alone()
            die_with_parent(parent)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
            message = ("ok", function())
            status = 0
        except KeyboardInterrupt:
            end_workers()
            message = ("interrupt", None)
        except UserError as error:
            message = ("error", str(error))
        except OSError as error:
            message = ("oserror", (error.errno, error.strerror, error.filename))
        except BaseException as error:  # the parent reports it, whatever it is
            short = is_out_of_memory(error)
            message = ("error", OUT_OF_MEMORY) if short else ("crash", traceback.format_exc())
        peak_kb = max(
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
            resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss,
        )
        with os.fdopen(write_end, "wb") as pipe:
            pipe.write(pickle.dumps((*message, peak_kb / 1024)))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        # Skips the parent's exit handlers, which a fork inherits.
        os._exit(status)


def _end(child: int) -> None:
    """Interrupt a child and wait until it is gone; kill it where that takes too long."""
    try:
        os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_SECONDS
        while not os.waitpid(child, os.WNOHANG)[0]:
            if time.monotonic() > deadline:
                os.kill(child, signal.SIGKILL)
            time.sleep(0.02)
    except ChildProcessError:
        return  # It was gone already.
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise


def run_isolated(function: Callable[[], Any]) -> Outcome:
    """Fork, run ``function`` there and return its (picklable) value.

    Raises:
        UserError, OSError: raised by the function. ProcessDied: the child died by a signal.
        KeyboardInterrupt: this process or the child was interrupted; the child is gone then.
        RuntimeError: another exception in the child, with its traceback.
    """
    started = time.perf_counter()
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    # Until the child has handlers of its own: it must not unwind what it has of its parent.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        os.close(read_end)
        _child(function, write_end, parent)
    try:
        os.close(write_end)
        with os.fdopen(read_end, "rb") as pipe:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            data = pipe.read()
        _, status = os.waitpid(child, 0)
    except BaseException:
        _end(child)
        raise
    if not data:
        number = os.waitstatus_to_exitcode(status)
        if number == -signal.SIGINT:
            raise KeyboardInterrupt
        reason = signal.Signals(-number).name if number < 0 else f"status {number}"
        hint = "; SIGKILL often means too little memory" if number == -signal.SIGKILL else ""
        raise ProcessDied(
            f"the stage's process ended with {reason}{hint}; run the same command again to go on", number
        )
    kind, value, peak = pickle.loads(data)
    if kind == "interrupt":
        raise KeyboardInterrupt
    if kind == "error":
        raise UserError(value)
    if kind == "oserror":
        raise OSError(*value)
    if kind == "crash":
        raise RuntimeError(value)
    return Outcome(value, time.perf_counter() - started, peak)


def measured(function: Callable[[], Mapping[str, Any]]) -> Outcome:
    """Call a function in this process."""
    started = time.perf_counter()
    value = function()
    return Outcome(value, time.perf_counter() - started, 0.0)
