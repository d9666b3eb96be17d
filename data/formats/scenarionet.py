"""ScenarioNet's and MetaDrive's format: one recording in a pickle of dicts and arrays.

Its converters write it from WOMD, nuScenes, nuPlan, Argoverse 2, Lyft and others. They leave out or make up some
things: nuScenes and nuPlan have the outline of the drivable area as lines ``boundary_N``; the third column of
nuScenes' lanes is a heading, its speed limits and those of Argoverse 2 are constants, and its AV's box lies across.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.assembly import RecordError
from data.formats.map_parts import MapParts, numbered
from data.formats.pickles import load_plain, number_array
from data.formats.reader import Format
from data.formats.recording import Recording, read_file
from data.scene import STEP_SECONDS, AgentType, Lights, LightState, LinkKind, MapKind, RoadMap

Doubles = NDArray[np.float64]

_AGENTS = {kind.name: kind for kind in AgentType}
_LANES = {
    "LANE_UNKNOWN": 0,
    "LANE_FREEWAY": 1,
    "LANE_SURFACE_STREET": 2,
    # Junctions and places without lanes, which WOMD counts among its surface streets.
    "LANE_SURFACE_UNSTRUCTURE": 2,
    "LANE_BIKE_LANE": 3,
}
_LINES = (
    "UNKNOWN_LINE",
    "ROAD_LINE_BROKEN_SINGLE_WHITE",
    "ROAD_LINE_SOLID_SINGLE_WHITE",
    "ROAD_LINE_SOLID_DOUBLE_WHITE",
    "ROAD_LINE_BROKEN_SINGLE_YELLOW",
    "ROAD_LINE_BROKEN_DOUBLE_YELLOW",
    "ROAD_LINE_SOLID_SINGLE_YELLOW",
    "ROAD_LINE_SOLID_DOUBLE_YELLOW",
    "ROAD_LINE_PASSING_DOUBLE_YELLOW",
)
_EDGES = {"UNKNOWN": 0, "ROAD_EDGE_UNKNOWN": 0, "ROAD_EDGE_BOUNDARY": 1, "ROAD_EDGE_MEDIAN": 2}
_POLYGONS = {
    "CROSSWALK": MapKind.CROSSWALK,
    "SPEED_BUMP": MapKind.SPEED_BUMP,
    "DRIVEWAY": MapKind.DRIVEWAY,
}
_LIGHTS = {
    **{f"LANE_STATE_{state.name}": state for state in LightState},
    "TRAFFIC_LIGHT_UNKNOWN": LightState.UNKNOWN,
    "TRAFFIC_LIGHT_RED": LightState.STOP,
    "TRAFFIC_LIGHT_YELLOW": LightState.CAUTION,
    "TRAFFIC_LIGHT_GREEN": LightState.GO,
}
_LINKS = (("entry_lanes", LinkKind.ENTRY), ("exit_lanes", LinkKind.EXIT))
_NEIGHBOURS = (("left_neighbor", LinkKind.LEFT), ("right_neighbor", LinkKind.RIGHT))
_DRIVABLE = re.compile(r"boundary_\d+")
# Datasets whose ids need no name before them, and whose maps lack road edges only where there are none.
_WAYMO = ("waymo", "")
# Their converters write one number for all lanes.
_MADE_UP_LIMITS = ("nuscenes", "av2")
_HEADINGS_FOR_HEIGHTS = ("nuscenes",)
_KMH_IN_MPH = 0.621371


def _part(owner: Any, key: str, kind: type, where: str) -> Any:
    value = owner.get(key)
    if not isinstance(value, kind):
        raise RecordError("field", f"{where}{key}: {'missing' if value is None else 'not a ' + kind.__name__}")
    return value


def _entries(owner: Mapping[Any, Any], key: str) -> dict[str, dict[Any, Any]]:
    """A dict of dicts, with texts as keys."""
    found = _part(owner, key, dict, "")
    for value in found.values():
        if not isinstance(value, dict):
            raise RecordError("field", f"{key}: its entries are not dicts")
    return {str(name): value for name, value in found.items()}


def read_recording(content: bytes, found: dict[str, int]) -> Recording:
    """The recording in a pickle.

    Args:
        content: of the file. found: receives kinds of remarks about what was left out or made up.

    Raises:
        RecordError: no pickle of numbers and containers, or a field that is missing or not as it should be.
    """
    record = load_plain(content)
    if not isinstance(record, dict):
        raise RecordError("kind", f"a pickle of a {type(record).__name__}, not of a ScenarioNet scenario (a dict)")
    missing = [key for key in ("tracks", "map_features", "metadata") if key not in record]
    if missing:
        raise RecordError("kind", f"a dict without {', '.join(missing)}, not a ScenarioNet scenario")
    metadata = _part(record, "metadata", dict, "")
    dataset = str(metadata.get("dataset") or "").lower()
    name = str(metadata.get("scenario_id") or record.get("id") or "")
    tracks = _entries(record, "tracks")
    kept = {key: track for key, track in tracks.items() if track.get("type") in _AGENTS}
    if len(kept) < len(tracks):
        found["objects_left_out"] = len(tracks) - len(kept)
    sdc = str(metadata.get("sdc_id"))
    if sdc not in kept:
        raise RecordError("sdc", f"metadata.sdc_id {sdc[:40]!r} is none of the {len(kept)} tracks of road users")
    time = _times(metadata, next(iter(kept.values())))
    states, valid = _states(kept, len(time))
    row = {key: index for index, key in enumerate(kept)}
    box = states[row[sdc]][valid[row[sdc]]]
    if len(box) and (box[:, 4] > box[:, 3]).all():
        states[row[sdc], :, 3:5] = states[row[sdc], :, [4, 3]].T
        found["turned_box"] = 0
    numbers = numbered(kept)
    features = _entries(record, "map_features")
    feature_numbers = numbered(features)
    named = metadata.get("tracks_to_predict")
    named = list(named) if isinstance(named, (dict, list, tuple)) else None
    interest = metadata.get("objects_of_interest")
    current = metadata.get("current_time_index")
    return Recording(
        name=name,
        dataset="" if dataset in _WAYMO else dataset,
        time=time,
        ids=[numbers[key] for key in kept],
        types=[int(_AGENTS[track["type"]]) for track in kept.values()],
        states=states,
        valid=valid,
        sdc=row[sdc],
        current=current if type(current) is int and 0 <= current < len(time) else None,
        to_predict=None if named is None else [row[str(key)] for key in named if str(key) in row],
        of_interest=[row[str(key)] for key in interest if str(key) in row] if isinstance(interest, list) else [],
        road=_road(features, feature_numbers, dataset, found),
        lights=_lights(record.get("dynamic_map_states"), feature_numbers, len(time)),
    )


def _times(metadata: Mapping[Any, Any], track: Mapping[Any, Any]) -> Doubles:
    """[T] seconds: those that are given, or steps of ``sample_rate`` or 0.1 s."""
    # Some converters write "ts", as MetaDrive does; others "timestep".
    given = next((metadata[key] for key in ("ts", "timestep") if metadata.get(key) is not None), None)
    if given is not None:
        return number_array(given, (None,), "metadata.ts")
    steps = len(number_array(_part(track, "state", dict, "tracks.").get("valid"), (None,), "tracks.state.valid"))
    rate = metadata.get("sample_rate", STEP_SECONDS)
    if not isinstance(rate, (int, float)) or not 0 < rate < math.inf:
        raise RecordError("rate", f"metadata.sample_rate is {str(rate)[:40]}, expected seconds between two steps")
    return np.arange(steps) * float(rate)


def _states(tracks: Mapping[str, Mapping[Any, Any]], steps: int) -> tuple[Doubles, NDArray[np.bool_]]:
    """States [A, T, 9] and valid [A, T]."""
    states, valid = np.zeros((len(tracks), steps, 9)), np.zeros((len(tracks), steps), dtype=bool)
    for row, (key, track) in enumerate(tracks.items()):
        where = f"tracks.{key[:40]}.state."
        state = _part(track, "state", dict, where)

        position = number_array(state.get("position"), (steps, None), where + "position")
        if position.shape[1] not in (2, 3):
            raise RecordError("field", f"{where}position: {position.shape[1]} columns, expected 3")
        states[row, :, : position.shape[1]] = position
        for place, name in enumerate(("length", "width", "height", "heading"), 3):
            states[row, :, place] = number_array(state.get(name), (steps,), where + name)
        states[row, :, 7:9] = number_array(state.get("velocity"), (steps, 2), where + "velocity")
        valid[row] = number_array(state.get("valid"), (steps,), where + "valid") > 0.5
    return states, valid


def _points(feature: Mapping[Any, Any], key: str, name: str, flat: bool = False) -> Doubles:
    """[N, 3] metres; heights of 0 where there are none."""
    points = number_array(feature.get(key), (None, None), f"map_features.{name[:40]}.{key}")
    if points.shape[1] not in (2, 3):
        raise RecordError("field", f"map_features.{name[:40]}.{key}: {points.shape[1]} columns, expected 3")
    if flat or points.shape[1] == 2:
        points = np.concatenate([points[:, :2], np.zeros((len(points), 1))], axis=1)
    return points


def _road(
    features: Mapping[str, Mapping[Any, Any]], numbers: Mapping[str, int], dataset: str, found: dict[str, int]
) -> RoadMap:
    parts = MapParts()
    kinds = {name: str(feature.get("type")) for name, feature in features.items()}
    derive = dataset not in _WAYMO and not any(kind in _EDGES for kind in kinds.values())
    outline = {name for name in features if derive and _DRIVABLE.fullmatch(name) and "polyline" in features[name]}
    others = 0
    for name, feature in features.items():
        kind, number = kinds[name], numbers[name]
        if name in outline:
            continue
        if kind in _LANES and "polyline" in feature:
            points = _points(feature, "polyline", name, flat=dataset in _HEADINGS_FOR_HEIGHTS)
            parts.add(
                number,
                MapKind.LANE,
                points,
                _LANES[kind],
                0.0 if dataset in _MADE_UP_LIMITS else _limit(feature),
                feature.get("interpolating") is True and dataset in _WAYMO,
                _lane_links(feature, numbers),
            )
        elif kind in _LINES and "polyline" in feature:
            parts.add(number, MapKind.ROAD_LINE, _points(feature, "polyline", name), _LINES.index(kind))
        elif kind in _EDGES and "polyline" in feature:
            parts.add(number, MapKind.ROAD_EDGE, _points(feature, "polyline", name), _EDGES[kind])
        elif kind in _POLYGONS and "polygon" in feature:
            parts.add(number, _POLYGONS[kind], _points(feature, "polygon", name))
        elif kind == "STOP_SIGN" and "position" in feature:
            place = number_array(feature["position"], (None,), f"map_features.{name[:40]}.position")
            lanes = feature.get("lane")
            targets = _targets(lanes if isinstance(lanes, (list, tuple)) else [lanes], numbers)
            point = np.zeros((1, 3))
            point[0, : len(place[:3])] = place[:3]
            parts.add(
                number,
                MapKind.STOP_SIGN,
                point,
                links=[(LinkKind.STOP_CONTROLS, lane) for lane in targets],
            )
        else:
            others += 1
    if others:
        found["features_left_out"] = others
    if derive:
        # Its library takes a tenth of a second to import, and every command asks for the formats.
        from data.formats.road_edges import outline_of_area, outline_of_lanes

        edges = outline_of_area([_points(features[name], "polyline", name) for name in sorted(outline)])
        edges = edges or outline_of_lanes(*_lanes(features, kinds))
        following = max(numbers.values(), default=-1) + 1
        for index, edge in enumerate(edges):
            parts.add(following + index, MapKind.ROAD_EDGE, np.pad(edge, ((0, 0), (0, 1))))
        if edges:
            found["derived_edges"] = 0
    return parts.build(lambda kind, **_: found.update({kind: 0}))


def _lanes(
    features: Mapping[str, Mapping[Any, Any]], kinds: Mapping[str, str]
) -> tuple[list[Doubles], list[Doubles]]:
    """Polygons of lanes, and centre lines of those that have none."""
    lanes = {name: feature for name, feature in features.items() if kinds[name] in _LANES}
    polygons = [_points(lane, "polygon", name) for name, lane in lanes.items() if "polygon" in lane]
    centres = [
        _points(lane, "polyline", name)
        for name, lane in lanes.items()
        if "polygon" not in lane and "polyline" in lane and kinds[name] != "LANE_BIKE_LANE"
    ]
    return polygons, centres


def _limit(lane: Mapping[Any, Any]) -> float:
    """Speed limit in mph, 0 where none."""
    for key, factor in (("speed_limit_mph", 1.0), ("speed_limit_kmh", _KMH_IN_MPH)):
        if isinstance(lane.get(key), (int, float)):
            return float(lane[key]) * factor
    return 0.0


def _targets(names: Sequence[Any], numbers: Mapping[str, int]) -> list[int]:
    """Ids of features; a plain number that is not in this map is an id all the same."""
    texts = [str(name) for name in names if isinstance(name, (str, int))]
    own = {text: number for text, number in numbered(texts).items() if text == str(number)}
    return [numbers.get(text, own.get(text, -1)) for text in texts if text in numbers or text in own]


def _lane_links(lane: Mapping[Any, Any], numbers: Mapping[str, int]) -> list[tuple[LinkKind, int]]:
    links: list[tuple[LinkKind, int]] = []
    for key, kind in _LINKS:
        names = lane.get(key)
        links += [(kind, target) for target in _targets(names if isinstance(names, (list, tuple)) else [], numbers)]
    for key, kind in _NEIGHBOURS:
        beside = lane.get(key)
        names = [
            one.get("feature_id") if isinstance(one, dict) else one
            for one in (beside if isinstance(beside, (list, tuple)) else [])
        ]
        links += [(kind, target) for target in _targets(names, numbers)]
    return links


def _lights(dynamic: Any, numbers: Mapping[str, int], steps: int) -> Lights:
    signals = dynamic if isinstance(dynamic, dict) else {}
    lanes, rows, points = [], [], []
    for key, light in signals.items():
        state = light.get("state") if isinstance(light, dict) else None
        names = state.get("object_state") if isinstance(state, dict) else None
        where = f"dynamic_map_states.{str(key)[:40]}"
        if not isinstance(names, (list, tuple)) or len(names) != steps:
            raise RecordError("field", f"{where}.state.object_state: expected a list of {steps} states")
        for name in names:
            if name is not None and (not isinstance(name, str) or name not in _LIGHTS):
                raise RecordError("field", f"{where}.state.object_state: unknown state {str(name)[:40]!r}")
        targets = _targets([light.get("lane", key)], numbers)
        if not targets or light.get("stop_point") is None:
            continue
        place = number_array(light["stop_point"], (None,), f"{where}.stop_point")
        point = np.zeros(3)
        point[: len(place[:3])] = place[:3]
        if not np.isfinite(point.astype(np.float32)).all():
            continue
        lanes.append(targets[0])
        rows.append([-1 if name is None else int(_LIGHTS[name]) for name in names])
        points.append(point)
    state = torch.tensor(rows, dtype=torch.int64).reshape(len(rows), steps)
    observed = state >= 0
    stop = torch.tensor(np.array(points).reshape(-1, 1, 3), dtype=torch.float32).expand(-1, steps, -1)
    return Lights(
        lane_id=torch.tensor(lanes, dtype=torch.int64),
        state=state.clamp(min=0),
        stop_point=torch.where(observed[..., None], stop, torch.zeros(())),
        observed=observed,
    )


SCENARIONET = Format(
    name="scenarionet",
    title="ScenarioNet",
    # A dataset has two more files, which list the others.
    names=re.compile(r"(?![.])(?!dataset_(?:summary|mapping)\.pkl$).*\.pkl", re.DOTALL),
    example="sd_nuscenes_v1.0-mini_scene-0061.pkl",
    heads=re.compile(rb"\x80[\x02-\x05]").match,  # type: ignore[arg-type]
    read=partial(read_file, read_recording),
    nested=True,
)
