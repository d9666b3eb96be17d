"""Packed arrays come back as they were, whatever they hold."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.viewing.scene_pack import pack, unpack

SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=6)


@settings(deadline=None)
@given(data=st.data(), kind=st.sampled_from(["uint8", "uint16", "int32"]))
def test_round_trip(data: st.DataObject, kind: str) -> None:
    values = data.draw(arrays.arrays(np.dtype(kind), SHAPES))
    other = np.arange(7, dtype=np.int32)
    header, found = unpack(pack({"name": "ä<b>"}, {"values": values, "other": other}))
    assert header["name"] == "ä<b>"
    assert found["values"].dtype == values.dtype
    np.testing.assert_array_equal(found["values"], values)
    np.testing.assert_array_equal(found["other"], other)


def test_the_same_content_gives_the_same_bytes() -> None:
    values = {"a": np.arange(100, dtype=np.int32)}
    assert pack({"x": 1}, values) == pack({"x": 1}, values)


def test_slow_motion_takes_little_room() -> None:
    steps = np.arange(80, dtype=np.int32) * 17 + 100_000
    values = np.tile(steps, (64, 1))
    assert len(pack({}, {"path": values})) < values.nbytes / 100


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(ValueError, match="float32"):
        pack({}, {"a": np.zeros(3, dtype=np.float32)})
    with pytest.raises(ValueError, match="JSON"):
        pack({"a": float("nan")}, {})
    with pytest.raises(ValueError, match="not a packed scene"):
        unpack(gzip.compress(b"something else"))
