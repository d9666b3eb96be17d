"""Parts that were compressed apart, as one gzip file."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submission.deflate import GZIP_HEADER, Part, combine_crc, compressed, gzip_end


def packed(parts: list[list[bytes]]) -> bytes:
    out, held = bytearray(GZIP_HEADER), []
    for pieces in parts:
        for data in compressed(pieces, 6):
            if isinstance(data, Part):
                held.append(data)
            else:
                out += data
    return bytes(out) + gzip_end(held)


@given(st.lists(st.lists(st.binary(max_size=300), max_size=3), max_size=4))
def test_any_parts_are_read_as_one(parts: list[list[bytes]]) -> None:
    whole = b"".join(piece for pieces in parts for piece in pieces)
    assert gzip.decompress(packed(parts)) == whole


@given(st.binary(max_size=200), st.binary(max_size=200), st.integers(0, 3000))
def test_checksums_add_up(first: bytes, second: bytes, zeros: int) -> None:
    second += bytes(zeros)
    assert combine_crc(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


def test_parts_may_be_long() -> None:
    # Longer than deflate looks back, and long enough for several of its blocks.
    text = b"".join(b"%d," % (i * i) for i in range(200_000))
    result = packed([[text], [text[:70_000], text[70_000:]]])
    assert gzip.decompress(result) == text + text
    assert len(result) < len(text)


@pytest.mark.parametrize("program", ["gzip", "pigz"])
def test_other_programs_read_it(program: str, tmp_path: Path) -> None:
    if program != "gzip" and shutil.which(program) is None:
        return
    path = tmp_path / "x.gz"
    path.write_bytes(packed([[b"one"], [b"two" * 1000], []]))
    ended = subprocess.run([program, "-dc", path], capture_output=True, check=True)
    assert ended.stdout == b"one" + b"two" * 1000


@pytest.mark.parametrize("size", [5, 2**32 - 1, 2**32 + 5, 2**33])
def test_the_length_is_that_modulo_two_to_the_32(size: int) -> None:
    """RFC 1952; whole archives are longer than four gigabytes."""
    assert gzip_end([Part(7, size - 2), Part(0, 2)])[-4:] == (size % 2**32).to_bytes(4, "little")
