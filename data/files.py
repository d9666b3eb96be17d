"""Atomic writing and checksums of files. Paths may be URLs (``data.places``).

Hashing hundreds of gigabytes again takes hours. So checksums of big files are cached in the user's cache folder
(``$XDG_CACHE_HOME/spacer/checksums``, by default under ``~/.cache``) by path, size, inode, mtime and ctime. The
cache may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

from data.places import is_remote, open_path, publish

ItemT = TypeVar("ItemT")

_BLOCK = 1 << 20
# What a system says of a file that it has no room for, without the file's name.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Smaller files are read each time, which takes a few milliseconds.
_BIG = 16_000_000
_THREADS = 8


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary local path; on success it is fsynced and renamed to ``path``, or uploaded to it.

    On any error, Ctrl-C included, the temporary file is removed and ``path`` is left as it was. If there is no room
    for the file, the error gets its name.
    """
    path = open_path(path)
    remote = is_remote(path)
    folder = Path(tempfile.gettempdir()) if remote else path.parent
    folder.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=folder)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        if remote:
            publish(temporary, path)
            temporary.unlink()
            return
        # mkstemp makes files private; give them the mode an ordinary open() would have.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
        _sync_folder(path.parent)
        # Some network file systems lose a rename; an error now is better than a missing file later.
        if not path.exists():
            lost = "lost by its file system after it was written; run the same command again"
            raise FileNotFoundError(errno.ENOENT, lost, str(path))
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:
            error.filename = str(path)
        raise


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Delete temporary files that killed processes left in a folder and its receipts; no process may be writing.

    Args:
        folder: of the files. name: prefix of their names; any by default.
    """
    for pattern in (f".{name}*.part", f".receipts/.{name}*.part"):
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def atomic_write(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Call ``write`` with a binary file and move the result to ``path`` atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        write(file)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    atomic_write(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON atomically; keys keep their order, NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read JSON. Callers handle OSError and ValueError, and name the file in their message."""
    return json.loads(open_path(path).read_text())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes as hexadecimal digits, read in blocks."""
    digest = hashlib.sha256()
    with open_path(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _cached_at(path: Path, status: os.stat_result) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    key = f"{path}\n{status.st_size}\n{status.st_mtime_ns}\n{status.st_ctime_ns}\n{status.st_ino}"
    return root / "spacer" / "checksums" / hashlib.sha256(key.encode()).hexdigest()[:32]


def checksum(path: Path) -> str:
    """SHA-256 of a file as hexadecimal digits; that of a big local file comes from the cache where it is known.

    A change of a big file that keeps its size, inode and both times is not noticed.
    """
    if is_remote(path):
        return sha256_of(path)
    path = path.resolve()
    status = path.stat()
    if status.st_size < _BIG:
        return sha256_of(path)
    cached = _cached_at(path, status)
    with contextlib.suppress(OSError, ValueError):
        known = cached.read_text()
        if len(known) == 64 and int(known, 16) >= 0:
            return known
    digest = sha256_of(path)
    if _cached_at(path, path.stat()) == cached:
        # Without a writable home folder the file is hashed again next time.
        with contextlib.suppress(OSError):
            write_text(cached, digest)
    return digest


def at_once(function: Callable[[ItemT], str], items: Iterable[ItemT]) -> list[str]:
    """Apply ``function`` to all items in threads: reading and hashing release the GIL."""
    with ThreadPoolExecutor(_THREADS) as threads:
        return list(threads.map(function, items))
