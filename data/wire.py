"""Fast decoding of scenarios: a copy of Waymo's schema in which map points and object states are raw bytes.

A scenario holds about 20,000 ``MapPoint`` and 8,000 ``ObjectState`` messages; reading them attribute by attribute
takes most of the time of ingest. Nested messages and ``bytes`` have the same wire format, so a schema that declares
them as bytes parses the same records, and numpy decodes all messages of the usual layout at once. The generated
class decodes messages of another layout (fields missing or reordered).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray
from waymo_open_dataset.protos import map_pb2, scenario_pb2

_FieldProto = descriptor_pb2.FieldDescriptorProto
_PACKAGE = "spacer.shadow"
_RAW_TYPES = (".waymo.open_dataset.MapPoint", ".waymo.open_dataset.ObjectState")

STATE_FIELDS = (
    "center_x", "center_y", "center_z", "length", "width", "height", "heading", "velocity_x", "velocity_y",
)  # fmt: skip


def _shadow_file(source: Any, name: str, dependencies: Sequence[str]) -> descriptor_pb2.FileDescriptorProto:
    """Copy a file descriptor, rename its package and turn fields of the raw types into bytes."""
    file = descriptor_pb2.FileDescriptorProto()
    source.CopyToProto(file)
    file.name = name
    file.package = _PACKAGE
    file.ClearField("dependency")
    file.dependency.extend(dependencies)
    known = {message.name for message in file.message_type}
    for message in file.message_type:
        for field in message.field:
            if field.type_name in _RAW_TYPES:
                field.type = _FieldProto.TYPE_BYTES
                field.ClearField("type_name")
            elif field.type_name:
                # Lidar and camera payloads are not parsed.
                tail = field.type_name.removeprefix(".waymo.open_dataset.")
                if tail.split(".")[0] in known | {"DynamicMapState", "MapFeature", "TrafficSignalLaneState"}:
                    field.type_name = f".{_PACKAGE}.{tail}"
                else:
                    field.type = _FieldProto.TYPE_BYTES
                    field.ClearField("type_name")
    return file


@cache
def scenario_class() -> Any:
    """The generated class of the ``Scenario`` message of the copied schema."""
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_shadow_file(map_pb2.DESCRIPTOR, "shadow_map.proto", []))
    pool.Add(_shadow_file(scenario_pb2.DESCRIPTOR, "shadow_scenario.proto", ["shadow_map.proto"]))
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Scenario"))


def _tag(number: int, wire_type: int) -> int:
    return number << 3 | wire_type


_POINT_DTYPE = np.dtype(
    [("tx", "u1"), ("x", "<f8"), ("ty", "u1"), ("y", "<f8"), ("tz", "u1"), ("z", "<f8")]
)  # fmt: skip
_POINT_TAGS = {"tx": _tag(1, 1), "ty": _tag(2, 1), "tz": _tag(3, 1)}

_STATE_DTYPE = np.dtype(
    [item for name in STATE_FIELDS[:3] for item in ((f"tag_{name}", "u1"), (name, "<f8"))]
    + [item for name in STATE_FIELDS[3:] for item in ((f"tag_{name}", "u1"), (name, "<f4"))]
    + [("tag_valid", "u1"), ("valid", "u1")]
)
_STATE_TAGS = {
    **{f"tag_{name}": _tag(2 + i, 1) for i, name in enumerate(STATE_FIELDS[:3])},
    **{f"tag_{name}": _tag(5 + i, 5) for i, name in enumerate(STATE_FIELDS[3:])},
    "tag_valid": _tag(11, 0),
}
# An unobserved state of WOMD: the valid field alone, set to false.
_INVALID_STATE = bytes([_tag(11, 0), 0])


def _usual(
    messages: Sequence[bytes], dtype: np.dtype[Any], tags: dict[str, int]
) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """Numbers of the messages that have the usual layout, and these messages as records."""
    lengths = np.fromiter(map(len, messages), dtype=np.int64, count=len(messages))
    sized = np.flatnonzero(lengths == dtype.itemsize)
    records = np.frombuffer(b"".join([messages[i] for i in sized]), dtype=dtype)
    matches = np.all([records[name] == tag for name, tag in tags.items()], axis=0)
    return sized[matches], records[matches]


def decode_points(messages: Sequence[bytes]) -> NDArray[np.float64]:
    """Decode serialized ``MapPoint`` messages to [N, 3] float64 metres.

    Raises:
        google.protobuf.message.DecodeError: a message is not a MapPoint.
    """
    points = np.zeros((len(messages), 3))
    usual, records = _usual(messages, _POINT_DTYPE, _POINT_TAGS)
    points[usual] = np.stack([records["x"], records["y"], records["z"]], axis=-1)
    for index in np.setdiff1d(np.arange(len(messages)), usual):
        point = map_pb2.MapPoint.FromString(messages[index])
        points[index] = point.x, point.y, point.z
    return points


def decode_states(messages: Sequence[bytes]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Decode serialized ``ObjectState`` messages.

    Returns:
        values [N, 9] float64 in the order of ``STATE_FIELDS`` (0 where unset) and valid [N] bool.

    Raises:
        google.protobuf.message.DecodeError: a message is not an ObjectState.
    """
    values = np.zeros((len(messages), len(STATE_FIELDS)))
    valid = np.zeros(len(messages), dtype=bool)
    usual, records = _usual(messages, _STATE_DTYPE, _STATE_TAGS)
    for column, name in enumerate(STATE_FIELDS):
        values[usual, column] = records[name]
    valid[usual] = records["valid"] != 0
    for index in np.setdiff1d(np.arange(len(messages)), usual):
        if messages[index] == _INVALID_STATE:
            continue
        state = scenario_pb2.ObjectState.FromString(messages[index])
        values[index] = [getattr(state, name) for name in STATE_FIELDS]
        valid[index] = state.valid
    return values, valid
