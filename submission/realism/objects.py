"""Distance to the nearest object and time to collision (wosac metric, interaction features).

Shape legend: R rollouts, E evaluated agents, A all agents (the evaluated ones first), T steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data.geometry import wrap_angle
from submission.realism.kinematics import norm
from submission.realism.search import block_elements

# Distance to a missing object in the metric.
FAR = 1e10
_ROUNDING = 0.7
_MAX_TTC = 5.0
_MAX_YAW = math.radians(75.0)
_MAX_YAW_SMALL_OVERLAP = math.radians(10.0)
_SMALL_OVERLAP = 0.5
# Added to the pruning bounds, metres: larger than the rounding of float32 coordinates of a few kilometres.
_MARGIN = 0.02
# Numbers that are held for a pair of boxes, in multiples of those for a pair of a point and a segment.
_PAIR_ELEMENTS = 24
# Boxes thinner than this count as lines, metres.
_THIN = 0.01


@dataclass(frozen=True)
class Boxes:
    """Poses and sizes of all agents over the scored steps.

    Attributes:
        position: [R, A, T, 3]. heading: [R, A, T]. size: [A, 3] length, width, height, metres.
        valid: [A, T] bool.
    """

    position: Tensor
    heading: Tensor
    size: Tensor
    valid: Tensor


def _corners(center: Tensor, heading: Tensor, length: Tensor, width: Tensor) -> Tensor:
    """Corners [..., 4, 2] in global float32 coordinates, rounded as in the metric."""
    x = torch.stack((length, -length, -length, length), dim=-1) * 0.5
    y = torch.stack((width, width, -width, -width), dim=-1) * 0.5
    cos, sin = torch.cos(heading).unsqueeze(-1), torch.sin(heading).unsqueeze(-1)
    return rotated(x, y, cos, sin) + center.unsqueeze(-2)


def rotated(x: Tensor, y: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotated coordinates [..., 2]; the second product is not rounded before the sum.

    TensorFlow's matrix product (fused multiply-add) rounds like this. Otherwise about one corner in a thousand
    would differ in the last place of coordinates of kilometres.
    """
    own = torch.stack((cos, sin), dim=-1) * x.unsqueeze(-1)
    other = torch.stack((-sin, cos), dim=-1).double() * y.double().unsqueeze(-1)
    return (own.double() + other).float()


def _signed_distance(corners_a: Tensor, corners_b: Tensor) -> Tensor:
    """Signed distance [N] of convex boxes [N, 4, 2]: that of the origin to the Minkowski sum of a and -b."""
    minus_b = -corners_b
    # 0 0 1 1 2 2 3 3 and 0 1 1 2 2 3 3 0: the order in which corners of two boxes alternate along the outline.
    position = torch.arange(8, device=corners_a.device)
    order_a, order_b = position // 2, (position + 1) // 2 % 4

    def downmost(corners: Tensor) -> tuple[Tensor, Tensor]:
        start = corners[..., 1].argmin(dim=-1, keepdim=True)  # [N, 1]
        first = corners.gather(1, start.unsqueeze(-1).expand(-1, -1, 2))
        second = corners.gather(1, ((start + 1) % 4).unsqueeze(-1).expand(-1, -1, 2))
        edge = (second - first).squeeze(1)
        return start, edge / norm(edge).unsqueeze(-1)

    start_a, edge_a = downmost(corners_a)
    start_b, edge_b = downmost(minus_b)
    cross = edge_a[:, 0] * edge_b[:, 1] - edge_a[:, 1] * edge_b[:, 0]
    a_first = (cross >= 0).unsqueeze(-1)
    index_a = (torch.where(a_first, order_b, order_a) + start_a) % 4
    index_b = (torch.where(a_first, order_a, order_b) + start_b) % 4
    polygon = corners_a.gather(1, index_a.unsqueeze(-1).expand(-1, -1, 2)) + minus_b.gather(
        1, index_b.unsqueeze(-1).expand(-1, -1, 2)
    )  # [N, 8, 2]
    edge = polygon.roll(-1, dims=1) - polygon
    length = norm(edge)
    tangent = edge / length.unsqueeze(-1)
    to_origin = -polygon
    vertex = norm(to_origin)
    # The outward normal is (ty, -tx).
    outward = tangent[..., 1] * to_origin[..., 0] - tangent[..., 0] * to_origin[..., 1]
    along = (tangent * to_origin).sum(-1) / length
    on_edge = (along >= 0) & (along <= 1)
    edge_distance = torch.where(on_edge, outward.abs(), torch.inf)
    nearest = torch.minimum(edge_distance.amin(-1), vertex.amin(-1))
    return torch.where((outward <= 0).all(-1), -nearest, nearest)


