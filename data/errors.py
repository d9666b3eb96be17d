"""The one exception that a user is meant to read."""

from __future__ import annotations

__all__ = ["OUT_OF_MEMORY", "IncompleteError", "UserError", "is_out_of_memory"]

OUT_OF_MEMORY = "not enough memory: run the same command again to go on, with fewer workers or smaller batches"


class UserError(Exception):
    """Something the user can mend: a path, an option, a broken file, a full disk.

    The message is one line that says where (file, record, field), what was expected and what to do.
    The command line prints it after ``error:`` on stderr and exits with ``exit_status``, without a traceback.
    """

    exit_status = 1


class IncompleteError(UserError):
    """What could be done is done and written; the message says what is missing from it."""

    exit_status = 3


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory could not be had, from Python, torch on a CPU, or CUDA."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and ("can't allocate memory" in text or "out of memory" in text)
    )
