"""What the AV does with a ``Control``: a kinematic bicycle model, exact for constant acceleration and steering."""

from __future__ import annotations

import numpy as np

from data.scene import STEP_SECONDS
from pipeline.studies.planners.interface import Control, Floats

__all__ = ["LARGEST_STEERING", "WHEELBASE", "execute"]

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