def nearest_object_distance(boxes: Boxes, evaluated: int, exhaustive: bool = False) -> Tensor:
    """Signed planar distance [R, E, T] to the nearest other object, of boxes with rounded corners, metres.

    It is 1e10 where an agent is alone or invalid. Pairs are pruned with exact bounds: the signed distance of two
    boxes lies between those of their circumscribed and their inscribed circles.

    Args:
        boxes: of all agents. evaluated: E.
        exhaustive: compute all pairs, with shapes that do not depend on values, so that a GPU never waits.
    """
    position, size = boxes.position, boxes.size
    shrink = torch.minimum(size[:, 0], size[:, 1]) * _ROUNDING / 2.0  # [A]
    length, width = size[:, 0] - 2.0 * shrink, size[:, 1] - 2.0 * shrink
    rollouts, agents, steps = shape = position.shape[:3]
    corners = _corners(
        position[..., :2], boxes.heading, length[:, None].expand(shape), width[:, None].expand(shape)
    )
    if exhaustive:
        return _nearest_of_all(boxes, evaluated, shrink, corners)
    # Radius of the core boxes plus the rounding.
    outer = torch.sqrt(length**2 + width**2) / 2 + shrink
    # In Waymo's code a box that is a line has no inside; the distance to it is at most that to the farthest vertex.
    is_line = torch.minimum(length, width) < _THIN
    inner = torch.where(is_line, -outer, torch.minimum(length, width) / 2 + shrink)
    x, y = position[..., 0], position[..., 1]
    dx = x[:, :evaluated, None] - x[:, None]  # [R, E, A, T]
    dy = y[:, :evaluated, None] - y[:, None]
    distance = torch.sqrt(dx * dx + dy * dy)
    both = boxes.valid[:evaluated, None] & boxes.valid[None]  # [E, A, T]
    itself = torch.eye(evaluated, agents, dtype=torch.bool, device=position.device).unsqueeze(-1)
    possible = (both & ~itself).unsqueeze(0)
    upper = torch.where(possible, distance - (inner[:evaluated, None] + inner[None])[..., None], torch.inf)
    lower = distance - (outer[:evaluated, None] + outer[None])[..., None]
    wanted = possible & (lower <= upper.amin(2, keepdim=True) + _MARGIN)
    r, e, a, t = wanted.nonzero(as_tuple=True)
    exact = _signed_distance(corners[r, e, t], corners[r, a, t]) - shrink[e] - shrink[a]
    result = torch.full((rollouts * evaluated * steps,), FAR, device=position.device)
    result.scatter_reduce_(0, (r * evaluated + e) * steps + t, exact, "amin")
    return result.view(rollouts, evaluated, steps)


def _nearest_of_all(boxes: Boxes, evaluated: int, shrink: Tensor, corners: Tensor) -> Tensor:
    """``nearest_object_distance`` of all pairs; ``corners`` [R, A, T, 4, 2] of the core boxes, ``shrink`` [A]."""
    position = boxes.position
    rollouts, agents, steps = position.shape[:3]
    result = position.new_full((rollouts, evaluated, steps), FAR)
    itself = torch.eye(evaluated, agents, dtype=torch.bool, device=position.device).unsqueeze(-1)
    size = max(1, block_elements(position.device) // (_PAIR_ELEMENTS * max(1, result.numel())))
    for first in range(0, agents, size):
        others = slice(first, first + size)
        theirs = corners[:, None, others]  # [R, 1, A', T, 4, 2]
        pairs = (rollouts, evaluated, theirs.shape[2], steps)
        own = corners[:, :evaluated, None].expand(*pairs, 4, 2)
        exact = _signed_distance(own.reshape(-1, 4, 2), theirs.expand_as(own).reshape(-1, 4, 2)).view(pairs)
        exact = exact - shrink[:evaluated, None, None] - shrink[others, None]
        both = boxes.valid[:evaluated, None] & boxes.valid[others] & ~itself[:, others]
        result = torch.minimum(result, torch.where(both, exact, FAR).amin(2))
    return result


def time_to_collision(boxes: Boxes, speed: Tensor, evaluated: int, wrap_yaw: bool) -> Tensor:
    """Seconds [R, E, T], at most 5, until an agent hits the object that it follows, at constant speeds.

    Args:
        boxes: of all agents. speed: [R, A, T] m/s in the plane, NaN where undefined.
        evaluated: E. wrap_yaw: wrap differences of headings (the metric does not).
    """
    position, size = boxes.position, boxes.size
    yaw = boxes.heading
    difference = yaw[:, None] - yaw[:, :evaluated, None]  # [R, E, A, T]
    yaw_difference = (wrap_angle(difference) if wrap_yaw else difference).abs()
    cos, sin = torch.cos(yaw_difference).abs(), torch.sin(yaw_difference).abs()
    half_length, half_width = (size[:, 0] / 2.0)[None, None, :, None], (size[:, 1] / 2.0)[None, None, :, None]
    along = half_length * cos + half_width * sin
    across = half_length * sin + half_width * cos
    delta = position[:, None, ..., :2] - position[:, :evaluated, None, :, :2]
    ego_cos = torch.cos(-yaw[:, :evaluated, None])
    ego_sin = torch.sin(-yaw[:, :evaluated, None])
    x = ego_cos * delta[..., 0] - ego_sin * delta[..., 1]
    y = ego_sin * delta[..., 0] + ego_cos * delta[..., 1]
    ego_size = size[:evaluated]
    gap = x - (ego_size[:, 0] / 2.0)[None, :, None, None] - along
    overlap = y.abs() - (ego_size[:, 1] / 2.0)[None, :, None, None] - across
    following = (
        (gap > 0.0)
        & (yaw_difference <= _MAX_YAW)
        & (overlap < 0.0)
        & ((overlap < -_SMALL_OVERLAP) | (yaw_difference <= _MAX_YAW_SMALL_OVERLAP))
        & boxes.valid[None, None]
    )
    masked = torch.where(following, gap, gap + FAR)
    ahead_gap, ahead = masked.min(dim=2)  # [R, E, T]
    ahead_speed = speed.gather(1, ahead)
    closing = speed[:, :evaluated] - ahead_speed
    ttc = torch.clamp(ahead_gap / closing, max=_MAX_TTC)
    return torch.where(closing > 0.0, ttc, torch.full_like(ttc, _MAX_TTC))
