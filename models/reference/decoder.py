"""Agent layers and the relations they read: time, map, and agent to agent.

The same code serves teacher forcing (T boundaries at once) and rollouts (T = 1). Shape legend: B rows (scenes, or
scenes times rollouts), A agents, T boundaries, J neighbours, D hidden, F relation width, L blocks.

Map neighbours are looked up once for a block of boundaries (a second), around where the agent will be half a
block later at its present velocity; what the agents see of them is nonetheless relative to their pose of every
boundary. So the boundaries of a block share the gathered keys and values, and rollouts search once a second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.scene import CURRENT_INDEX
from models.attention import RelativeAttention, fading, gather_rows, neighbour_lists
from models.layers import FeedForward, RelationEncoder
from models.reference.config import ReferenceConfig
from models.reference.inputs import KnownLights
from models.reference.map_encoder import MapEncoding

__all__ = ["AgentLayer", "Edges", "MapView", "Relations", "block_length", "expected_centre", "look_at_map"]

_LIGHT_STATES = 9
# How fast the last observed state of a light loses its meaning, seconds.
_LIGHT_FADE = 3.0
_OCTAVES = 7


def block_length(token_steps: int) -> int:
    """Boundaries per block: as many as make a second, so that the current step begins a block."""
    return CURRENT_INDEX // token_steps


@dataclass(frozen=True)
class Edges:
    """Encoded relations of targets to their sources, as ``RelativeAttention`` reads them."""

    relation: Tensor  # [..., S, J, F]
    bias: Tensor  # [..., S, J]
    index: Tensor | None = None  # [..., S, J] int64, which of the sources; None for all in order


@dataclass(frozen=True)
class MapView:
    """The map neighbours of each agent for some blocks."""

    pose: Tensor  # [B, A, L, J, 3]
    bias: Tensor  # [B, A, L, J] how well each is seen, see ``models.attention.neighbour_lists``
    light: Tensor  # [B, A, L, J] int64 row of the lights, -1 for none


def expected_centre(pose: Tensor, previous: Tensor, moved: Tensor, block: int) -> Tensor:
    """Around which point the map is looked up: where constant velocity leads in half a block.

    Args:
        pose, previous: [..., 3] at this boundary and the one before. moved: [...] bool, whether a token led from
            one to the other.

    Returns:
        [..., 2].
    """
    step = torch.where(moved.unsqueeze(-1), pose[..., :2] - previous[..., :2], 0.0)
    return pose[..., :2] + step * (block / 2)


def look_at_map(encoding: MapEncoding, centre: Tensor, config: ReferenceConfig) -> tuple[MapView, Tensor]:
    """Find the map neighbours of each agent.

    Args:
        centre: [B, R, A, L, 2]; R rollouts of a scene look at the same map.

    Returns:
        A view with B * R rows, and which pieces they are, [B, R, A, L, J] int64.
    """
    batch, rollouts, agents, blocks, _ = centre.shape
    near = neighbour_lists(
        centre.flatten(1, 3),
        encoding.pose[..., :2],
        encoding.valid,
        config.map_neighbours,
        2 * config.map_radius,
    )
    rows = (batch * rollouts, agents, blocks, near.index.shape[-1])
    view = MapView(
        pose=gather_rows(encoding.pose, near.index).view(*rows, 3),
        bias=near.bias.view(rows),
        light=gather_rows(encoding.light, near.index).view(rows),
    )
    return view, near.index.view(*centre.shape[:4], -1)


class Relations(nn.Module):
    """Encode the three relations; once per forward pass, read by all layers."""

    def __init__(self, config: ReferenceConfig, slots: int) -> None:
        super().__init__()
        self.config = config
        width = config.relation
        self.time = RelationEncoder(width, 32.0, _OCTAVES, slots=slots)
        self.map = RelationEncoder(width, config.map_radius, _OCTAVES)
        self.agent = RelationEncoder(width, config.agent_radius, _OCTAVES)
        # Last observed state, and the same fading with its age; code 0 (no light, never observed) says nothing.
        self.light = nn.Parameter(torch.randn(2, _LIGHT_STATES, width) * 0.1)

    def over_time(self, pose: Tensor, source: Tensor, present: Tensor, index: Tensor, reached: Tensor) -> Edges:
        """Edges of boundaries to past ones of the same agent.

        Args:
            pose: [B, A, T, 3] of the targets. source, present: [B, A, W, 3] and [B, A, W] of the sources.
            index: [T, J] which source is in each time slot. reached: [T, J] bool, whether that time exists.
        """
        relation = self.time(source[:, :, index], pose.unsqueeze(-2))
        seen = present[:, :, index] & reached
        return Edges(relation, torch.zeros_like(relation[..., 0]).masked_fill(~seen, -torch.inf), index)

    def to_map(self, view: MapView, pose: Tensor, lights: KnownLights) -> Edges:
        """Edges of each boundary to the map neighbours of its block.

        Args:
            pose: [B, A, L, S, 3], S boundaries in each of L blocks. lights: of these blocks, for scenes; the rows
                of the view that share a scene follow one another.
        """
        source, target = view.pose.unsqueeze(-3), pose.unsqueeze(-2)  # [B, A, L, 1, J, 3], [B, A, L, S, 1, 3]
        relation = self.map(source, target, self._light_bias(view, lights).unsqueeze(-3))
        distance = torch.linalg.vector_norm(source[..., :2] - target[..., :2], dim=-1)
        return Edges(relation, view.bias.unsqueeze(-2) + fading(distance, self.config.map_radius))

    def _light_bias(self, view: MapView, lights: KnownLights) -> Tensor:
        """[B, A, L, J, F] what the light of each piece says."""
        steady, fading = (nn.functional.pad(table, (0, 0, 1, 0)) for table in self.light)
        fade = torch.exp(-lights.age / _LIGHT_FADE).unsqueeze(-1)
        says = steady[lights.code] + fading[lights.code] * fade  # [scenes, S, L, F]
        # Row 0 is "no light"; there are far fewer lights than edges.
        says = nn.functional.pad(says, (0, 0, 0, 0, 1, 0))
        scenes, count, blocks = says.shape[:3]
        row = (view.light + 1).view(scenes, -1, *view.light.shape[1:])  # [B, R, A, L, J]
        scene = torch.arange(scenes, device=row.device).view(-1, 1, 1, 1, 1)
        block = torch.arange(blocks, device=row.device).unsqueeze(-1)
        place = (scene * count + row) * blocks + block
        return says.flatten(0, 2).index_select(0, place.flatten()).view(*view.light.shape, -1)

    def between_agents(self, pose: Tensor, present: Tensor) -> Edges:
        """Edges of each agent to the agents nearest to it at the same moment.

        Args:
            pose: [G, A, 3]. present: [G, A].
        """
        config = self.config
        position = pose[..., :2]
        near = neighbour_lists(
            position, position, present, config.agent_neighbours, config.agent_radius, exclude_self=True
        )
        return Edges(self.agent(gather_rows(pose, near.index), pose.unsqueeze(-2)), near.bias, near.index)


class AgentLayer(nn.Module):
    """Attention over the agent's own past, to the map and to other agents, then a feed-forward block."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        arguments = (config.hidden, config.heads, config.relation, config.dropout)
        self.time, self.map, self.agent = (RelativeAttention(*arguments) for _ in range(3))
        self.feed_forward = FeedForward(config.hidden, config.dropout)

    def see(self, source: Tensor, index: Tensor) -> Tensor:
        """Keys and values of the pieces that agents look at, [2, B * R, A, L, H, J, D / H].

        Args:
            source: [B, M, 2 D] from ``map.sources``, of all pieces. index: [B, R, A, L, J] from ``look_at_map``.
        """
        return self.map.gather_by_head(source, index).flatten(1, 2)

    def forward(self, x: Tensor, past: Tensor, view: Tensor, time: Edges, road: Edges, social: Edges) -> Tensor:
        """One layer.

        Args:
            x: [B, A, T, D]. past: [2, B, A, H, W, D / H] keys and values for ``time``, by head.
            view: [2, B, A, L, H, J, D / H] from ``see``; T = L * S.
            time, road, social: edges; those between agents have [B * T, A] in front.
        """
        blocks = view.shape[3]
        x = x + self.time(x, past, time.relation, time.bias, time.index)
        x = x + self.map(x.unflatten(2, (blocks, -1)), view, road.relation, road.bias).flatten(2, 3)
        together = x.transpose(1, 2).flatten(0, 1)  # [B * T, A, D]
        source = self.agent.by_head(self.agent.sources(together))
        update = self.agent(together, source, social.relation, social.bias, social.index)
        x = x + update.unflatten(0, (len(x), -1)).transpose(1, 2)
        return x + self.feed_forward(x)
