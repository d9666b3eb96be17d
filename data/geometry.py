"""Planar geometry on batched tensors: frames, angles and oriented boxes. Pure functions, compile-friendly.

Frames: x east, y north, headings counter-clockwise from +x in radians; a local frame has +x along the heading.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["box_corners", "boxes_overlap", "rotate", "to_global", "to_local", "wrap_angle"]


def wrap_angle(angle: Tensor) -> Tensor:
    """Wrap radians to [-pi, pi). The float32 modulo may return pi itself for angles just below -pi."""
    wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
    return torch.where(wrapped >= math.pi, torch.full_like(wrapped, -math.pi), wrapped)


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


def boxes_overlap(
    center_a: Tensor,
    heading_a: Tensor,
    half_a: Tensor,
    center_b: Tensor,
    heading_b: Tensor,
    half_b: Tensor,
) -> Tensor:
    """Whether oriented boxes overlap (touching does not count), by separating axes; all arguments broadcast.

    Args:
        center_a, center_b: [..., 2] metres. heading_a, heading_b: [...] radians.
        half_a, half_b: [..., 2] half length and half width, metres.

    Returns:
        [...] bool.
    """
    gap = box_separation(
        center_a.unbind(-1),
        (torch.cos(heading_a), torch.sin(heading_a)),
        half_a.unbind(-1),
        center_b.unbind(-1),
        (torch.cos(heading_b), torch.sin(heading_b)),
        half_b.unbind(-1),
    )
    return gap < 0


Numbers = Sequence[Tensor] | Tensor


def box_separation(
    center_a: Numbers, axis_a: Numbers, half_a: Numbers, center_b: Numbers, axis_b: Numbers, half_b: Numbers
) -> Tensor:
    """Widest gap between oriented boxes along an axis of either, negative where they overlap; all broadcast.

    Args:
        center_a, center_b: x and y, metres. axis_a, axis_b: cosine and sine of the heading.
        half_a, half_b: half length and half width, metres.

    Returns:
        [...] metres.
    """
    (cos_a, sin_a), (cos_b, sin_b) = axis_a, axis_b
    (la, wa), (lb, wb) = half_a, half_b
    dx, dy = center_b[0] - center_a[0], center_b[1] - center_a[1]
    # cos and sin of the heading difference give all projections of one box on the other's axes.
    cos_ab = (cos_a * cos_b + sin_a * sin_b).abs()
    sin_ab = (cos_a * sin_b - sin_a * cos_b).abs()
    gap_a_long = (dx * cos_a + dy * sin_a).abs() - (la + lb * cos_ab + wb * sin_ab)
    gap_a_side = (dy * cos_a - dx * sin_a).abs() - (wa + lb * sin_ab + wb * cos_ab)
    gap_b_long = (dx * cos_b + dy * sin_b).abs() - (lb + la * cos_ab + wa * sin_ab)
    gap_b_side = (dy * cos_b - dx * sin_b).abs() - (wb + la * sin_ab + wa * cos_ab)
    return torch.maximum(torch.maximum(gap_a_long, gap_a_side), torch.maximum(gap_b_long, gap_b_side))
