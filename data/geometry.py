"""Planar geometry on batched tensors: frames, angles and oriented boxes. Pure functions, compile-friendly.

Frames: x east, y north, headings counter-clockwise from +x in radians; a local frame has +x along the heading.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def wrap_angle(angle: Tensor) -> Tensor:
    """Wrap radians to [-pi, pi). The float32 modulo may return pi itself for angles just below -pi."""
    wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    return wrapped.masked_fill_(wrapped >= math.pi, -math.pi)


def planar_length(x: Tensor, y: Tensor) -> Tensor:
    """Length [...] of vectors given as two planes [...], broadcast.

    On a CPU with fused multiply-add it has the same bits as ``torch.cdist`` and ``torch.linalg.vector_norm``. These
    are slow in two dimensions: on a GPU ``cdist`` runs one block of threads for each pair.
    """
    # Rooted in double precision and then rounded, since torch's float32 root on CPUs is off by a unit in the last
    # place in one of six cases.
    return torch.addcmul(x * x, y, y).double().sqrt_().to(x.dtype)


def rotate(vector: Tensor, angle: Tensor) -> Tensor:
    """Rotate vectors [..., 2] counter-clockwise by angles [...]."""
    cos, sin = torch.cos(angle), torch.sin(angle)
    x, y = vector.unbind(-1)
    return torch.stack((x * cos - y * sin, x * sin + y * cos), dim=-1)


def to_local(point: Tensor, origin: Tensor, heading: Tensor) -> Tensor:
    """Express global points [..., 2] in the frame at ``origin`` [..., 2] with ``heading`` [...]."""
    return rotate(point - origin, -heading)


def to_global(point: Tensor, origin: Tensor, heading: Tensor) -> Tensor:
    """Inverse of ``to_local``."""
    return rotate(point, heading) + origin


def box_corners(center: Tensor, heading: Tensor, length: Tensor, width: Tensor) -> Tensor:
    """Corners [..., 4, 2] of oriented boxes, counter-clockwise from the front left.

    Args:
        center: [..., 2] metres. heading: [...] radians. length, width: [...] metres (broadcastable).
    """
    half_length, half_width = length / 2, width / 2
    x = torch.stack((half_length, -half_length, -half_length, half_length), dim=-1)
    y = torch.stack((half_width, half_width, -half_width, -half_width), dim=-1)
    return to_global(torch.stack((x, y), dim=-1), center.unsqueeze(-2), heading.unsqueeze(-1))


Numbers = Sequence[Tensor] | Tensor


def box_separation(
    center_a: Numbers, axis_a: Numbers, half_a: Numbers, center_b: Numbers, axis_b: Numbers, half_b: Numbers
) -> Tensor:
    """Widest gap between oriented boxes along the axes of both, negative where they overlap; all broadcast.

    Args:
        center_a, center_b: x and y, metres. axis_a, axis_b: cosine and sine of the heading.
        half_a, half_b: half length and half width, metres.

    Returns:
        [...] metres.
    """
    shift = _onto_axes(axis_a, axis_b, center_b[0] - center_a[0], center_b[1] - center_a[1])
    gaps = [x.abs() - reach for x, reach in zip(shift, _reaches(axis_a, half_a, axis_b, half_b))]
    return torch.maximum(torch.maximum(gaps[0], gaps[1]), torch.maximum(gaps[2], gaps[3]))


def _reaches(axis_a: Numbers, half_a: Numbers, axis_b: Numbers, half_b: Numbers) -> tuple[Tensor, ...]:
    """Distance of the centres at which boxes touch, along a's length, a's width, b's length and b's width."""
    (cos_a, sin_a), (cos_b, sin_b) = axis_a, axis_b
    (la, wa), (lb, wb) = half_a, half_b
    # cos and sin of the heading difference give all projections of one box on the other's axes.
    cos_ab = (cos_a * cos_b + sin_a * sin_b).abs()
    sin_ab = (cos_a * sin_b - sin_a * cos_b).abs()
    return (
        la + lb * cos_ab + wb * sin_ab,
        wa + lb * sin_ab + wb * cos_ab,
        lb + la * cos_ab + wa * sin_ab,
        wb + la * sin_ab + wa * cos_ab,
    )


def _onto_axes(axis_a: Numbers, axis_b: Numbers, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
    """Project a vector on a's length, a's width, b's length and b's width."""
    (cos_a, sin_a), (cos_b, sin_b) = axis_a, axis_b
    return x * cos_a + y * sin_a, y * cos_a - x * sin_a, x * cos_b + y * sin_b, y * cos_b - x * sin_b


def time_to_contact(
    center_a: Numbers,
    axis_a: Numbers,
    half_a: Numbers,
    center_b: Numbers,
    axis_b: Numbers,
    half_b: Numbers,
    velocity: Numbers,
) -> Tensor:
    """Time until oriented boxes touch at constant velocity and heading, in closed form; all broadcast.

    Boxes overlap exactly while their projections on each of the four axes overlap, which is one interval of time
    per axis.

    Args:
        velocity: x and y of b's minus a's, in metres per unit of time. The others as for ``box_separation``.

    Returns:
        [...] time from now: 0 where they overlap, infinity where they never do.
    """
    shift = _onto_axes(axis_a, axis_b, center_b[0] - center_a[0], center_b[1] - center_a[1])
    rate = _onto_axes(axis_a, axis_b, velocity[0], velocity[1])
    enter, leave = torch.full_like(shift[0], -torch.inf), torch.full_like(shift[0], torch.inf)
    for x, change, reach in zip(shift, rate, _reaches(axis_a, half_a, axis_b, half_b)):
        moving = change != 0
        slope = torch.where(moving, change, 1.0)
        one, other = (-reach - x) / slope, (reach - x) / slope
        # Without motion along an axis the projections overlap always or never.
        always = torch.where(x.abs() < reach, -torch.inf, torch.inf)
        enter = torch.maximum(enter, torch.where(moving, torch.minimum(one, other), always))
        leave = torch.minimum(leave, torch.where(moving, torch.maximum(one, other), -always))
    return torch.where((enter < leave) & (leave > 0), enter.clamp(min=0.0), torch.inf)


def project_on_polyline(point: Tensor, line: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project points on a polyline, extended straight beyond its ends.

    Args:
        point: [..., 2]. line: [N, 2], at least two points.

    Returns:
        [...] metres along the line from its first point, [...] metres to the left of it, [...] segment index.
    """
    start, step = line[:-1], line[1:] - line[:-1]
    length = step.norm(dim=-1)
    travelled = length.cumsum(0) - length
    direction = step / length.clamp(min=1e-9).unsqueeze(-1)
    x = point[..., None, 0] - start[:, 0]
    y = point[..., None, 1] - start[:, 1]
    along = x * direction[:, 0] + y * direction[:, 1]  # [..., N - 1]
    aside = y * direction[:, 0] - x * direction[:, 1]
    beyond = along - torch.minimum(along.clamp(min=0.0), length)
    # A segment of length zero has no direction; its neighbours cover its point.
    distance = torch.where(length > 0, beyond.square() + aside.square(), torch.inf)
    nearest = distance.argmin(-1, keepdim=True)
    along, aside = (part.gather(-1, nearest).squeeze(-1) for part in (along, aside))
    nearest = nearest.squeeze(-1)
    # The line is extended at its ends only; at a bend the corner is nearest.
    low = torch.where(nearest == 0, -torch.inf, 0.0)
    high = torch.where(nearest == len(step) - 1, torch.inf, length[nearest])
    return travelled[nearest] + torch.minimum(torch.maximum(along, low), high), aside, nearest
