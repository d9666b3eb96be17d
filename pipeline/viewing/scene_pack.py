"""A scene with its rollouts as one packed file for the browser (``page/player.js`` draws it), and the page's files.

Layout, which ``page/pack.js`` reads back: the letters ``SPK1``, the header's length as uint32, the header in JSON,
and the arrays one after the other, everything little endian and compressed with gzip. Arrays of int32 are stored as
differences along their last axis, and of all arrays the lowest bytes come first, then the next ones: neighbouring
values of motion and of lines are nearly equal, so most of the rest is zeros.

Shape legend: A tracks, S simulated agents of them, R rollouts, T recorded steps, G signals, D decisions, N tokens
that are named at each. Lengths are whole centimetres from the origin, angles whole 1e-4 rad.
"""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.scene import CURRENT_INDEX, STEP_SECONDS, AgentType, Scene
from data.tokenizer import scene_origin
from data.vocabulary import TYPE_NAMES, Vocabulary, type_index
from pipeline.drawing.drawn_map import drawn_map
from pipeline.viewing.explaining import Explanation
from pipeline.viewing.judging import Judgement

_CM, _ANGLE, _SHARE = 100.0, 1e4, 65535.0
_INT32 = 2**31 - 1


@dataclass(frozen=True)
class RolloutSet:
    """Rollouts of one agent, to be shown beside others.

    Attributes:
        name: of the agent. states: [R, S, 80, 4] of the simulated agents in the order of the scene.
        judgement: what the metric says of them, if it can. explanations: by number of the rollout.
    """

    name: str
    states: Tensor
    judgement: Judgement | None = None
    explanations: Mapping[int, Explanation] = field(default_factory=dict)


def _whole(values: Tensor | NDArray[Any], scale: float) -> NDArray[np.int32]:
    array = np.asarray(values, dtype=np.float64) * scale
    return np.clip(np.rint(array), -_INT32, _INT32).astype(np.int32)


def _paths(position: Tensor, heading: Tensor, origin: Tensor) -> NDArray[np.int32]:
    """[..., 3, T] of positions [..., T, 2] and headings [..., T], turned continuously."""
    place = _whole(position.double() - origin.double(), _CM)
    angle = np.unwrap(heading.double().numpy(), axis=-1)
    return np.concatenate((np.moveaxis(place, -1, -2), _whole(angle, _ANGLE)[..., None, :]), axis=-2)


def _filled(values: Tensor, valid: Tensor) -> Tensor:
    """Recorded values [A, T, ...] whose gaps repeat the last value, or before all the first one."""
    steps = torch.arange(valid.shape[1])
    last = torch.where(valid, steps, -1).cummax(-1).values
    first = torch.where(valid, steps, valid.shape[1] - 1).amin(-1, keepdim=True)
    index = torch.where(last >= 0, last, first)
    return values[torch.arange(len(values)).unsqueeze(-1), index]


def vocabulary_header(vocabulary: Vocabulary) -> dict[str, Any]:
    """Where tokens lead, for the browser: by type the pose [x, y, heading] at the end of every token."""
    end = vocabulary.poses[:, :, -1]  # [types, K, 3]
    return {
        "seconds": vocabulary.token_steps * STEP_SECONDS,
        "types": list(TYPE_NAMES),
        "end": [[[round(value, 3) for value in pose] for pose in kind] for kind in end.tolist()],
    }


def _agent_header(scene: Scene) -> dict[str, Any]:
    agents = scene.agents
    valid = agents.valid
    # Where an agent is not there now, its size is that of the step it is first seen at.
    at = torch.where(valid[:, CURRENT_INDEX], CURRENT_INDEX, valid.int().argmax(-1))
    size = agents.size[torch.arange(len(at)), at, :2]
    return {
        "id": agents.id.tolist(),
        "type": [AgentType(kind).name.lower() for kind in agents.type.tolist()],
        "kind": type_index(agents.type).tolist(),
        "size": [[round(value, 2) for value in row] for row in size.tolist()],
        "sdc": agents.is_sdc.int().tolist(),
        "evaluated": (scene.evaluated & scene.simulated).int().tolist(),
        "simulated": scene.simulated.nonzero().flatten().tolist(),
    }


