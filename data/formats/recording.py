"""A recording of any length and rate, and the scenarios of 91 steps that it is divided into.

Shape legend: A tracks, T steps, S signalled lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from data.assembly import RecordError, Say, assemble_agents, check_id, check_scene, repair_states
from data.completeness import Remarks
from data.formats.reader import Item, Reading, read_whole
from data.scene import CURRENT_INDEX, NUM_STEPS, STEP_SECONDS, Lights, MapKind, RoadMap, Scene, window_id

Doubles = NDArray[np.float64]

_HISTORY = CURRENT_INDEX + 1
# Steps may differ from 0.1 s by this fraction, as those of WOMD do, before a recording is resampled.
_JITTER = 0.1
# Above this time between two samples (seconds) what happened between them is not known well enough.
_LONGEST_GAP = 0.5 * (1 + _JITTER)
# An hour at 10 Hz.
_MOST_STEPS = 36_000
# Agents to predict of WOMD (707 in 190 scenarios of its training split): one to eight in a scenario, 99 % of them
# valid in 61 % of the future or more, 95 % displaced by 8 m in 9 s or more.
_MOST_CHOSEN = 8
_VALID_FRACTION = 0.6
_LEAST_SPEED = 0.9
# Metres. In WOMD 99 % of the map points are within 146 m of the AV's way, all within 160 m.
_MAP_REACH = 150.0


@dataclass(frozen=True)
class Recording:
    """What a file of another format holds, in the units of ``data.scene``.

    Attributes:
        name: id of the recording. dataset: where it comes from, or empty where the id says so itself (WOMD).
        time: [T] float64 seconds, rising. ids, types: of the tracks.
        states: [A, T, 9] float64 in the order of ``data.wire.STATE_FIELDS``. valid: [A, T] bool.
        sdc: row of the AV. current: step that the source calls the current one, or None.
        to_predict, of_interest: rows that the source names for its current step, or None.
        road: the map. lights: of all T steps.
    """

    name: str
    dataset: str
    time: Doubles
    ids: list[int]
    types: list[int]
    states: Doubles
    valid: NDArray[np.bool_]
    sdc: int
    current: int | None
    to_predict: list[int] | None
    of_interest: list[int]
    road: RoadMap
    lights: Lights


def read_file(
    parse: Callable[[bytes, dict[str, int]], Recording], url: str, reading: Reading, remarks: Remarks
) -> Iterator[Item]:
    """Scenarios of a file that holds one recording.

    Args:
        parse: makes it of the file's content, and counts kinds of remarks; raises RecordError. Others as of
            ``Format.read``.
    """
    found: dict[str, int] = {}
    try:
        recording = parse(read_whole(url), found)
    except RecordError as error:
        yield Item("0", error)
        return
    yield from scenes_of(recording, reading, remarks, found)


def scenes_of(recording: Recording, reading: Reading, remarks: Remarks, found: dict[str, int]) -> Iterator[Item]:
    """Scenarios of a recording: itself where it has 91 steps (or 11), else windows that begin ``stride`` apart.

    The id of a window is that of the recording with the step at which it begins. Windows with too few agents are
    left out and counted.

    Args:
        found: kinds of remarks about the recording, with the number of things that each counts.
    """
    try:
        check_id(recording.name)
        recording, resampled = _at_ten_hertz(recording)
        starts = _starts(len(recording.time), reading)
    except RecordError as error:
        yield Item("0", error)
        return
    whole = len(recording.time) in (NUM_STEPS, _HISTORY)
    name = f"{recording.dataset}-{recording.name}" if recording.dataset else recording.name
    for start in starts:
        own = Remarks()
        say = partial(own.add, scenario_id=name if whole else window_id(name, start))
        steps = slice(start, start + min(NUM_STEPS, len(recording.time)))
        if int(recording.valid[:, start + CURRENT_INDEX].sum()) < reading.windows.agents and not whole:
            say("windows_left_out")
            remarks.merge(own.found)
            continue
        try:
            scene = _window(recording, steps, str(say.keywords["scenario_id"]), say)
        except RecordError as error:
            yield Item("0" if whole else f"step {start}", error)
            continue
        for kind, items in {**found, **({"resampled": 0} if resampled else {})}.items():
            say(kind, items=items)
        # What was left out of the recording is counted once.
        found = dict.fromkeys(found, 0)
        remarks.merge(own.found)
        yield Item("0" if whole else f"step {start}", scene)


def _starts(steps: int, reading: Reading) -> range:
    if steps == _HISTORY and not reading.need_future:
        return range(1)
    if steps < NUM_STEPS:
        code = "no_future" if steps == _HISTORY else "steps"
        raise RecordError(code, f"{steps} steps of 0.1 s, but {NUM_STEPS} are needed")
    return range(0, steps - NUM_STEPS + 1, reading.windows.stride)


def _window(recording: Recording, steps: slice, name: str, say: Say) -> Scene:
    """Tracks that are valid at any of the steps, and the AV."""
    there = recording.valid[:, steps].any(1)
    there[recording.sdc] = True
    rows = np.flatnonzero(there)
    place = {int(row): index for index, row in enumerate(rows)}
    with np.errstate(over="ignore", invalid="ignore"):
        states = recording.states[rows, steps].astype(np.float32)
    valid = recording.valid[rows, steps].copy()
    ids = [recording.ids[row] for row in rows]
    repair_states(states, valid, ids, say)
    sdc = place[recording.sdc]
    is_own = recording.current == steps.start + CURRENT_INDEX
    if is_own and recording.to_predict is not None:
        chosen = [place[row] for row in recording.to_predict if row in place]
    else:
        chosen = _to_predict(states, valid, sdc)
        say("chosen_agents")
    lights = recording.lights
    seen = torch.nonzero(lights.observed[:, steps].any(1)).flatten()
    scene = Scene(
        scenario_id=name,
        timestamp=torch.from_numpy(recording.time[steps] - (0.0 if is_own else recording.time[steps.start])),
        agents=assemble_agents(
            ids=ids,
            types=[recording.types[row] for row in rows],
            states=states,
            valid=valid,
            sdc=sdc,
            to_predict=chosen,
            of_interest=[place[row] for row in recording.of_interest if row in place],
        ),
        # WOMD reaches 150 m around the AV's way; other sources often the whole town.
        map=_near(recording.road, states[sdc][valid[sdc]][:, :2]) if recording.dataset else recording.road,
        lights=Lights(
            lights.lane_id[seen],
            lights.state[seen, steps],
            lights.stop_point[seen, steps],
            lights.observed[seen, steps],
        ),
    )
    check_scene(scene, say)
    for kind, absent in _absences(scene).items():
        if absent:
            say(kind)
    return scene


def _near(road: RoadMap, way: NDArray[np.float32]) -> RoadMap:
    """Features with a point near the way [N, 2] of the AV; of road edges, which may be long, the pieces near it.

    A piece keeps the id of its feature if it is the first, else it has a number above all others.
    """
    # Its library takes a tenth of a second to import, and every command asks for the formats.
    from data.traffic.surface import split_runs

    if not len(way):
        return road
    point, owner = road.point.numpy(), road.point_feature.numpy()
    near = np.zeros(len(point), dtype=bool)
    for place in way[:: round(1 / STEP_SECONDS)]:
        near |= ((point[:, :2] - place) ** 2).sum(-1) <= _MAP_REACH**2
    ends = np.searchsorted(owner, np.arange(len(road.kind) + 1))
    pieces: list[tuple[int, NDArray[np.float32]]] = []
    for feature, kind in enumerate(road.kind.tolist()):
        own = slice(ends[feature], ends[feature + 1])
        points, close = point[own], near[own]
        if kind == MapKind.ROAD_EDGE and close.any():
            # To the next points, so that the piece leads out of the neighbourhood.
            close = np.convolve(close, np.ones(3), "same") > 0
            closed = len(points) > 3 and bool((points[0] == points[-1]).all())
            pieces += [
                (feature, run.astype(np.float32)) for run in split_runs(points.astype(np.float64), close, closed)
            ]
        elif close.any():
            pieces.append((feature, points))
    source = torch.tensor([feature for feature, _ in pieces], dtype=torch.int64)
    number = road.feature_id[source]
    again = torch.tensor([index > 0 and source[index - 1] == source[index] for index in range(len(source))]).bool()
    number[again] = int(road.feature_id.max()) + 1 + torch.arange(int(again.sum()))
    first = {int(feature): index for index, feature in enumerate(source.tolist()) if not again[index]}
    linked = torch.tensor([int(feature) in first for feature in road.link_source.tolist()]).bool()
    return RoadMap(
        point=torch.from_numpy(np.concatenate([np.zeros((0, 3), np.float32), *(run for _, run in pieces)])),
        point_feature=torch.arange(len(pieces)).repeat_interleave(
            torch.tensor([len(run) for _, run in pieces]).long()
        ),
        feature_id=number,
        **{name: getattr(road, name)[source] for name in ("kind", "subtype", "speed_limit", "interpolating")},
        link_source=torch.tensor([first[int(one)] for one in road.link_source[linked].tolist()], dtype=torch.int64),
        link_kind=road.link_kind[linked],
        link_target=road.link_target[linked],
    )


def _absences(scene: Scene) -> dict[str, bool]:
    """What WOMD has and this scene lacks."""
    road = scene.map
    kinds = set(road.kind.tolist())
    return {
        "no_road_edges": MapKind.ROAD_EDGE not in kinds,
        "no_crosswalks": MapKind.CROSSWALK not in kinds,
        "no_lights": not len(scene.lights.lane_id),
        "no_heights": len(road.point) > 0 and not bool(road.point[:, 2].any()),
    }


def _to_predict(states: NDArray[np.float32], valid: NDArray[np.bool_], sdc: int) -> list[int]:
    """Agents as WOMD names them: valid now and in most of the future, moving, up to eight nearest the AV."""
    future = valid[:, CURRENT_INDEX + 1 :]
    fits = valid[:, CURRENT_INDEX].copy()
    if future.shape[1]:
        fits &= future.mean(1) >= _VALID_FRACTION
    fits[sdc] = False
    steps = np.arange(valid.shape[1])
    first, last = valid.argmax(1), np.where(valid, steps, -1).max(1)
    rows = np.arange(len(valid))
    moved = np.linalg.norm(states[rows, last, :2] - states[rows, first, :2], axis=-1)
    fits &= moved >= _LEAST_SPEED * STEP_SECONDS * np.maximum(last - first, 1)
    away = np.linalg.norm(states[:, CURRENT_INDEX, :2] - states[sdc, CURRENT_INDEX, :2], axis=-1)
    near = sorted(np.flatnonzero(fits).tolist(), key=lambda row: (float(away[row]), row))
    return sorted(near[:_MOST_CHOSEN])


def _at_ten_hertz(recording: Recording) -> tuple[Recording, bool]:
    """The recording at steps of 0.1 s: interpolated linearly, headings along the shorter arc, lights as last seen.

    A state is valid where the samples on both sides are, or at a valid sample itself.

    Raises:
        RecordError: times that do not rise, or samples too far apart.
    """
    time = recording.time
    gap = np.diff(time)
    if not np.isfinite(time).all() or (gap <= 0).any():
        raise RecordError("rate", "times are not rising numbers")
    if not len(gap) or np.abs(gap / STEP_SECONDS - 1).max() <= _JITTER:
        return recording, False
    if gap.max() > _LONGEST_GAP:
        raise RecordError("rate", f"{gap.max():.2g} s between two samples; 0.5 s are the most that is interpolated")
    count = int((time[-1] - time[0]) / STEP_SECONDS + 1e-6) + 1
    if count > _MOST_STEPS:
        raise RecordError("steps", f"{count} steps of 0.1 s; divide recordings of more than an hour")
    wanted = time[0] + STEP_SECONDS * np.arange(count)
    right = np.searchsorted(time, wanted - 1e-6).clip(0, len(time) - 1)
    at_sample = np.abs(time[right] - wanted) <= 1e-6
    left = np.where(at_sample, right, right - 1).clip(0)
    part = np.where(at_sample, 0.0, (wanted - time[left]) / np.maximum(time[right] - time[left], 1e-9))
    valid = recording.valid[:, left] & recording.valid[:, right]
    before, after = recording.states[:, left], recording.states[:, right]
    with np.errstate(invalid="ignore"):
        change = after - before
        change[..., 6] = (change[..., 6] + np.pi) % (2 * np.pi) - np.pi
        states = np.where(valid[..., None], before + part[:, None] * change, 0.0)
    lights = {name: getattr(recording.lights, name)[:, left] for name in ("state", "stop_point", "observed")}
    current = recording.current
    if current is not None:
        nearest = int(np.abs(wanted - time[current]).argmin())
        current = nearest if abs(wanted[nearest] - time[current]) <= 1e-6 else None
    return (
        replace(
            recording,
            time=wanted,
            states=states,
            valid=valid,
            lights=replace(recording.lights, **lights),
            current=current,
        ),
        True,
    )
