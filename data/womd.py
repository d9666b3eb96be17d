"""Waymo Open Motion Dataset records to ``Scene`` (scenario.proto and map.proto of the 1.6.7 wheel)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from torch import Tensor

from data.completeness import Remarks, rounding_error
from data.scene import (
    CURRENT_INDEX,
    NUM_STEPS,
    STEP_SECONDS,
    Agents,
    Lights,
    LinkKind,
    MapKind,
    RoadMap,
    Scene,
)
from data.tfrecord import HEAD, other_kind
from data.wire import decode_points, decode_states, scenario_class

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
# Adds a remark of some kind about the scenario.
Say = Callable[..., None]

HISTORY_STEPS = CURRENT_INDEX + 1
# Columns of STATE_FIELDS.
_POSE, _SIZE, _VELOCITY = [0, 1, 2, 6], slice(3, 6), slice(7, 9)
# Above this rounding of coordinates (metres) even the replayed log loses realism.
_COARSE = 0.01
# Ids of WOMD have 16 characters.
_LONGEST_ID = 128

_KINDS = {
    "lane": MapKind.LANE,
    "road_line": MapKind.ROAD_LINE,
    "road_edge": MapKind.ROAD_EDGE,
    "stop_sign": MapKind.STOP_SIGN,
    "crosswalk": MapKind.CROSSWALK,
    "speed_bump": MapKind.SPEED_BUMP,
    "driveway": MapKind.DRIVEWAY,
}
_POLYLINES = frozenset({"lane", "road_line", "road_edge"})


class RecordError(ValueError):
    """A record that cannot be converted to a Scene; ``code`` is short and stable, the message is one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


# Values that are not finite in float32 are handled below; numpy's warnings are not needed.
@np.errstate(over="ignore", invalid="ignore")
def parse_scenario(record: bytes, need_future: bool = False, remarks: Remarks | None = None) -> Scene:
    """Parse one serialized ``Scenario``.

    NaN, infinity and values beyond float32 become 0 in states that are not valid. Where Waymo's metric does not
    read them, they are repaired and a remark is added. Values that it reads must be finite.

    Args:
        record: the bytes of a TFRecord.
        need_future: refuse records of 11 steps.
        remarks: receives remarks about repairs, and about coordinates that float32 rounds by more than a
            centimetre.

    Raises:
        RecordError: not parsable, of another kind, inconsistent, not finite, or without a valid agent at the
        current
            step.
    """
    own_remarks = Remarks()
    try:
        proto = scenario_class().FromString(record)
        _check_id(proto.scenario_id)
        _check_header(proto, need_future)
        say = partial(own_remarks.add, scenario_id=proto.scenario_id)
        agents = _parse_agents(proto, say)
        lights = _parse_lights(proto, say)
        road = _parse_map(proto.map_features, say)
        if road.lanes_are_points and proto.dynamic_map_states and not len(lights.lane_id):
            lights = _no_light(len(proto.timestamps_seconds))
    except (DecodeError, RecordError) as error:
        if (kind := other_kind(record[:HEAD], "a Scenario proto")) is not None:
            raise RecordError("kind", kind) from error
        if isinstance(error, RecordError):
            raise
        raise RecordError("proto", f"not a Scenario proto: {str(error).splitlines()[0]}") from error
    scene = Scene(
        scenario_id=proto.scenario_id,
        timestamp=_timestamps(proto, say),
        agents=agents,
        map=road,
        lights=lights,
    )
    if not bool(scene.simulated.any()):
        raise RecordError("no_agent", f"no track is valid at the current step {CURRENT_INDEX}")
    most = max(_largest(agents.position[agents.valid]), _largest(road.point), _largest(lights.stop_point))
    if rounding_error(most) > _COARSE:
        say("rounding", most=most)
    if remarks is not None:
        remarks.merge(own_remarks.found)
    return scene


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _timestamps(proto: Any, say: Say) -> Tensor:
    timestamp = torch.tensor(list(proto.timestamps_seconds), dtype=torch.float64)
    if bool(torch.isfinite(timestamp).all()):
        return timestamp
    say("timestamp")
    return STEP_SECONDS * torch.arange(len(timestamp), dtype=torch.float64)


def _check_id(name: str | bytes) -> None:
    if not name:
        raise RecordError("scenario_id", "scenario_id is empty")
    # The parser returns bytes where a string is not UTF-8. Ids are used in messages, tables and lists of files.
    if not isinstance(name, str) or not name.isprintable() or len(name) > _LONGEST_ID:
        raise RecordError("scenario_id", f"scenario_id is not a text of up to {_LONGEST_ID} printable characters")


