"""Logits from where tokens end: highest around the last motion plus a learnt shift, falling with learnt spread.

Logits that are linear in smooth features learn only slowly which of K nearby motions continues the present one:
their weights have to grow to the inverse square of the tokens' distance. Said in metres and radians, that is there
from the first step, and only what differs from going on as before has to be learnt.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Inertia"]

# What the next motion differs from the last one by before anything is learnt: metres along and across, radians.
_FIRST_SPREAD = (0.15, 0.08, 0.04)


class Inertia(nn.Module):
    """1 - sqrt(1 + q), q being the squared distance of a token's end in units of the spread.

    A Gaussian close by, exponential far away: surprising motion is not impossible, and a KL to it not boundless.

    Args:
        width: of the features D.
        ends: [3, K, 3] where the tokens of each type end in the frame of their start (``Vocabulary.ends``), metres
            and radians.
    """

    table: Tensor

    def __init__(self, width: int, ends: Tensor) -> None:
        super().__init__()
        self.change = nn.Linear(width, 6)
        nn.init.orthogonal_(self.change.weight, 0.01)
        nn.init.zeros_(self.change.bias)
        ends = ends.double()
        square = torch.cat((ends.square(), -2 * ends, torch.ones_like(ends)), dim=-1)
        self.register_buffer("table", square.transpose(1, 2).flatten(0, 1), persistent=False)  # [3 * 9, K]

    def forward(self, features: Tensor, types: Tensor, motion: Tensor) -> Tensor:
        """[..., K] of agents.

        Args:
            features: [..., D]. types: [...] int64, row of the vocabulary.
            motion: [..., 3] the last token's motion in the frame of its start, metres and radians.
        """
        change = self.change(features).double()
        spread = change.new_tensor(_FIRST_SPREAD)
        middle = motion + spread * change[..., :3]
        precision = torch.exp(-2 * change[..., 3:]) / spread.square()
        # The square multiplied out: one product instead of a tensor [..., K, 3], and one for all types, the terms
        # of the others being zero. In double precision, since what cancels is ten thousand times what is left.
        terms = torch.cat((precision, precision * middle, precision * middle.square()), dim=-1)  # [..., 9]
        own = torch.nn.functional.one_hot(types, len(self.table) // terms.shape[-1]).to(terms.dtype)  # [..., 3]
        distance = (own.unsqueeze(-1) * terms.unsqueeze(-2)).flatten(-2) @ self.table.to(terms.dtype)
        return 1 - torch.sqrt(1 + distance.clamp(min=0.0).to(features.dtype))
