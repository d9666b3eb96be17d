"""What a planner is told and what it answers; all that a planner of your own has to know.

Numbers are numpy arrays in metres, radians and m/s, seen from the scene's origin (``data.tokenizer.scene_origin``),
headings counter-clockwise from +x. Shape legend: A agents (``scene.simulated``, in order), S signals, N route
points, n steps of a plan.

A ``Control`` is executed by a kinematic bicycle model, exact for constant acceleration and steering.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from data.scene import STEP_SECONDS, Scene
from pipeline.studies.planners.route import Route

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mission:
    """What is known before the first step.

    Attributes:
        scene: its first 11 steps, with the map; nothing of the future.
        origin: [2] added to positions gives the scene's coordinates.
        ego: row of the AV among the simulated agents.
        route: the lanes to follow.
        recorded: [80, 3] x, y, heading that the AV drove in the log; for the log planner alone, which is a
            yardstick and no planner.
        seed: for planners that draw random numbers.
    """

    scene: Scene
    origin: Floats
    ego: int
    route: Route
    recorded: Floats
    seed: int = 0


@dataclass(frozen=True)
class Situation:
    """The world as it is now. What the others will do is not known.

    Attributes:
        step: 0.1 s steps since the current step of the scenario; 0 at the first call.
        pose: [A, 3] x, y, heading. velocity: [A, 2]. size: [A, 2] length and width. type: [A] int, 0 vehicle,
            1 pedestrian, 2 cyclist. present: [A] bool, whether an agent is there now.
        acceleration: of the AV along its heading over the last step, m/s^2. yaw_rate: likewise, rad/s.
        stop_line: [S, 3] stop point and heading of its lane. red: [S] bool, now.
    """

    step: int
    pose: Floats
    velocity: Floats
    size: Floats
    type: NDArray[np.int64]
    present: NDArray[np.bool_]
    acceleration: float
    yaw_rate: float
    stop_line: Floats
    red: NDArray[np.bool_]


@dataclass(frozen=True)
class Trajectory:
    """Poses [n, 3] at the next n steps of 0.1 s, followed exactly; n is at least the planner's period."""

    pose: Floats


@dataclass(frozen=True)
class Control:
    """Held until the next call, by a bicycle model with a wheelbase of 2.8 m: m/s^2, and the angle of the wheels in
    radians."""

    acceleration: float
    steering: float


class Planner(Protocol):
    """Drives the AV of one scene.

    Attributes:
        period: steps of 0.1 s from one call to the next.
    """

    @property
    def period(self) -> int: ...

    def plan(self, situation: Situation) -> Trajectory | Control:
        """Where to go from here."""
        ...


# A planner is made anew for every scene, so it may keep what it likes between calls.
MakePlanner = Callable[[Mission], Planner]


# Metres, as in the paper (A.7); the wheels turn so far, radians.
WHEELBASE = 2.8
LARGEST_STEERING = 0.6


def execute(pose: Floats, speed: float, control: Control, dt: float = STEP_SECONDS) -> tuple[Floats, float]:
    """Pose and speed behind ``dt`` seconds of constant acceleration and steering.

    The reference point, the middle of the box, is taken for that between the axles; its slip angle is
    atan(tan(steering) / 2). The car drives a circle, stops, and does not reverse.

    Args:
        pose: [3] x, y, heading. speed: m/s, at least 0. control: steering is held to what the wheels can.

    Returns:
        pose [3] and speed.
    """
    steering = float(np.clip(control.steering, -LARGEST_STEERING, LARGEST_STEERING))
    time = dt
    if control.acceleration < 0:
        time = min(dt, speed / -control.acceleration)
    travelled = speed * time + control.acceleration / 2 * time**2
    after = max(0.0, speed + control.acceleration * dt)
    slip = float(np.arctan(np.tan(steering) / 2))
    turn = travelled * np.cos(slip) * np.tan(steering) / WHEELBASE
    # The chord of the arc lies half the turn off the direction of motion; sinc is sin(pi x) / (pi x).
    chord = travelled * np.sinc(turn / 2 / np.pi)
    direction = pose[2] + slip + turn / 2
    moved = np.array([chord * np.cos(direction), chord * np.sin(direction), turn])
    return pose + moved, float(after)
