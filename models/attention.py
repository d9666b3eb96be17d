"""Attention over padded neighbour lists with relative terms, in plain batched torch.

The score of a target for a source is q.(k + Wk r) and the result is sum(a (v + Wv r)), where r is the encoded
relation of the two. As q.(Wk r) = (Wk^T q).r and sum(a Wv r) = Wv sum(a r), no key or value is computed per edge.
Groups of S targets with the same sources share the gathered keys and values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.geometry import planar_length

# Rank of excluded sources: larger than any distance in tenths of a millimetre.
_FAR = 2**40
# Up to a million sources.
_ROW_BITS = 20
# Weights of sources decrease to zero over this many metres before the end of a neighbour list.
_FADE = 1.0


@dataclass(frozen=True)
class Neighbours:
    """The J sources nearest to each target; masked entries pad shorter lists."""

    index: Tensor  # [..., Q, J] int64
    bias: Tensor  # [..., Q, J] float, added to scores: 0 for near sources, -inf for masked ones


def fading(distance: Tensor, limit: Tensor | float) -> Tensor:
    """Logarithm of a weight that decreases from 1 to 0 over the last metre before ``limit``; -inf beyond it."""
    return ((limit - distance) / _FADE).clamp(0.0, 1.0).log()


def k_nearest(
    target: Tensor, source: Tensor, valid: Tensor, count: int, exclude_self: bool = False
) -> tuple[Tensor, Tensor]:
    """The nearest sources by planar distance.

    Args:
        target: [..., Q, 2]. source: [..., N, 2]. valid: [..., N] bool. count: J.
        exclude_self: the targets are the sources, and none is its own neighbour.

    Returns:
        index [..., Q, J] int64 and distance [..., Q, J] ascending, infinite (and index 0) where there are fewer
        valid sources.
    """
    # Exact differences: the expansion |a|^2 + |b|^2 - 2ab has errors of centimetres at a kilometre from the origin.
    x, y = (target[..., axis, None] - source[..., None, :, axis] for axis in (0, 1))
    distance = planar_length(x, y)
    hidden = ~valid.unsqueeze(-2)
    sources = source.shape[-2]
    if exclude_self:
        row = torch.arange(sources, device=source.device)
        hidden = hidden | (row.unsqueeze(-1) == row)
    # Roads overlap, so equal distances are common. Ranking by tenths of a millimetre and then by row makes the
    # result independent of the padding of the batch.
    # In place, since these are the largest tensors of a forward pass.
    rank = (distance * 1e4).masked_fill_(hidden, float(_FAR)).long()
    rank = rank.mul_(2**_ROW_BITS).add_(torch.arange(sources, device=source.device))
    # An exported graph serves all numbers of sources: it is traced once, without branches.
    exported = torch.onnx.is_in_onnx_export()
    if exported or sources < count:
        # Lists always have the same length. A size that depends on a smaller number of sources was broadcast
        # wrongly when compiled for dynamic shapes (torch 2.13).
        rank = nn.functional.pad(rank, (0, count if exported else count - sources), value=_FAR << _ROW_BITS)
    best = rank.topk(count, dim=-1, largest=False).values
    index = best & (2**_ROW_BITS - 1)
    far = best >= _FAR << _ROW_BITS
    index = torch.where(far, 0, index)
    return index, distance.gather(-1, index).masked_fill(far, math.inf)


def neighbour_lists(
    target: Tensor, source: Tensor, valid: Tensor, count: int, radius: float, exclude_self: bool = False
) -> Neighbours:
    """Neighbour lists with weights that are a continuous function of positions.

    The weight of a source reaches zero at the distance of the first source outside the list, or at the radius.
    Otherwise rounding would decide between map pieces ahead and behind that are equally far.

    Args:
        target, source, valid, exclude_self: see ``k_nearest``. count: maximum of neighbours. radius: metres.
    """
    index, distance = k_nearest(target, source, valid, count + 1, exclude_self)
    limit = distance[..., count:].clamp(max=radius)
    return Neighbours(index[..., :count], fading(distance[..., :count], limit))


def gather_rows(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows of ``values`` [B, N, ...] by ``index`` [B, ...] to [B, ..., ...]."""
    batch, rows = values.shape[:2]
    shift = torch.arange(batch, device=index.device).view(-1, *(1,) * (index.dim() - 1)) * rows
    flat = values.flatten(0, 1).index_select(0, (index + shift).flatten())
    return flat.view(*index.shape, *values.shape[2:])


