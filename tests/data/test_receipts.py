"""What counts as done."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.files import atomic_write, write_text
from data.receipts import accepted, receipt_path, write_receipt, write_sums


@pytest.fixture
def made(tmp_path: Path) -> Path:
    path = tmp_path / "shard"
    write_text(path, "content")
    write_receipt(path, "source", 3)
    return path


def test_a_finished_file_is_accepted(made: Path) -> None:
    receipt = accepted(made, "source")
    assert receipt is not None
    assert (receipt.bytes, receipt.items) == (7, 3)


def rewrite_receipt(path: Path, **values: Any) -> None:
    place = receipt_path(path)
    write_text(place, json.dumps({**json.loads(place.read_text()), **values}))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("conten"),
        lambda path: path.write_text("Content"),
        lambda path: receipt_path(path).unlink(),
        lambda path: receipt_path(path).write_text("{"),
        lambda path: receipt_path(path).write_text("[]"),
        lambda path: receipt_path(path).write_bytes(b"\xff"),
        lambda path: rewrite_receipt(path, source="other"),
        lambda path: rewrite_receipt(path, unknown=1),
    ],
)
def test_anything_else_is_not(made: Path, spoil: Callable[[Path], Any]) -> None:
    spoil(made)
    assert accepted(made, "source") is None


def test_another_source_is_another_file(made: Path) -> None:
    assert accepted(made, "other") is None


def test_the_list_is_that_of_sha256sum(made: Path) -> None:
    receipt = accepted(made, "source")
    assert receipt is not None
    write_sums(made.parent / "SHA256SUMS", {"shard": receipt})
    checked = subprocess.run(
        ["sha256sum", "--check", "SHA256SUMS"], cwd=made.parent, capture_output=True, text=True, check=True
    )
    assert checked.stdout == "shard: OK\n"


def test_a_lost_rename_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may say that it moved a file and not have it."""
    monkeypatch.setattr(Path, "replace", lambda self, target: None)
    with pytest.raises(FileNotFoundError, match="lost by its file system"):
        atomic_write(tmp_path / "x", lambda file: file.write(b"1"))
