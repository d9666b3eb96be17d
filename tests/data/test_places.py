"""Paths of this machine and of URLs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from data.errors import UserError
from data.files import atomic_write, read_json, sha256_of, write_json
from data.places import is_remote, open_path
from data.receipts import accepted, receipt_path, write_receipt


class Mounted(LocalFileSystem):
    """A remote file system with renames, such as SFTP or HDFS; its files are on this machine."""

    protocol = "mounted"


@pytest.fixture
def memory() -> Iterator[Path]:
    MemoryFileSystem.store.clear()
    yield open_path("memory://bucket/folder")
    MemoryFileSystem.store.clear()


def test_paths_of_this_machine_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_path("a/b") == open_path(Path("a/b")) == open_path(f"file://{tmp_path}/a/b") == tmp_path / "a" / "b"
    assert not is_remote(open_path("a"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_path("~/a") == open_path(Path("~/a")) == tmp_path / "a"
    assert open_path("~root") == Path(os.path.expanduser("~root"))
    assert open_path("~nobody-of-this-name") == tmp_path / "~nobody-of-this-name"


def test_urls_stay_urls(memory: Path) -> None:
    assert is_remote(memory)
    assert open_path(memory) is memory
    assert str(memory / "x") == "memory://bucket/folder/x"


@pytest.mark.parametrize("name", ["nosuch://bucket/x", "nosuch::x"])
def test_unknown_kinds_are_named(name: str) -> None:
    with pytest.raises(UserError, match="cannot open this kind of URL"):
        open_path(name)


def test_writing_to_an_object_store(memory: Path) -> None:
    write_json(memory / "deep" / "x.json", {"a": 1})
    assert read_json(memory / "deep" / "x.json") == {"a": 1}
    assert [path.name for path in (memory / "deep").iterdir()] == ["x.json"]
    receipt = write_receipt(memory / "deep" / "x.json", "source", 1)
    assert receipt.sha256 == sha256_of(memory / "deep" / "x.json")
    assert accepted(memory / "deep" / "x.json", "source") == receipt
    receipt_path(memory / "deep" / "x.json").unlink()
    assert accepted(memory / "deep" / "x.json", "source") is None


def test_a_failed_write_leaves_no_object(memory: Path) -> None:
    def broken(file: IO[bytes]) -> None:
        file.write(b"half")
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError):
        atomic_write(memory / "x", broken)
    assert not (memory / "x").exists()


def test_elsewhere_files_are_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec.register_implementation("mounted", Mounted, clobber=True)
    seen: list[str] = []
    put = Mounted.put_file

    def remember(self: Mounted, source: str, target: str, *arguments: object, **options: object) -> None:
        seen.append(target.rsplit("/", 1)[-1])
        put(self, source, target, *arguments, **options)

    monkeypatch.setattr(Mounted, "put_file", remember)
    target = open_path(f"mounted://{tmp_path}/x")
    assert is_remote(target)
    atomic_write(target, lambda file: file.write(b"1"))
    assert seen == [".x.part"]
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
