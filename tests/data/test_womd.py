"""Parsing of Scenario protos against the generated classes, attribute by attribute, and every named refusal."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from waymo_open_dataset.protos import map_pb2, scenario_pb2

from data.completeness import Remarks
from data.scene import CURRENT_INDEX, LinkKind, MapKind, Scene
from data.tfrecord import read_records
from data.wire import STATE_FIELDS, decode_points, decode_states
from data.womd import RecordError, parse_scenario
from tests.builders import scenario_proto

FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)


def assert_equals_proto(scene: Scene, proto: scenario_pb2.Scenario) -> None:
    """Compare with a slow reading of the official message."""
    assert scene.scenario_id == proto.scenario_id
    assert scene.timestamp.tolist() == list(proto.timestamps_seconds)
    agents = scene.agents
    assert agents.id.tolist() == [track.id for track in proto.tracks]
    assert agents.type.tolist() == [track.object_type for track in proto.tracks]
    for row, track in enumerate(proto.tracks):
        for name, tensor in {
            "center_x": agents.position[row, :, 0],
            "center_y": agents.position[row, :, 1],
            "center_z": agents.position[row, :, 2],
            "length": agents.size[row, :, 0],
            "width": agents.size[row, :, 1],
            "height": agents.size[row, :, 2],
            "heading": agents.heading[row],
            "velocity_x": agents.velocity[row, :, 0],
            "velocity_y": agents.velocity[row, :, 1],
        }.items():
            expected = np.array([getattr(state, name) for state in track.states]).astype(np.float32)
            assert np.array_equal(tensor.numpy(), expected), (track.id, name)
        assert agents.valid[row].tolist() == [state.valid for state in track.states]
    assert agents.is_sdc.nonzero().flatten().tolist() == [proto.sdc_track_index]
    assert set(agents.to_predict.nonzero().flatten().tolist()) == {
        required.track_index for required in proto.tracks_to_predict
    }
    assert agents.of_interest.tolist() == [track.id in proto.objects_of_interest for track in proto.tracks]
    road = scene.map
    assert road.feature_id.tolist() == [feature.id for feature in proto.map_features]
    links: list[tuple[int, LinkKind, int]] = []
    for index, feature in enumerate(proto.map_features):
        name = feature.WhichOneof("feature_data")
        data = getattr(feature, name)
        points = (
            data.polyline
            if hasattr(data, "polyline")
            else data.polygon
            if hasattr(data, "polygon")
            else [data.position]
        )
        expected = np.array([[p.x, p.y, p.z] for p in points], dtype=np.float64).astype(np.float32)
        assert np.array_equal(road.point[road.point_feature == index].numpy(), expected.reshape(-1, 3))
        assert MapKind(int(road.kind[index])).name.lower() == name
        assert int(road.subtype[index]) == getattr(data, "type", 0)
        assert float(road.speed_limit[index]) == np.float32(getattr(data, "speed_limit_mph", 0.0))
        assert bool(road.interpolating[index]) == getattr(data, "interpolating", False)
        if name == "lane":
            links += [(index, LinkKind.ENTRY, lane) for lane in data.entry_lanes]
            links += [(index, LinkKind.EXIT, lane) for lane in data.exit_lanes]
            links += [(index, LinkKind.LEFT, lane.feature_id) for lane in data.left_neighbors]
            links += [(index, LinkKind.RIGHT, lane.feature_id) for lane in data.right_neighbors]
        elif name == "stop_sign":
            links += [(index, LinkKind.STOP_CONTROLS, lane) for lane in data.lane]
    found = zip(road.link_source.tolist(), road.link_kind.tolist(), road.link_target.tolist(), strict=True)
    assert sorted(found) == sorted(links)
    lights = scene.lights
    # The state of a step lies at that step's timestamp: none is one early or late.
    for step, dynamic in enumerate(proto.dynamic_map_states):
        states = {state.lane: state for state in dynamic.lane_states}
        for row, lane in enumerate(lights.lane_id.tolist()):
            state = states.get(lane)
            stop = [0.0, 0.0, 0.0]
            if state is not None:
                stop = [state.stop_point.x, state.stop_point.y, state.stop_point.z]
            assert bool(lights.observed[row, step]) == (state is not None), (lane, step)
            assert int(lights.state[row, step]) == (0 if state is None else state.state), (lane, step)
            assert lights.stop_point[row, step].tolist() == np.array(stop, np.float32).tolist(), (lane, step)
    assert set(lights.lane_id.tolist()) == {s.lane for d in proto.dynamic_map_states for s in d.lane_states}


def test_hand_made_scenario() -> None:
    proto = scenario_proto()
    scene = parse_scenario(proto.SerializeToString())
    assert_equals_proto(scene, proto)
    assert scene.unscorable_reason is None
    links = list(zip(scene.map.link_source.tolist(), scene.map.link_kind.tolist(), scene.map.link_target.tolist()))
    assert (0, LinkKind.EXIT, 9) in links
    assert (4, LinkKind.STOP_CONTROLS, 1) in links
    assert scene.map.speed_limit[0] == 25.0


def busy_proto() -> scenario_pb2.Scenario:
    """Every field that a scene keeps, with values that differ from their neighbours' and from one another."""
    proto = scenario_proto()
    proto.objects_of_interest.append(114)
    first = proto.map_features[0].lane
    first.entry_lanes.extend((12, 13))
    first.left_neighbors.add(feature_id=10)
    first.right_neighbors.add(feature_id=11)
    first.right_neighbors.add(feature_id=14)
    lane = proto.map_features.add(id=10).lane
    lane.type, lane.speed_limit_mph, lane.interpolating = map_pb2.LaneCenter.TYPE_BIKE_LANE, 15.5, True
    lane.polyline.add(x=4000.0, y=-2496.5, z=0.7)
    lane.left_neighbors.add(feature_id=1)
    line = proto.map_features.add(id=20).road_line
    line.type = map_pb2.RoadLine.TYPE_SOLID_DOUBLE_YELLOW
    line.polyline.add(x=4000.0, y=-2498.0, z=0.7)
    edge = proto.map_features.add(id=21).road_edge
    edge.type = map_pb2.RoadEdge.TYPE_ROAD_EDGE_MEDIAN
    edge.polyline.add(x=4000.0, y=-2490.0, z=0.7)
    proto.map_features.add(id=22).speed_bump.polygon.add(x=4002.0, y=-2500.0, z=0.7)
    proto.map_features.add(id=23).driveway.polygon.add(x=4003.0, y=-2500.0, z=0.7)
    stop = proto.map_features.add(id=24).stop_sign
    stop.lane.extend((10, 1))
    stop.position.x = 4100.0
    # Two lanes' lights in another order at every second step, each state and stop point of its own.
    for step, dynamic in enumerate(proto.dynamic_map_states):
        state = dynamic.lane_states.add(lane=10, state=1 + step % 8)
        state.stop_point.x, state.stop_point.y, state.stop_point.z = 4039.0 + step, -2496.5, 0.01 * step
        if step % 2 and len(dynamic.lane_states) > 1:
            turned = [*reversed(dynamic.lane_states)]
            del dynamic.lane_states[:]
            dynamic.lane_states.extend(turned)
    return proto


