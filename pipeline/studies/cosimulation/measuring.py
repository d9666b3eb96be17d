"""What drives did, in our geometry: overlaps, corners beyond road edges, red lights, progress; and rates of these.

Shape legend: A users, N taken vehicles, T steps behind the take-over (whose moment is number 0), E edge segments.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely
import torch
from scipy.spatial import cKDTree
from torch import Tensor

from data.geometry import box_corners, box_separation, to_local
from data.scene import STEP_SECONDS, LightState
from data.vocabulary import TYPE_NAMES
from pipeline.evaluation.statistics import rate
from pipeline.execution.tables import interval_cell, render_table
from pipeline.simulator.events import red_lights, signed_edge_distance
from pipeline.simulator.step import Motion
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.drive import Drive

_STOPS = torch.tensor([int(LightState.STOP), int(LightState.ARROW_STOP)])
# Another vehicle came from behind if its centre lies farther behind ours than this fraction of our length.
_BEHIND = 0.25
# A vehicle this near to the middle of a lane is in it, metres.
_LANE_REACH = 1.8
# Lights are checked in pieces of so many steps: a light that is run twice counts twice.
_PIECE = 2

COUNTS = (
    "vehicles",
    "seconds",
    "metres",
    "left",
    "lost",
    "collided_vehicles",
    "collisions",
    "collisions_taken",
    "collisions_sumo",
    "collisions_parked",
    "collisions_cyclist",
    "collisions_pedestrian",
    "collisions_from_behind",
    "offroad_vehicles",
    "offroad_seconds",
    "wrong_way_seconds",
    "red_lights",
    "sumo_says_collisions",
    "other_seconds",
    "hard_brakes",
    "hard_brakes_behind_taken",
)


def measure(area: Area, drive: Drive) -> dict[str, float]:
    """Sums over a world, to be put into relation by ``summary``.

    Vehicles that overlap another one, or are off the road, when they are taken over are not blamed until that has
    ended once.

    Returns:
        For each of ``COUNTS`` a number. ``seconds`` and ``metres`` are those of taken vehicles while they are in
        the world, ``left`` those that drove out of it, ``lost`` those that SUMO removed. A collision is the
        first overlap of a pair of which one at least was taken: with another taken vehicle, one that SUMO drives, a
        parked one, a cyclist or a pedestrian; ``from_behind`` are those of SUMO's vehicles that drove into a taken
        one's rear. ``sumo_says_collisions`` are pairs in SUMO's own terms. ``other_seconds`` are those of motor
        vehicles that SUMO drives, ``hard_brakes`` theirs, ``behind_taken`` those with a taken vehicle ahead.
    """
    taken = drive.taken
    there = drive.present[taken]
    both = there[:, 1:] & there[:, :-1]
    path = (drive.pose[taken, 1:, :2] - drive.pose[taken, :-1, :2]).norm(dim=-1)
    off = _unblamed(_off_road(drive), there)
    others = torch.from_numpy(area.motorised).clone()
    others[taken] = False
    taken_rows = set(taken.tolist())
    said = {frozenset(pair) for step in drive.sumo_collisions for pair in step if taken_rows & set(pair)}
    sums = {
        "vehicles": len(taken),
        "seconds": STEP_SECONDS * int(both.sum()),
        "metres": float(path[both].double().sum()),
        "left": len(drive.left),
        "lost": len(drive.lost),
        "offroad_vehicles": int(off.any(-1).sum()),
        "offroad_seconds": STEP_SECONDS * int(off[:, 1:].sum()),
        "wrong_way_seconds": STEP_SECONDS * int(_wrong_way(area, drive)[:, 1:].sum()),
        "red_lights": _red_lights(drive),
        "sumo_says_collisions": len(said),
        "other_seconds": STEP_SECONDS * int(drive.present[others, 1:].sum()),
        "hard_brakes": len(drive.brakes),
        "hard_brakes_behind_taken": sum(brake.leader in taken_rows for brake in drive.brakes),
        **_collisions(area, drive),
    }
    return {name: float(sums.get(name, 0)) for name in COUNTS}


def _unblamed(state: Tensor, there: Tensor) -> Tensor:
    """A state [..., T + 1] without what has lasted from the start, and where somebody is not there."""
    return state & ~state.cumprod(-1).bool() & there


def _off_road(drive: Drive) -> Tensor:
    """[N, T + 1] whether a corner is beyond the nearest road edge."""
    world, pose = drive.world, drive.pose[drive.taken]
    size = world.size[0, drive.taken]
    corners = box_corners(pose[..., :2], pose[..., 2], size[:, :1], size[:, 1:2])  # [N, T + 1, 4, 2]
    real = world.edges.kind > 0
    if not bool(real.any()):
        return torch.zeros(pose.shape[:2], dtype=torch.bool)
    lines = torch.stack((world.edges.start[real], world.edges.end[real]), dim=1)
    tree = shapely.STRtree(shapely.linestrings(lines.double().numpy()))
    points = corners.flatten(1, 2)  # [N, (T + 1) * 4, 2]
    nearest = tree.nearest(shapely.points(points.reshape(-1, 2).double().numpy()))
    number = real.nonzero().flatten()[torch.from_numpy(nearest)].view(*points.shape[:2], 1)
    height = world.height[0, drive.taken] - size[:, 2] / 2
    distance = signed_edge_distance(world.edges, points, height, number)
    return (distance.view(*pose.shape[:2], 4) > 0).any(-1)


def _overlaps(drive: Drive) -> Tensor:
    """[N, A, T + 1] whether boxes of taken vehicles overlap those of others."""
    world, taken = drive.world, drive.taken
    half = world.size[0, :, :2] / 2
    itself = torch.arange(len(half)) == taken.unsqueeze(1)
    result = torch.zeros(len(taken), len(half), drive.pose.shape[1], dtype=torch.bool)
    for step in range(drive.pose.shape[1]):
        x, y, heading = drive.pose[:, step].unbind(-1)
        numbers = torch.stack((x, y, heading.cos(), heading.sin(), half[:, 0], half[:, 1]))
        own, around = numbers[:, taken].unsqueeze(-1), numbers.unsqueeze(1)
        gap = box_separation(own[:2], own[2:4], own[4:], around[:2], around[2:4], around[4:])
        there = drive.present[taken, step].unsqueeze(1) & drive.present[:, step]
        result[:, :, step] = (gap < 0) & there & ~itself
    return result


def _collisions(area: Area, drive: Drive) -> Counter[str]:
    taken = drive.taken
    overlap = _overlaps(drive)
    hit = overlap & ~overlap.cumprod(-1).bool()
    counts: Counter[str] = Counter(collided_vehicles=int(hit.any(-1).any(-1).sum()))
    own = {row: index for index, row in enumerate(taken.tolist())}
    types, parked = drive.world.types[0], len(area.demand.users)
    for index, other in hit.any(-1).nonzero().tolist():
        if other in own and own[other] < index:
            continue  # this pair was met from the other side
        step = int(hit[index, other].int().argmax())
        counts["collisions"] += 1
        if other in own:
            kind = "taken"
        elif other >= parked:
            kind = "parked"
        else:
            kind = "sumo" if int(types[other]) == 0 else TYPE_NAMES[int(types[other])]
        counts[f"collisions_{kind}"] += 1
        if kind == "sumo":
            pose = drive.pose[taken[index], step]
            place = to_local(drive.pose[other, step, :2], pose[:2], pose[2])
            length = drive.world.size[0, taken[index], 0]
            counts["collisions_from_behind"] += int(place[0] < -_BEHIND * length)
    return counts


def _red_lights(drive: Drive) -> int:
    """How often a taken vehicle's centre passed a stop point while its light was red."""
    red = torch.isin(drive.signals, _STOPS).unsqueeze(0)
    world = dataclasses.replace(drive.world, red=red)
    total = 0
    for first in range(0, drive.pose.shape[1] - 1, _PIECE):
        piece = slice(first + 1, first + 1 + _PIECE)
        present = drive.present[None, :, piece] & drive.present[None, :, first, None]
        motion = Motion(drive.pose[None, :, first], drive.pose[None, :, piece], present, first + 1)
        total += int(red_lights(world, motion)[0, drive.taken].sum())
    return total


