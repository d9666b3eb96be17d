"""GPUDrive's and PufferDrive's format: one WOMD scenario in a JSON file.

It keeps ids, agents to predict and map of the proto; the size of an agent is that of one step. Lost are the links,
speed limits and timestamps of the proto. Files of the first converters have headings in degrees and do not say who
the AV is; they are refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.assembly import MOST_RADIANS, RecordError
from data.formats.map_parts import MapParts, numbered
from data.formats.pickles import number_array
from data.formats.reader import Format
from data.formats.recording import Recording, read_file
from data.scene import CURRENT_INDEX, STEP_SECONDS, AgentType, Lights, LightState, MapKind, RoadMap

Doubles = NDArray[np.float64]

_AGENTS = {kind.name.lower(): kind for kind in AgentType}
_KINDS = {kind.name.lower(): kind for kind in MapKind if kind != MapKind.PADDING}
# ``map_element_id`` counts the types of all kinds through, from these on: those of map.proto by kind.
_FIRST_TYPE = {MapKind.LANE: (0, 3), MapKind.ROAD_LINE: (5, 8), MapKind.ROAD_EDGE: (14, 2)}
_LIGHTS = {state.name.lower(): state for state in LightState}


def _list(owner: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    value = owner.get(key)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RecordError("field", f"{key}: expected a list of objects")
    return value


def _columns(value: Any, names: str, where: str) -> Doubles:
    """[N, len(names)] numbers of a list of objects."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise RecordError("field", f"{where}: expected a list of objects with {', '.join(names)}")
    return number_array([[item.get(name) for name in names] for item in value], (None, len(names)), where)


def _rows(value: Any, count: int, where: str) -> int:
    if type(value) is not int or not 0 <= value < count:
        raise RecordError(
            "sdc" if "sdc" in where else "tracks_to_predict", f"{where} {str(value)[:40]} of {count} objects"
        )
    return value


def read_recording(content: bytes) -> Recording:
    """The scenario in a JSON text.

    Raises:
        RecordError: no JSON of this kind, or a field that is missing or not as it should be.
    """
    try:
        record = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RecordError(
            "json", f"not a JSON text that can be read: {' '.join(str(error).split())[:120]}"
        ) from error
    missing = [key for key in ("objects", "roads") if not isinstance(record, dict) or key not in record]
    if missing:
        raise RecordError("kind", f"a JSON text without {' and '.join(missing)}, not a GPUDrive scenario")
    metadata = record.get("metadata")
    if not isinstance(metadata, dict) or "sdc_track_index" not in metadata:
        raise RecordError(
            "sdc", "metadata.sdc_track_index is missing, as in files of early converters; convert with a newer one"
        )
    objects = _list(record, "objects")
    if not objects:
        raise RecordError("no_agent", "no objects")
    states, valid = _states(objects)
    steps = valid.shape[1]
    ids = _ids(objects)
    named = metadata.get("tracks_to_predict")
    chosen = [item.get("track_index") if isinstance(item, dict) else item for item in named or []]
    interest = metadata.get("objects_of_interest")
    return Recording(
        name=str(record.get("scenario_id") or ""),
        dataset="",
        time=np.arange(steps) / round(1 / STEP_SECONDS),
        ids=ids,
        types=[int(_type(item)) for item in objects],
        states=states,
        valid=valid,
        sdc=_rows(metadata["sdc_track_index"], len(objects), "metadata.sdc_track_index"),
        current=CURRENT_INDEX,
        to_predict=None
        if not isinstance(named, list)
        else [_rows(row, len(objects), "metadata.tracks_to_predict") for row in chosen],
        of_interest=[row for row, number in enumerate(ids) if isinstance(interest, list) and number in interest],
        road=_road(_list(record, "roads")),
        lights=_lights(record.get("tl_states"), steps),
    )


def _type(item: Mapping[str, Any]) -> AgentType:
    name = item.get("type")
    if not isinstance(name, str) or name not in _AGENTS:
        raise RecordError("field", f"objects.type: {str(name)[:40]!r}, expected one of {', '.join(_AGENTS)}")
    return _AGENTS[name]


def _ids(objects: list[dict[str, Any]]) -> list[int]:
    """Those of the objects; their rows where none has one."""
    given = [item.get("id") for item in objects]
    if all(number is None for number in given):
        return list(range(len(objects)))
    for number in given:
        if type(number) is not int or not 0 <= number < 2**31:
            raise RecordError("track_id", f"objects.id {str(number)[:40]}: expected a number from 0 to 2147483647")
    if len(set(given)) < len(given):
        twice = next(number for number in given if given.count(number) > 1)
        raise RecordError("duplicate_id", f"objects.id {twice} appears more than once")
    return [int(number) for number in given if number is not None]


