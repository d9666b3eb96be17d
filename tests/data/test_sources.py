"""Every way to name data, local and on another fsspec filesystem."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from data.errors import UserError
from data.sources import check_apart, find_shards
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
    [
        ("nowhere", "no such file or folder$"),
        ("nowhere/*.x", "no TFRecord files"),
        ("foo://x", "cannot open this kind"),
    ],
)
def test_nothing_there(data: str, text: str) -> None:
    with pytest.raises(UserError, match=text):
        find_shards(data, "training")


@pytest.mark.parametrize("tail", ["", "/validation.tfrecord-00000-of-00001", "/*"])
@pytest.mark.parametrize("error", [OSError("no route to host"), RuntimeError("no route\nto host")])
def test_storage_that_cannot_be_reached_is_not_empty(
    tail: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        logging.getLogger("store").error("a traceback")
        raise error

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "info", fails)
    with pytest.raises(UserError, match=r"^memory://womd.*: cannot be read: no route to host$"):
        find_shards(f"memory://womd{tail}", "validation")
    assert logging.root.manager.disable == logging.NOTSET


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAMES[0])
    with pytest.raises(UserError, match=rf"{NAMES[0]}: neither a file nor a folder"):
        find_shards(str(tmp_path), "training")


def test_empty_split_names_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"looked in training/, scenario/training/, uncompressed/scenario/training/"
    ):
        find_shards(str(tmp_path), "training")


def fill(folder: Path, *names: str) -> Path:
    """Files with a scenario each."""
    for name in names:
        write_records(folder / name, [scenario_proto(name[:16]).SerializeToString()])
    return folder


def test_shards_must_all_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [f"testing.tfrecord-{index:05d}-of-00150" for index in (0, 3)]
    folder = str(fill(tmp_path / "testing", *parts))
    for data in (folder, str(tmp_path), f"{folder}/*", f"{folder}/testing.tfrecord-*-of-00150"):
        with pytest.raises(
            UserError, match=r"148 of 150 shards of testing are missing: .*00001-of-00150, .*--partial"
        ):
            find_shards(data, "testing")
    with pytest.raises(UserError, match="8 of 150 shards"):
        find_shards(f"{folder}/testing.tfrecord-0000?-of-00150")
    # A file, or a glob that takes no more, is a choice.
    assert names(f"{folder}/{parts[1]}") == parts[1:]
    assert names(f"{folder}/testing.tfrecord-0000[03]-of-00150") == parts
    monkeypatch.setenv("SPACER_PARTIAL", "1")
    assert names(folder) == parts


def test_missing_shards_of_another_filesystem(memory_bucket: str) -> None:
    fsspec.filesystem("memory").rm(f"/womd/uncompressed/scenario/training/{NAMES[0]}")
    with pytest.raises(UserError, match=f"1 of 2 shards of training are missing: {NAMES[0]}"):
        find_shards(memory_bucket, "training")


def test_files_of_another_kind_are_named_before_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "validation.tfrecord-00000-of-00150").write_bytes(b"no TFRecord at all, but some text")
    with pytest.raises(UserError, match=r"00000-of-00150: record 0: "):
        find_shards(str(tmp_path), "validation")


def test_hidden_files_are_none(bucket: Path) -> None:
    folder = bucket / "uncompressed/scenario/training"
    (folder / f"._{NAMES[0]}").write_bytes(b"\0\5\x16\7")
    (folder / f".{NAMES[1]}.x7Gh2k").write_bytes(b"")
    assert names(str(folder)) == NAMES


def test_links_are_followed(bucket: Path, tmp_path: Path) -> None:
    real = bucket / "uncompressed/scenario/training"
    mixed = tmp_path / "mixed"
    (mixed / "training").mkdir(parents=True)
    (mixed / "training" / NAMES[0]).write_bytes((real / NAMES[0]).read_bytes())
    # A chain: a link to a link.
    (tmp_path / "chain").symlink_to(real / NAMES[1])
    (mixed / "training" / NAMES[1]).symlink_to(tmp_path / "chain")
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "training").symlink_to(mixed / "training")
    for data in (
        mixed,
        linked,
        linked / "training",
        linked / "*" / "*",
        linked / "training" / "training.tfrecord-*",
    ):
        assert names(str(data), "training") == NAMES
    url = find_shards(str(linked), "training")[1].url
    assert [parse_scenario(record).scenario_id for record in read_records(url) if isinstance(record, bytes)] == [
        "s1"
    ]


@pytest.mark.parametrize("target", ["nowhere", "itself"])
@pytest.mark.parametrize("tail", ["", "training", "training/*", f"training/{NAMES[1]}"])
def test_links_that_lead_nowhere_are_named(tmp_path: Path, tail: str, target: str) -> None:
    fill(tmp_path / "training", NAMES[0])
    link = tmp_path / "training" / NAMES[1]
    link.symlink_to(link if target == "itself" else tmp_path / "nowhere")
    with pytest.raises(UserError, match=f"{NAMES[1]}: a broken link to .*; repair or remove it"):
        find_shards(str(tmp_path / tail), "training")


def test_a_broken_link_to_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "training").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"training: a broken link to .*nowhere"):
        find_shards(str(tmp_path), "training")
    (tmp_path / "a[1].tfrecord").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"a\[1\].tfrecord: a broken link to .*nowhere"):
        find_shards(str(tmp_path / "a[1].tfrecord"))


def test_a_broken_link_on_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "womd").symlink_to(tmp_path / "nowhere")
    for tail in ("training", "training/*", f"training/{NAMES[0]}"):
        with pytest.raises(UserError, match=r"womd: a broken link to .*nowhere"):
            find_shards(str(tmp_path / "womd" / tail), "training")


def test_folders_are_not_left_out_in_silence(tmp_path: Path) -> None:
    fill(tmp_path / "womd" / "part", NAMES[0])
    (tmp_path / "womd" / "empty").mkdir()
    with pytest.raises(UserError, match=r"no TFRecord files; .*; there are some in its folders part: give one"):
        find_shards(str(tmp_path / "womd"), "training")
    fill(tmp_path / "womd", "a.tfrecord")
    (tmp_path / "womd" / "b.tfrecord").mkdir()
    with pytest.raises(UserError, match=r"b\.tfrecord: a folder named as a file"):
        find_shards(str(tmp_path / "womd"), "training")


def test_names_tell_splits_apart(tmp_path: Path) -> None:
    splits = ("training", "validation", "testing")
    flat = fill(tmp_path / "flat", *(f"{split}.tfrecord-00000-of-00001" for split in splits), "val_1.tfrecord")
    for split in splits[::2]:
        assert names(str(flat), split) == [f"{split}.tfrecord-00000-of-00001"]
    assert names(str(flat), "validation") == ["val_1.tfrecord", "validation.tfrecord-00000-of-00001"]
    check_apart(str(flat))
    with pytest.raises(UserError, match="shards of testing and training and validation; name those of one"):
        find_shards(str(flat))
    assert names(f"{flat}/testing*") == ["testing.tfrecord-00000-of-00001"]
    fill(flat, "more.tfrecord")
    with pytest.raises(UserError, match=r"more\.tfrecord: not a shard of training by its name"):
        find_shards(str(flat), "training")


@pytest.mark.parametrize("tail", ["", "*", "validation.tfrecord-00000-of-00001"])
def test_another_split_is_named(tmp_path: Path, tail: str) -> None:
    folder = fill(tmp_path / "validation", "validation.tfrecord-00000-of-00001")
    with pytest.raises(UserError, match="no shards of training: names and folders say validation"):
        find_shards(str(folder / tail), "training")


def test_folders_tell_splits_of_files_that_do_not(tmp_path: Path) -> None:
    folder = fill(tmp_path / "testing", "a.tfrecord", "b.tfrecord")
    assert names(str(folder), "testing") == names(str(tmp_path), "testing") == ["a.tfrecord", "b.tfrecord"]
    with pytest.raises(UserError, match="no shards of validation: names and folders say testing"):
        find_shards(str(folder), "validation")
    fill(folder, "training.tfrecord-00000-of-00001")
    with pytest.raises(UserError, match="named as a shard of training, in a folder named testing"):
        find_shards(str(tmp_path), "testing")


def test_interactive_scenarios_are_a_set_of_their_own(tmp_path: Path) -> None:
    plain, paired = "validation.tfrecord-00000-of-00001", "validation_interactive.tfrecord-00000-of-00001"
    assert names(str(fill(tmp_path / "validation_interactive", paired)), "validation") == [paired]
    assert names(str(fill(tmp_path / "flat", plain, paired)), "validation") == [plain]
    with pytest.raises(UserError, match=f"{paired}: not a shard of validation by its name"):
        find_shards(str(fill(tmp_path / "validation", plain, paired)), "validation")


def test_a_file_in_two_splits_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.tfrecord: in training and in validation"):
        check_apart(str(fill(tmp_path / "scenes", "a.tfrecord")))
    for split in ("training", "validation", "testing"):
        (tmp_path / "womd" / split).mkdir(parents=True)
        target = (
            tmp_path / "scenes" / "a.tfrecord"
            if split != "testing"
            else fill(tmp_path, "b.tfrecord") / "b.tfrecord"
        )
        (tmp_path / "womd" / split / f"{split}.tfrecord").symlink_to(target)
    with pytest.raises(UserError, match=r"validation\.tfrecord: in training and in validation"):
        check_apart(str(tmp_path / "womd"))


@pytest.mark.parametrize("folder", ["womd [v1.3]", "my data", "ü 数据", "a*b", "what?", "#1", "100%"])
def test_what_exists_is_a_path(tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    home = fill(tmp_path / folder / "training", *NAMES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for data in (folder, f"~/{folder}", f"{folder}/training/*", f"{folder}/*/training.tfrecord-0000[01]-of-00002"):
        assert names(data, "training") == NAMES, data
    assert names(f"file://{home}") == NAMES
    assert names(str(home / NAMES[0])) == NAMES[:1]
    assert isinstance(next(iter(read_records(find_shards(str(home))[0].url))), bytes)


def test_a_file_with_brackets_is_a_path(tmp_path: Path) -> None:
    fill(tmp_path, "a[1].tfrecord", "a1.tfrecord")
    assert names(str(tmp_path / "a[1].tfrecord")) == ["a[1].tfrecord"]


def test_brackets_of_another_filesystem(memory_bucket: str) -> None:
    filesystem = fsspec.filesystem("memory")
    filesystem.mv("/womd/uncompressed", "/womd/data [1]", recursive=True)
    assert names(f"{memory_bucket}/data [1]/scenario", "training") == NAMES
    assert names(f"{memory_bucket}/data [1]/scenario/training/*", "training") == NAMES