def _rounded(table: Mapping[int, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    return {
        str(agent): {name: round(value, 4) for name, value in row.items() if np.isfinite(value)}
        for agent, row in table.items()
    }


def _set_header(rollouts: RolloutSet) -> dict[str, Any]:
    header: dict[str, Any] = {"name": rollouts.name, "rollouts": len(rollouts.states)}
    if (judgement := rollouts.judgement) is not None:
        header |= {
            "values": {name: round(v, 5) for name, v in judgement.values.items() if np.isfinite(v)},
            "displacement": [round(value, 3) if np.isfinite(value) else None for value in judgement.displacement],
            "events": judgement.events.tolist(),
            "likelihoods": _rounded(judgement.likelihoods),
            "losses": _rounded(judgement.losses),
        }
    if rollouts.explanations:
        header["explained"] = {
            str(number): list(found.opinions) for number, found in sorted(rollouts.explanations.items())
        }
    return header


def _explained(prefix: str, found: Explanation) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {f"{prefix}.token": found.token.numpy().astype(np.uint16)}
    for name, opinion in found.opinions.items():
        arrays[f"{prefix}.{name}.token"] = opinion.token.numpy().astype(np.uint16)
        for part, share in (("share", opinion.probability), ("chosen", opinion.executed)):
            arrays[f"{prefix}.{name}.{part}"] = np.rint(share.double().numpy() * _SHARE).astype(np.uint16)
    return arrays


def pack_scene(
    scene: Scene,
    sets: Sequence[RolloutSet] = (),
    log_events: NDArray[np.int32] | None = None,
    about: Mapping[str, Any] | None = None,
    level: int = 6,
) -> bytes:
    """Everything the player shows of a single scene.

    Args:
        scene: with or without future. sets: of rollouts. log_events: from ``judging.log_events``.
        about: more for the header, such as why the scene is shown. level: of the compression.
    """
    origin = scene_origin(scene)
    agents, lights = scene.agents, scene.lights
    road = drawn_map(scene)
    arrays: dict[str, NDArray[Any]] = {
        "map.points": _whole((road.points - origin.double().numpy()).T, _CM),
        "map.starts": road.starts.astype(np.int32),
        "map.kinds": road.kinds,
        "log": _paths(
            _filled(agents.position[..., :2], agents.valid), _filled(agents.heading, agents.valid), origin
        ),
        "log.valid": agents.valid.numpy().astype(np.uint8),
        "lights.state": lights.state.numpy().astype(np.uint8),
        "lights.place": _whole(
            (_filled(lights.stop_point[..., :2], lights.observed)[:, 0] - origin).T
            if len(lights.lane_id)
            else np.zeros((2, 0)),
            _CM,
        ),
    }
    for number, rollouts in enumerate(sets):
        arrays[f"set{number}"] = _paths(rollouts.states[..., :2], rollouts.states[..., 3], origin)
        for rollout, found in sorted(rollouts.explanations.items()):
            arrays |= _explained(f"set{number}.{rollout}", found)
    header = {
        "scenario_id": str(scene.scenario_id),
        "origin": [round(value, 2) for value in origin.tolist()],
        "now": CURRENT_INDEX,
        "step_seconds": STEP_SECONDS,
        "agents": _agent_header(scene),
        "log_events": [] if log_events is None else log_events.tolist(),
        "sets": [_set_header(rollouts) for rollouts in sets],
        **(about or {}),
    }
    return pack(header, arrays, level)


_MAGIC = b"SPK1"
_LENGTH = struct.Struct("<I")
_TYPES = {"uint8": np.uint8, "uint16": np.uint16, "int32": np.int32}


def _encoded(values: NDArray[Any]) -> bytes:
    if values.dtype == np.int32 and values.size:
        values = np.diff(values, axis=-1, prepend=np.zeros((*values.shape[:-1], 1), np.int32))
    width = values.dtype.itemsize
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).reshape(-1, width).T.tobytes()


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]], level: int = 6) -> bytes:
    """Compressed bytes of a header and arrays.

    Args:
        header: plain JSON values. arrays: by name; uint8, uint16 or int32 (these as differences, wrapping).
        level: of the compression.

    Raises:
        ValueError: an array of another type.
    """
    entries, parts = [], []
    for name, values in arrays.items():
        if values.dtype.name not in _TYPES:
            raise ValueError(f"{name}: cannot pack {values.dtype.name}")
        entries.append({"name": name, "type": values.dtype.name, "shape": list(values.shape)})
        parts.append(_encoded(values))
    text = json.dumps({**header, "arrays": entries}, separators=(",", ":"), allow_nan=False).encode()
    content = b"".join((_MAGIC, _LENGTH.pack(len(text)), text, *parts))
    # Without a time in it: the same scene gives the same bytes.
    return gzip.compress(content, level, mtime=0)


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Header and arrays of what ``pack`` made."""
    content = gzip.decompress(data)
    if content[:4] != _MAGIC:
        raise ValueError("not a packed scene")
    (length,) = _LENGTH.unpack_from(content, 4)
    header = json.loads(content[8 : 8 + length])
    arrays, place = {}, 8 + length
    for entry in header["arrays"]:
        kind = np.dtype(_TYPES[entry["type"]])
        count = int(np.prod(entry["shape"], dtype=np.int64))
        planes = np.frombuffer(content, np.uint8, count * kind.itemsize, place).reshape(kind.itemsize, count)
        place += planes.size
        values = np.ascontiguousarray(planes.T).reshape(-1).view(kind).reshape(entry["shape"])
        if kind == np.int32 and values.size:
            values = np.cumsum(values, axis=-1, dtype=np.int32)
        arrays[entry["name"]] = values
    return header, arrays


PAGE = Path(__file__).with_name("page")
# In this order; each file relies on those before it.
SCRIPTS = ("pack.js", "scene.js", "canvas.js", "player.js", "details.js", "theme.js")
