"""Every way to name data, local and on another fsspec filesystem."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from data.errors import UserError
from data.sources import find_shards
from data.tfrecord import read_records, write_records
from data.womd import parse_scenario
from tests.builders import scenario_proto

NAMES = [f"training.tfrecord-{index:05d}-of-00002" for index in range(2)]


@pytest.fixture
def bucket(tmp_path: Path) -> Path:
    for index, name in enumerate(NAMES):
        write_records(
            tmp_path / "uncompressed/scenario/training" / name, [scenario_proto(f"s{index}").SerializeToString()]
        )
    return tmp_path


def names(data: str, split: str | None = None) -> list[str]:
    return [shard.url.rsplit("/", 1)[-1] for shard in find_shards(data, split)]


@pytest.mark.parametrize(
    ("tail", "split"),
    [
        ("", "training"),
        ("uncompressed", "training"),
        ("uncompressed/scenario", "training"),
        ("uncompressed/scenario/training", "training"),
        ("uncompressed/scenario/training", None),
        ("uncompressed/scenario/training/*", None),
        ("uncompressed/scenario/training/*-of-00002", "training"),
    ],
)
def test_layouts(bucket: Path, tail: str, split: str | None) -> None:
    assert names(str(bucket / tail), split) == NAMES


def test_single_file(bucket: Path) -> None:
    file = bucket / "uncompressed/scenario/training" / NAMES[1]
    assert names(str(file)) == [NAMES[1]]


@pytest.fixture
def memory_bucket(bucket: Path) -> Iterator[str]:
    """The same layout on fsspec's in-memory filesystem, which stands for a remote one."""
    filesystem = fsspec.filesystem("memory")
    filesystem.put(str(bucket / "uncompressed"), "/womd/uncompressed", recursive=True)
    yield "memory://womd"
    filesystem.rm("/womd", recursive=True)


def test_other_filesystem(memory_bucket: str) -> None:
    shards = find_shards(memory_bucket, "training")
    assert [shard.url.rsplit("/", 1)[-1] for shard in shards] == NAMES
    records = list(read_records(shards[0].url))
    assert isinstance(records[0], bytes)
    assert parse_scenario(records[0]).scenario_id == "s0"


def test_fingerprint_follows_the_content(bucket: Path) -> None:
    file = bucket / "uncompressed/scenario/training" / NAMES[0]
    before = find_shards(str(file))[0].fingerprint
    os.utime(file, (1, 1))
    assert find_shards(str(file))[0].fingerprint == before
    write_records(file, [b"other"])
    assert find_shards(str(file))[0].fingerprint != before


def test_fingerprint_of_a_url_holds_the_version(memory_bucket: str) -> None:
    shard = find_shards(memory_bucket, "training")[0]
    before = shard.fingerprint
    filesystem, path = fsspec.core.url_to_fs(shard.url)
    content = filesystem.cat_file(path)
    # As long as before, written later.
    filesystem.pipe_file(path, bytes(len(content)))
    assert find_shards(memory_bucket, "training")[0].fingerprint != before


@pytest.mark.parametrize(
    ("data", "text"),
    [("nowhere", "no TFRecord files"), ("nowhere/*.x", "no TFRecord files"), ("foo://x", "cannot open this kind")],
)
def test_nothing_there(data: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        find_shards(data, "training")


def test_empty_split_names_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"looked in training/, scenario/training/, uncompressed/scenario/training/"
    ):
        find_shards(str(tmp_path), "training")