def _states(objects: list[dict[str, Any]]) -> tuple[Doubles, NDArray[np.bool_]]:
    """States [A, T, 9], 0 where not valid, and valid [A, T]."""
    first = objects[0].get("valid")
    steps = len(first) if isinstance(first, list) else 0
    states, valid = np.zeros((len(objects), steps, 9)), np.zeros((len(objects), steps), dtype=bool)
    for row, item in enumerate(objects):
        where = f"objects[{row}]."
        for key in ("valid", "position", "heading", "velocity"):
            if not isinstance(item.get(key), list) or len(item[key]) != steps:
                raise RecordError(
                    "steps", f"{where}{key}: expected a list of {steps} steps, as in objects[0].valid"
                )
        valid[row] = number_array(item["valid"], (steps,), where + "valid") > 0.5
        states[row, :, 0:3] = _columns(item["position"], "xyz", where + "position")
        states[row, :, 3:6] = number_array(
            [item.get(name) for name in ("length", "width", "height")], (3,), where + "length, width, height"
        )
        states[row, :, 6] = number_array(item["heading"], (steps,), where + "heading")
        states[row, :, 7:9] = _columns(item["velocity"], "xy", where + "velocity")
    states[~valid] = 0.0
    most = np.abs(states[..., 6]).max(initial=0.0)
    if MOST_RADIANS < most < math.inf:
        raise RecordError(
            "heading", f"objects.heading of {most:.4g}: degrees, as of early converters; expected radians"
        )
    return states, valid


def _road(roads: list[dict[str, Any]]) -> RoadMap:
    parts = MapParts()
    numbers = numbered(item.get("id", f"road {row}") for row, item in enumerate(roads))
    for row, item in enumerate(roads):
        kind = _KINDS.get(str(item.get("type")))
        if kind is None:
            raise RecordError(
                "field", f"roads[{row}].type: {str(item.get('type'))[:40]!r} is no kind of map feature"
            )
        points = _columns(item.get("geometry"), "xyz", f"roads[{row}].geometry")
        first, last = _FIRST_TYPE.get(kind, (0, -1))
        subtype = item.get("map_element_id")
        subtype = subtype - first if type(subtype) is int and 0 <= subtype - first <= last else 0
        parts.add(numbers[str(item.get("id", f"road {row}"))], kind, points, subtype)
    return parts.build(lambda kind, **_: None)


def _lights(signals: Any, steps: int) -> Lights:
    """States of lanes at the steps that ``time_index`` names."""
    if not isinstance(signals, dict):
        signals = {}
    numbers = numbered(signals)
    state = torch.zeros(len(signals), steps, dtype=torch.int64)
    stop_point = torch.zeros(len(signals), steps, 3)
    observed = torch.zeros(len(signals), steps, dtype=torch.bool)
    for row, (lane, light) in enumerate(signals.items()):
        where = f"tl_states.{lane[:40]}."
        if not isinstance(light, dict):
            raise RecordError("field", f"{where} expected an object")
        names = light.get("state")
        if not isinstance(names, list) or any(not isinstance(name, str) or name not in _LIGHTS for name in names):
            raise RecordError("field", f"{where}state: expected a list of {', '.join(_LIGHTS)}")
        at = number_array(light.get("time_index"), (len(names),), where + "time_index")
        points = np.stack([number_array(light.get(name), (len(names),), where + name) for name in "xyz"], axis=-1)
        if not np.isin(at, np.arange(steps)).all():
            raise RecordError("steps", f"{where}time_index: beyond the {steps} steps")
        with np.errstate(over="ignore", invalid="ignore"):
            known = np.isfinite(points.astype(np.float32)).all(-1)
        index = torch.from_numpy(at[known].astype(np.int64))
        state[row, index] = torch.tensor([int(_LIGHTS[name]) for name in names], dtype=torch.int64)[known]
        stop_point[row, index] = torch.from_numpy(points[known].astype(np.float32))
        observed[row, index] = True
    return Lights(torch.tensor([numbers[lane] for lane in signals], dtype=torch.int64), state, stop_point, observed)


GPUDRIVE = Format(
    name="gpudrive",
    title="GPUDrive",
    names=re.compile(r"(?![.]).*\.json", re.DOTALL),
    example="tfrecord-00000-of-01000_325.json",
    heads=re.compile(rb"\s*\{\s*\"(?:name|scenario_id|objects|roads|tl_states|metadata)\"").match,  # type: ignore[arg-type]
    read=partial(read_file, lambda content, _: read_recording(content)),
)
