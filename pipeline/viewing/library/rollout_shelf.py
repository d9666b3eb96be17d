"""Where rollouts lie, in files of messages or inside a submission archive, and reading one of them.

An archive is read through once, and remembered at points from which decompression can go on (indexed_gzip); it is
never unpacked to the disk.
"""

from __future__ import annotations

import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import indexed_gzip

from data.errors import UserError
from data.places import is_remote, place
from submission.archive import locate_rollouts
from submission.protos import Rollouts, from_proto, parse_rollouts, rollout_files
from submission.validate import MAX_SHARD_BYTES

__all__ = ["ArchiveShelf", "FileShelf", "RolloutShelf", "open_rollout_shelf"]

_GZIP_MAGIC = b"\x1f\x8b"
# Whatever gzip and tar find wrong with a file.
_DAMAGED = (tarfile.TarError, indexed_gzip.ZranError, EOFError, OSError)


@dataclass(frozen=True)
class _Place:
    file: Path
    offset: int
    length: int


class FileShelf:
    """Files of ``sample``, or anybody's. ``name`` is what the viewer calls them."""

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self._files = rollout_files(path)

    def find(self) -> Iterator[tuple[str, Any]]:
        """Scenario ids and keys, one by one.

        Raises:
            UserError: a damaged file; what was found before it can be read.
        """
        for file in self._files:
            with file.open("rb") as handle:
                for offset, payload in locate_rollouts(handle, str(file), file.stat().st_size):
                    message = parse_rollouts(payload, str(file))
                    yield message.scenario_id, _Place(file, offset, len(payload))

    def read(self, key: Any) -> Rollouts:
        """The rollouts of a key.

        Raises:
            UserError: damaged or gone, or not all joint scenes have the same objects.
        """
        spot = cast(_Place, key)
        try:
            with spot.file.open("rb") as handle:
                handle.seek(spot.offset)
                payload = handle.read(spot.length)
        except OSError as error:
            raise UserError(f"{spot.file}: {error.strerror or error}") from error
        return from_proto(parse_rollouts(payload, str(spot.file)), str(spot.file))


class _Cursor:
    """A place of its own in a file that several threads read."""

    def __init__(self, file: Any, lock: threading.Lock) -> None:
        self._file, self._lock, self._at = file, lock, 0

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 2:
            raise OSError("the end is not known before it is reached")
        self._at = offset + (self._at if whence else 0)
        return self._at

    def read(self, size: int) -> bytes:
        with self._lock:
            self._file.seek(self._at)
            data: bytes = self._file.read(size)
        self._at += len(data)
        return data


class ArchiveShelf:
    """A submission archive, .tar.gz."""

    def __init__(self, name: str, path: Path) -> None:
        self.name, self._path = name, path
        self._lock = threading.Lock()
        self._file: Any = indexed_gzip.IndexedGzipFile(str(path))

    def find(self) -> Iterator[tuple[str, Any]]:
        """Scenario ids and keys, one by one.

        Raises:
            UserError: a damaged archive; what was found before can be read.
        """
        try:
            with tarfile.open(fileobj=cast(IO[bytes], _Cursor(self._file, self._lock)), mode="r:") as tar:
                for member in tar:
                    # Only what is in the file itself: no links, no devices.
                    stream = tar.extractfile(member) if member.isfile() else None
                    if stream is None:
                        continue
                    where = f"{self._path}: {member.name}"
                    # A megabyte of gzip may be a gigabyte of zeros, of which a message could be one field.
                    if member.size >= MAX_SHARD_BYTES:
                        raise UserError(
                            f"{where}: {member.size / 1e6:.0f} MB, expected less than {MAX_SHARD_BYTES / 1e6:.0f}; "
                            "neither it nor what follows was read"
                        )
                    for offset, payload in locate_rollouts(stream, where, member.size):
                        message = parse_rollouts(payload, where)
                        yield message.scenario_id, (member.offset_data + offset, len(payload))
        except _DAMAGED as error:
            raise UserError(f"{self._path}: damaged archive ({' '.join(str(error).split())})") from error

    def read(self, key: Any) -> Rollouts:
        """The rollouts of a key.

        Raises:
            UserError: damaged.
        """
        offset, length = key
        cursor = _Cursor(self._file, self._lock)
        try:
            cursor.seek(offset)
            payload = cursor.read(length)
        except _DAMAGED as error:
            raise UserError(f"{self._path}: damaged archive ({' '.join(str(error).split())})") from error
        return from_proto(parse_rollouts(payload, str(self._path)), str(self._path))


RolloutShelf = FileShelf | ArchiveShelf


def open_rollout_shelf(name: str, path: str) -> RolloutShelf:
    """Rollouts at a path or URL: a file, folder or glob of messages, or a .tar.gz archive.

    Raises:
        UserError: nothing there, or a compressed archive that is not on this machine's disk.
    """
    file = place(path)
    if file.is_file():
        with file.open("rb") as handle:
            packed = handle.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
        if packed:
            if is_remote(file):
                raise UserError(f"{path}: archives are viewed from this machine's disk; copy it here first")
            return ArchiveShelf(name, file)
    return FileShelf(name, path)