def _check_header(proto: Any, need_future: bool) -> None:
    steps = len(proto.timestamps_seconds)
    if steps not in (HISTORY_STEPS, NUM_STEPS):
        raise RecordError("steps", f"timestamps_seconds: {steps} steps, expected {NUM_STEPS} or {HISTORY_STEPS}")
    if need_future and steps != NUM_STEPS:
        raise RecordError("no_future", f"timestamps_seconds: {steps} steps, but a future of {NUM_STEPS} is needed")
    if proto.current_time_index != CURRENT_INDEX:
        raise RecordError("current_index", f"current_time_index is {proto.current_time_index}, not {CURRENT_INDEX}")
    if not proto.tracks:
        raise RecordError("no_agent", "no tracks")
    if len(proto.dynamic_map_states) not in (0, steps):
        raise RecordError("steps", f"dynamic_map_states: {len(proto.dynamic_map_states)} steps, expected {steps}")
    if not 0 <= proto.sdc_track_index < len(proto.tracks):
        raise RecordError("sdc", f"sdc_track_index {proto.sdc_track_index} of {len(proto.tracks)} tracks")


def _repair_states(states: Floats, valid: Bools, ids: Sequence[int], say: Say) -> None:
    """Repair, in place, values that are not finite in states [A, T, 9] (``STATE_FIELDS``) with valid [A, T].

    Raises:
        RecordError: Waymo's metric reads the value: a pose of a simulated agent, or its size at the current step.
    """
    # An invalid state without a pose becomes zero, as in WOMD. An invalid state with a pose keeps it, because
    # Waymo's metric computes the speeds of neighbouring steps from it.
    states[~valid & ~np.isfinite(states[..., _POSE]).all(-1)] = 0.0
    states[~valid[..., None] & ~np.isfinite(states)] = 0.0
    bad = ~np.isfinite(states)  # [A, T, 9]
    simulated = valid[:, CURRENT_INDEX]
    where, size, velocity = bad[..., _POSE].any(-1), bad[..., _SIZE].any(-1), bad[..., _VELOCITY].any(-1)
    for name, needed in (
        ("center or heading", where & simulated[:, None]),
        ("size at the current step", size[:, CURRENT_INDEX, None] & simulated[:, None]),
    ):
        if needed.any():
            track = ids[int(needed.any(1).argmax())]
            raise RecordError(
                "not_finite", f"tracks.states: {name} of track {track} is NaN, infinite or beyond float32"
            )
    if where.any():
        say("state")
        states[where], valid[where] = 0.0, False
    size, velocity = size & valid, velocity & valid
    for row, step in np.argwhere(size):
        states[row, step, _SIZE] = states[row, CURRENT_INDEX, _SIZE]
    for row, step in np.argwhere(velocity):
        near = [at for at in (step - 1, step, step + 1) if 0 <= at < valid.shape[1] and valid[row, at]]
        moved = states[row, near[-1], :2] - states[row, near[0], :2]
        rate = moved / (STEP_SECONDS * max(1, near[-1] - near[0]))
        states[row, step, _VELOCITY] = np.where(np.isfinite(rate), rate, 0.0)
    for kind, repaired in (("size", size), ("velocity", velocity)):
        if repaired.any():
            say(kind)


def _parse_agents(proto: Any, say: Say) -> Agents:
    tracks, steps = proto.tracks, len(proto.timestamps_seconds)
    count = len(tracks)
    ids = [track.id for track in tracks]
    if len(set(ids)) != count:
        repeated = next(value for value in ids if ids.count(value) > 1)
        raise RecordError("duplicate_id", f"tracks.id {repeated} appears more than once")
    if min(ids) < 0:
        raise RecordError("track_id", f"tracks.id {min(ids)} is negative")
    for track in tracks:
        if len(track.states) != steps:
            raise RecordError("steps", f"track {track.id}: {len(track.states)} states, expected {steps}")
    values, valid = decode_states([state for track in tracks for state in track.states])
    valid = valid.reshape(count, steps)
    values32 = values.astype(np.float32).reshape(count, steps, -1)
    if not np.isfinite(values32).all():
        _repair_states(values32, valid, ids, say)
    position = torch.from_numpy(np.ascontiguousarray(values32[..., 0:3]))
    to_predict = torch.zeros(count, dtype=torch.bool)
    for required in proto.tracks_to_predict:
        if not 0 <= required.track_index < count:
            raise RecordError("tracks_to_predict", f"track_index {required.track_index} of {count} tracks")
        to_predict[required.track_index] = True
    interest = set(proto.objects_of_interest)
    is_sdc = torch.zeros(count, dtype=torch.bool)
    is_sdc[proto.sdc_track_index] = True
    return Agents(
        id=torch.tensor(ids),
        type=torch.tensor([track.object_type for track in tracks]),
        position=position,
        heading=torch.from_numpy(np.ascontiguousarray(values32[..., 6])),
        velocity=torch.from_numpy(np.ascontiguousarray(values32[..., 7:9])),
        size=torch.from_numpy(np.ascontiguousarray(values32[..., 3:6])),
        valid=torch.from_numpy(valid),
        is_sdc=is_sdc,
        to_predict=to_predict,
        of_interest=torch.tensor([value in interest for value in ids]),
    )


