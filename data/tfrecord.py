"""TFRecord files without TensorFlow: framing and CRC32C checks, local or through fsspec, and other kinds of files.

Format (tensorflow/core/lib/io/record_writer.h): uint64 length, masked CRC32C of the length, data, masked
CRC32C of the data, all little endian.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import fsspec
import google_crc32c

from data.files import atomic_write

_HEADER = struct.Struct("<QI")
_FOOTER = struct.Struct("<I")
# A hundred times the longest scenario, so that a damaged length field does not allocate memory.
_MAX_RECORD_BYTES = 1 << 30

# Number of bytes that are looked at; the magic of a tar is at 257.
HEAD = 512

_DOWNLOAD = "most likely the answer of a failed download; download the file again"
# A varint length, and a field 1 of that length that holds a short text.
_LENGTH = rb"[\x80-\xff]*[\x00-\x7f]"
_NAME = rb"\x0a(?P<length>[\x01-\x7f])(?P<name>[\x20-\x7e]+?)\x12"
# Most magic numbers are from the `file` program; the last ones are the beginnings of protobuf messages.
_KINDS: tuple[tuple[bytes, str, str], ...] = (
    (rb"\x1f\x8b", "gzip-compressed", "gunzip it"),
    (rb"\x78[\x01\x5e\x9c\xda]", "zlib-compressed", "write it without compression"),
    (rb"\x28\xb5\x2f\xfd", "zstd-compressed", "unpack it with unzstd"),
    (rb"BZh[1-9]", "bzip2-compressed", "unpack it with bunzip2"),
    (rb"\xfd7zXZ\x00", "xz-compressed", "unpack it with unxz"),
    (rb"\x04\x22\x4d\x18", "lz4-compressed", "unpack it with unlz4"),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", "unpack it"),
    (rb"PK\x03\x04.{26}[^\x00]*?/(?:data\.pkl|\.format_version|byteorder)", "a checkpoint", "give it as one"),
    (rb"PK\x03\x04", "a zip archive", "unpack it"),
    (rb"(?=.{257}ustar)submission\.binproto", "a submission archive", "give it as --rollouts"),
    (rb".{257}ustar", "a tar archive", "unpack it"),
    (rb"\x00{64}", "zeros", "most likely an unfinished download; download the file again"),
    (rb"PAR1", "a shard of a scene store (Parquet)", "give the folder of the store as --scenarios"),
    (rb"\x00\x05\x16\x07", "a sidecar that macOS writes", "delete the files whose names begin with ._"),
    (rb"\x89HDF", "an HDF5 file", "give the files of the dataset itself"),
    (rb"\x93NUMPY", "a NumPy array", "give the files of the dataset itself"),
    (rb"\x80[\x02-\x05]", "a Python pickle", "give the files of the dataset itself"),
    (rb"version https://git-lfs", "a Git LFS pointer", "fetch the file itself with git lfs pull"),
    (rb"\s*<(?i:!doctype html|html|head|body)", "an HTML page", _DOWNLOAD),
    (rb"\s*<\?xml|\s*<Error>", "an XML text", _DOWNLOAD),
    (rb"\s*[{\[]\s*[\"{}\[\]]", "a JSON text", _DOWNLOAD),
    (
        rb"(?:\x0a" + _LENGTH + rb"){1,2}\x0a.\d+_\d+_\d+_\d+_\d+",
        "a frame of another Waymo dataset (perception or end-to-end driving)",
        "download the Motion Dataset, its folder scenario/",
    ),
    (
        rb"\x0a" + _LENGTH + rb"\x0a" + _LENGTH + _NAME,
        "a tf.Example",
        "download the folder scenario/ of the dataset, not tf_example/",
    ),
    (rb"(?:\x0a" + _LENGTH + rb")?" + _NAME, "rollouts of a scenario", "give them as --rollouts"),
)  # fmt: skip
# A Scenario proto begins with its timestamps.
_BARE = re.compile(rb"(?:\x09.{8}){11}", re.DOTALL)
_PATTERNS = [(re.compile(pattern, re.DOTALL), kind, advice) for pattern, kind, advice in _KINDS]


@dataclass(frozen=True)
class BrokenRecord:
    """A record that cannot be used; ``reason`` is one line."""

    index: int
    reason: str


def _masked_crc(data: bytes) -> int:
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def is_record_header(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a TFRecord: the checksum of the first length matches."""
    return len(head) >= _HEADER.size and _masked_crc(head[:8]) == _HEADER.unpack_from(head)[1]


def _unpacked(head: bytes) -> bytes:
    """Of a tar that was compressed with gzip its beginning, else the same."""
    try:
        inner = zlib.decompressobj(wbits=31).decompress(head, HEAD)
    except zlib.error:
        return head
    return inner if inner[257:].startswith(b"ustar") else head


def other_kind(head: bytes, expected: str) -> str | None:
    """Recognise a file or record of another kind, as ``gzip-compressed, not a TFRecord: gunzip it``.

    Args:
        head: the first ``HEAD`` bytes, or all of a shorter file. expected: the right kind, with its article.

    Returns:
        One line, or None if the bytes are of no known kind.
    """
    if not head:
        return f"empty (0 bytes), not {expected}: download it again, or remove it"
    for pattern, kind, advice in _PATTERNS:
        match = pattern.match(head)
        if match is None or ("name" in pattern.groupindex and match["length"][0] != len(match["name"])):
            continue
        return f"{kind}, not {expected}: {advice}"
    if len(head) >= 16 and all(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head):
        return f"a text, not {expected}: {_DOWNLOAD}"
    return None


def _kind_of_file(head: bytes) -> str | None:
    """As ``other_kind``, which is also asked about records: these are bare Scenario protos."""
    if _BARE.match(head):
        return "a bare Scenario proto, not a TFRecord: write it with a TFRecord writer"
    return other_kind(_unpacked(head), "a TFRecord")


def _read_frame(file: IO[bytes], index: int) -> tuple[bytes | BrokenRecord | None, bool]:
    """Read one frame. Returns its data (None at the end) and whether the next frame can be read."""
    header = file.read(_HEADER.size)
    if not header and index:
        return None, False
    if not is_record_header(header):
        # For another kind of file its kind is more helpful than a checksum.
        head = header + file.read(HEAD - len(header))
        kind = None if index else _kind_of_file(head)
        if kind is None and len(header) < _HEADER.size:
            kind = f"truncated: {len(header)} of {_HEADER.size} header bytes"
        why = "this record and all behind it are lost" if index else "not a TFRecord, or damaged"
        return BrokenRecord(index, kind or f"CRC of the record length does not match ({why})"), False
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
    """Yield the records of a file in order; damaged ones as ``BrokenRecord``.

    Reading continues with the next record after a data CRC error, and stops after a damaged length or a truncated
    end. Raises OSError if the file cannot be opened.
    """
    return (record for _, record in locate_records(path))


def locate_records(path: str | Path) -> Iterator[tuple[int, bytes | BrokenRecord]]:
    """The same, with the offset of each record for ``read_record_at``."""
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
    """The record at an offset of ``locate_records``. Raises OSError if the file cannot be opened."""
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
