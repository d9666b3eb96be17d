"""Hand-made scenarios in other formats: protos rewritten as ScenarioNet's and GPUDrive's converters do."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
from waymo_open_dataset.protos import scenario_pb2

from data.scene import AgentType, LightState

__all__ = ["gpudrive_text", "nuscenes_record", "scenarionet_record", "to_pickle"]

_SIZES = ("length", "width", "height")


def _points(messages: Any) -> np.ndarray[Any, Any]:
    return np.array([(point.x, point.y, point.z) for point in messages], dtype=np.float32)


def _feature(feature: Any) -> dict[str, Any]:
    name = feature.WhichOneof("feature_data")
    data = getattr(feature, name)
    if name == "lane":
        return {
            "type": "LANE_SURFACE_STREET",
            "polyline": _points(data.polyline),
            "speed_limit_mph": data.speed_limit_mph,
            "interpolating": data.interpolating,
            "entry_lanes": list(data.entry_lanes),
            "exit_lanes": list(data.exit_lanes),
            "left_neighbor": [{"feature_id": str(lane.feature_id)} for lane in data.left_neighbors],
            "right_neighbor": [{"feature_id": str(lane.feature_id)} for lane in data.right_neighbors],
        }
    if name == "road_edge":
        return {"type": "ROAD_EDGE_BOUNDARY", "polyline": _points(data.polyline)}
    if name == "stop_sign":
        return {"type": "STOP_SIGN", "lane": list(data.lane), "position": _points([data.position])[0]}
    return {"type": name.upper(), "polygon": _points(data.polygon)}


def _state(states: Any) -> dict[str, Any]:
    return {
        "position": np.array([(s.center_x, s.center_y, s.center_z) for s in states], dtype=np.float32),
        "heading": np.array([s.heading for s in states], dtype=np.float32),
        "velocity": np.array([(s.velocity_x, s.velocity_y) for s in states], dtype=np.float32),
        "valid": np.array([s.valid for s in states]),
        **{name: np.array([getattr(s, name) for s in states], dtype=np.float32) for name in _SIZES},
    }


def scenarionet_record(scenario: scenario_pb2.Scenario) -> dict[str, Any]:
    """The dict that ScenarioNet's converter of WOMD pickles."""
    steps = len(scenario.timestamps_seconds)
    lights: dict[str, dict[str, Any]] = {}
    for step, dynamic in enumerate(scenario.dynamic_map_states):
        for state in dynamic.lane_states:
            light = lights.setdefault(
                str(state.lane), {"lane": state.lane, "state": {"object_state": [None] * steps}}
            )
            light["state"]["object_state"][step] = f"LANE_STATE_{LightState(state.state).name}"
            light["stop_point"] = _points([state.stop_point])[0]
    tracks = scenario.tracks
    return {
        "id": scenario.scenario_id,
        "version": "test",
        "length": steps,
        "tracks": {str(t.id): {"type": AgentType(t.object_type).name, "state": _state(t.states)} for t in tracks},
        "map_features": {str(feature.id): _feature(feature) for feature in scenario.map_features},
        "dynamic_map_states": lights,
        "metadata": {
            "dataset": "waymo",
            "scenario_id": scenario.scenario_id,
            "ts": np.array(list(scenario.timestamps_seconds)),
            "sdc_id": str(tracks[scenario.sdc_track_index].id),
            "current_time_index": scenario.current_time_index,
            "tracks_to_predict": {str(tracks[one.track_index].id): {} for one in scenario.tracks_to_predict},
            "objects_of_interest": [str(number) for number in scenario.objects_of_interest],
        },
    }


def _track(kind: str, start: tuple[float, float], speed: float, steps: int, period: float) -> dict[str, Any]:
    time = period * np.arange(steps)
    return {
        "type": kind,
        "state": {
            "position": np.stack([start[0] + speed * time, np.full(steps, start[1]), np.zeros(steps)], axis=-1),
            "heading": np.zeros(steps),
            "velocity": np.stack([np.full(steps, speed), np.zeros(steps)], axis=-1),
            "valid": np.ones(steps),
            **{name: np.full((steps, 1), size) for name, size in zip(_SIZES, (4.0, 2.0, 1.5))},
        },
    }


