"""How this process asks the system for memory."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# Of malloc.h (glibc).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGE = 2**31 - 1


def keep_freed_memory() -> None:
    """Have the C library keep what is freed instead of giving it back (glibc; elsewhere no effect).

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