def _wrong_way(area: Area, drive: Drive) -> Tensor:
    """[N, T + 1] whether a taken vehicle is in lanes all of which lead the other way."""
    points = [lane.points for lane in area.map.lanes.values()]
    along = [np.gradient(line, axis=0) for line in points]
    place, direction = np.concatenate(points), np.concatenate(along)
    tree = cKDTree(place)
    pose = drive.pose[drive.taken].double()
    position = (pose[..., :2] + drive.world.origin[0]).view(-1, 2).numpy()
    heading = pose[..., 2].flatten().numpy()
    found = np.zeros(len(position), dtype=bool)
    for row, near in enumerate(tree.query_ball_point(position, _LANE_REACH)):
        if near:
            own = np.array([np.cos(heading[row]), np.sin(heading[row])])
            found[row] = (direction[near] @ own < 0).all()
    return torch.from_numpy(found).view(pose.shape[:2]) & drive.present[drive.taken]


LABELS = {
    "sumo": "SUMO's own model",
    "replay": "its paths, moved by us",
    "policy": "policy",
    "constant_velocity": "constant velocity",
    "reference": "reference",
}


@dataclass(frozen=True)
class Rate:
    """A sum over another one: ``scale * sum(over worlds of top) / sum(over worlds of bottom)``.

    Attributes:
        title: of the row. top, bottom: names of sums (``measuring.COUNTS``). digits: shown behind the point.
        reference: the bottom is that of this driver, instead of one's own.
    """

    title: str
    top: str
    bottom: str
    scale: float = 1.0
    digits: int = 3
    reference: str | None = None


