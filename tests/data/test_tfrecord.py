"""TFRecord framing against TensorFlow's writer format, and every way in which a file can be broken."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tfrecord import BrokenRecord, read_records, write_records


def test_bytes_equal_tensorflows(tmp_path: Path) -> None:
    """In a process of its own: TensorFlow is not to be loaded into those of the other tests."""
    path, other = tmp_path / "ours", tmp_path / "theirs"
    records = [b"abc", b"", bytes(range(256)) * 40]
    write_records(path, records)
    code = (
        "import sys, tensorflow as tf\n"
        "with tf.io.TFRecordWriter(sys.argv[1]) as writer:\n"
        "    for record in (b'abc', b'', bytes(range(256)) * 40):\n"
        "        writer.write(record)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(other)], check=True, capture_output=True)
    assert path.read_bytes() == other.read_bytes()


@given(st.lists(st.binary(max_size=200), min_size=1, max_size=5))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, records: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("records") / "file"
    write_records(path, records)
    assert list(read_records(path)) == records


@given(st.lists(st.binary(min_size=1, max_size=60), min_size=1, max_size=4), st.data())
def test_any_flipped_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, records: list[bytes], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("records") / "file"
    write_records(path, records)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    found = list(read_records(path))
    broken = [item for item in found if isinstance(item, BrokenRecord)]
    assert len(broken) == 1
    assert [item for item in found if isinstance(item, bytes)] == [
        item for index, item in enumerate(records) if index < broken[0].index
    ] + (records[broken[0].index + 1 :] if "data does not match" in broken[0].reason else [])


@given(st.data())
def test_any_truncation_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("records") / "file"
    write_records(path, [b"first", b"second record"])
    content = path.read_bytes()
    kept = data.draw(st.integers(1, len(content) - 1))
    path.write_bytes(content[:kept])
    found = list(read_records(path))
    whole = 16 + len(b"first")
    if kept == whole:
        assert found == [b"first"]
    else:
        assert isinstance(found[-1], BrokenRecord)
        assert "truncated" in found[-1].reason


def test_a_damaged_length_tells_that_the_rest_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_records(path, [b"first", b"second", b"third"])
    content = bytearray(path.read_bytes())
    content[16 + len(b"first")] ^= 1
    path.write_bytes(content)
    first, broken = read_records(path)
    assert first == b"first"
    assert isinstance(broken, BrokenRecord)
    assert broken.reason.endswith("(this record and all behind it are lost)")


def test_not_a_record_file(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_text("this is a text file and no records at all\n")
    (broken,) = read_records(path)
    assert isinstance(broken, BrokenRecord)
    assert "not a TFRecord" in broken.reason


def test_an_empty_file_is_no_shard_without_records(tmp_path: Path) -> None:
    """A download that failed leaves one; nothing missing goes through in silence."""
    (tmp_path / "empty").touch()
    (broken,) = read_records(tmp_path / "empty")
    assert isinstance(broken, BrokenRecord)
    assert broken.reason == "empty (0 bytes), not a TFRecord: download it again, or remove it"
