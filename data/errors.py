"""The one exception that a user is meant to read."""

from __future__ import annotations

__all__ = ["UserError"]


class UserError(Exception):
    """Something the user can mend: a path, an option, a broken file, a full disk.

    The message is one line that says where (file, record, field), what was expected and what to do.
    The command line prints it after ``error:`` on stderr and exits with status 1, without a traceback.
    """
