"""Map pieces to features, once per scene."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.geometry import to_local
from data.map_pieces import PIECE_LENGTH, MapPieces
from models.attention import RelativeAttention, gather_rows, neighbour_lists
from models.layers import FeedForward, RelationEncoder, mlp
from models.reference.config import ReferenceConfig

_KINDS = 8
# The enums of map.proto end at 8 (road lines); newer values count as undefined.
_SUBTYPES = 9
_OCTAVES = 5


@dataclass(frozen=True)
class MapEncoding:
    """The encoded map of a batch of scenes; it can be cached as long as the weights are fixed.

    ``collate_inputs`` joins several.
    """

    origin: Tensor  # [B, 2] float32 origin of the scene; poses used with this encoding are relative to it
    feature: Tensor  # [B, M, hidden]
    pose: Tensor  # [B, M, 3]
    valid: Tensor  # [B, M] bool
    light: Tensor  # [B, M] int64 row of the scene's lights, -1 for none


class MapLayer(nn.Module):
    """Attention of pieces to pieces, then a feed-forward block."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.attention = RelativeAttention(config.hidden, config.heads, config.relation, config.dropout)
        self.feed_forward = FeedForward(config.hidden, config.dropout)

    def forward(self, x: Tensor, index: Tensor, relation: Tensor, bias: Tensor) -> Tensor:
        source = self.attention.gather_by_head(self.attention.sources(x), index)
        x = x + self.attention(x.unsqueeze(-2), source, relation, bias).squeeze(-2)
        return x + self.feed_forward(x)


class MapEncoder(nn.Module):
    """Embed the shape and kind of each piece, then attend to neighbouring pieces."""

    def __init__(self, config: ReferenceConfig) -> None:
        super().__init__()
        self.config = config
        self.shape = mlp(4, config.hidden, config.hidden)
        self.kind = nn.Embedding(_KINDS * _SUBTYPES, config.hidden)
        nn.init.normal_(self.kind.weight, std=0.1)
        self.relation = RelationEncoder(config.relation, config.piece_radius, _OCTAVES)
        self.layers = nn.ModuleList(MapLayer(config) for _ in range(config.map_layers))
        self.norm = nn.LayerNorm(config.hidden)

    def forward(self, pieces: MapPieces) -> Tensor:
        """Features [B, M, hidden]; rows of padded pieces are undefined."""
        pose, valid = pieces.pose, pieces.valid
        ends = pieces.point[:, :, ::2]  # start and end; the middle is the origin of the piece's frame
        shape = to_local(ends, pose[..., None, :2], pose[..., 2:]) / PIECE_LENGTH
        subtype = torch.where(pieces.subtype < _SUBTYPES, pieces.subtype, 0)
        x = self.shape(shape.flatten(-2)) + self.kind(pieces.kind * _SUBTYPES + subtype)
        if len(self.layers):
            config = self.config
            near = neighbour_lists(
                pose[..., :2], pose[..., :2], valid, config.piece_neighbours, config.piece_radius, exclude_self=True
            )
            relation = self.relation(gather_rows(pose, near.index), pose.unsqueeze(-2)).unsqueeze(-3)
            bias = near.bias.unsqueeze(-2)
            for layer in self.layers:
                x = layer(x, near.index, relation, bias)
        return self.norm(x)
