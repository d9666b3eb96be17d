"""Errors and warnings that are written for the user."""

from __future__ import annotations

import difflib
import multiprocessing
import sys
from collections.abc import Iterable
from functools import cache

OUT_OF_MEMORY = "not enough memory: run the same command again to go on, with fewer workers or smaller batches"


class UserError(Exception):
    """A problem that the user can fix: a path, an option, a damaged file, a full disk.

    The message is one line that says where (file, record, field), what was expected and what to do.
    The command line prints it after ``error:`` on stderr and exits with ``exit_status``, without a traceback.
    """

    exit_status = 1


class IncompleteError(UserError):
    """The output was written but is incomplete; the message says what is missing."""

    exit_status = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean NAME?`` with the known name that is nearest; empty if none is near."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def expected(name: str, known: Iterable[str], number: str = "one") -> str:
    """``expected one of NAME, NAME; did you mean NAME?``"""
    return f"expected {number} of {', '.join(known)}{did_you_mean(name, known)}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of Python, torch or CUDA means that memory ran out."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )


@cache
def warn_once(text: str) -> None:
    """Print ``warning: text`` on stderr once per process. Worker processes print nothing: their parent does."""
    if multiprocessing.parent_process() is None:
        print(f"warning: {text}", file=sys.stderr, flush=True)
