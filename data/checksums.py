"""What files hold, told by their content: a file that is touched, copied or moved is the file that it was.

Reading hundreds of gigabytes again only to find them unchanged would take hours, so checksums of big files are kept
in the user's cache (``$XDG_CACHE_HOME/spacer/checksums``, ``~/.cache`` by default) by path, size, inode, and the
times of the last change of content and of the last change of anything. Losing them costs time alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from data.files import sha256_of, write_text
from data.places import is_remote, place

if TYPE_CHECKING:
    # Training reads neither records nor protos, which not every machine has.
    from data.sources import Shard

__all__ = ["at_once", "checksum", "shard_content"]

ItemT = TypeVar("ItemT")
# Smaller files are read each time, which takes a few milliseconds.
_BIG = 16_000_000
_THREADS = 8


def _kept_at(path: Path, status: os.stat_result) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = f"{path}\n{status.st_size}\n{status.st_mtime_ns}\n{status.st_ctime_ns}\n{status.st_ino}"
    return root / "spacer" / "checksums" / hashlib.sha256(key.encode()).hexdigest()[:32]


def checksum(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits; that of a big file is computed once.

    A big file whose content changes while its size, inode and both times stay the same goes unnoticed, which no
    program brings about without meaning to.
    """
    if is_remote(path):
        return sha256_of(path)
    path = path.resolve()
    status = path.stat()
    if status.st_size < _BIG:
        return sha256_of(path)
    kept = _kept_at(path, status)
    with contextlib.suppress(OSError, ValueError):
        known = kept.read_text()
        if len(known) == 64 and int(known, 16) >= 0:
            return known
    digest = sha256_of(path)
    if _kept_at(path, path.stat()) == kept:
        # A home that cannot be written costs time, nothing else.
        with contextlib.suppress(OSError):
            write_text(kept, digest)
    return digest


def at_once(function: Callable[[ItemT], str], items: Iterable[ItemT]) -> list[str]:
    """``function`` of every item, several at a time: reading and hashing of files leave Python alone."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(function, items))


def shard_content(shard: Shard) -> str:
    """Name, size and content of a TFRecord file; of a URL, name, size, and what its storage says of the version."""
    path = place(shard.url)
    return shard.fingerprint if is_remote(path) else f"{shard.fingerprint}:{checksum(path)}"
