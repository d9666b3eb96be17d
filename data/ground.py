"""Heights of simulated agents: motion is planar, and z follows the ground of the map.

The z of a recorded agent changes by 14 cm on average over eight seconds of real scenes. A constant z has this
error; following the map leaves a quarter of it (``scripts/studies/measure.py heights``).
Shape legend: R rollouts, A agents, T steps, M map pieces, Q queries.
"""

from __future__ import annotations

import math

import torch
from scipy.spatial import cKDTree
from torch import Tensor

from data.geometry import wrap_angle
from data.map_pieces import cut_map
from data.scene import CURRENT_INDEX, MapKind, Scene

# Height is looked up once a second and interpolated linearly, since roads are smooth.
_STRIDE = 10
# Pieces this far above or below are on another level; bridges have a clearance of about five metres.
_LEVEL = 2.5
_PIECES = 4
# Ground farther away than this is not used, metres.
_REACH = 30.0
_ROAD = (MapKind.LANE, MapKind.ROAD_LINE, MapKind.ROAD_EDGE)


def follow_ground(scene: Scene, position: Tensor, start: Tensor) -> Tensor:
    """Heights of agents that move over the map.

    Args:
        scene: a single scene; its map is read.
        position: [R, A, T, 2] global metres after each 0.1 s. start: [A, 3] positions of the agents before.

    Returns:
        [R, A, T] float32 metres: the height at the start plus the rise of the ground since then; constant where
        there is no ground near.
    """
    rollouts, agents, steps, _ = position.shape
    origin = start[:, :2].mean(0)
    pieces = cut_map(scene, origin)
    on_road = torch.isin(pieces.kind, torch.tensor([int(kind) for kind in _ROAD]))
    point, height = pieces.pose[on_road, :2], pieces.height[on_road]
    if not len(point) or not agents:
        return start[:, 2].view(1, -1, 1).expand(rollouts, agents, steps).clone()
    # The last step of every second, and the last of all.
    at = torch.tensor([*range(_STRIDE - 1, steps - 1, _STRIDE), steps - 1])
    queries = (position[:, :, at] - origin).permute(2, 0, 1, 3).flatten(1, 2)  # [S, R * A, 2]
    ground = _Ground(point, height)
    level = ground.level(start[:, :2] - origin, start[:, 2])
    offset = (start[:, 2] - level).repeat(rollouts)
    levels = [level.repeat(rollouts)]
    before = (start[:, :2] - origin).repeat(rollouts, 1)
    for query in queries:
        # Most agents stand still and keep their level.
        (moved,) = (query != before).any(-1).nonzero(as_tuple=True)
        levels.append(levels[-1].index_copy(0, moved, ground.level(query[moved], levels[-1][moved])))
        before = query
    knots = torch.stack(levels, dim=-1) + offset.unsqueeze(-1)  # [R * A, S + 1]
    # Step t lies in the interval that ends with the first looked-up step not before it.
    step = torch.arange(steps)
    right = torch.searchsorted(at, step)
    begin = torch.cat((torch.tensor([-1]), at))[right]
    fraction = (step - begin) / (at[right] - begin)
    return torch.lerp(knots[:, right], knots[:, right + 1], fraction).view(rollouts, agents, steps)


def joint_states(scene: Scene, pose: Tensor, origin: Tensor) -> Tensor:
    """Convert planar motion of the simulated agents to the states of a submission.

    Args:
        scene: a single scene. pose: [R, A, T, 3] x, y and heading after each 0.1 s, of the A simulated agents in
            order, minus ``origin`` [2].

    Returns:
        [R, A, T, 4] float32 on the CPU: x, y, z and heading, global; headings are in [-pi, pi).
    """
    start = scene.agents.position[scene.simulated, CURRENT_INDEX]
    pose = pose.cpu().double()
    position = pose[..., :2] + origin.cpu().double()
    height = follow_ground(scene, position.float(), start)
    result = torch.cat((position, height.unsqueeze(-1).double(), pose[..., 2:]), dim=-1).float()
    result[..., 3] = wrap_angle(result[..., 3])
    return result


class _Ground:
    """Points of the map [M, 2] and their heights [M], metres."""

    def __init__(self, point: Tensor, height: Tensor) -> None:
        self._point, self._height = point, height
        self._tree = cKDTree(point.numpy())

    def level(self, query: Tensor, before: Tensor) -> Tensor:
        """Height of the ground [Q] at points [Q, 2], on the level nearest to the height ``before`` [Q]."""
        count = min(_PIECES, len(self._point))
        distance, index = (
            torch.from_numpy(array).view(-1, count) for array in self._tree.query(query.numpy(), count)
        )
        # Only where a nearest piece is on another level are all pieces searched.
        (other,) = (self._elsewhere(index, before) & (distance <= _REACH)).any(1).nonzero(as_tuple=True)
        if len(other):
            far = self._elsewhere(torch.arange(len(self._point)), before[other])
            every = torch.cdist(query[other], self._point).masked_fill(far, math.inf)
            near = every.topk(count, largest=False)
            distance[other], index[other] = near.values.to(distance.dtype), near.indices
        weight = torch.where(distance <= _REACH, 1 / (distance + 0.5).square(), 0.0)
        total = weight.sum(-1)
        mean = (self._height[index] * weight).sum(-1) / total
        return torch.where(total > 0, mean.to(before.dtype), before)

    def _elsewhere(self, index: Tensor, level: Tensor) -> Tensor:
        """Which pieces are on another level than heights [Q]."""
        return (self._height[index] - level.unsqueeze(-1)).abs() > _LEVEL
