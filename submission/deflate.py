"""One gzip file from parts that were compressed independently, such as in other processes or before a crash.

A part is raw deflate data that ends at a byte boundary with a reset compressor (``Z_FULL_FLUSH``), so that any
other part may follow (RFC 1951; pigz does the same). The result is one gzip member, which every reader accepts.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

# Magic, deflate, no flags, no time, no compression level, unknown system, for reproducible bytes.
GZIP_HEADER = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"
# An empty final block.
_END_OF_DEFLATE = b"\x03\x00"
_POLYNOMIAL = 0xEDB88320
_BITS = 32


@dataclass(frozen=True)
class Part:
    """Checksum and number of bytes of a part before compression."""

    crc: int
    size: int


class Compressor:
    """Compresses data to one part."""

    def __init__(self, level: int) -> None:
        self._packer = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
        self._crc, self._size = 0, 0

    def feed(self, data: bytes) -> bytes:
        """Compressed bytes that are available."""
        self._crc = zlib.crc32(data, self._crc)
        self._size += len(data)
        return self._packer.compress(data)

    def end(self) -> tuple[bytes, Part]:
        """The last compressed bytes, and the part."""
        return self._packer.flush(zlib.Z_FULL_FLUSH), Part(self._crc, self._size)


def compressed(pieces: Iterable[bytes], level: int) -> Iterator[bytes | Part]:
    """Yield the compressed bytes of pieces of data, and at the end their ``Part``."""
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
    """Effect of 2^power zero bytes on a CRC-32, as a matrix."""
    if power == 0:
        bit = (_POLYNOMIAL, *(1 << index for index in range(_BITS - 1)))
        byte = bit
        for _ in range(3):
            byte = tuple(_times(byte, column) for column in byte)
        return byte
    half = _zeros(power - 1)
    return tuple(_times(half, column) for column in half)


def combine_crc(first: int, second: int, length: int) -> int:
    """CRC-32 of two concatenated pieces of data from their CRCs and the length of the second.

    CRC is linear: the result is the CRC of the first piece followed by zeros, plus that of the second.
    """
    power = 0
    while length:
        if length & 1:
            first = _times(_zeros(power), first)
        length >>= 1
        power += 1
    return first ^ second


def gzip_end(parts: Sequence[Part]) -> bytes:
    """Bytes after the last part: the end of the data, checksum and length."""
    crc, size = 0, 0
    for part in parts:
        crc = combine_crc(crc, part.crc, part.size)
        size += part.size
    return _END_OF_DEFLATE + struct.pack("<II", crc, size & 0xFFFFFFFF)
