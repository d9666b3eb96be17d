"""Small building blocks: encoder of relative poses, feed-forward block, multi-layer perceptron."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from data.geometry import rotate

__all__ = ["FeedForward", "RelationEncoder", "mlp"]


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class FeedForward(nn.Module):
    """Pre-normed two-layer block, four times as wide inside; returns the update without the residual."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.outer(nn.functional.gelu(self.inner(self.norm(x)))))


class RelationEncoder(nn.Module):
    """Encode edges once per relation; all layers and heads read the same [..., width] vector of an edge.

    An edge is described by Fourier features of the source's x and y seen from the target, with wavelengths from
    ``2 * reach`` down by octaves, besides x, y and the distance (over ``reach``), the direction towards the source
    and the heading difference as unit vectors. No angle is ever a plain number, so nothing jumps at pi.

    Args:
        width: of the encoding. reach: metres. octaves: number of wavelengths. slots: the edges of a target sit
            in this many fixed slots with a learned bias each (times of the past); 0 for none.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, width: int, reach: float, octaves: int, slots: int = 0) -> None:
        super().__init__()
        self.reach = reach
        scale = math.pi / reach * 2.0 ** torch.arange(octaves)
        zero = torch.zeros(octaves)
        along = torch.cat((scale, scale, zero, zero))
        # [2, 4 * octaves]; a cosine is a sine a quarter turn ahead, so that one function call makes all.
        self.register_buffer("frequency", torch.stack((along, along.flip(0))), persistent=False)
        self.register_buffer("phase", torch.cat((zero, zero + math.pi / 2)).repeat(2), persistent=False)
        self.waves = nn.Linear(4 * octaves, width)
        self.plain = nn.Linear(7, width, bias=False)
        self.slot = nn.Parameter(torch.zeros(slots, width)) if slots else None

    def forward(self, source: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
        """Poses [..., 3] (broadcastable) to [..., width].

        Args:
            bias: [..., width] (broadcastable), further knowledge of the edges.
        """
        offset = rotate(source[..., :2] - target[..., :2], -target[..., 2])
        turn = (source[..., 2:] - target[..., 2:]).expand_as(offset[..., :1])
        distance = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
        plain = (
            offset / self.reach,
            distance / self.reach,
            offset / distance.clamp(min=0.1),
            turn.cos(),
            turn.sin(),
        )
        with torch.autocast(offset.device.type, enabled=False):
            # In bfloat16 a place a hundred metres away would be half a metre off.
            waves = torch.sin(offset @ self.frequency + self.phase)
        encoded = self.waves(waves) + self.plain(torch.cat(plain, dim=-1))
        if self.slot is not None:
            encoded = encoded + self.slot
        return torch.relu(encoded if bias is None else encoded + bias)
