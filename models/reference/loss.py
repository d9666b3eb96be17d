"""Cross-entropy over tokens, and accuracy."""

from __future__ import annotations

import torch
from torch import Tensor

from data.vocabulary import Vocabulary, corner_distance
from models.reference.inputs import SceneInputs


def loss_mask(inputs: SceneInputs, start: int = 1) -> Tensor:
    """Valid tokens [B, A, N] of agents with a loss, from token ``start`` on; the first token has no past."""
    mask = inputs.tokens.valid & inputs.learnt.unsqueeze(-1)
    return mask & (torch.arange(mask.shape[-1], device=mask.device) >= start)


def smoothed_targets(vocabulary: Vocabulary, probability: float, spread: float) -> Tensor:
    """Target distributions [3, K, K] float32 (row = true token) with label smoothing over near tokens.

    Uniform smoothing would train the model to sample implausible tokens; here the probability falls with distance.

    Args:
        probability: of all other tokens together. spread: corner distance in metres over which it falls by a
            factor e.
    """
    rows = []
    for corners in vocabulary.corners:
        distance = corner_distance(corners[:, None], corners[None])
        other = torch.exp(-distance / spread).fill_diagonal_(0.0)
        other = probability * other / other.sum(-1, keepdim=True).clamp(min=1e-12)
        rows.append(other + torch.diag_embed(1 - other.sum(-1)))
    return torch.stack(rows)


def token_loss(logits: Tensor, target: Tensor, distribution: Tensor | None = None) -> Tensor:
    """Cross-entropy [...] of each token in nats.

    Args:
        logits: [..., K]. target: [...] int64. distribution: [..., K] used instead of ``target`` if given.
    """
    log_probability = logits.float().log_softmax(-1)
    if distribution is None:
        return -log_probability.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return -(log_probability * distribution).sum(-1)


def token_figures(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """Float64 sums [4] over the mask: cross-entropy, target is the top token, target is in the top five, tokens."""
    log_probability = logits.log_softmax(-1)
    own = log_probability.gather(-1, target.unsqueeze(-1))
    rank = (log_probability > own).sum(-1)
    columns = (-own.squeeze(-1), rank < 1, rank < 5, torch.ones_like(rank))
    return torch.stack([column[mask].double().sum() for column in columns])
