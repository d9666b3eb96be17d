"""Parts of a ``Scene`` from the values of any source: checks, repairs and tensors, the same for all formats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.completeness import rounding_error
from data.scene import CURRENT_INDEX, STEP_SECONDS, Agents, MapKind, RoadMap, Scene

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]
# Adds a remark of some kind about the scenario.
Say = Callable[..., None]

# Columns of STATE_FIELDS.
_POSE, _SIZE, _VELOCITY = [0, 1, 2, 6], slice(3, 6), slice(7, 9)
# Radians: no heading in [-pi, pi], or as WOMD gives it, is near this; most degrees are beyond.
MOST_RADIANS = 4 * math.pi
# Above this rounding of coordinates (metres) even the replayed log loses realism.
_COARSE = 0.01
# Ids of WOMD have 16 characters.
_LONGEST_ID = 128


class RecordError(ValueError):
    """A record that cannot be converted to a Scene; ``code`` is short and stable, the message is one line."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_id(name: str | bytes) -> None:
    if not name:
        raise RecordError("scenario_id", "scenario_id is empty")
    # The parser returns bytes where a string is not UTF-8. Ids are used in messages, tables and lists of files.
    if not isinstance(name, str) or not name.isprintable() or len(name) > _LONGEST_ID:
        raise RecordError("scenario_id", f"scenario_id is not a text of up to {_LONGEST_ID} printable characters")


def repair_states(states: Floats, valid: Bools, ids: Sequence[int], say: Say) -> None:
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


def assemble_agents(
    *,
    ids: Sequence[int],
    types: Sequence[int],
    states: Floats,
    valid: Bools,
    sdc: int,
    to_predict: Sequence[int],
    of_interest: Sequence[int],
) -> Agents:
    """Tensors of A tracks.

    Args:
        ids, types: of the tracks. states: [A, T, 9] in the order of ``data.wire.STATE_FIELDS``. valid: [A, T].
        sdc, to_predict, of_interest: rows.
    """

    def marked(rows: Sequence[int]) -> Tensor:
        result = torch.zeros(len(ids), dtype=torch.bool)
        result[list(rows)] = True
        return result

    return Agents(
        id=torch.tensor(ids, dtype=torch.int64),
        type=torch.tensor(types, dtype=torch.int64),
        position=torch.from_numpy(np.ascontiguousarray(states[..., 0:3])),
        heading=torch.from_numpy(np.ascontiguousarray(states[..., 6])),
        velocity=torch.from_numpy(np.ascontiguousarray(states[..., 7:9])),
        size=torch.from_numpy(np.ascontiguousarray(states[..., 3:6])),
        valid=torch.from_numpy(valid),
        is_sdc=marked([sdc]),
        to_predict=marked(to_predict),
        of_interest=marked(of_interest),
    )


def assemble_map(
    *,
    point: Floats,
    owner: NDArray[np.int64],
    ids: Sequence[int],
    kinds: Sequence[int],
    subtypes: Sequence[int],
    limits: Sequence[float],
    interpolating: Sequence[bool],
    links: Sequence[tuple[int, int, int]],
    say: Say,
) -> RoadMap:
    """Tensors of a map; points that are not finite are left out, and speed limits that mean nothing are none.

    Args:
        point: [P, 3] metres. owner: [P] index of each point's feature. ids, kinds, subtypes, limits (mph),
            interpolating: of the F features. links: source (an index), kind and target (an id). say: adds a remark.

    Raises:
        RecordError: a point of a road edge is not finite.
    """
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
    columns: list[Sequence[int]] = list(zip(*links)) or [(), (), ()]
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


def check_scene(scene: Scene, say: Say) -> None:
    """Refuse a scene in which nobody is simulated; remark upon coordinates that float32 rounds, and upon degrees.

    Raises:
        RecordError: no agent is valid at the current step.
    """
    agents = scene.agents
    if not bool(scene.simulated.any()):
        raise RecordError("no_agent", f"no track is valid at the current step {CURRENT_INDEX}")
    most = max(
        _largest(agents.position[agents.valid]), _largest(scene.map.point), _largest(scene.lights.stop_point)
    )
    if rounding_error(most) > _COARSE:
        say("rounding", most=most)
    most = _largest(agents.heading[agents.valid])
    if most > MOST_RADIANS:
        say("degrees", most=most)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0