def _parse_map(features: Any, say: Say) -> RoadMap:
    messages: list[bytes] = []
    point_feature: list[int] = []
    ids: list[int] = []
    kinds: list[int] = []
    subtypes: list[int] = []
    limits: list[float] = []
    interpolating: list[bool] = []
    links: list[tuple[int, int, int]] = []
    for feature in features:
        name = feature.WhichOneof("feature_data")
        if name is None:
            # A feature type that is newer than the schema is skipped.
            continue
        data = getattr(feature, name)
        index = len(ids)
        if name in _POLYLINES:
            points = list(data.polyline)
        elif name == "stop_sign":
            points = [data.position]
            links.extend((index, LinkKind.STOP_CONTROLS, lane) for lane in data.lane)
        else:
            points = list(data.polygon)
        if name == "lane":
            links.extend((index, LinkKind.ENTRY, lane) for lane in data.entry_lanes)
            links.extend((index, LinkKind.EXIT, lane) for lane in data.exit_lanes)
            links.extend((index, LinkKind.LEFT, lane.feature_id) for lane in data.left_neighbors)
            links.extend((index, LinkKind.RIGHT, lane.feature_id) for lane in data.right_neighbors)
        messages.extend(points)
        point_feature.extend([index] * len(points))
        ids.append(feature.id)
        kinds.append(int(_KINDS[name]))
        subtypes.append(data.type if name in _POLYLINES else 0)
        limits.append(data.speed_limit_mph if name == "lane" else 0.0)
        interpolating.append(data.interpolating if name == "lane" else False)
    columns: list[Sequence[int]] = list(zip(*links)) or [(), (), ()]
    point = decode_points(messages).astype(np.float32)
    owner = np.array(point_feature, dtype=np.int64)
    good = np.isfinite(point).all(1)
    if not good.all():
        edges = [index for index in np.unique(owner[~good]) if kinds[index] == MapKind.ROAD_EDGE]
        if edges:
            name = f"map_features points of road_edge {ids[edges[0]]}"
            raise RecordError("not_finite", f"{name} are NaN, infinite or beyond float32")
        say("map_point")
        point, owner = point[good], owner[good]
    if not all(math.isfinite(limit) and limit >= 0.0 for limit in limits):
        say("speed_limit")
        limits = [limit if math.isfinite(limit) and limit >= 0.0 else 0.0 for limit in limits]
    return RoadMap(
        point=torch.from_numpy(point),
        point_feature=torch.from_numpy(owner),
        feature_id=torch.tensor(ids, dtype=torch.int64),
        kind=torch.tensor(kinds, dtype=torch.int64),
        subtype=torch.tensor(subtypes, dtype=torch.int64),
        speed_limit=torch.tensor(limits, dtype=torch.float32),
        interpolating=torch.tensor(interpolating, dtype=torch.bool),
        link_source=torch.tensor(columns[0], dtype=torch.int64),
        link_kind=torch.tensor(columns[1], dtype=torch.int64),
        link_target=torch.tensor(columns[2], dtype=torch.int64),
    )


def _no_light(steps: int) -> Lights:
    """One light of no lane, as Waymo's metric makes of empty lists of states: it refuses some maps for it."""
    return Lights(
        lane_id=torch.tensor([-1]),
        state=torch.zeros(1, steps, dtype=torch.int64),
        stop_point=torch.zeros(1, steps, 3),
        observed=torch.zeros(1, steps, dtype=torch.bool),
    )


def _parse_lights(proto: Any, say: Say) -> Lights:
    steps = len(proto.timestamps_seconds)
    rows: dict[int, int] = {}
    entries: list[tuple[int, int, int]] = []
    stop_points: list[bytes] = []
    for step, dynamic in enumerate(proto.dynamic_map_states):
        for lane_state in dynamic.lane_states:
            row = rows.setdefault(lane_state.lane, len(rows))
            entries.append((row, step, lane_state.state))
            stop_points.append(lane_state.stop_point)
    state = torch.zeros(len(rows), steps, dtype=torch.int64)
    stop_point = torch.zeros(len(rows), steps, 3)
    observed = torch.zeros(len(rows), steps, dtype=torch.bool)
    if entries:
        points: Tensor = torch.from_numpy(decode_points(stop_points).astype(np.float32))
        known = torch.isfinite(points).all(1).tolist()
        if not all(known):
            say("stop_point")
        for (row, step, value), point, there in zip(entries, points, known, strict=True):
            if not there:
                continue
            state[row, step] = value
            stop_point[row, step] = point
            observed[row, step] = True
    return Lights(torch.tensor(list(rows), dtype=torch.int64), state, stop_point, observed)
