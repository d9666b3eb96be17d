"""The Intelligent Driver Model along the route (Treiber, Hennecke and Helbing 2000).

    a = a_max (1 - (v / v0)^4 - (g* / g)^2),    g* = s0 + v T + v (v - v_leader) / (2 sqrt(a_max b))

The leader is whatever demands most: agents on the path or about to be on it, and red lights; v0 is the lowest of
what the driver wants, what the road allows and what its curves allow. The path leads from where the AV is onto the
route.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.studies.planners.interface import Floats, Mission, Situation, Trajectory
from pipeline.studies.planners.lanes import wrapped
from pipeline.studies.planners.prediction import obstacles_ahead, red_lines_ahead
from pipeline.studies.planners.route import Route, allowed_speeds, path_onto

_DT = 0.1
_EXPONENT = 4
# The hardest braking, m/s^2, whatever the model asks for.
_HARDEST = 8.0
_LEAST_GAP = 0.1
_STEPS = 10
# In which the AV joins its route: so many seconds, at least so many metres; anew if it was moved off its path.
_JOIN_SECONDS = 4.0
_JOIN_LENGTH = 15.0
_ASTRAY = 0.3


@dataclass(frozen=True)
class IDMSettings:
    """One driver. The numbers are the paper's (A.7) where it has any; it names the parameters and no more, so that
    what they do, and the defaults where it gives none, is an interpretation, marked (i).

    Attributes:
        speed: v0, m/s. gap: s0, metres. headway: T, seconds.
        aggressiveness: (i) accelerations forwards and in curves are those below times 0.5 + this, so that the
            Baseline's 0.5 changes nothing.
        acceleration: a_max, m/s^2. braking: b, the comfortable deceleration, m/s^2. The paper has them for some
            settings, the Baseline's serve for the others (i).
        safety: (i) factor of the desired gap g*.
        perception: (i) nothing farther than this, metres from the own front, is seen; the paper has it for two.
        jerk: (i) the acceleration changes by no more than this, m/s^3, except to brake harder than b.
        length: (i) the AV believes itself to be so long, metres, about its own middle; None for its true length.
        reaction: (i) what it sees of the others is so many seconds old, while it knows its own motion.
        time_to_collision: (i) below so many seconds it brakes with b at least.
        lateral: (i) comfortable in curves, m/s^2.
        keep_limit: (i) the road's limit, 35 mph where the map has none, caps v0. The paper does not say so, but
            30 m/s in every street would measure nothing else.
    """

    speed: float = 30.0
    gap: float = 2.0
    headway: float = 1.5
    aggressiveness: float = 0.5
    acceleration: float = 2.0
    braking: float = 3.0
    safety: float = 1.0
    perception: float = 60.0
    jerk: float = float("inf")
    length: float | None = None
    reaction: float = 0.0
    time_to_collision: float = 0.0
    lateral: float = 2.0
    keep_limit: bool = True

    @property
    def acceleration_scale(self) -> float:
        """What aggressiveness multiplies accelerations by."""
        return 0.5 + self.aggressiveness


IDM_SETTINGS: dict[str, IDMSettings] = {
    "baseline": IDMSettings(30, 2, 1.5, 0.5),
    "conservative": IDMSettings(25, 3, 2.0, 0.2, acceleration=1.5, braking=2, safety=1.5),
    "aggressive": IDMSettings(35, 1.5, 1.0, 0.8, acceleration=3, braking=4, safety=0.9),
    "comfort": IDMSettings(28, 2.5, 1.8, 0.3, acceleration=1.5, braking=2, jerk=2),
    "highway": IDMSettings(40, 3, 1.2, 0.6, perception=100),
    "city": IDMSettings(15, 2, 1.5, 0.4, perception=30),
    "truck": IDMSettings(25, 4, 2.0, 0.3, length=8),
    "emergency": IDMSettings(40, 1.5, 0.8, 0.9, acceleration=4),
    "adaptive": IDMSettings(30, 2.5, 1.5, 0.5, reaction=0.2),
    "defensive": IDMSettings(25, 4, 2.5, 0.1, time_to_collision=3),
}


def free_and_interaction(
    settings: IDMSettings, speed: float, desired: float, gap: Floats, leader: Floats
) -> tuple[float, Floats]:
    """The two terms of the acceleration, m/s^2: on a free road, and what each of M leaders takes away from it.

    Args:
        speed: m/s. desired: v0, m/s. gap: [M] from bumper to bumper, metres. leader: [M] speeds, m/s.
    """
    a, b = settings.acceleration * settings.acceleration_scale, settings.braking
    # Faster than desired, the formula brakes without bound: comfortably will do.
    free = max(a * (1 - (speed / max(desired, 0.1)) ** _EXPONENT), -b)
    wanted = settings.gap + np.maximum(
        0.0, speed * settings.headway + speed * (speed - leader) / (2 * np.sqrt(a * b))
    )
    return free, a * (settings.safety * wanted / np.maximum(gap, _LEAST_GAP)) ** 2


class IDMPlanner:
    """Follows the route with the speed of the model, deciding anew every 0.1 s."""

    period = 1

    def __init__(self, mission: Mission, settings: IDMSettings | None = None) -> None:
        self.mission, self.settings = mission, settings or IDMSettings()
        self._path: Route | None = None
        self._allowed = np.zeros(0)
        self._s = 0.0
        self._seen: deque[Situation] = deque(maxlen=round(self.settings.reaction / _DT) + 1)

    def plan(self, situation: Situation) -> Trajectory:
        """A second of the path, at the model's speed."""
        ego, settings = self.mission.ego, self.settings
        pose = situation.pose[ego]
        speed = float(np.linalg.norm(situation.velocity[ego]))
        path, s = self._followed(pose, speed)
        self._seen.append(situation)
        length = settings.length or float(situation.size[ego, 0])
        half_width = float(situation.size[ego, 1]) / 2
        seen = self._seen[0]
        obstacles = obstacles_ahead(path, s, ego, seen, length, half_width, settings.perception)
        lines = red_lines_ahead(path, s, situation, length, speed, settings.perception)
        late = (situation.step - seen.step) * _DT
        place = np.concatenate((obstacles.s + late * obstacles.speed, lines))
        pace = np.concatenate((obstacles.speed, np.zeros(len(lines))))
        merging = np.concatenate((obstacles.merging, np.zeros(len(lines), dtype=bool)))
        travelled, acceleration = [], situation.acceleration
        moved, ahead = s, speed
        for step in range(_STEPS):
            gap = place + step * _DT * pace - moved - length / 2
            acceleration = self._acceleration(moved, ahead, gap, pace, merging, acceleration)
            # Speeds are differences of positions, here as in what the planner is told, so the new one moves the AV.
            ahead = max(0.0, ahead + acceleration * _DT)
            moved += ahead * _DT
            travelled.append(moved)
        x, y, heading, _ = path.at(np.array(travelled))
        return Trajectory(np.stack((x, y, wrapped(heading)), axis=-1))

    def _acceleration(
        self, s: float, speed: float, gap: Floats, leader: Floats, merging: NDArray[np.bool_], before: float
    ) -> float:
        settings = self.settings
        desired = float(np.interp(s, self._path_distance, self._allowed))
        free, taken = free_and_interaction(settings, speed, desired, gap, leader)
        # For those who merge the AV brakes comfortably, and hard only once they are there.
        taken = np.where(merging, np.minimum(taken, free + settings.braking), taken)
        wish = free - float(taken.max(initial=0.0))
        time = np.where(merging, np.inf, gap / np.maximum(speed - leader, 1e-6))
        if float(time.min(initial=np.inf)) < settings.time_to_collision:
            wish = min(wish, -settings.braking)
        if wish >= -settings.braking:
            change, before = settings.jerk * _DT, max(before, -settings.braking)
            wish = min(max(wish, before - change), before + change)
        return max(wish, -_HARDEST)

    @property
    def _path_distance(self) -> Floats:
        assert self._path is not None
        return self._path.distance

    def _followed(self, pose: Floats, speed: float) -> tuple[Route, float]:
        """The path, made when first asked for and when the AV is not on it, and where the AV is on it."""
        if self._path is not None:
            s, d = (float(value) for value in self._path.project(pose[:2], near=self._s))
            if abs(d) < _ASTRAY:
                self._s = s
                return self._path, s
        self._path = path_onto(self.mission.route, pose, max(_JOIN_LENGTH, _JOIN_SECONDS * speed))
        settings = self.settings
        self._allowed = allowed_speeds(
            self._path,
            settings.speed,
            speed,
            settings.lateral * settings.acceleration_scale,
            settings.braking / 2,
            settings.keep_limit,
        )
        self._s = 0.0
        return self._path, 0.0
