"""Speeds and accelerations by central differences (wosac metric, trajectory features)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from data.scene import STEP_SECONDS


def norm(vector: Tensor) -> Tensor:
    """Euclidean norm of [..., D], summed from first to last and rounded once, as in TensorFlow.

    On CPUs torch's vectorised float32 root may be off by one unit in the last place, which would change ties
    between equally near map segments. The rounded root in double precision is exact.
    """
    first, *others = (vector * vector).unbind(-1)
    for part in others:
        first = first + part
    return first.double().sqrt().float()


def relative(to_point: Tensor, direction: Tensor) -> Tensor:
    """Coordinate [...] along vectors in the plane, 1 at their end, of points relative to their start [..., 2+]."""
    numerator = to_point[..., 0] * direction[..., 0] + to_point[..., 1] * direction[..., 1]
    denominator = direction[..., 0] * direction[..., 0] + direction[..., 1] * direction[..., 1]
    return torch.where(denominator == 0, torch.zeros_like(numerator), numerator / denominator)


def central_difference(values: Tensor) -> Tensor:
    """(v[t+1] - v[t-1]) / 2 along the last dimension, NaN at both ends."""
    inner = (values[..., 2:] - values[..., :-2]) / 2
    return torch.nn.functional.pad(inner, (1, 1), value=math.nan)


def central_and(valid: Tensor) -> Tensor:
    """Whether both neighbours along the last dimension are valid; false at both ends."""
    return torch.nn.functional.pad(valid[..., 2:] & valid[..., :-2], (1, 1), value=False)


def _wrap(angle: Tensor) -> Tensor:
    # float32 modulo as in the metric: exactly pi becomes -pi.
    return torch.remainder(angle + math.pi, 2 * math.pi) - math.pi


def linear_speed(position: Tensor) -> Tensor:
    """Speed [..., T] in m/s of positions [..., T, D] in metres, NaN at both ends."""
    difference = central_difference(position.transpose(-1, -2)).transpose(-1, -2)  # [..., T, D]
    return norm(difference) / STEP_SECONDS


def kinematics(position: Tensor, heading: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Linear speed and acceleration, angular speed and acceleration.

    Args:
        position: [..., T, D] metres (D 2 or 3). heading: [..., T] radians.

    Returns:
        Four tensors [..., T] in m/s, m/s^2, rad/s, rad/s^2; NaN where a difference reaches beyond the ends.
    """
    speed = linear_speed(position)
    acceleration = central_difference(speed) / STEP_SECONDS
    turn = _wrap(central_difference(heading) * 2) / 2
    angular_acceleration = _wrap(central_difference(turn) * 2) / 2 / STEP_SECONDS**2
    return speed, acceleration, turn / STEP_SECONDS, angular_acceleration