def nuscenes_record(steps: int = 191, period: float = 0.1) -> dict[str, Any]:
    """A dict as ScenarioNet's converter of nuScenes makes: a street of 8 m width, an AV, two others and a cone."""
    tracks = {
        "ego": _track("VEHICLE", (0.0, -2.0), 5.0, steps, period),
        "a" * 32: _track("VEHICLE", (20.0, -2.0), 6.0, steps, period),
        "b" * 32: _track("PEDESTRIAN", (10.0, 6.0), 0.0, steps, period),
        "c" * 32: _track("TRAFFIC_CONE", (30.0, 3.0), 0.0, steps, period),
    }
    ego = tracks["ego"]["state"]
    ego["length"], ego["width"] = ego["width"], ego["length"]
    along = np.arange(-50.0, 201.0)
    # Clockwise, as unions of polygons come, and an island in the middle.
    street = np.array([(-50, -4), (-50, 4), (200, 4), (200, -4), (-50, -4)], dtype=float)
    island = np.array([(140, -1), (140, 1), (150, 1), (150, -1), (140, -1)], dtype=float)
    return {
        "id": "scene-0001",
        "version": "nuscenesv1.0-mini",
        "length": steps,
        "tracks": tracks,
        "map_features": {
            "boundary_0": {"type": "ROAD_LINE_SOLID_SINGLE_WHITE", "polyline": street},
            "boundary_1": {"type": "ROAD_LINE_SOLID_SINGLE_WHITE", "polyline": island},
            "d" * 36: {
                "type": "LANE_SURFACE_STREET",
                "polyline": np.stack([along, np.full(len(along), -2.0), np.full(len(along), 0.3)], axis=-1),
                "speed_limit_kmh": 100,
            },
            "e" * 36: {"type": "ROAD_LINE_BROKEN_SINGLE_WHITE", "polyline": [[-50.0, 0.0], [200.0, 0.0]]},
        },
        "dynamic_map_states": {},
        "metadata": {
            "dataset": "nuscenes",
            "scenario_id": "scene-0001",
            "sdc_id": "ego",
            "ts": period * np.arange(steps),
        },
    }


def to_pickle(record: Any, protocol: int = 4) -> bytes:
    return pickle.dumps(record, protocol)


def gpudrive_text(scenario: scenario_pb2.Scenario) -> bytes:
    """The JSON text that GPUDrive's converter writes."""

    def xyz(point: Any) -> dict[str, float]:
        return {"x": point.x, "y": point.y, "z": point.z}

    roads = []
    for feature in scenario.map_features:
        name = feature.WhichOneof("feature_data")
        data = getattr(feature, name)
        points = [data.position] if name == "stop_sign" else getattr(data, "polyline", None) or data.polygon
        number = {"lane": 2, "road_edge": 15, "stop_sign": 17, "crosswalk": 18}[name]
        roads.append({"geometry": list(map(xyz, points)), "id": feature.id, "map_element_id": number, "type": name})
    lights: dict[str, dict[str, list[Any]]] = {}
    for step, dynamic in enumerate(scenario.dynamic_map_states):
        for state in dynamic.lane_states:
            light = lights.setdefault(str(state.lane), {key: [] for key in ("state", "x", "y", "z", "time_index")})
            light["state"].append(LightState(state.state).name.lower())
            light["time_index"].append(step)
            for axis, value in xyz(state.stop_point).items():
                light[axis].append(value)
    objects = [
        {
            "id": track.id,
            "type": AgentType(track.object_type).name.lower(),
            **{name: next(getattr(s, name) for s in track.states if s.valid) for name in _SIZES},
            "position": [
                {"x": s.center_x, "y": s.center_y, "z": s.center_z} if s.valid else dict.fromkeys("xyz", -10000.0)
                for s in track.states
            ],
            "heading": [s.heading if s.valid else -10000.0 for s in track.states],
            "velocity": [{"x": s.velocity_x, "y": s.velocity_y} for s in track.states],
            "valid": [s.valid for s in track.states],
        }
        for track in scenario.tracks
    ]
    record = {
        "name": f"{scenario.scenario_id}.json",
        "scenario_id": scenario.scenario_id,
        "objects": objects,
        "roads": roads,
        "tl_states": lights,
        "metadata": {
            "sdc_track_index": scenario.sdc_track_index,
            "objects_of_interest": list(scenario.objects_of_interest),
            "tracks_to_predict": [{"track_index": one.track_index} for one in scenario.tracks_to_predict],
        },
    }
    return json.dumps(record).encode()