def test_every_field_of_a_scenario() -> None:
    for proto in (busy_proto(), scenario_proto(with_map=False), scenario_proto(with_lights=False)):
        assert_equals_proto(parse_scenario(proto.SerializeToString()), proto)


@pytest.mark.womd
def test_real_scenarios(womd: Path) -> None:
    for split in ("training", "validation", "testing"):
        path = sorted((womd / split).iterdir())[0]
        for _, record in zip(range(3), read_records(path)):
            assert isinstance(record, bytes)
            assert_equals_proto(parse_scenario(record), scenario_pb2.Scenario.FromString(record))


@given(st.lists(st.tuples(FINITE, FINITE, FINITE, st.booleans()), max_size=6))
def test_points_of_any_layout(values: list[tuple[float, float, float, bool]]) -> None:
    messages = []
    for x, y, z, complete in values:
        point = map_pb2.MapPoint(x=x, y=y)
        if complete:
            point.z = z
        messages.append(point.SerializeToString())
    expected = [(x, y, z if complete else 0.0) for x, y, z, complete in values]
    assert decode_points(messages).tolist() == [list(point) for point in expected]


@given(st.lists(st.dictionaries(st.sampled_from(STATE_FIELDS), FINITE), max_size=6), st.booleans())
def test_states_of_any_layout(states: list[dict[str, float]], valid: bool) -> None:
    messages = [scenario_pb2.ObjectState(valid=valid, **state).SerializeToString() for state in states]
    # The same fields in reverse order are the same message.
    messages += [
        b"".join(
            scenario_pb2.ObjectState(**{name: state[name]}).SerializeToString()
            for name in reversed(STATE_FIELDS)
            if name in state
        )
        for state in states
    ]
    values, flags = decode_states(messages)
    expected = [[state.get(name, 0.0) for name in STATE_FIELDS] for state in states]
    assert values.tolist() == expected * 2
    assert flags.tolist() == [valid] * len(states) + [False] * len(states)


def _no_agent_now(proto: scenario_pb2.Scenario) -> None:
    for track in proto.tracks:
        track.states[10].valid = False


def _nan_position(proto: scenario_pb2.Scenario) -> None:
    proto.tracks[1].states[20].center_x = math.nan


def _infinite_point(proto: scenario_pb2.Scenario) -> None:
    proto.map_features[1].road_edge.polyline[3].y = math.inf


