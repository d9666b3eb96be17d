"""A submission archive: shards in a .tar.gz with reproducible bytes.

The archive is assembled from parts, one per shard. Parts can be written on any machine and in any order, and are
kept after a crash. A part is compressed tar (see ``submission.deflate``) followed by its checksum and size.
"""

from __future__ import annotations

import hashlib
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from data.errors import UserError
from data.files import atomic_write
from submission.deflate import GZIP_HEADER, Part, compressed, gzip_end
from submission.members import open_members, read_at
from submission.protos import check_submission, encode_field, holds_one_scenario, parse_rollouts, read_fields

_ROLLOUTS_FIELD = 1
_LEVEL = 6
_TRAILER = struct.Struct("<IQ")
_BLOCK = 1 << 20
# The size of the archive is estimated from this many scenarios.
_PROBES = 8


@dataclass(frozen=True)
class Entry:
    """Position of a serialized ``ScenarioRollouts`` in a file (``submission.members``), and its SHA-256."""

    scenario_id: str
    file: Path
    offset: int
    length: int
    digest: str

    @property
    def encoded_length(self) -> int:
        """Length as a field of the submission message, bytes."""
        return len(encode_field(_ROLLOUTS_FIELD, b"")) - 1 + _varint_length(self.length) + self.length

    def payload(self) -> bytes:
        """The serialized message; UserError if it changed since it was indexed."""
        payload = read_at(self.file, self.offset, self.length)
        if hashlib.sha256(payload).hexdigest() != self.digest:
            raise UserError(f"{self.file}: changed while it was read; run package again")
        return payload


@dataclass(frozen=True)
class Shard:
    """One file of the archive.

    Attributes:
        name: of the file. metadata: serialized submission without rollouts, at its start. entries: its rollouts.
    """

    name: str
    metadata: bytes
    entries: tuple[Entry, ...]

    @property
    def size(self) -> int:
        """Bytes, before compression."""
        return len(self.metadata) + sum(entry.encoded_length for entry in self.entries)

    @property
    def digest(self) -> str:
        """Digest of everything that the bytes of its part depend on."""
        lines = [self.name, hashlib.sha256(self.metadata).hexdigest(), str(_LEVEL), zlib.ZLIB_RUNTIME_VERSION]
        lines += [entry.digest for entry in self.entries]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _varint_length(value: int) -> int:
    return max(1, -(-value.bit_length() // 7))


def index_rollouts(file: Path, check: Callable[[Any, str], None]) -> Iterator[Entry]:
    """Find all rollouts in a file or in the shards of an archive, and call ``check(message, where)`` on each.

    Raises:
        UserError: a damaged file or one of another kind, or what ``check`` raises.
    """
    for member in open_members(file):
        for offset, payload in locate_rollouts(member.handle, member.where, member.size):
            message = parse_rollouts(payload, member.where)
            check(message, member.where)
            digest = hashlib.sha256(payload).hexdigest()
            yield Entry(message.scenario_id, file, member.offset + offset, len(payload), digest)


def locate_rollouts(handle: IO[bytes], where: str, size: int) -> Iterator[tuple[int, bytes]]:
    """Offset and bytes of every serialized ``ScenarioRollouts`` of a file of either kind, at its start.

    Args:
        handle: a seekable file. where: name in errors. size: of the file, bytes.

    Raises:
        UserError: damaged, or not a submission.
    """
    if holds_one_scenario(handle, where, size):
        yield 0, handle.read()
        return
    others = []
    for field in read_fields(handle, where, size):
        if field.number == _ROLLOUTS_FIELD:
            yield handle.tell() - len(field.payload), field.payload
        else:
            others.append(field)
    check_submission(others, where)


def plan_shards(entries: Sequence[Entry], metadata: bytes, shard_bytes: int) -> list[Shard]:
    """Divide entries, in order, into shards of at most ``shard_bytes`` (one entry at least)."""
    groups: list[list[Entry]] = []
    used = shard_bytes
    for entry in entries:
        if not groups or used + entry.encoded_length > shard_bytes:
            groups.append([])
            used = len(metadata)
        groups[-1].append(entry)
        used += entry.encoded_length
    return [
        Shard(shard_file_name(index, len(groups)), metadata, tuple(group)) for index, group in enumerate(groups)
    ]


def shard_file_name(index: int, count: int) -> str:
    return f"submission.binproto-{index:05d}-of-{count:05d}"


def compression_ratio(entries: Sequence[Entry]) -> float:
    """Compressed over uncompressed size of a few rollouts: a tenth for straight lines, two thirds for a policy."""
    step = max(1, len(entries) // _PROBES)
    payloads = [entry.payload() for entry in entries[::step][:_PROBES]]
    return sum(len(zlib.compress(payload, _LEVEL)) for payload in payloads) / max(1, sum(map(len, payloads)))


def _tar_pieces(shard: Shard) -> Iterator[bytes]:
    member = tarfile.TarInfo(shard.name)
    member.size, member.mode = shard.size, 0o644
    yield member.tobuf(tarfile.USTAR_FORMAT)
    yield shard.metadata
    for entry in shard.entries:
        yield encode_field(_ROLLOUTS_FIELD, entry.payload())
    yield bytes(-shard.size % tarfile.BLOCKSIZE)


def write_part(shard: Shard, target: Path) -> None:
    """Write the part of a shard atomically, with one scenario in memory at a time.

    Raises:
        UserError: rollouts that changed since they were indexed.
    """

    def write(file: IO[bytes]) -> None:
        for piece in compressed(_tar_pieces(shard), _LEVEL):
            file.write(_TRAILER.pack(piece.crc, piece.size) if isinstance(piece, Part) else piece)

    atomic_write(target, write)


def _copied(part: Path, digest: Any, out: IO[bytes]) -> Part:
    left = part.stat().st_size - _TRAILER.size
    with part.open("rb") as file:
        while left > 0:
            data = file.read(min(left, _BLOCK))
            if not data:
                break
            out.write(data)
            digest.update(data)
            left -= len(data)
        trailer = file.read()
    if left or len(trailer) != _TRAILER.size:
        raise UserError(f"{part}: changed while it was read; run package again")
    crc, size = _TRAILER.unpack(trailer)
    return Part(crc, size)


def assemble(out: Path, parts: Sequence[Path], advance: Callable[[int], object]) -> str:
    """Assemble the archive from parts atomically; the parts are kept.

    Args:
        out: the .tar.gz. parts: in order. advance: called with 1 after each part.

    Returns:
        SHA-256 of the archive.
    """
    digest = hashlib.sha256()

    def write(file: IO[bytes]) -> None:
        def put(data: bytes) -> None:
            file.write(data)
            digest.update(data)

        put(GZIP_HEADER)
        held = []
        for part in parts:
            held.append(_copied(part, digest, file))
            advance(1)
        # A tar ends with two empty blocks, and more of them fill its last record.
        filled = sum(part.size for part in held) + 2 * tarfile.BLOCKSIZE
        end = bytes(2 * tarfile.BLOCKSIZE + -filled % tarfile.RECORDSIZE)
        for piece in compressed([end], _LEVEL):
            if isinstance(piece, Part):
                held.append(piece)
            else:
                put(piece)
        put(gzip_end(held))

    atomic_write(out, write)
    return digest.hexdigest()
