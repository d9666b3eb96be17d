"""Errors and warnings that are written for the user."""

from __future__ import annotations

import multiprocessing
import sys
from functools import cache

__all__ = ["OUT_OF_MEMORY", "IncompleteError", "UserError", "is_out_of_memory", "warn_once"]

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
