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

from data.scene import FUTURE_STEPS, STEP_SECONDS
from pipeline.studies.planners.interface import Floats, MakePlanner, Mission, Situation, Trajectory
from pipeline.studies.planners.lanes import wrapped
from pipeline.studies.planners.reactivity.followers import find_cut_in
from pipeline.studies.planners.route import Route, joining_offset

__all__ = ["MANOEUVRES", "MANOEUVRE_STEP", "Manoeuvre", "cut_in", "gentle_stop", "hard_brake"]

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
