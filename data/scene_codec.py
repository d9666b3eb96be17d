"""``Scene`` to and from one Arrow row, lossless and small.

Every tensor becomes one list column. Float32 tensors are stored as differences of their bit patterns (wrapping
int32) along points or steps: neighbouring values share exponent and leading mantissa bits, so the differences are
small, and Parquet's byte-stream split with zstd removes the rest. Cumulative sums restore every bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.scene import Agents, Lights, RoadMap, Scene

# Shape of each tensor; "T" is the number of steps.
_SHAPES: dict[str, tuple[str | int, ...]] = {
    "timestamp": ("T",),
    "agents.id": ("A",),
    "agents.type": ("A",),
    "agents.position": ("A", "T", 3),
    "agents.heading": ("A", "T"),
    "agents.velocity": ("A", "T", 2),
    "agents.size": ("A", "T", 3),
    "agents.valid": ("A", "T"),
    "agents.is_sdc": ("A",),
    "agents.to_predict": ("A",),
    "agents.of_interest": ("A",),
    "map.point": ("P", 3),
    "map.point_feature": ("P",),
    "map.feature_id": ("F",),
    "map.kind": ("F",),
    "map.subtype": ("F",),
    "map.speed_limit": ("F",),
    "map.interpolating": ("F",),
    "map.link_source": ("L",),
    "map.link_kind": ("L",),
    "map.link_target": ("L",),
    "lights.lane_id": ("S",),
    "lights.state": ("S", "T"),
    "lights.stop_point": ("S", "T", 3),
    "lights.observed": ("S", "T"),
}
_FLOATS = frozenset(
    {
        "agents.position",
        "agents.heading",
        "agents.velocity",
        "agents.size",
        "map.point",
        "map.speed_limit",
        "lights.stop_point",
    }
)
_BOOLS = frozenset(
    {
        "agents.valid",
        "agents.is_sdc",
        "agents.to_predict",
        "agents.of_interest",
        "map.interpolating",
        "lights.observed",
    }
)
_PARTS: dict[str, type[Agents] | type[RoadMap] | type[Lights]] = {
    "agents": Agents,
    "map": RoadMap,
    "lights": Lights,
}


def _element_type(name: str) -> pa.DataType:
    if name in _FLOATS:
        return pa.int32()
    if name in _BOOLS:
        return pa.bool_()
    return pa.float64() if name == "timestamp" else pa.int64()


def _encoding(name: str) -> str:
    if name in _FLOATS or name == "timestamp":
        return "BYTE_STREAM_SPLIT"
    return "RLE" if name in _BOOLS else "DELTA_BINARY_PACKED"


SCHEMA = pa.schema(
    [pa.field("scenario_id", pa.string()), pa.field("steps", pa.int64())]
    + [pa.field(name, pa.list_(_element_type(name))) for name in _SHAPES]
)
COLUMN_ENCODING = {f"{name}.list.element": _encoding(name) for name in _SHAPES}


def _channels_first(values: NDArray[Any], shape: tuple[str | int, ...]) -> NDArray[Any]:
    return np.moveaxis(values, -1, 0) if isinstance(shape[-1], int) else values


def _tensors(scene: Scene) -> Iterator[tuple[str, Tensor]]:
    yield "timestamp", scene.timestamp
    for part, kind in _PARTS.items():
        for field in dataclasses.fields(kind):
            yield f"{part}.{field.name}", getattr(getattr(scene, part), field.name)


def encode_row(scene: Scene) -> pa.RecordBatch:
    """One row with the columns of ``SCHEMA``."""
    columns: dict[str, Any] = {"scenario_id": [scene.scenario_id], "steps": [scene.num_steps]}
    for name, tensor in _tensors(scene):
        values = tensor.numpy()
        if name in _FLOATS:
            bits = np.ascontiguousarray(_channels_first(values, _SHAPES[name])).reshape(-1).view(np.int32)
            values = np.diff(bits, prepend=np.int32(0))
        columns[name] = [np.ascontiguousarray(values).reshape(-1)]
    return pa.record_batch([pa.array(columns[field.name], type=field.type) for field in SCHEMA], schema=SCHEMA)


def decode_row(row: Mapping[str, pa.Array]) -> Scene:
    """Inverse of ``encode_row``.

    Args:
        row: columns by name, of a RecordBatch or a Table of one chunk and one row.

    Raises:
        KeyError, ValueError, pyarrow.ArrowInvalid: the columns are not those of a scene.
    """
    steps = row["steps"][0].as_py()
    arrays: dict[str, dict[str, Tensor]] = {"": {}, **{part: {} for part in _PARTS}}
    for name, shape in _SHAPES.items():
        column = row[name]
        start, stop = column.offsets[0].as_py(), column.offsets[1].as_py()
        values = column.values.slice(start, stop - start).to_numpy(zero_copy_only=False)
        tail = [steps if size == "T" else size for size in shape[1:]]
        if name in _FLOATS:
            values = np.cumsum(values, dtype=np.int32).view(np.float32)
        else:
            values = values.copy()
        if isinstance(shape[-1], int):
            channels = shape[-1]
            values = np.moveaxis(values.reshape(channels, -1, *tail[:-1]), 0, -1)
        elif name != "timestamp":
            values = values.reshape(-1, *tail)
        part, _, field = name.rpartition(".")
        arrays[part][field] = torch.from_numpy(np.ascontiguousarray(values))
    return Scene(
        scenario_id=row["scenario_id"][0].as_py(),
        timestamp=arrays[""]["timestamp"],
        agents=Agents(**arrays["agents"]),
        map=RoadMap(**arrays["map"]),
        lights=Lights(**arrays["lights"]),
    )
