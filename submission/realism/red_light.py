"""Red-light violations (wosac metric, traffic light features, 2025).

An agent violates a signal at step t if its nearest lane is that of the signal, the signal shows stop, and the agent
passed the stop point between t-1 and t. The nearest lane is expensive to find and crossings at red are rare, so it
is searched only for these.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.scene import SURFACE_STREET, LightState, MapKind, Scene
from submission.realism.kinematics import norm, relative
from submission.realism.search import block_elements, first_nearest


@dataclass(frozen=True)
class Lanes:
    """Candidate segments of surface-street lanes.

    Attributes:
        start: [N, 2]. direction: [N, 2] end minus start. lane: [N] feature id of the lane.
    """

    start: Tensor
    direction: Tensor
    lane: Tensor


@dataclass(frozen=True)
class SignalFences:
    """Signals that lie on surface-street lanes, over all steps.

    Attributes:
        lane: [S] feature id. is_stop: [S, T] bool.
        start, direction: [S, T, 2] segment of the lane nearest to the stop point.
        stop_t: [S, T] coordinate of the stop point along that segment.
        lanes: all surface-street lanes.
        bug_compatible: use the rank of Waymo's code, see ``_rank``.
    """

    lane: Tensor
    is_stop: Tensor
    start: Tensor
    direction: Tensor
    stop_t: Tensor
    lanes: Lanes
    bug_compatible: bool


def _rank(point: Tensor, start: Tensor, direction: Tensor, bug_compatible: bool) -> Tensor:
    """Quantity that the search minimises. Waymo's code adds the projection; the distance would subtract it."""
    to_point = point - start
    along = direction * relative(to_point, direction).clamp(0.0, 1.0).unsqueeze(-1)
    offset = to_point + along if bug_compatible else to_point - along
    return norm(offset)


def _surface_lanes(scene: Scene, bug_compatible: bool) -> Lanes:
    """Segments of surface-street lanes of at least two points.

    In Waymo's code a segment counts if its start is a point of the lane. So a lane shorter than the longest one has
    one more segment, from its last point to the padding at the origin.
    """
    road = scene.map
    feature = road.point_feature
    length = torch.bincount(feature, minlength=len(road.kind))
    usable = (road.kind == MapKind.LANE) & (road.subtype == SURFACE_STREET) & (length >= 2)
    longest = int(length[usable].max()) if bool(usable.any()) else 0
    index = torch.arange(len(feature), device=feature.device)
    has_next = torch.zeros_like(index, dtype=torch.bool)
    has_next[:-1] = feature[:-1] == feature[1:]
    phantom = ~has_next & (length[feature] < longest) if bug_compatible else torch.zeros_like(has_next)
    starts = index[usable[feature] & (has_next | phantom)]
    point = road.point[:, :2]
    following = point[(starts + 1).clamp(max=max(len(point) - 1, 0))]
    end = torch.where(phantom[starts].unsqueeze(-1), torch.zeros_like(following), following)
    return Lanes(point[starts], end - point[starts], road.feature_id[feature[starts]])


def prepare_signals(scene: Scene, bug_compatible: bool = True) -> SignalFences:
    """Place the stop points of a single scene's signals on their lanes."""
    lanes = _surface_lanes(scene, bug_compatible)
    lights = scene.lights
    known = torch.isin(lights.lane_id, lanes.lane)
    lane, state, stop = lights.lane_id[known], lights.state[known], lights.stop_point[known][..., :2]
    is_stop = (state == LightState.STOP) | (state == LightState.ARROW_STOP)
    start, direction = torch.zeros_like(stop), torch.zeros_like(stop)
    for row, lane_id in enumerate(lane.tolist()):
        mine = lanes.lane == lane_id
        # [T, n]: a lane has about a hundred segments.
        rank = _rank(stop[row, :, None], lanes.start[mine], lanes.direction[mine], bug_compatible)
        nearest = _first_minimum(rank)
        start[row], direction[row] = lanes.start[mine][nearest], lanes.direction[mine][nearest]
    return SignalFences(
        lane=lane,
        is_stop=is_stop,
        start=start,
        direction=direction,
        stop_t=relative(stop - start, direction),
        lanes=lanes,
        bug_compatible=bug_compatible,
    )


def _first_minimum(rank: Tensor) -> Tensor:
    """Index of the first minimum along the last dimension."""
    index = torch.arange(rank.shape[-1], device=rank.device)
    is_minimum = rank == rank.amin(-1, keepdim=True)
    return torch.where(is_minimum, index, rank.shape[-1]).amin(-1)


@torch.no_grad()
def _nearest_lane(points: Tensor, lanes: Lanes, bug_compatible: bool) -> Tensor:
    """Feature id [Q] of the lane nearest to points [Q, 2], see ``_rank``."""
    start, direction = lanes.start.T.contiguous(), lanes.direction.T.contiguous()
    squared_length = direction[0] * direction[0] + direction[1] * direction[1]
    squared_length = squared_length.masked_fill(squared_length == 0, 1.0)
    sign = 1.0 if bug_compatible else -1.0
    rows = []
    for block in points.split(max(1, block_elements(points.device) // max(1, len(lanes.lane)))):
        # In planes and in place, since the time is that of moving memory.
        dx, dy = block[:, :1] - start[0], block[:, 1:] - start[1]  # [Q', N]
        along = dx * direction[0]
        along.add_(dy * direction[1]).div_(squared_length).clamp_(0.0, 1.0).mul_(sign)
        dx.add_(direction[0] * along)
        dy.add_(along.mul_(direction[1]))
        rows.append(first_nearest(dx.mul_(dx).add_(dy.mul_(dy)))[1])
    return lanes.lane[torch.cat(rows)]


def violations(
    position: Tensor, valid: Tensor, fences: SignalFences, first_step: int, exhaustive: bool = False
) -> Tensor:
    """Whether agents run a red light at each step from ``first_step`` on, [R, E, T - first_step] bool.

    Args:
        position: [R, E, T, 2] metres, over all steps of the scene. valid: [E, T] bool. fences: of the scene.
        exhaustive: find the nearest lane of every point, with shapes that do not depend on values, so that a GPU
            never waits.
    """
    rollouts, agents, steps = position.shape[:3]
    result = torch.zeros(rollouts, agents, steps - first_step, dtype=torch.bool, device=position.device)
    if not len(fences.lane) or not (exhaustive or bool(fences.is_stop[:, first_step:].any())):
        return result
    window = slice(first_step - 1, steps)
    to_point = position[:, :, None, window] - fences.start[:, window]  # [R, E, S, T', 2]
    along = relative(to_point, fences.direction[:, window])
    behind, ahead = along < fences.stop_t[:, window], along > fences.stop_t[:, window]
    crossed = (
        behind[..., :-1] & ahead[..., 1:] & fences.is_stop[:, first_step:] & valid[:, None, first_step:]
    )  # [R, E, S, T']
    if exhaustive:
        points = position[:, :, first_step:]
        lane = _nearest_lane(points.reshape(-1, 2), fences.lanes, fences.bug_compatible).view(points.shape[:3])
        return (crossed & (lane.unsqueeze(2) == fences.lane[:, None])).any(2)
    r, e, s, t = crossed.nonzero(as_tuple=True)
    points = position[r, e, t + first_step]
    hit = _nearest_lane(points, fences.lanes, fences.bug_compatible) == fences.lane[s]
    result[r[hit], e[hit], t[hit]] = True
    return result
