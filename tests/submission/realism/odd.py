"""Scenarios with something odd, and rollouts of them: what Waymo's code says of each is stored in odd.json."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from tests.builders import scenario_proto

__all__ = [
    "CLEARED",
    "COARSE",
    "MENDED",
    "ODD",
    "REFUSED_RECORDS",
    "UNSCORABLE",
    "odd_scenario",
    "straight_rollouts",
]

# A ``scenario_pb2.Scenario``.
Proto = Any
Change = Callable[[Proto], None]


def straight_rollouts(proto: Proto) -> Any:
    """Two joint scenes of all agents that are valid now, on straight lines along +x, a little apart."""
    message = pb.ScenarioRollouts(scenario_id=proto.scenario_id)
    for speed in (5.0, 5.5):
        joint = message.joint_scenes.add()
        for track in proto.tracks:
            now = track.states[10]
            if now.valid:
                joint.simulated_trajectories.add(
                    object_id=track.id,
                    center_x=[now.center_x + speed * 0.1 * step for step in range(1, 81)],
                    center_y=[now.center_y] * 80,
                    center_z=[now.center_z] * 80,
                    heading=[now.heading] * 80,
                )
    return message


def _only_now(proto: Proto) -> None:
    for track in proto.tracks:
        for step, state in enumerate(track.states):
            state.valid = step == 10


def _until(last: int) -> Change:
    def change(proto: Proto) -> None:
        for track in proto.tracks:
            for state in track.states[last + 1 :]:
                state.Clear()

    return change


def _absent_now(row: int) -> Change:
    return lambda proto: proto.tracks[row].states[10].Clear()


def _pedestrian_av(proto: Proto) -> None:
    proto.sdc_track_index = 2
    del proto.tracks_to_predict[:]


def _lanes_of_a_point(proto: Proto) -> None:
    del proto.map_features[0].lane.polyline[1:]


def _lanes_of_a_point_without_lights(proto: Proto) -> None:
    _lanes_of_a_point(proto)
    del proto.dynamic_map_states[:]


def _lanes_of_a_point_with_empty_lights(proto: Proto) -> None:
    _lanes_of_a_point(proto)
    for dynamic in proto.dynamic_map_states:
        dynamic.ClearField("lane_states")


def _edges_of_a_point(proto: Proto) -> None:
    for feature in proto.map_features[1:3]:
        del feature.road_edge.polyline[1:]


def _no_lane(proto: Proto) -> None:
    del proto.map_features[0]


def _set(name: str, value: float, row: int, *steps: int, valid: bool = True) -> Change:
    def change(proto: Proto) -> None:
        for step in steps:
            state = proto.tracks[row].states[step]
            setattr(state, name, value)
            state.valid = valid

    return change


def _absent_agent(proto: Proto) -> None:
    _absent_now(2)(proto)
    _set("center_x", math.nan, 2, 40)(proto)


def _stop_points(steps: range) -> Change:
    def change(proto: Proto) -> None:
        for step in steps:
            proto.dynamic_map_states[step].lane_states[0].stop_point.x = math.nan

    return change


def _crosswalk(proto: Proto) -> None:
    proto.map_features[3].crosswalk.polygon[1].y = math.inf


def _stop_sign(proto: Proto) -> None:
    proto.map_features[4].stop_sign.position.x = math.nan


def _freeway(proto: Proto) -> None:
    lane = proto.map_features.add(id=60).lane
    lane.type = 1
    for x in (4000.0, math.nan, 4010.0):
        lane.polyline.add(x=x, y=-2499.0)


def _limit(value: float) -> Change:
    def change(proto: Proto) -> None:
        proto.map_features[0].lane.speed_limit_mph = value

    return change


def _clock(proto: Proto) -> None:
    proto.timestamps_seconds[50] = math.nan


def _lane_point(proto: Proto) -> None:
    proto.map_features[0].lane.polyline[3].y = math.inf


def _edge_point(proto: Proto) -> None:
    proto.map_features[1].road_edge.polyline[30].x = math.nan


def _moved(metres: float) -> Change:
    def change(proto: Proto) -> None:
        for track in proto.tracks:
            for state in track.states:
                state.center_x += metres
        for feature in proto.map_features:
            data = getattr(feature, feature.WhichOneof("feature_data"))
            for point in getattr(data, "polyline", []):
                point.x += metres

    return change


# Waymo's code refuses them, or gives NaN: what is said of them here.
UNSCORABLE: dict[str, tuple[Change, str]] = {
    "only now": (_only_now, "no evaluated agent is recorded after the current step: likelihoods are 0/0"),
    "two steps": (_until(12), "no evaluated agent is recorded long enough after the current step: linear_speed"),
    "AV absent": (_absent_now(0), "the AV (track 100) is not valid at the current step"),
    "target absent": (_absent_now(1), "an agent to predict (track 107) is not valid at the current step"),
    "no vehicle": (_pedestrian_av, "no evaluated vehicle is recorded after the current step: time_to_collision"),
    "lanes of a point": (_lanes_of_a_point, "lights, but no surface-street lane of two points"),
    "empty lights": (
        _lanes_of_a_point_with_empty_lights,
        "lights, but no surface-street lane of two points",
    ),
    "edges of a point": (_edges_of_a_point, "no road edge"),
    "no map": (lambda proto: proto.ClearField("map_features"), "no road edge"),
}
# It scores these, since it does not read what is odd, or passes over it; the kind of remark that is made, if any.
MENDED: dict[str, tuple[Change, str | None]] = {
    "six steps": (_until(16), None),
    "no lane": (_no_lane, None),
    "points without lights": (_lanes_of_a_point_without_lights, None),
    "other absent": (_absent_now(2), None),
    "invalid size": (_set("length", math.nan, 0, 2, 60, valid=False), None),
    "invalid velocity": (_set("velocity_y", math.inf, 0, 2, 60, valid=False), None),
    "velocity": (_set("velocity_x", math.nan, 0, 0, 10, 90), "velocity"),
    "velocity beyond": (_set("velocity_x", math.inf, 2, 30), "velocity"),
    "size later": (_set("width", math.nan, 0, 5, 50), "size"),
    "absent agent": (_absent_agent, "state"),
    "stop points": (_stop_points(range(2, 91)), "stop_point"),
    "some stop points": (_stop_points(range(20, 30)), "stop_point"),
    "crosswalk": (_crosswalk, "map_point"),
    "stop sign": (_stop_sign, "map_point"),
    "freeway": (_freeway, "map_point"),
    "lane point": (_lane_point, "map_point"),
    "limit": (_limit(math.nan), "speed_limit"),
    "negative limit": (_limit(-1.0), "speed_limit"),
    "clock": (_clock, "timestamp"),
}
# States that are not valid and lie nowhere: they count as cleared ones, as WOMD has them. By Waymo's code their NaN
# spreads to the times to collision of neighbouring steps.
CLEARED: dict[str, Change] = {
    "invalid x": _set("center_x", math.nan, 0, 0, 3, 60, valid=False),
    "invalid heading": _set("heading", -math.inf, 0, 60, valid=False),
}
# Scored as Waymo's code does it, in float32.
COARSE: dict[str, Change] = {"500 km": _moved(5e5), "5000 km": _moved(5e6)}
# It reads what is not finite: the record is refused, whatever its figures are.
REFUSED_RECORDS: dict[str, tuple[Change, str]] = {
    "x": (_set("center_x", math.nan, 0, 40), "center or heading of track 100 is NaN, infinite or beyond float32"),
    "x beyond float32": (_set("center_x", 1e300, 0, 40), "center or heading of track 100"),
    "z": (_set("center_z", math.inf, 2, 0), "center or heading of track 114"),
    "heading": (_set("heading", math.nan, 1, 40), "center or heading of track 107"),
    "size now": (_set("length", math.nan, 1, 10), "size at the current step of track 107"),
    "edge point": (_edge_point, "map_features points of road_edge 2 are NaN, infinite or beyond float32"),
}
ODD: dict[str, Change] = {
    **{name: change for name, (change, _) in {**UNSCORABLE, **MENDED, **REFUSED_RECORDS}.items()},
    **CLEARED,
    **COARSE,
}


def odd_scenario(name: str) -> tuple[Proto, Any]:
    """A scenario and rollouts of it, which are those of the scenario as it was before."""
    proto = scenario_proto(name)
    ODD[name](proto)
    clean = scenario_proto(name)
    if name in COARSE:
        COARSE[name](clean)
    for before, after in zip(clean.tracks, proto.tracks, strict=True):
        before.states[10].valid = after.states[10].valid
    return proto, straight_rollouts(clean)
