"""Heights of simulated agents: motion is planar, and the ground under it is that of the map.

A recorded agent's z changes by some 14 cm on average over eight seconds of real scenes; kept at its present value,
that is an error, and followed along the map a quarter of it is left (``scripts/studies/measure_heights.py``).
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

__all__ = ["follow_ground", "joint_states"]

# Height is looked up once a second; roads are smooth, and in between it changes evenly.
_STRIDE = 10
# Pieces this far above or below belong to another storey; bridges clear some five metres.
_LEVEL = 2.5
_PIECES = 4
# Ground further away than this says nothing.
_REACH = 30.0
_ROAD = (MapKind.LANE, MapKind.ROAD_LINE, MapKind.ROAD_EDGE)


def follow_ground(scene: Scene, position: Tensor, start: Tensor) -> Tensor:
    """Heights of agents that move over the map.

    Args:
        scene: a single scene; its map is read.
        position: [R, A, T, 2] global metres after each 0.1 s. start: [A, 3] where the agents are before.

    Returns:
        [R, A, T] float32 metres: the height at the start plus how far the ground has risen since then; unchanged
        where there is no ground near.
    """
    rollouts, agents, steps, _ = position.shape
    origin = start[:, :2].mean(0)
    pieces = cut_map(scene, origin)
    chosen = torch.isin(pieces.kind, torch.tensor([int(kind) for kind in _ROAD]))
    place, height = pieces.pose[chosen, :2], pieces.height[chosen]
    if not len(place) or not agents:
        return start[:, 2].view(1, -1, 1).expand(rollouts, agents, steps).clone()
    # Of every second, and of the last step.
    at = torch.tensor([*range(_STRIDE - 1, steps - 1, _STRIDE), steps - 1])
    there = (position[:, :, at] - origin).permute(2, 0, 1, 3).flatten(1, 2)  # [S, R * A, 2]
    ground = _Ground(place, height)
    level = ground.level(start[:, :2] - origin, start[:, 2])
    offset = (start[:, 2] - level).repeat(rollouts)
    levels = [level.repeat(rollouts)]
    before = (start[:, :2] - origin).repeat(rollouts, 1)
    for query in there:
        # Most agents stand, and below them nothing rises.
        (moved,) = (query != before).any(-1).nonzero(as_tuple=True)
        found = ground.level(query[moved], levels[-1][moved])
        levels.append(levels[-1].index_copy(0, moved, found))
        before = query
    knots = torch.stack(levels, dim=-1) + offset.unsqueeze(-1)  # [R * A, S + 1]
    # Step t lies in the interval that ends with the first looked-up step not before it.
    step = torch.arange(steps)
    right = torch.searchsorted(at, step)
    begin = torch.cat((torch.tensor([-1]), at))[right]
    share = (step - begin) / (at[right] - begin)
    return torch.lerp(knots[:, right], knots[:, right + 1], share).view(rollouts, agents, steps)


def joint_states(scene: Scene, pose: Tensor, origin: Tensor) -> Tensor:
    """Planar motion of the simulated agents to states of an entry.

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
    """Where the map is, [M, 2] metres, and how high, [M]."""

    def __init__(self, place: Tensor, height: Tensor) -> None:
        self._place, self._height = place, height
        self._tree = cKDTree(place.numpy())

    def level(self, query: Tensor, before: Tensor) -> Tensor:
        """Height of the ground [Q] below places [Q, 2], of the storey nearest to ``before`` [Q]."""
        count = min(_PIECES, len(self._place))
        distance, index = (
            torch.from_numpy(found).view(-1, count) for found in self._tree.query(query.numpy(), count)
        )
        # What is nearest of all is nearest on its storey, too; where it is of another one, look at all.
        (other,) = (self._elsewhere(index, before) & (distance <= _REACH)).any(1).nonzero(as_tuple=True)
        if len(other):
            far = self._elsewhere(torch.arange(len(self._place)), before[other])
            every = torch.cdist(query[other], self._place).masked_fill(far, math.inf)
            near = every.topk(count, largest=False)
            distance[other], index[other] = near.values.to(distance.dtype), near.indices
        weight = torch.where(distance <= _REACH, 1 / (distance + 0.5).square(), 0.0)
        total = weight.sum(-1)
        found = (self._height[index] * weight).sum(-1) / total
        return torch.where(total > 0, found.to(before.dtype), before)

    def _elsewhere(self, index: Tensor, level: Tensor) -> Tensor:
        """Which pieces are of another storey than levels [Q]."""
        return (self._height[index] - level.unsqueeze(-1)).abs() > _LEVEL
