"""Waymo Open Motion Dataset records to ``Scene`` (scenario.proto and map.proto of the 1.6.7 wheel)."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from google.protobuf.message import DecodeError
from torch import Tensor

from data.assembly import RecordError, Say, assemble_agents, assemble_map, check_id, check_scene, repair_states
from data.completeness import Remarks
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

HISTORY_STEPS = CURRENT_INDEX + 1

_KINDS = {
    "lane": MapKind.LANE,
    "road_line": MapKind.ROAD_LINE,
    "road_edge": MapKind.ROAD_EDGE,
    "stop_sign": MapKind.STOP_SIGN,
    "crosswalk": MapKind.CROSSWALK,
    "speed_bump": MapKind.SPEED_BUMP,
    "driveway": MapKind.DRIVEWAY,
}
# Seconds by which a recorded step may differ; those of WOMD differ by .011 at most.
_STEP_TOLERANCE = 0.05
_POLYLINES = frozenset({"lane", "road_line", "road_edge"})


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
        check_id(proto.scenario_id)
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
    check_scene(scene, say)
    if remarks is not None:
        remarks.merge(own_remarks.found)
    return scene


def _timestamps(proto: Any, say: Say) -> Tensor:
    timestamp = torch.tensor(list(proto.timestamps_seconds), dtype=torch.float64)
    if bool(torch.isfinite(timestamp).all()):
        if bool(((timestamp.diff() - STEP_SECONDS).abs() > _STEP_TOLERANCE).any()):
            say("step")
        return timestamp
    say("timestamp")
    return STEP_SECONDS * torch.arange(len(timestamp), dtype=torch.float64)


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
        repair_states(values32, valid, ids, say)
    for required in proto.tracks_to_predict:
        if not 0 <= required.track_index < count:
            raise RecordError("tracks_to_predict", f"track_index {required.track_index} of {count} tracks")
    interest = set(proto.objects_of_interest)
    return assemble_agents(
        ids=ids,
        types=[track.object_type for track in tracks],
        states=values32,
        valid=valid,
        sdc=proto.sdc_track_index,
        to_predict=[required.track_index for required in proto.tracks_to_predict],
        of_interest=[row for row, value in enumerate(ids) if value in interest],
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
    return assemble_map(
        point=decode_points(messages).astype(np.float32),
        owner=np.array(point_feature, dtype=np.int64),
        ids=ids,
        kinds=kinds,
        subtypes=subtypes,
        limits=limits,
        interpolating=interpolating,
        links=links,
        say=say,
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
