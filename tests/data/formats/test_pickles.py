"""Pickles of arrays and containers are read; whatever else they ask for is refused in one line and never done."""

from __future__ import annotations

import collections
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.assembly import RecordError
from data.formats.pickles import load_plain, number_array


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_and_containers_of_every_protocol(protocol: int) -> None:
    counts = collections.defaultdict(int, {"a": 1})
    value = {
        "grid": np.arange(6, dtype=np.float32).reshape(3, 2),
        "columns": np.asfortranarray(np.arange(6.0).reshape(3, 2)),
        "big": np.arange(3, dtype=">f8"),
        "flags": np.array([True, False]),
        "scalar": np.float64(2.5),
        "rows": [[1.0, 2], [3, 4]],
        "texts": {"x", "y"},
        "counts": counts,
        "order": collections.OrderedDict(b=2),
    }
    read = load_plain(pickle.dumps(value, protocol))
    assert read.keys() == value.keys()
    for name in ("grid", "columns", "rows"):
        np.testing.assert_array_equal(number_array(read[name], (None, 2), name), np.asarray(value[name]))
    np.testing.assert_array_equal(number_array(read["big"], (3,), "big"), [0, 1, 2])
    np.testing.assert_array_equal(number_array(read["flags"], (2,), "flags"), [1, 0])
    assert (read["scalar"], read["texts"], read["counts"], read["order"]) == (2.5, {"x", "y"}, {"a": 1}, {"b": 2})


class _Call:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def refused(content: bytes) -> str:
    with pytest.raises(RecordError) as caught:
        load_plain(content)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("protocol", range(6))
def test_calls_are_refused_and_not_made(protocol: int, tmp_path: Path) -> None:
    done = tmp_path / "done"
    assert "mkdir" in refused(pickle.dumps({"tracks": _Call(os.mkdir, str(done))}, protocol))
    assert not done.exists()


@pytest.mark.parametrize(
    "value",
    [
        _Call(np.load, "x"),
        _Call(eval, "1"),
        _Call(int, "1"),
        np.array([{}], dtype=object),
        np.zeros(2, dtype=[("x", "f8")]),
        Path("x"),
    ],
    ids=["numpy function", "eval", "type called", "objects", "records", "class"],
)
def test_nothing_else_of_numpy_or_python(value: Any) -> None:
    refused(pickle.dumps(value))


def test_state_that_numpy_would_trust() -> None:
    good = pickle.dumps(np.arange(4.0), 4)
    shape = good.index(b"K\x04\x85")
    assert "fill its shape" in refused(good[:shape] + b"K\x05\x85" + good[shape + 3 :])


def test_memory_that_is_only_asked_for() -> None:
    """A place in the memo reserves all those before it."""
    assert "memo" in refused(b"\x80\x02}r" + struct.pack("<I", 2**31) + b".")
    refused(b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.")


@pytest.mark.parametrize("content", [b"", b"\x80", b"\x80\x04.", b"{}", b"\x80\x04]\x94h\x00a.", b"cos\nmkdir\n."])
def test_bytes_that_are_no_pickle(content: bytes) -> None:
    if content == b"\x80\x04]\x94h\x00a.":  # a list that holds itself
        with pytest.raises(RecordError, match="not a list of numbers"):
            number_array(load_plain(content), (None,), "x")
    else:
        refused(content)


@pytest.mark.parametrize("value", [None, "text", {}, [[1, 2], [3]], ["a"], [[[1]]], [10**400]])
def test_values_that_are_no_numbers(value: Any) -> None:
    with pytest.raises(RecordError, match="x: "):
        number_array(value, (None, 2), "x")
