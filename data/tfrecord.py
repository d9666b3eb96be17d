"""TFRecord files without TensorFlow: framing and CRC32C checks, local or through fsspec.

Format (tensorflow/core/lib/io/record_writer.h): uint64 length, masked CRC32C of the length, data, masked
CRC32C of the data, all little endian.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import fsspec
import google_crc32c

from data.files import atomic_write
from data.kinds import HEAD, other_kind

__all__ = ["BrokenRecord", "is_record_header", "locate_records", "read_record_at", "read_records", "write_records"]

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
# Longer than any scenario by a factor of a hundred; a broken length field must not make us allocate memory.
_MAX_RECORD_BYTES = 1 << 30


@dataclass(frozen=True)
class BrokenRecord:
    """A record that cannot be used; ``reason`` is one line."""

    index: int
    reason: str


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def is_record_header(head: bytes) -> bool:
    """Whether a file that begins so is a TFRecord: the checksum of the first length fits."""
    return len(head) >= _HEADER.size and _masked_crc(head[:8]) == _HEADER.unpack_from(head)[1]


def _read_frame(file: IO[bytes], index: int) -> tuple[bytes | BrokenRecord | None, bool]:
    """Read one frame. Returns its data (None at the end) and whether reading can go on behind it."""
    header = file.read(_HEADER.size)
    if not header and index:
        return None, False
    if not is_record_header(header):
        # Of a file that never was a TFRecord, its kind says more than a checksum.
        kind = None if index else other_kind(header + file.read(HEAD - len(header)), "a TFRecord")
        if kind is None and len(header) < _HEADER.size:
            kind = f"truncated: {len(header)} of {_HEADER.size} header bytes"
        return BrokenRecord(
            index, kind or "CRC of the record length does not match (not a TFRecord, or damaged)"
        ), False
    length, _ = _HEADER.unpack(header)
    if length > _MAX_RECORD_BYTES:
        return BrokenRecord(index, f"record of {length} bytes is longer than {_MAX_RECORD_BYTES}"), False
    data = file.read(length)
    footer = file.read(_FOOTER.size)
    if len(data) < length or len(footer) < _FOOTER.size:
        missing = length + _FOOTER.size - len(data) - len(footer)
        return BrokenRecord(index, f"truncated: the file ends {missing} bytes early"), False
    if _masked_crc(data) != _FOOTER.unpack(footer)[0]:
        return BrokenRecord(index, "CRC of the record data does not match"), True
    return data, True


def read_records(path: str | Path) -> Iterator[bytes | BrokenRecord]:
    """Yield the records of a file in order; broken ones come as ``BrokenRecord``.

    After a data CRC error reading goes on with the next record; after a broken length or a truncated end the
    rest cannot be found and the iteration stops. Raises OSError where the file cannot be opened.
    """
    return (record for _, record in locate_records(path))


def locate_records(path: str | Path) -> Iterator[tuple[int, bytes | BrokenRecord]]:
    """The same, with the place of each record in the file, for ``read_record_at``."""
    with fsspec.open(str(path), "rb") as file:
        index = 0
        while True:
            offset = file.tell()
            item, can_continue = _read_frame(file, index)
            if item is None:
                return
            yield offset, item
            if not can_continue:
                return
            index += 1


def read_record_at(path: str | Path, offset: int) -> bytes | BrokenRecord:
    """The record at a place that ``locate_records`` told. Raises OSError where the file cannot be opened."""
    with fsspec.open(str(path), "rb") as file:
        file.seek(offset)
        item, _ = _read_frame(file, 0)
    return BrokenRecord(0, "the file is shorter than it was") if item is None else item


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Write a local TFRecord file atomically."""

    def write(file: IO[bytes]) -> None:
        for data in records:
            length = struct.pack("<Q", len(data))
            file.write(length + _FOOTER.pack(_masked_crc(length)) + data + _FOOTER.pack(_masked_crc(data)))

    atomic_write(path, write)
