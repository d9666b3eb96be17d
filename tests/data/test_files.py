"""Checksums that are computed once, and what makes them be computed again."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import IO

import pytest

from data import files
from data.files import at_once, atomic_write, checksum, sha256_of
from data.sources import find_shards, shard_content


def test_a_file_without_room_is_named_and_other_errors_keep_their_names(tmp_path: Path) -> None:
    def failing(error: OSError) -> OSError:
        def write(_: IO[bytes]) -> None:
            raise error

        with pytest.raises(OSError, match=str(error.strerror)) as found:
            atomic_write(tmp_path / "out", write)
        return found.value

    assert failing(OSError(errno.EDQUOT, "quota")).filename == str(tmp_path / "out")
    assert failing(OSError(errno.ENOSPC, "full", "elsewhere")).filename == "elsewhere"
    assert failing(OSError(errno.EIO, "broken")).filename is None
    assert not list(tmp_path.iterdir())


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """Files that were read; those of eight bytes count as big."""
    found: list[Path] = []

    def counted(path: Path) -> str:
        found.append(path)
        return sha256_of(path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "sha256_of", counted)
    monkeypatch.setattr(files, "_BIG", 8)
    return found


def test_a_big_file_is_read_once(read: list[Path], tmp_path: Path) -> None:
    big, small = tmp_path / "big", tmp_path / "small"
    big.write_bytes(b"12345678")
    small.write_bytes(b"1234")
    for _ in range(3):
        assert checksum(big) == hashlib.sha256(b"12345678").hexdigest()
        assert checksum(small) == hashlib.sha256(b"1234").hexdigest()
    assert read == [big, small, small, small]


def test_whatever_is_written_is_read_again(read: list[Path], tmp_path: Path) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"12345678")
    status = big.stat()
    first = checksum(big)
    # The same length, the same time of the content, in the same file.
    with big.open("r+b") as file:
        file.write(b"87654321")
    os.utime(big, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert checksum(big) == hashlib.sha256(b"87654321").hexdigest() != first
    os.utime(big, (1, 1))
    assert checksum(big) == hashlib.sha256(b"87654321").hexdigest()
    copy = tmp_path / "copy"
    shutil.copy2(big, copy)
    copy.replace(big)
    assert checksum(big) == hashlib.sha256(b"87654321").hexdigest()
    assert len(read) == 4


@pytest.mark.parametrize("torn", ["", "12", "g" * 64])
def test_a_damaged_cache_costs_time_alone(read: list[Path], tmp_path: Path, torn: str) -> None:
    big = tmp_path / "big"
    big.write_bytes(b"12345678")
    first = checksum(big)
    for kept in (tmp_path / "cache" / "spacer" / "checksums").iterdir():
        kept.write_text(torn)
    assert checksum(big) == first


def test_a_home_that_cannot_be_written_costs_time_alone(
    read: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    big = tmp_path / "big"
    big.write_bytes(b"12345678")
    assert checksum(big) == checksum(big)
    assert read == [big, big]


def test_many_at_once_keep_their_order(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(20)]
    for number, file in enumerate(files):
        file.write_text(str(number))
    assert at_once(checksum, files) == [sha256_of(file) for file in files]


def test_a_shard_is_its_name_size_and_content(tmp_path: Path) -> None:
    file = tmp_path / "training.tfrecord-00000-of-00001"
    file.write_bytes(b"1234")
    before = shard_content(find_shards(str(file))[0])
    assert before == f"{file.name}:4:{sha256_of(file)}"
    os.utime(file, (1, 1))
    assert shard_content(find_shards(str(file))[0]) == before
