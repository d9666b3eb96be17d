"""Warnings on stderr: each said once, and by the process that a user started, not by all its workers."""

from __future__ import annotations

import multiprocessing
import sys
from functools import cache

__all__ = ["warn_once"]


@cache
def warn_once(text: str) -> None:
    """Print ``warning: text``, unless this process said it before, or is a worker of one that does."""
    if multiprocessing.parent_process() is None:
        print(f"warning: {text}", file=sys.stderr, flush=True)
