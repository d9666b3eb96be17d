"""Pickles of numpy arrays and plain containers, read without running anything that they name.

What pickles call are stand-ins, not the functions of that name: an array is its type code, shape and bytes, checked
before numpy sees them, because numpy trusts the state that it is given. Opcodes are looked at before the unpickler
runs, because one of them reserves as much memory as it says.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.assembly import RecordError

# Kinds of numbers, truth values and texts; no objects, no records, no dates.
_KINDS = frozenset("biufSU")
_LARGEST_ITEM = 1 << 12
_REFUSED = frozenset({"PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"})


class _Type:
    """Stand-in of ``numpy.dtype``."""

    def __init__(self, code: Any = "", *_: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        if not isinstance(self.code, str) or self.code[:1] not in _KINDS or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"an array of type {self.code!r}")
        result = np.dtype(self.order + self.code)
        if not 0 < result.itemsize <= _LARGEST_ITEM:
            raise ValueError(f"an array of type {self.code!r}")
        return result


class _Array:
    """Stand-in of ``numpy.ndarray``; ``value`` is the array."""

    value: NDArray[Any]

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, fortran, raw = state
        self.fill(raw, kind, shape, "F" if fortran else "C")

    def fill(self, raw: Any, kind: Any, shape: Any, order: str) -> None:
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(kind, _Type) or not isinstance(raw, (bytes, bytearray)) or not isinstance(shape, tuple):
            raise ValueError("an array without type, shape or bytes")
        if not all(type(size) is int and size >= 0 for size in shape) or len(shape) > 8:
            raise ValueError("an array of no possible shape")
        if len(raw) != math.prod(shape) * kind.dtype.itemsize:
            raise ValueError("an array whose bytes do not fill its shape")
        # bytes of another order would be read as they lie, and few operations expect them
        array = np.frombuffer(bytes(raw), dtype=kind.dtype).reshape(shape, order="F" if order == "F" else "C")
        self.value = array.astype(array.dtype.newbyteorder("="))


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any = "C") -> _Array:
    array = _Array()
    array.fill(raw, kind, shape, order)
    return array


def _scalar(kind: Any, raw: Any) -> Any:
    return _from_buffer(raw, kind, (1,)).value[0].item()


def _dictionary(*items: Any) -> dict[Any, Any]:
    """Stand-in of ``OrderedDict`` and ``defaultdict``, whose factory is not needed."""
    return dict(items[0]) if items and isinstance(items[0], list) else {}


def _encoded(text: Any, encoding: Any) -> bytes:
    """Bytes in pickles of protocols below 3."""
    if not isinstance(text, str) or encoding != "latin1":
        raise ValueError("a text in another encoding")
    return text.encode("latin1")


def _set(items: Any = ()) -> set[Any]:
    if not isinstance(items, (list, tuple)):
        raise ValueError("a set of no list")
    return set(items)


def _factory(*_: Any) -> None:
    raise ValueError("a call of a type")


_STAND_INS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("collections", "OrderedDict"): _dictionary,
    ("collections", "defaultdict"): _dictionary,
    ("_codecs", "encode"): _encoded,
    **{
        (module, name): _factory
        for module in ("builtins", "__builtin__")
        for name in ("int", "long", "float", "bool", "str", "unicode", "list", "dict")
    },
    **{(module, "set"): _set for module in ("builtins", "__builtin__")},
    **{
        (f"numpy.{core}.{module}", name): stand_in
        for core in ("core", "_core")
        for module, name, stand_in in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            asked = f"{_shown(module)}.{_shown(name)}"
            raise RecordError("pickle", f"a pickle of {asked}; only numpy arrays and plain containers are read")
        return _STAND_INS[module, name]


def _shown(name: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in name[:60])


def _check_opcodes(content: bytes) -> None:
    """Refuse what needs others than stand-ins, and places in the memo beyond the number of opcodes."""
    highest = count = 0
    for opcode, argument, _ in pickletools.genops(content):
        count += 1
        if opcode.name in _REFUSED:
            raise ValueError(f"opcode {opcode.name}")
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
            highest = max(highest, int(argument or 0))
    if highest > count:
        raise ValueError("a memo with gaps")


def load_plain(content: bytes) -> Any:
    """The object in a pickle, with arrays that ``number_array`` reads.

    Raises:
        RecordError: not a whole pickle, or one that holds anything but numbers, texts, arrays and containers.
    """
    try:
        _check_opcodes(content)
        return _Unpickler(io.BytesIO(content)).load()
    except RecordError:
        raise
    except Exception as error:
        # Bytes that anybody wrote: whatever the unpickler stumbles over, it is no pickle of this kind.
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise RecordError("pickle", f"not a pickle that can be read: {_shown(reason)}") from error


def number_array(value: Any, shape: Sequence[int | None], name: str) -> NDArray[np.float64]:
    """Numbers of an unpickled array, or of a list of numbers or of rows, as float64.

    Args:
        value: of ``load_plain`` or of JSON. shape: wanted, None for any size; an axis of 1 behind it is dropped.
        name: of the field, for messages.

    Raises:
        RecordError: other values, or of another shape.
    """
    if isinstance(value, (list, tuple)):
        rows = [row.value if isinstance(row, _Array) and hasattr(row, "value") else row for row in value]
        if not all(_is_row(row) for row in rows):
            raise RecordError("field", f"{name}: not a list of numbers")
        value = rows
    elif isinstance(value, _Array):
        value = getattr(value, "value", None)
    else:
        value = None
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise RecordError("field", f"{name}: not numbers") from error
    if array.ndim == len(shape) + 1 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 and array.ndim == 1 and len(shape) == 2 and shape[0] in (None, 0):
        array = array.reshape(0, shape[1] or 3)
    fits = array.ndim == len(shape) and all(want in (None, size) for want, size in zip(shape, array.shape))
    if not fits:
        wanted = " x ".join("any" if size is None else str(size) for size in shape)
        raise RecordError("field", f"{name}: shape {' x '.join(map(str, array.shape))}, expected {wanted}")
    return array


def _is_row(row: Any) -> bool:
    if isinstance(row, np.ndarray):
        return row.ndim <= 1 and row.size <= 4
    if isinstance(row, (list, tuple)):
        return len(row) <= 4 and all(isinstance(item, (int, float)) for item in row)
    return isinstance(row, (int, float))
