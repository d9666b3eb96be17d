"""Scores of the AV's motion: comfort, progress along the route, speed limit.

Comfort: 1 if accelerations, jerks and yaw stay within nuPlan's bounds at every step, else 0. Accelerations are
second derivatives of positions along and across the heading, yaw rates first derivatives of the heading, by a
Savitzky-Golay filter over 1.5 s; jerks are derivatives of the accelerations by another one. As in nuPlan the jerk
is the change of the acceleration's magnitude, the longitudinal jerk that of its component.

Progress: min(1, max(0, s) / s_log), where s is the distance along the route between the first and last step; 1 if
the log made less than 2 m of progress.

Speed limit compliance: 1 - (mean overspeed) / (2.23 m/s), at least 0. Overspeed is what the AV drives above the
limit of the nearest piece of the route, over all steps; 0 where no limit is known.

Shape legend: P drives, T steps.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import savgol_filter
from torch import Tensor

from data.geometry import project_on_polyline
from data.scene import STEP_SECONDS

# Least and greatest, m/s^2, m/s^3, rad/s, rad/s^2.
COMFORT_BOUNDS = {
    "longitudinal_acceleration": (-4.05, 2.40),
    "lateral_acceleration": (-4.89, 4.89),
    "jerk": (-8.37, 8.37),
    "longitudinal_jerk": (-4.13, 4.13),
    "yaw_rate": (-0.95, 0.95),
    "yaw_acceleration": (-1.93, 1.93),
}
_WINDOW = 15


def _derivative(values: NDArray[np.float64], order: int, polynomial: int) -> NDArray[np.float64]:
    """Derivative of some order along the last axis; polynomials of degree ``polynomial`` are exact, ends too."""
    result: NDArray[np.float64] = savgol_filter(values, _WINDOW, polynomial, deriv=order, delta=STEP_SECONDS)
    return result


def ego_motion(pose: Tensor) -> dict[str, Tensor]:
    """What ``COMFORT_BOUNDS`` bound, smoothed, [P, T] float64 each, from the AV's poses [P, T, 3]."""
    x, y, heading = pose.double().numpy().transpose(2, 0, 1)
    heading = np.unwrap(heading, axis=-1)
    cos, sin = np.cos(heading), np.sin(heading)
    x2, y2 = _derivative(x, 2, 3), _derivative(y, 2, 3)
    along = x2 * cos + y2 * sin
    parts = (
        along,
        y2 * cos - x2 * sin,
        _derivative(np.hypot(x2, y2), 1, 2),
        _derivative(along, 1, 2),
        _derivative(heading, 1, 2),
        _derivative(heading, 2, 3),
    )
    return {name: torch.from_numpy(part) for name, part in zip(COMFORT_BOUNDS, parts, strict=True)}


def within_bounds(motion: dict[str, Tensor]) -> dict[str, Tensor]:
    """[P] bool for each of ``COMFORT_BOUNDS``, from ``ego_motion``."""
    return {
        name: ((motion[name] >= low) & (motion[name] <= high)).all(-1)
        for name, (low, high) in COMFORT_BOUNDS.items()
    }


def comfort(pose: Tensor) -> Tensor:
    """[P] score, from the AV's poses [P, T, 3]."""
    return torch.stack(list(within_bounds(ego_motion(pose)).values())).all(0).float()


_LEAST = 2.0


def progress_along(pose: Tensor, route: Tensor) -> Tensor:
    """Metres [P] along a route [N, 2] between the first and the last of poses [P, T, 3]."""
    along, _, _ = project_on_polyline(pose[:, (0, -1), :2], route)
    return along[:, 1] - along[:, 0]


def progress(pose: Tensor, logged: Tensor, route: Tensor) -> Tensor:
    """[P] score.

    Args:
        pose: [P, T, 3] of the AV. logged: [1, T, 3] of the AV in the log. route: [N, 2] points.
    """
    made, expected = progress_along(pose, route), progress_along(logged, route)
    fraction = (made / expected.clamp(min=_LEAST)).clamp(0.0, 1.0)
    return torch.where(expected < _LEAST, 1.0, fraction)


_WORST = 2.23  # m/s, 5 mph


def speed_limit_compliance(pose: Tensor, velocity: Tensor, route: Tensor, limit: Tensor) -> Tensor:
    """[P] score.

    Args:
        pose: [P, T, 3] of the AV. velocity: [P, T, 2]. route: [N, 2] points. limit: [N] m/s there, 0 if unknown.
    """
    _, _, segment = project_on_polyline(pose[..., :2], route)
    allowed = limit[segment]
    over = (velocity.norm(dim=-1) - allowed).clamp(min=0.0)
    return (1.0 - torch.where(allowed > 0, over, 0.0).mean(-1) / _WORST).clamp(min=0.0)
