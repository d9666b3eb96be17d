"""Writing files so that a reader never sees half of one, and hashing them. Paths may be URLs (``data.places``)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from data.places import is_remote, place, publish

__all__ = ["atomic_path", "atomic_write", "read_json", "remove_leftovers", "sha256_of", "write_json", "write_text"]

_BLOCK = 1 << 20


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary local path; on success it is fsynced and renamed to ``path``, or uploaded to it.

    For writers that want a file name of their own. On any error, Ctrl-C included, the temporary file is
    removed and ``path`` is left as it was.
    """
    path = place(path)
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
        # Network file systems have been seen to lose a rename. Better to know now than when the file is missed.
        if not path.exists():
            lost = "lost by its file system after it was written; run the same command again"
            raise FileNotFoundError(errno.ENOENT, lost, str(path))
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Delete what killed processes had been writing in a folder, and of its receipts; nobody may be writing now.

    Args:
        folder: where. name: with which the names of the files began; any by default.
    """
    for pattern in (f".{name}*.part", f".receipts/.{name}*.part"):
        for leftover in folder.glob(pattern):
            leftover.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename in it survives a power cut."""
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
    """Read JSON; errors of the file system and of the syntax are the caller's to name."""
    return json.loads(place(path).read_text())


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes as hexadecimal digits, read in blocks."""
    digest = hashlib.sha256()
    with place(path).open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