@pytest.mark.parametrize(
    ("break_it", "code", "text"),
    [
        (lambda p: p.ClearField("scenario_id"), "scenario_id", "empty"),
        (lambda p: p.timestamps_seconds.pop(), "steps", "90 steps, expected 91 or 11"),
        (lambda p: p.tracks[2].states.pop(), "steps", "track 114: 90 states, expected 91"),
        (lambda p: p.dynamic_map_states.pop(), "steps", "dynamic_map_states: 90 steps"),
        (lambda p: setattr(p, "current_time_index", 9), "current_index", "is 9, not 10"),
        (lambda p: setattr(p, "sdc_track_index", 3), "sdc", "3 of 3 tracks"),
        (lambda p: setattr(p.tracks[1], "id", 100), "duplicate_id", "100 appears more than once"),
        (lambda p: p.tracks_to_predict.add(track_index=8), "tracks_to_predict", "8 of 3 tracks"),
        (lambda p: p.ClearField("tracks"), "no_agent", "no tracks"),
        (_no_agent_now, "no_agent", "no track is valid at the current step"),
        (_nan_position, "not_finite", "of track 107"),
        (_infinite_point, "not_finite", "map_features points"),
    ],
)
def test_refusals(break_it: Callable[[scenario_pb2.Scenario], object], code: str, text: str) -> None:
    proto = scenario_proto()
    break_it(proto)
    with pytest.raises(RecordError, match=text) as caught:
        parse_scenario(proto.SerializeToString())
    assert caught.value.code == code


def test_velocities_and_sizes_that_are_not_finite_are_put_right() -> None:
    """The first track drives along x at 5 m/s and is always seen; its velocities say otherwise."""
    proto = scenario_proto(agents=1)
    states = proto.tracks[0].states
    for state in states:
        state.velocity_x, state.velocity_y = 1.0, 2.0
    states[CURRENT_INDEX].length = 7.0
    clean = parse_scenario(proto.SerializeToString())
    # In the middle, at both ends, alone among steps that are not seen, and where the difference is beyond float32.
    states[20].velocity_x = states[0].velocity_x = states[-1].velocity_y = math.nan
    states[30].ClearField("valid")
    states[32].ClearField("valid")
    states[31].velocity_x = math.inf
    states[49].center_x, states[50].velocity_x, states[51].center_x = 3e38, -math.inf, -3e38
    states[60].width = math.nan
    remarks = Remarks()
    agents = parse_scenario(proto.SerializeToString(), remarks=remarks).agents
    expected = clean.agents.velocity[0].clone()
    expected[[0, 20, -1]] = torch.tensor([5.0, 0.0])
    expected[[31, 50]] = 0.0
    torch.testing.assert_close(agents.velocity[0], expected, atol=0.01, rtol=0)
    assert agents.size[0, 60].tolist() == agents.size[0, CURRENT_INDEX].tolist()
    assert agents.size[0, 59].tolist() == clean.agents.size[0, 59].tolist()
    counts = {kind: row["count"] for kind, row in remarks.found.items()}
    assert counts == {"size": 1, "velocity": 1, "rounding": 1}


def test_nothing_is_said_of_what_is_finite() -> None:
    proto, remarks = scenario_proto(agents=2), Remarks()
    proto.tracks[1].states[20].width = math.nan
    parse_scenario(proto.SerializeToString(), remarks=remarks)
    assert list(remarks.found) == ["size"]
    parse_scenario(scenario_proto().SerializeToString(), remarks=(nothing := Remarks()))
    assert not nothing.found


def test_future_is_demanded_only_where_needed() -> None:
    record = scenario_proto(steps=11).SerializeToString()
    assert parse_scenario(record).num_steps == 11
    with pytest.raises(RecordError, match="11 steps, but a future of 91 is needed"):
        parse_scenario(record, need_future=True)


@settings(max_examples=200)
@given(st.binary(max_size=300))
def test_random_bytes_never_crash(data: bytes) -> None:
    with pytest.raises(RecordError):
        parse_scenario(data)


@settings(max_examples=100)
@given(st.data())
def test_damaged_records_are_parsed_or_refused(data: st.DataObject) -> None:
    record = bytearray(scenario_proto(agents=2).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        record[data.draw(st.integers(0, len(record) - 1))] = data.draw(st.integers(0, 255))
    # Whatever is not refused with a RecordError is a usable scene.
    with contextlib.suppress(RecordError):
        assert parse_scenario(bytes(record)).simulated.any()


@pytest.mark.parametrize(
    ("step", "told"), [(0.1, []), (0.09, []), (0.5, ["step"]), (1e5, ["step"]), (-0.1, ["step"])]
)
def test_timestamps_of_another_rate_are_told(step: float, told: list[str]) -> None:
    proto = scenario_proto(agents=1)
    proto.timestamps_seconds[:] = [step * index for index in range(91)]
    remarks = Remarks()
    parse_scenario(proto.SerializeToString(), remarks=remarks)
    assert list(remarks.found) == told
    assert all("timestamps that are not 0.1 s apart" in line for line in remarks.lines("x"))


def test_headings_in_degrees_are_told() -> None:
    proto = scenario_proto(agents=1)
    for state in proto.tracks[0].states:
        state.heading = math.degrees(2.0)
    remarks = Remarks()
    parse_scenario(proto.SerializeToString(), remarks=remarks)
    (line,) = remarks.lines("x")
    assert line.startswith("x: 1 scenarios have headings of up to 114.6, so perhaps in degrees")
