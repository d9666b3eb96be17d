"""Scripted AVs: they brake, stop or cut in, whatever the others do. Who drives behind has to react.

Each follows the centreline of its route at constant speed for a second and then does one thing:

- ``hard_brake``: brakes at 6 m/s^2 until it stands;
- ``gentle_stop``: brakes at 3 m/s^2;
- ``cut_in``: goes over to the lane beside within 2.5 s, at constant speed (a quintic: lateral velocity and
  acceleration are zero at both ends), where ``find_cut_in`` finds somebody to cut in on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data.geometry import project_on_polyline
from data.scene import FUTURE_STEPS, STEP_SECONDS
from pipeline.studies.planners.interface import MakePlanner, Mission, Situation, Trajectory
from pipeline.studies.planners.reactivity.followers import find_cut_in
from pipeline.studies.planners.route import Route

__all__ = ["MANOEUVRES", "MANOEUVRE_STEP", "Manoeuvre", "cut_in", "gentle_stop", "hard_brake"]

Floats = NDArray[np.float64]

# Step at which all of them begin.
MANOEUVRE_STEP = 10
_CHANGE_SECONDS = 2.5
_SPACING = 0.1  # metres between points of the path
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
        way = self._way(speed, STEP_SECONDS * np.arange(1, FUTURE_STEPS + 1))
        return Trajectory(_follow(self.route, pose, speed, self.offset, way))

    def _way(self, speed: float, time: Floats) -> Floats:
        """Metres driven at some times."""
        free = np.minimum(time, MANOEUVRE_STEP * STEP_SECONDS)
        rest = time - free
        if self.braking > 0:
            rest = np.minimum(rest, speed / self.braking)
        return speed * (free + rest) - self.braking / 2 * rest**2


def _blend(share: Floats) -> Floats:
    """The quintic from 0 to 1 with first and second derivative 0 at both ends."""
    share = np.clip(share, 0.0, 1.0)
    return share**3 * (10 - 15 * share + 6 * share**2)


def _follow(route: Route, pose: Floats, speed: float, offset: float, way: Floats) -> Floats:
    """Poses [n, 3] after some metres along a path from a pose to the route, and then ``offset`` beside it.

    Being functions of the way, not of time, lateral motions end where the AV stands.
    """
    reach = max(speed * _CHANGE_SECONDS, _LEAST_REACH)
    along = np.arange(0.0, float(way[-1]) + 2 * _SPACING, _SPACING)
    start, _, _ = project_on_polyline(torch.from_numpy(pose[:2].copy()), torch.from_numpy(route.point))
    place, heading = _route_at(route, float(start) + along)
    error = pose[:2] - place[0]
    slope = math.tan(float(np.clip(_wrapped(pose[2] - heading[0]), -0.5, 0.5)))
    share = np.minimum(along / reach, 1.0)
    # It goes on in its own direction and comes to the route smoothly: a quintic that has slope 1 at 0, no second
    # derivative there, and nothing at all at 1.
    turning = reach * slope * (share - 6 * share**3 + 8 * share**4 - 3 * share**5)
    changing = offset * _blend((along - speed * MANOEUVRE_STEP * STEP_SECONDS) / reach)
    returning = 1 - _blend(share)
    aside = turning + changing
    normal = np.stack((-np.sin(heading), np.cos(heading)), axis=-1)
    path = place + returning[:, None] * error + aside[:, None] * normal
    heading = heading + np.arctan(np.gradient(aside + returning * float(error @ normal[0]), _SPACING))
    result = np.stack([np.interp(way, along, values) for values in (path[:, 0], path[:, 1], heading)], axis=-1)
    result[:, 2] = _wrapped(result[:, 2])
    return result


def _wrapped(angle: Floats) -> Floats:
    return np.asarray((angle + math.pi) % (2 * math.pi) - math.pi)


def _route_at(route: Route, way: Floats) -> tuple[Floats, Floats]:
    """Points [n, 2] of a route and its headings [n]; beyond its ends it goes straight on."""
    inside = np.clip(way, route.distance[0], route.distance[-1])
    x, y, heading = (
        np.interp(inside, route.distance, values)
        for values in (route.point[:, 0], route.point[:, 1], route.heading)
    )
    beyond = way - inside
    return np.stack((x + beyond * np.cos(heading), y + beyond * np.sin(heading)), axis=-1), heading


def hard_brake(mission: Mission) -> Manoeuvre:
    """Drives on for a second and brakes at 6 m/s^2."""
    return Manoeuvre(mission.route, mission.ego, braking=6.0)


def gentle_stop(mission: Mission) -> Manoeuvre:
    """Drives on for a second and brakes at 3 m/s^2."""
    return Manoeuvre(mission.route, mission.ego, braking=3.0)


def cut_in(mission: Mission) -> Manoeuvre:
    """Drives on for a second and changes lane in front of somebody.

    Raises:
        ValueError: there is nobody to cut in on (``find_cut_in``).
    """
    found = find_cut_in(mission.scene, torch.from_numpy(mission.origin).float(), mission.route)
    if found is None:
        raise ValueError(f"scene {mission.scene.scenario_id}: nobody to cut in on")
    return Manoeuvre(mission.route, mission.ego, offset=found.offset)


MANOEUVRES: dict[str, MakePlanner] = {"hard_brake": hard_brake, "gentle_stop": gentle_stop, "cut_in": cut_in}
