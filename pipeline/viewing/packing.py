"""Arrays for the browser: a small binary file that ``page/pack.js`` reads back.

Layout: the letters ``SPK1``, the header's length as uint32, the header in JSON, and the arrays one behind the
other, everything little endian and compressed with gzip. Arrays of int32 are stored as differences along their last
axis, and of all arrays the lowest bytes come first, then the next ones: neighbouring values of motion and of lines
are nearly equal, so most of the rest is zeros.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["pack", "unpack"]

_MAGIC = b"SPK1"
_LENGTH = struct.Struct("<I")
_TYPES = {"uint8": np.uint8, "uint16": np.uint16, "int32": np.int32}


def _encoded(values: NDArray[Any]) -> bytes:
    if values.dtype == np.int32 and values.size:
        values = np.diff(values, axis=-1, prepend=np.zeros((*values.shape[:-1], 1), np.int32))
    width = values.dtype.itemsize
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, width).T.tobytes()


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], level: int = 6) -> bytes:
    """Compressed bytes of a header and arrays.

    Args:
        header: plain JSON values. arrays: by name; uint8, uint16 or int32 (these as differences, wrapping).
        level: of the compression.

    Raises:
        ValueError: an array of another type.
    """
    entries, parts = [], []
    for name, values in arrays.items():
        if values.dtype.name not in _TYPES:
            raise ValueError(f"{name}: cannot pack {values.dtype.name}")
        entries.append({"name": name, "type": values.dtype.name, "shape": list(values.shape)})
        parts.append(_encoded(values))
    text = json.dumps({**header, "arrays": entries}, separators=(",", ":"), allow_nan=False).encode()
    content = b"".join((_MAGIC, _LENGTH.pack(len(text)), text, *parts))
    # Without a time in it: the same scene gives the same bytes.
    return gzip.compress(content, level, mtime=0)


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays of what ``pack`` made."""
    content = gzip.decompress(data)
    if content[:4] != _MAGIC:
        raise ValueError("not a packed scene")
    (length,) = _LENGTH.unpack_from(content, 4)
    header = json.loads(content[8 : 8 + length])
    arrays, place = {}, 8 + length
    for entry in header["arrays"]:
        kind = np.dtype(_TYPES[entry["type"]])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        planes = np.frombuffer(content, np.uint8, count * kind.itemsize, place).reshape(kind.itemsize, count)
        place += planes.size
        values = np.ascontiguousarray(planes.T).reshape(-1).view(kind).reshape(entry["shape"])
        if kind == np.int32 and values.size:
            values = np.cumsum(values, axis=-1, dtype=np.int32)
        arrays[entry["name"]] = values
    return header, arrays
