"""Scripted AVs that brake, stop or cut in, whatever the others do, and the scenes in which that concerns an agent.

Each follows the centreline of its route at constant speed for a second and then does one thing:

- ``hard_brake``: brakes at 6 m/s^2 until it stands;
- ``gentle_stop``: brakes at 3 m/s^2;
- ``cut_in``: changes to the lane beside within 2.5 s, at constant speed (a quintic: lateral velocity and
  acceleration are zero at both ends), where ``find_cut_in`` finds an agent to cut in on.

Lanes are followed backwards, through all that lead to the AV's lane, so that followers are found around bends and
before merges. All is of the current step; nothing of the future is looked at.

Shape legend: A agents (``scene.simulated``, in order), n points of a line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.geometry import project_on_polyline, wrap_angle
from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, Scene
from data.vocabulary import type_index
from pipeline.studies.planners.interface import Floats, MakePlanner, Mission, Situation, Trajectory
from pipeline.studies.planners.lanes import Lane, read_lanes, wrapped
from pipeline.studies.planners.road_scores import LANE_HALF_WIDTH
from pipeline.studies.planners.route import Route, joining_offset

# The AV is faster than this, and the follower as well moves, m/s.
_EGO_SPEED, _MOVING = 3.0, 1.0
# Between bumpers, metres: how far back a follower matters, and one that is cut in on.
_REACH, _CUT_IN_REACH, _CUT_IN_ROOM = 40.0, 25.0, 2.0
# The target lane is empty so far ahead of the AV, metres.
_CLEAR_AHEAD = 15.0
# Parallel lanes are so far apart, metres, and differ in direction by no more.
_NEAREST_LANE, _FARTHEST_LANE = 2.5, 5.0
_PARALLEL, _SAME_WAY = math.radians(15.0), math.radians(45.0)
# How long the lane beside must go on: the second before, the change, and one after it.
_CUT_IN_SECONDS = 4.5
_MOST_CORRIDORS = 16


@dataclass(frozen=True)
class CutIn:
    """A change of lane in front of an agent: metres to port, and the row of that agent."""

    offset: float
    follower: int


@dataclass(frozen=True)
class _Now:
    """Agents at the current step, minus the origin."""

    pose: Tensor  # [A, 3]
    speed: Tensor  # [A]
    length: Tensor  # [A]
    vehicle: Tensor  # [A] bool, the AV not among them
    ego: int


def _now(scene: Scene, origin: Tensor) -> _Now | None:
    """Or None if there is no AV at the current step."""
    agents, simulated = scene.agents, scene.simulated
    ego = agents.is_sdc[simulated].nonzero().flatten().tolist()
    if not ego:
        return None
    place = agents.position[simulated, CURRENT_INDEX, :2] - origin
    vehicle = type_index(agents.type[simulated]) == 0
    vehicle[ego[0]] = False
    return _Now(
        pose=torch.cat((place, agents.heading[simulated, CURRENT_INDEX, None]), dim=-1),
        speed=agents.velocity[simulated, CURRENT_INDEX].norm(dim=-1),
        length=agents.size[simulated, CURRENT_INDEX, 0],
        vehicle=vehicle,
        ego=ego[0],
    )


def _line(points: Floats) -> Tensor:
    return torch.from_numpy(points).float()


def _direction(line: Tensor, segment: Tensor) -> Tensor:
    """Heading [...] of numbered segments of a line [n, 2]."""
    vector = line[segment + 1] - line[segment]
    return torch.atan2(vector[..., 1], vector[..., 0])


def _length(line: Tensor) -> float:
    return float((line[1:] - line[:-1]).norm(dim=-1).sum())


def corridors_behind(lanes: Sequence[Lane], pose: Tensor) -> list[Tensor]:
    """Lines [n, 2] along lanes that end at a pose [3], the longest ones that its lane and those before it make.

    At least as long as a follower may be away, if lanes go back so far; none where the pose is in no lane.
    """
    before: list[list[int]] = [[] for _ in lanes]
    for index, lane in enumerate(lanes):
        for after in lane.successors:
            before[after].append(index)
    # A bumper's distance is between centres half of two lengths more.
    enough = _REACH + 15.0
    open_lines: list[tuple[int, Tensor]] = []
    for index, lane in enumerate(lanes):
        line = _line(lane.point)
        along, aside, segment = project_on_polyline(pose[:2], line)
        turned = wrap_angle(_direction(line, segment) - pose[2]).abs()
        if float(aside.abs()) > LANE_HALF_WIDTH or float(turned) > _SAME_WAY or not 0 <= along <= lane.length:
            continue
        open_lines.append((index, _line(lane.piece(0.0, float(along)))))
    done: list[Tensor] = []
    while open_lines and len(done) < _MOST_CORRIDORS:
        index, line = open_lines.pop()
        if _length(line) >= enough or not before[index]:
            done.append(line)
        else:
            open_lines.extend((lane, torch.cat((_line(lanes[lane].point), line))) for lane in before[index])
    return done


def _nearest_behind(lanes: Sequence[Lane], now: _Now, pose: Tensor) -> tuple[int, float] | None:
    """Row of the vehicle behind a pose [3] of the AV, in its corridors and heading its way, and metres between
    bumpers."""
    found: dict[int, float] = {}
    for line in corridors_behind(lanes, pose):
        along, aside, segment = project_on_polyline(now.pose[:, :2], line)
        same_way = wrap_angle(_direction(line, segment) - now.pose[:, 2]).abs() < _SAME_WAY
        gap = _length(line) - along - (now.length + now.length[now.ego]) / 2
        # Agents beside or ahead of it are no followers, and here the line ends at its ends.
        behind = now.vehicle & same_way & (aside.abs() < LANE_HALF_WIDTH) & (along >= 0) & (gap > 0)
        for row in behind.nonzero().flatten().tolist():
            found[row] = min(found.get(row, math.inf), float(gap[row]))
    if not found:
        return None
    row = min(found, key=lambda key: (found[key], key))
    return row, found[row]


def find_follower(scene: Scene, origin: Tensor) -> int | None:
    """Row of the vehicle that would have to react if the AV braked, or None: the scene says nothing then.

    The AV is faster than 3 m/s, and the first vehicle behind it in its lane, or in one that leads there, moves in
    its direction within 40 m.

    Args:
        scene: single; nothing after the current step is read. origin: [2], ``data.tokenizer.scene_origin``.
    """
    now = _now(scene, origin)
    if now is None or float(now.speed[now.ego]) <= _EGO_SPEED:
        return None
    nearest = _nearest_behind(read_lanes(scene, origin.numpy()), now, now.pose[now.ego])
    if nearest is None or nearest[1] > _REACH or float(now.speed[nearest[0]]) <= _MOVING:
        return None
    return nearest[0]


def find_cut_in(scene: Scene, origin: Tensor, route: Route) -> CutIn | None:
    """A lane beside the AV's that it can change to in front of an agent, or None.

    The AV is faster than 3 m/s; a lane runs parallel to its route as long as the change takes; no agent is in it
    beside the AV or within 15 m ahead; and the first vehicle behind there moves, 2 to 25 m away. Of two such lanes
    the one with the nearer follower is taken.

    Args:
        scene: single; nothing after the current step is read. origin: [2]. route: that the AV follows.
    """
    now = _now(scene, origin)
    if now is None or float(now.speed[now.ego]) <= _EGO_SPEED:
        return None
    ego = now.pose[now.ego]
    line = torch.from_numpy(route.point).to(ego.dtype)
    start, _, _ = project_on_polyline(ego[:2], line)
    distances = float(start) + np.linspace(0.0, _CUT_IN_SECONDS * float(now.speed[now.ego]), 6)
    lanes = read_lanes(scene, origin.numpy())
    best: tuple[float, CutIn] | None = None
    for offset in _lanes_beside(lanes, route, distances):
        place = _beside_route(route, distances[:1], offset)[0]
        nearest = _nearest_behind(lanes, now, place)
        if nearest is None or nearest[1] > _CUT_IN_REACH:
            continue
        if float(now.speed[nearest[0]]) <= _MOVING or _blocked(now, line, float(start), offset):
            continue
        if best is None or nearest[1] < best[0]:
            best = nearest[1], CutIn(offset, nearest[0])
    return None if best is None else best[1]


def _beside_route(route: Route, distance: Floats, offset: float) -> Tensor:
    """Poses [n, 3] beside a route, so many metres along it and to port."""
    return _line(np.column_stack((route.offset(distance, np.full_like(distance, offset)), route.at(distance)[2])))


def _lanes_beside(lanes: Sequence[Lane], route: Route, distances: Floats) -> list[float]:
    """Offsets in metres, to port, of lanes parallel to the route at all of some distances along it.

    A lane may consist of several features, which follow each other at about the same offset.
    """
    own = _beside_route(route, distances, 0.0)
    seen: list[tuple[Tensor, Tensor]] = []
    for lane in lanes:
        line = _line(lane.point)
        along, aside, segment = project_on_polyline(own[:, :2], line)
        turned = wrap_angle(_direction(line, segment) - own[:, 2]).abs()
        there = (along >= -1.0) & (along <= lane.length + 1.0) & (turned < _PARALLEL)
        seen.append((-aside, there))
    if not seen:
        return []
    offset = torch.stack([part for part, _ in seen])  # [lanes, n]
    there = torch.stack([part for _, part in seen])
    first = offset[:, 0]
    candidates = first[there[:, 0] & (first.abs() >= _NEAREST_LANE) & (first.abs() <= _FARTHEST_LANE)].tolist()
    result: list[float] = []
    for candidate in sorted(candidates, key=abs):
        goes_on = ((offset - candidate).abs() < 1.0) & there
        # Features that overlap, as before a fork, are the same lane.
        if bool(goes_on.any(0).all()) and all(abs(candidate - other) > 1.0 for other in result):
            result.append(candidate)
    return result


def _blocked(now: _Now, line: Tensor, start: float, offset: float) -> bool:
    """Whether anything is in the target lane beside the AV or not far ahead of it."""
    along, aside, _ = project_on_polyline(now.pose[:, :2], line)
    gap = (along - start).abs() - (now.length + now.length[now.ego]) / 2
    near = torch.where(along > start, gap < _CLEAR_AHEAD, gap < _CUT_IN_ROOM)
    inside = (aside - offset).abs() < LANE_HALF_WIDTH
    inside[now.ego] = False
    return bool((near & inside).any())


# Step at which all of them begin.
MANOEUVRE_STEP = 10
_CHANGE_SECONDS = 2.5
# Metres over which slopes are differenced.
_NEAR = 0.05
# Over how many metres at least the AV comes to its route or goes over to another lane.
_LEAST_REACH = 5.0


@dataclass(frozen=True)
class Manoeuvre:
    """Plans all 8 s at the first call.

    Attributes:
        route: to follow. ego: row of the AV. braking: m/s^2, from ``MANOEUVRE_STEP`` on until it stands.
        offset: metres to port of the route to go over to, from ``MANOEUVRE_STEP`` on.
    """

    route: Route
    ego: int
    braking: float = 0.0
    offset: float = 0.0

    @property
    def period(self) -> int:
        return FUTURE_STEPS

    def plan(self, situation: Situation) -> Trajectory:
        pose, velocity = situation.pose[self.ego], situation.velocity[self.ego]
        direction = np.array([math.cos(pose[2]), math.sin(pose[2])])
        speed = max(0.0, float(velocity @ direction))
        # Lateral motion is a function of the distance, not of time, and so ends where the AV stands.
        reach = max(speed * _CHANGE_SECONDS, _LEAST_REACH)
        change = self.offset, speed * MANOEUVRE_STEP * STEP_SECONDS
        start, offset = joining_offset(self.route, pose, reach, change=change)
        s = start + self._distance(speed, STEP_SECONDS * np.arange(1, FUTURE_STEPS + 1))
        xy, (_, _, heading, bend) = self.route.offset(s, offset(s)), self.route.at(s)
        slope = (offset(s + _NEAR) - offset(s - _NEAR)) / (2 * _NEAR)
        return Trajectory(np.column_stack((xy, wrapped(heading + np.arctan(slope / (1 - bend * offset(s)))))))

    def _distance(self, speed: float, time: Floats) -> Floats:
        """Metres driven until some times."""
        free = np.minimum(time, MANOEUVRE_STEP * STEP_SECONDS)
        rest = time - free
        if self.braking > 0:
            rest = np.minimum(rest, speed / self.braking)
        return speed * (free + rest) - self.braking / 2 * rest**2


def cut_in(mission: Mission) -> Manoeuvre:
    """Drives on for a second and changes lane in front of somebody.

    Raises:
        ValueError: there is no agent to cut in on (``find_cut_in``).
    """
    found = find_cut_in(mission.scene, torch.from_numpy(mission.origin).float(), mission.route)
    if found is None:
        raise ValueError(f"scene {mission.scene.scenario_id}: no agent to cut in on")
    return Manoeuvre(mission.route, mission.ego, offset=found.offset)


MANOEUVRES: dict[str, MakePlanner] = {
    "hard_brake": lambda mission: Manoeuvre(mission.route, mission.ego, braking=6.0),
    "gentle_stop": lambda mission: Manoeuvre(mission.route, mission.ego, braking=3.0),
    "cut_in": cut_in,
}
