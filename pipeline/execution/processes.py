"""Processes of this machine: how they end, how one runs isolated from the rest, how they keep out of one another's
folders, and how they ask for memory.

The first signal unwinds a command, so that no partial output is left. A second one, or too long a wait, ends it at
once. Lost work is done again: outputs appear whole or not at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import multiprocessing
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any, NoReturn

from data.errors import OUT_OF_MEMORY, UserError, is_out_of_memory
from pipeline.execution.console import say

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How long a process may take to unwind, and its workers within that time.
_GRACE_SECONDS, _WORKER_SECONDS = 8.0, 3.0
_PR_SET_PDEATHSIG = 1
# Of malloc.h (glibc).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGE = 2**31 - 1
_WITHOUT_LOCKS = (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _give_up(number: int) -> NoReturn:
    """End now. The kernel ends the children with their parent (``die_with_parent``)."""
    os.write(2, b"\ninterrupted: run the same command again to go on\n")
    os._exit(128 + number)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Interrupted`` at the first SIGINT, SIGTERM or SIGHUP; end the process at the second one.

    SIGHUP stays ignored where it was, as under nohup. SIGINT does not: shells ignore it for everything that a
    script starts in the background, where ``kill -INT`` must work all the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timers: list[threading.Timer] = []
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            # A fork of this process, such as one that loads data, ends silently.
            sys.exit(128 + number)
        if timers:
            _give_up(number)
        # An exception gets lost in a destructor, and native code may take long to return.
        timers.append(threading.Timer(_GRACE_SECONDS + 2, _give_up, [number]))
        timers[0].daemon = True
        timers[0].start()
        raise Interrupted(number)

    before = {
        number: signal.signal(number, handle)
        for number in _ENDING
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()


def _obey_parent_alone() -> None:
    """In a child: ignore Ctrl-C, which reaches the whole process group, and wait for the parent's SIGTERM.

    So the child is interrupted once, whether one process was signalled or all of them.
    """
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and not seen:
            seen.append(number)
            raise Interrupted(number)

    for number in _ENDING:
        signal.signal(number, handle)


def end_workers() -> None:
    """End the worker processes of this process, even in the middle of their tasks."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(_WORKER_SECONDS)
    for worker in multiprocessing.active_children():
        worker.kill()


class ProcessDied(UserError):
    """A child ended without a message; ``exit_code`` is the negative number of the signal that ended it."""

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
        # The parent may have died while this process was starting.
        if os.getppid() != parent:
            os._exit(1)


def _child(function: Callable[[], Any], write_end: int, parent: int) -> NoReturn:
    """Run ``function`` and send ("ok", value), ("error", message) or ("crash", traceback); never returns."""
    status = 1
    try:
        try:
            _obey_parent_alone()
            die_with_parent(parent)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
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
    """Interrupt a child and wait until it is gone; kill it if that takes too long."""
    try:
        os.kill(child, signal.SIGTERM)
        deadline = time.monotonic() + _GRACE_SECONDS
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
    # Until the child has its own handlers: those of the parent must not run in it.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
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


@contextlib.contextmanager
def locked(folder: Path, what: str, name: str = ".lock") -> Iterator[None]:
    """Keep other processes out of a folder.

    Args:
        folder: made where it is not there, with those above it; taken away again where nothing came into them.
        what: this process does there, for the message that others get. name: of the lock's file.

    Raises:
        UserError: another process works there; says which.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    file = _taken(path, folder)
    try:
        file.truncate(0)
        file.write(f"{what}, process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
    finally:
        # While the lock is held: a waiting process finds another file, or none, and tries again.
        path.unlink(missing_ok=True)
        file.close()
        with contextlib.suppress(OSError):
            for one in made:
                one.rmdir()


def _taken(path: Path, folder: Path) -> IO[str]:
    """Open and lock the file."""
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "starting"
            file.close()
            raise UserError(
                f"{folder}: another process is working here ({holder}); wait for it or stop it, or choose another "
                "folder"
            ) from error
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
            say(f"{folder}: its file system knows no locks: do not start a second command there meanwhile")
            return file
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()


def keep_freed_memory() -> None:
    """Have the C library keep freed memory instead of returning it to the system (glibc; elsewhere no effect).

    Tensors of many megabytes come and go at every operation. Mapped anew each time, their pages are cleared by the
    kernel each time: a quarter of a training step on a CPU, and more of a rollout.
    """
    if sys.platform != "linux":
        return
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_MAX, 0)
        library.mallopt(_M_TRIM_THRESHOLD, _LARGE)
        library.mallopt(_M_TOP_PAD, 64 * 2**20)
