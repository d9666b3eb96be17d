"""Writing a submission archive: complete shards in a .tar.gz whose bytes depend on their content alone."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data.errors import UserError
from data.files import atomic_write
from submission.protos import encode_field, holds_one_scenario, parse_rollouts, read_fields, rollout_files

__all__ = ["Entry", "index_rollouts", "plan_shards", "shard_file_name", "write_archive"]

_ROLLOUTS_FIELD = 1
# What gzip leaves of rollouts depends on the agent: a tenth of straight lines, two thirds of a policy's motion.
_COMPRESSION = 0.7


@dataclass(frozen=True)
class Entry:
    """Where the serialized ``ScenarioRollouts`` of a scenario lies."""

    scenario_id: str
    file: Path
    offset: int
    length: int

    @property
    def encoded_length(self) -> int:
        """Bytes as a field of the submission message."""
        return len(encode_field(_ROLLOUTS_FIELD, b"")) - 1 + _varint_length(self.length) + self.length


def _varint_length(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def index_rollouts(path: Path, check: Callable[[Any, str], None]) -> Iterator[Entry]:
    """Find all rollouts of a file or folder, calling ``check(message, where)`` on each.

    Raises:
        UserError: damaged files, or what ``check`` raises.
    """
    for file in rollout_files(path):
        size = file.stat().st_size
        with file.open("rb") as handle:
            for offset, payload in _located(handle, str(file), size):
                message = parse_rollouts(payload, str(file))
                check(message, str(file))
                yield Entry(message.scenario_id, file, offset, len(payload))


def _located(handle: IO[bytes], where: str, size: int) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every serialized ``ScenarioRollouts`` of a file of either kind."""
    if holds_one_scenario(handle, where, size):
        yield 0, handle.read()
        return
    for field in read_fields(handle, where, size):
        if field.number == _ROLLOUTS_FIELD:
            yield handle.tell() - len(field.payload), field.payload


def plan_shards(entries: Sequence[Entry], metadata: bytes, shard_bytes: int) -> list[list[Entry]]:
    """Divide entries, in order, into shards of at most ``shard_bytes`` (one entry at least)."""
    shards: list[list[Entry]] = []
    used = shard_bytes
    for entry in entries:
        if not shards or used + entry.encoded_length > shard_bytes:
            shards.append([])
            used = len(metadata)
        shards[-1].append(entry)
        used += entry.encoded_length
    return shards


def shard_file_name(index: int, count: int) -> str:
    return f"submission.binproto-{index:05d}-of-{count:05d}"


class _Stream(io.RawIOBase):
    """A readable file made of pieces that are fetched when they are wanted."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._rest = pieces, b""

    def read(self, size: int = -1) -> bytes:
        parts: list[bytes] = []
        wanted = size if size >= 0 else 1 << 62
        while wanted > 0:
            while not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    return b"".join(parts)
                self._rest = piece
            part, self._rest = self._rest[:wanted], self._rest[wanted:]
            parts.append(part)
            wanted -= len(part)
        return b"".join(parts)


def _pieces(entries: Sequence[Entry], metadata: bytes, advance: Callable[[int], object]) -> Iterator[bytes]:
    yield metadata
    for entry in entries:
        with entry.file.open("rb") as file:
            file.seek(entry.offset)
            payload = file.read(entry.length)
        if len(payload) < entry.length:
            raise UserError(f"{entry.file}: changed while it was read; run package again")
        yield encode_field(_ROLLOUTS_FIELD, payload)
        advance(1)


def write_archive(
    out: Path, shards: Sequence[Sequence[Entry]], metadata: bytes, advance: Callable[[int], object]
) -> int:
    """Write the archive atomically, holding one scenario in memory.

    Args:
        out: the .tar.gz. shards: entries of each file in it.
        metadata: serialized submission without rollouts; every shard starts with it.
        advance: called with the number of scenarios written.

    Returns:
        Bytes of the shards before compression.

    Raises:
        UserError: too little free space.
    """
    sizes = [len(metadata) + sum(entry.encoded_length for entry in shard) for shard in shards]
    out.parent.mkdir(parents=True, exist_ok=True)
    expected, free = round(sum(sizes) * _COMPRESSION), shutil.disk_usage(out.parent).free
    if expected > free:
        raise UserError(f"{out}: needs about {expected / 1e9:.2f} GB, {free / 1e9:.2f} GB are free")

    def write(file: Any) -> None:
        with (
            gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0, compresslevel=6) as packed,
            tarfile.open(fileobj=packed, mode="w|", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for index, (shard, size) in enumerate(zip(shards, sizes, strict=True)):
                member = tarfile.TarInfo(shard_file_name(index, len(shards)))
                member.size, member.mode = size, 0o644
                tar.addfile(member, _Stream(_pieces(shard, metadata, advance)))

    atomic_write(out, write)
    return sum(sizes)
