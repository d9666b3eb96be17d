"""Signals that end a command: the first unwinds it, so that nothing half is left, and a second one, or too long a
wait, ends it at once. Whatever is lost then is done again: outputs appear whole or not at all."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

__all__ = ["ENDING", "GRACE_SECONDS", "Interrupted", "end_workers", "interruptible", "obey_parent_alone"]

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# How long a process may take to unwind, and its workers within that time.
GRACE_SECONDS, _WORKER_SECONDS = 8.0, 3.0


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
            # A fork of this process, such as one that loads data: it has nothing to say.
            sys.exit(128 + number)
        if timers:
            _give_up(number)
        # An exception may get lost, as in a destructor, and native code may take long to return.
        timers.append(threading.Timer(GRACE_SECONDS + 2, _give_up, [number]))
        timers[0].daemon = True
        timers[0].start()
        raise Interrupted(number)

    before = {
        number: signal.signal(number, handle)
        for number in ENDING
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()


def obey_parent_alone() -> None:
    """In a child: leave Ctrl-C, which reaches the whole process group, to the parent, which then sends SIGTERM.

    So the child is interrupted once, whether one process was signalled or all of them.
    """
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM and not seen:
            seen.append(number)
            raise Interrupted(number)

    for number in ENDING:
        signal.signal(number, handle)


def end_workers() -> None:
    """End the worker processes of this process, in the middle of their tasks."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join(_WORKER_SECONDS)
    for worker in multiprocessing.active_children():
        worker.kill()
