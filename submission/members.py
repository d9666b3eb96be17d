"""Files of rollouts: plain messages, or shards in a tar, which may be gzipped.

Archives are read without unpacking them to the disk. indexed_gzip gives random access to a gzipped one.
"""

from __future__ import annotations

import contextlib
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, cast

from data.errors import UserError
from data.places import is_remote
from data.tfrecord import HEAD, is_record_header, other_kind

# The server requires smaller shards. The limit also protects against a small gzip of a gigabyte of zeros.
MAX_SHARD_BYTES = 500_000_000
_EXPECTED = "rollouts (*.binproto)"
_GZIP_MAGIC = b"\x1f\x8b"
_ROLLOUTS = ".binproto"


@dataclass(frozen=True)
class Member:
    """A file, or a shard in an archive, that holds messages.

    Attributes:
        handle: seekable, at its start. where: name in errors. offset: for ``read_at``. size: bytes.
    """

    handle: IO[bytes]
    where: str
    offset: int
    size: int


def file_version(file: Path) -> str:
    """Size and time of a file, to notice that it was written again without reading it."""
    status = file.stat()
    return f"{status.st_size}:{getattr(status, 'st_mtime_ns', None) or status.st_mtime}"


class _Unzipped:
    """The decompressed bytes of a gzipped file; thread-safe."""

    def __init__(self, file: Path) -> None:
        # Imported here, since only readers of archives need it.
        import indexed_gzip

        self._path, self._lock = file, threading.Lock()
        self._errors = (indexed_gzip.ZranError, EOFError, OSError)
        self._file = indexed_gzip.IndexedGzipFile(file.open("rb") if is_remote(file) else str(file))

    def read(self, offset: int, size: int) -> bytes:
        try:
            with self._lock:
                self._file.seek(offset)
                return cast(bytes, self._file.read(size))
        except self._errors as error:
            raise UserError(f"{self._path}: damaged archive ({' '.join(str(error).split())})") from error


@lru_cache(maxsize=4)
def _unzipped(file: Path, version: str) -> _Unzipped:
    return _Unzipped(file)


class _Plain:
    """An ordinary file."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle

    def read(self, offset: int, size: int) -> bytes:
        self._handle.seek(offset)
        return self._handle.read(size)


class _Part:
    """Bytes from ``start`` on as a file, of ``size`` bytes, or up to the end."""

    def __init__(self, source: _Unzipped | _Plain, start: int = 0, size: int | None = None) -> None:
        self._source, self._start, self._size, self._at = source, start, size, 0

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 2:
            raise OSError("cannot seek from the end, which is unknown")
        self._at = offset + (self._at if whence else 0)
        return self._at

    def read(self, size: int = -1) -> bytes:
        if self._size is not None:
            left = max(0, self._size - self._at)
            size = left if size < 0 else min(size, left)
        data = self._source.read(self._start + self._at, size)
        self._at += len(data)
        return data


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[tuple[_Unzipped | _Plain, bool]]:
    """Content of a file, and whether it is gzipped."""
    with file.open("rb") as handle:
        packed = handle.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        yield (_unzipped(file, file_version(file)) if packed else _Plain(handle)), packed


def _is_tar(head: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        # A tar without members consists of its end.
        return type(error).__name__ == "EOFHeaderError"
    return True


def open_members(file: Path) -> Iterator[Member]:
    """The file itself, or the shards in it if it is a .tar.gz or .tar.

    Raises:
        UserError: another kind of file, a damaged archive, or one without shards.
    """
    with _opened(file) as (source, packed):
        head = source.read(0, HEAD)
        if len(head) == HEAD and _is_tar(head):
            yield from _shards(file, source)
            return
        other = other_kind(_GZIP_MAGIC if packed else head, _EXPECTED)
        if not packed and is_record_header(head):
            other = f"a TFRecord file, not {_EXPECTED}: give scenarios as --scenarios"
        if other is not None and not other.startswith("rollouts"):
            raise UserError(f"{file}: {other}")
        yield Member(cast(IO[bytes], _Part(source)), str(file), 0, file.stat().st_size)


def _shards(file: Path, source: _Unzipped | _Plain) -> Iterator[Member]:
    empty = True
    for member in _headers(file, source):
        name = member.name.rpartition("/")[2]
        # Regular files only: no links, no devices.
        if not member.isreg() or _ROLLOUTS not in name or name.startswith("."):
            continue
        empty, where = False, f"{file}: {member.name}"
        if member.size >= MAX_SHARD_BYTES:
            raise UserError(
                f"{where}: {member.size / 1e6:.0f} MB, expected less than {MAX_SHARD_BYTES / 1e6:.0f}; "
                "it and the rest were not read"
            )
        part = cast(IO[bytes], _Part(source, member.offset_data, member.size))
        yield Member(part, where, member.offset_data, member.size)
    if empty:
        raise UserError(
            f"{file}: the archive holds no rollouts; expected names such as submission.binproto-00000-of-00150"
        )


def _headers(file: Path, source: _Unzipped | _Plain) -> Iterator[tarfile.TarInfo]:
    try:
        with tarfile.open(fileobj=cast(IO[bytes], _Part(source)), mode="r:") as tar:
            yield from tar
    # Invalid numbers in a header raise ValueError.
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UserError(f"{file}: damaged archive ({' '.join(str(error).split())})") from error


def read_at(file: Path, offset: int, size: int) -> bytes:
    """Bytes of a member; fewer if the file has become shorter.

    Args:
        file: of ``open_members``. offset: in the file, see ``Member``. size: number of bytes.

    Raises:
        UserError: a damaged archive.
    """
    with _opened(file) as (source, _):
        return source.read(offset, size)
