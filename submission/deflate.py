"""One gzip file out of parts that were compressed apart: in other processes, on other machines, before a crash.

A part is raw deflate data that ends at a byte with the state of the compressor thrown away (``Z_FULL_FLUSH``), so
that any other part may follow (RFC 1951; as pigz does). The result is one gzip member, which every reader takes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

__all__ = ["GZIP_HEADER", "Part", "combine_crc", "compressed", "gzip_end"]

# Magic, deflate, no flags, no time, no hint of the effort, unknown system: the same bytes wherever it is written.
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
# An empty final block.
_END_OF_DEFLATE = b"\x03\x00"
_POLYNOMIAL = 0xEDB88320
_BITS = 32


@dataclass(frozen=True)
class Part:
    """Checksum and number of bytes of what a part holds, before compression."""

    crc: int
    size: int


class Compressor:
    """Turns data into one part, piece by piece."""

    def __init__(self, level: int) -> None:
        self._packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._crc, self._size = 0, 0

    def feed(self, data: bytes) -> bytes:
        """Compressed bytes that are ready."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        return self._packer.compress(data)

    def end(self) -> tuple[bytes, Part]:
        """The last compressed bytes, and what the part holds."""
        return self._packer.flush(zlib.Z_FULL_FLUSH), Part(self._crc, self._size)


def compressed(pieces: Iterable[bytes], level: int) -> Iterator[bytes | Part]:
    """Compressed bytes of some data, and at the very end what they hold."""
    packer = Compressor(level)
    for piece in pieces:
        if data := packer.feed(piece):
            yield data
    data, part = packer.end()
    yield data
    yield part


def _times(matrix: Sequence[int], vector: int) -> int:
    """Product of a matrix over GF(2), a list of columns, and a vector of bits."""
    total, index = 0, 0
    while vector:
        if vector & 1:
            total ^= matrix[index]
        vector >>= 1
        index += 1
    return total


@lru_cache(maxsize=64)
def _zeros(power: int) -> tuple[int, ...]:
    """What 2^power zero bytes do to a CRC-32, as a matrix."""
    if power == 0:
        bit = (_POLYNOMIAL, *(1 << index for index in range(_BITS - 1)))
        byte = bit
        for _ in range(3):
            byte = tuple(_times(byte, column) for column in byte)
        return byte
    half = _zeros(power - 1)
    return tuple(_times(half, column) for column in half)


def combine_crc(first: int, second: int, length: int) -> int:
    """CRC-32 of two pieces of data one behind the other, of their own CRCs and the second one's length.

    CRC is linear: that of the whole is that of the first one followed by zeros, plus that of the second.
    """
    power = 0
    while length:
        if length & 1:
            first = _times(_zeros(power), first)
        length >>= 1
        power += 1
    return first ^ second


def gzip_end(parts: Sequence[Part]) -> bytes:
    """What follows the last part: the end of the data, their checksum and their length."""
    crc, size = 0, 0
    for part in parts:
        crc = combine_crc(crc, part.crc, part.size)
        size += part.size
    return _END_OF_DEFLATE + struct.pack("<II", crc, size & 0xFFFFFFFF)
