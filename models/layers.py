"""Building blocks: encoder of relative poses, feed-forward block, multi-layer perceptron, inertia of logits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from data.geometry import rotate

# Initial spread of the difference of two consecutive motions: metres along and across, radians.
_FIRST_SPREAD = (0.15, 0.08, 0.04)


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, outputs))


class FeedForward(nn.Module):
    """Two-layer block with pre-norm and fourfold inner width; returns the update without the residual."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.inner = nn.Linear(width, 4 * width)
        self.outer = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.outer(nn.functional.gelu(self.inner(self.norm(x)))))


class RelationEncoder(nn.Module):
    """Encode edges; all layers and heads read the same [..., width] vector of an edge.

    The features of an edge are x and y of the source in the frame of the target as Fourier features (wavelengths
    from ``2 * reach`` down by octaves), x, y and the distance (divided by ``reach``), and the direction to the
    source and the heading difference as unit vectors, which are continuous at pi.

    Args:
        width: of the encoding. reach: metres. octaves: number of wavelengths. slots: number of fixed slots of the
            edges of a target, with a learnt bias each (times of the past); 0 for none.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, width: int, reach: float, octaves: int, slots: int = 0) -> None:
        super().__init__()
        self.reach = reach
        scale = math.pi / reach * 2.0 ** torch.arange(octaves)
        zero = torch.zeros(octaves)
        # [2, 2 * octaves] of x and y; a cosine is a sine with a phase of pi / 2, so that one call computes both.
        self.register_buffer("frequency", torch.stack((scale, scale.flip(0))).repeat(1, 2), persistent=False)
        self.register_buffer("phase", torch.cat((zero, zero + math.pi / 2)).repeat(2), persistent=False)
        self.waves = nn.Linear(4 * octaves, width)
        self.plain = nn.Linear(7, width, bias=False)
        self.slot = nn.Parameter(torch.zeros(slots, width)) if slots else None

    def forward(self, source: Tensor, target: Tensor, bias: Tensor | None = None) -> Tensor:
        """Poses [..., 3] (broadcastable) to [..., width].

        Args:
            bias: [..., width] (broadcastable), added to the encoding.
        """
        offset = rotate(source[..., :2] - target[..., :2], -target[..., 2])
        angle = (source[..., 2:] - target[..., 2:]).expand_as(offset[..., :1])
        distance = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
        plain = (
            offset / self.reach,
            distance / self.reach,
            offset / distance.clamp(min=0.1),
            angle.cos(),
            angle.sin(),
        )
        # No matrix product, which bfloat16 or TF32 would round by up to half a metre at a hundred metres.
        waves = torch.sin((offset.unsqueeze(-1) * self.frequency).flatten(-2) + self.phase)
        encoded = self.waves(waves) + self.plain(torch.cat(plain, dim=-1))
        if self.slot is not None:
            encoded = encoded + self.slot
        return torch.relu(encoded if bias is None else encoded + bias)


def full_precision(device: torch.device) -> torch.autocast:
    """A context in which products are not rounded to a lower precision by autocast, which the meta device lacks."""
    return torch.autocast("cpu" if device.type == "meta" else device.type, enabled=False)


class Inertia(nn.Module):
    """Logits by the distance of a token's end from the last motion plus a learnt shift: 1 - sqrt(1 + q).

    q is the squared distance in units of a learnt spread. The probability is Gaussian near the centre and
    exponential far from it, so that no motion is impossible and the KL divergence is bounded.

    Logits that are linear in smooth features learn slowly which of K similar motions continues the last one, since
    their weights must grow to the inverse square of the distance of tokens. With this term the network only learns
    the difference from constant motion.

    Args:
        width: of the features D.
        ends: [3, K, 3] ends of the tokens of each type in the frame of their start (``Vocabulary.ends``), metres
            and
            radians.
    """

    table: Tensor
    spread: Tensor

    def __init__(self, width: int, ends: Tensor) -> None:
        super().__init__()
        self.register_buffer("spread", torch.tensor(_FIRST_SPREAD, dtype=torch.float64), persistent=False)
        self.change = nn.Linear(width, 6)
        nn.init.orthogonal_(self.change.weight, 0.01)
        nn.init.zeros_(self.change.bias)
        ends = ends.double()
        square = torch.cat((ends.square(), -2 * ends, torch.ones_like(ends)), dim=-1)
        self.register_buffer("table", square.transpose(1, 2).flatten(0, 1), persistent=False)  # [3 * 9, K]

    def forward(self, features: Tensor, types: Tensor, motion: Tensor) -> Tensor:
        """Logits [..., K] of agents, in the precision of the weights under autocast too.

        Args:
            features: [..., D]. types: [...] int64, row of the vocabulary.
            motion: [..., 3] the last token's motion in the frame of its start, metres and radians.
        """
        with full_precision(features.device):
            return self._logits(features.to(self.change.weight.dtype), types, motion)

    def _logits(self, features: Tensor, types: Tensor, motion: Tensor) -> Tensor:
        change = self.change(features).double()
        middle = motion + self.spread * change[..., :3]
        precision = torch.exp(-2 * change[..., 3:]) / self.spread.square()
        # The square is expanded, which needs one matrix product for all types (the terms of other types are zero)
        # instead of a tensor [..., K, 3]. It is in double precision, since terms ten thousand times larger cancel.
        terms = torch.cat((precision, precision * middle, precision * middle.square()), dim=-1)  # [..., 9]
        own = torch.nn.functional.one_hot(types, len(self.table) // terms.shape[-1]).to(terms.dtype)  # [..., 3]
        distance = (own.unsqueeze(-1) * terms.unsqueeze(-2)).flatten(-2) @ self.table.to(terms.dtype)
        return 1 - torch.sqrt(1 + distance.clamp(min=0.0).to(features.dtype))
