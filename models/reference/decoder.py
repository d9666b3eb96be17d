"""Agent layers and the relations they read: time, map, and agent to agent.

The same code serves teacher forcing (T boundaries at once) and rollouts (T = 1). Shape legend: B rows (scenes, or
scenes times rollouts), A agents, T boundaries, J neighbours, D hidden, F relation width, L blocks.

Map neighbours are looked up once per block of boundaries (a second), around the position of the agent half a block
later at constant velocity. So the boundaries of a block share the gathered keys and values, and rollouts search
once a second. The encoded relations are relative to the pose at every boundary.
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

_LIGHT_STATES = 9
# Time constant of the last observed state of a light, seconds.
_LIGHT_FADE = 3.0
_OCTAVES = 7


def block_length(token_steps: int) -> int:
    """Boundaries per block of one second; the current step begins a block."""
    return CURRENT_INDEX // token_steps


@dataclass(frozen=True)
class Edges:
    """Encoded relations of targets to sources for ``RelativeAttention``."""

    relation: Tensor  # [..., S, J, F]
    bias: Tensor  # [..., S, J]
    index: Tensor | None = None  # [..., S, J] int64 index of the sources; None for all in order


@dataclass(frozen=True)
class MapView:
    """The map neighbours of each agent for some blocks."""

    pose: Tensor  # [B, A, L, J, 3]
    bias: Tensor  # [B, A, L, J] log weight, see ``models.attention.neighbour_lists``
    light: Tensor  # [B, A, L, J] int64 row of the lights, -1 for none


def expected_centre(pose: Tensor, previous: Tensor, moved: Tensor, block: int) -> Tensor:
    """Centre [..., 2] of the map lookup: the position after half a block at constant velocity.

    Args:
        pose, previous: [..., 3] at this boundary and the one before. moved: [...] bool, whether the token between
            them is valid.
    """
    step = torch.where(moved.unsqueeze(-1), pose[..., :2] - previous[..., :2], 0.0)
    return pose[..., :2] + step * (block / 2)


def look_at_map(encoding: MapEncoding, centre: Tensor, config: ReferenceConfig) -> tuple[MapView, Tensor]:
    """Find the map neighbours of each agent.

    Args:
        centre: [B, R, A, L, 2]; R rollouts of a scene share its map.

    Returns:
        A view with B * R rows, and the indices of the pieces [B, R, A, L, J] int64.
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
    """Encode the three relations once per forward pass for all layers."""

    def __init__(self, config: ReferenceConfig, slots: int) -> None:
        super().__init__()
        self.config = config
        width = config.relation
        self.time = RelationEncoder(width, 32.0, _OCTAVES, slots=slots)
        self.map = RelationEncoder(width, config.map_radius, _OCTAVES)
        self.agent = RelationEncoder(width, config.agent_radius, _OCTAVES)
        # Embeddings of the last observed state, constant and fading with age; code 0 (none, never observed) is
        # zero.
        self.light = nn.Parameter(torch.randn(2, _LIGHT_STATES, width) * 0.1)

    def over_time(self, pose: Tensor, source: Tensor, present: Tensor, index: Tensor, exists: Tensor) -> Edges:
        """Edges of boundaries to past boundaries of the same agent.

        Args:
            pose: [B, A, T, 3] of the targets. source, present: [B, A, W, 3] and [B, A, W] of the sources.
            index: [T, J] source in each time slot. exists: [T, J] bool, whether that time exists.
        """
        relation = self.time(source[:, :, index], pose.unsqueeze(-2))
        seen = present[:, :, index] & exists
        return Edges(relation, torch.zeros_like(relation[..., 0]).masked_fill(~seen, -torch.inf), index)

    def to_map(self, view: MapView, pose: Tensor, lights: KnownLights) -> Edges:
        """Edges of each boundary to the map neighbours of its block.

        Args:
            pose: [B, A, L, S, 3], S boundaries in each of L blocks. lights: of these blocks, by scene; rows of the
                view of the same scene are consecutive.
        """
        source, target = view.pose.unsqueeze(-3), pose.unsqueeze(-2)  # [B, A, L, 1, J, 3], [B, A, L, S, 1, 3]
        relation = self.map(source, target, self._light_bias(view, lights).unsqueeze(-3))
        distance = torch.linalg.vector_norm(source[..., :2] - target[..., :2], dim=-1)
        return Edges(relation, view.bias.unsqueeze(-2) + fading(distance, self.config.map_radius))

    def _light_bias(self, view: MapView, lights: KnownLights) -> Tensor:
        """Embedding [B, A, L, J, F] of the light of each piece."""
        steady, fading = (nn.functional.pad(table, (0, 0, 1, 0)) for table in self.light)
        fade = torch.exp(-lights.age / _LIGHT_FADE).unsqueeze(-1)
        embedding = steady[lights.code] + fading[lights.code] * fade  # [scenes, S, L, F]
        # Row 0 is "no light"; there are far fewer lights than edges.
        embedding = nn.functional.pad(embedding, (0, 0, 0, 0, 1, 0))
        scenes, count, blocks = embedding.shape[:3]
        row = (view.light + 1).view(scenes, -1, *view.light.shape[1:])  # [B, R, A, L, J]
        scene = torch.arange(scenes, device=row.device).view(-1, 1, 1, 1, 1)
        block = torch.arange(blocks, device=row.device).unsqueeze(-1)
        flat = (scene * count + row) * blocks + block
        return embedding.flatten(0, 2).index_select(0, flat.flatten()).view(*view.light.shape, -1)

    def between_agents(self, pose: Tensor, present: Tensor) -> Edges:
        """Edges of each agent to the nearest agents at the same boundary.

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
        """Keys and values [2, B * R, A, L, H, J, D / H] of the map neighbours of agents.

        Args:
            source: [B, M, 2 D] from ``map.sources``, of all pieces. index: [B, R, A, L, J] from ``look_at_map``.
        """
        return self.map.gather_by_head(source, index).flatten(1, 2)

    def forward(self, x: Tensor, past: Tensor, view: Tensor, time: Edges, road: Edges, social: Edges) -> Tensor:
        """One layer.

        Args:
            x: [B, A, T, D]. past: [2, B, A, H, W, D / H] keys and values for ``time``, by head.
            view: [2, B, A, L, H, J, D / H] from ``see``; T = L * S.
            time, road, social: edges; those between agents lead with [B * T, A].
        """
        blocks = view.shape[3]
        x = x + self.time(x, past, time.relation, time.bias, time.index)
        x = x + self.map(x.view(*x.shape[:2], blocks, -1, x.shape[3]), view, road.relation, road.bias).flatten(2, 3)
        by_time = x.transpose(1, 2).flatten(0, 1)  # [B * T, A, D]
        source = self.agent.by_head(self.agent.sources(by_time))
        update = self.agent(by_time, source, social.relation, social.bias, social.index)
        x = x + update.view(x.shape[0], -1, *update.shape[1:]).transpose(1, 2)
        return x + self.feed_forward(x)