class RelativeAttention(nn.Module):
    """Multi-head attention of groups of targets over their sources; returns the update without the residual.

    Each head has a sink, a source with a learnt score and no value. A target without sources gets zeros instead of
    NaN, and any target can ignore its sources.
    """

    def __init__(self, width: int, heads: int, relation: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of {heads} heads")
        self.heads = heads
        each = width // heads
        self.norm_target, self.norm_source = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.source = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.relation_key = nn.Parameter(torch.randn(heads, each, relation) / math.sqrt(relation))
        self.relation_value = nn.Parameter(torch.randn(heads, relation, each) / math.sqrt(relation))
        self.sink = nn.Parameter(torch.zeros(heads))
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def sources(self, x: Tensor) -> Tensor:
        """Keys and values [..., 2 * width] of sources [..., width]."""
        return self.source(self.norm_source(x))

    def by_head(self, sources: Tensor) -> Tensor:
        """Arrange [..., N, 2 * width] as [2, ..., H, N, width / H], keys before values, for the matrix products.

        This is done once here, since every step that reads the sources would copy them otherwise.
        """
        # Views and a dimension counted from the front, so that the export to ONNX keeps all other sizes free.
        split = sources.view(*sources.shape[:-1], 2, self.heads, -1)
        return split.movedim(split.dim() - 3, 0).transpose(-3, -2).contiguous()

    def gather_by_head(self, sources: Tensor, index: Tensor) -> Tensor:
        """``by_head`` of gathered sources, without gathering them before.

        Args:
            sources: [B, N, 2 * width]. index: [B, ..., J] int64 rows of N.

        Returns:
            [2, B, ..., H, J, width / H].
        """
        table = self.by_head(sources)  # [2, B, H, N, width / H]
        rows = table.shape[3]
        # First row of each part, scene and head.
        first = rows * torch.arange(table[..., 0, 0].numel(), device=index.device).view(table.shape[:3])
        middle = (1,) * (index.dim() - 2)
        row = first.view(2, len(index), *middle, self.heads, 1) + index.unsqueeze(-2)
        return table.flatten(0, 3).index_select(0, row.flatten()).view(*row.shape, -1)

    def forward(
        self, target: Tensor, source: Tensor, relation: Tensor, bias: Tensor, index: Tensor | None = None
    ) -> Tensor:
        """Attention update [..., S, width].

        Args:
            target: [..., S, width].
            source: [2, ..., H, N, width / H] from ``sources`` and ``by_head``, shared by the S targets.
            relation: [..., S, J, relation]. bias: [..., S, J] added to the scores, -inf for masked sources.
            index: [..., S, J] int64 (broadcastable), index of the J among the N sources, without repetition of
                unmasked ones; None if J is N, in order.
        """
        width = target.shape[-1]
        each = width // self.heads
        query = self.query(self.norm_target(target)).view(*target.shape[:-1], self.heads, each) / math.sqrt(each)
        key, value = source.unbind(0)
        relative_query = torch.einsum("...hd,hdf->...hf", query, self.relation_key)  # [..., S, H, F]
        # Each target picks its own from the products with all N sources, which moves less memory than picking keys
        # and values.
        score = query.transpose(-3, -2) @ key.transpose(-2, -1)  # [..., H, S, N]
        relative = (relative_query @ relation.transpose(-2, -1)).transpose(-3, -2)  # [..., H, S, J]
        if index is not None:
            index = index.unsqueeze(-3).expand(relative.shape)
            picked = score.gather(-1, index)
        else:
            picked = score
        picked = picked + relative + bias.unsqueeze(-3)
        sink = self.sink[:, None, None].expand(*picked.shape[:-1], 1)
        weight = torch.cat((picked, sink), dim=-1).softmax(-1)[..., :-1]  # [..., H, S, J]
        spread = weight
        if index is not None:
            spread = torch.zeros_like(score, dtype=weight.dtype).scatter_add(-1, index, weight)
        result = (spread @ value).transpose(-3, -2)  # [..., S, H, each]
        related = weight.transpose(-3, -2) @ relation  # [..., S, H, F]
        result = result + torch.einsum("...hf,hfd->...hd", related, self.relation_value)
        return self.dropout(self.output(result.flatten(-2)))