RATES: dict[str, Rate] = {
    "collisions_per_km": Rate("collisions per km", "collisions", "metres", 1000.0, 2),
    "collisions_per_hour": Rate("collisions per vehicle-hour", "collisions", "seconds", 3600.0, 1),
    "collided": Rate("vehicles that collided", "collided_vehicles", "vehicles"),
    "off_road_time": Rate("share of time off-road", "offroad_seconds", "seconds"),
    "off_road": Rate("vehicles ever off-road", "offroad_vehicles", "vehicles"),
    "wrong_way_time": Rate("share of time against traffic", "wrong_way_seconds", "seconds"),
    "red_lights_per_km": Rate("red lights run per km", "red_lights", "metres", 1000.0, 2),
    "speed": Rate("mean speed, m/s", "metres", "seconds", 1.0, 2),
    "progress": Rate("distance relative to SUMO's own", "metres", "metres", 1.0, 2, reference="sumo"),
    "hard_brakes_per_hour": Rate("others' hard brakes per hour", "hard_brakes", "other_seconds", 3600.0, 1),
    "hard_brakes_behind_taken_per_hour": Rate(
        "of these behind a taken vehicle", "hard_brakes_behind_taken", "other_seconds", 3600.0, 1
    ),
    "sumo_says_collisions_per_km": Rate(
        "collisions per km in SUMO's terms", "sumo_says_collisions", "metres", 1000.0, 2
    ),
}

World = Mapping[str, Mapping[str, float]]


def summarise(worlds: Sequence[World], seed: int) -> dict[str, dict[str, Any]]:
    """Rates of each driver with percentile bootstrap intervals over worlds.

    Args:
        worlds: for each world the sums of each driver. seed: of the resampling.

    Returns:
        For each driver ``sums``, and for each of ``RATES`` ``value`` and ``interval``, None where no vehicle drove.
    """

    def column(driver: str, name: str) -> np.ndarray:
        return np.array([world[driver][name] for world in worlds], dtype=np.float64)

    result: dict[str, dict[str, Any]] = {}
    for driver in worlds[0]:
        rates: dict[str, Any] = {}
        for name, one in RATES.items():
            top, bottom = column(driver, one.top), column(one.reference or driver, one.bottom)
            found = rate(top, bottom, one.scale, seed).plain()
            low, high = found["low"], found["high"]
            rates[name] = {"value": found["value"], "interval": None if low is None else [low, high]}
        sums = {name: float(column(driver, name).sum()) for name in worlds[0][driver]}
        result[driver] = {"sums": sums, **rates}
    return result


def cosimulation_table(summary: Mapping[str, Mapping[str, Any]]) -> str:
    """A rate a row, a driver a column, intervals in brackets."""
    rows = [["", *(LABELS.get(driver, driver) for driver in summary)]]
    for title, name, scale, digits in (("vehicles", "vehicles", 1, 0), ("km", "metres", 1e-3, 1)):
        rows.append([title, *(f"{found['sums'][name] * scale:.{digits}f}" for found in summary.values())])
    for name, one in RATES.items():
        rows.append([one.title, *(_cell(found[name], one.digits) for found in summary.values())])
    return render_table(rows)


def _cell(found: Mapping[str, Any], digits: int) -> str:
    return interval_cell(found["value"], found["interval"], digits)
