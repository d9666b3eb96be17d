"""Cross-entropy over tokens and the figures that go with it."""

from __future__ import annotations

import torch
from torch import Tensor

from data.vocabulary import Vocabulary, corner_distance
from models.reference.inputs import SceneInputs

__all__ = ["loss_mask", "smoothed_targets", "token_figures", "token_loss"]


def loss_mask(inputs: SceneInputs, start: int = 1) -> Tensor:
    """[B, A, N] bool: valid tokens of the agents that are learnt.

    Args:
        start: number of the first token that counts; of the very first, no agent has any past.
    """
    mask = inputs.tokens.valid & inputs.learnt.unsqueeze(-1)
    return mask & (torch.arange(mask.shape[-1], device=mask.device) >= start)


def smoothed_targets(vocabulary: Vocabulary, share: float, spread: float) -> Tensor:
    """Target distributions that give some probability to tokens that end near the true one.

    Spread evenly over all tokens, a tenth of the probability would go to motion no agent makes, and a sampled
    future of forty tokens would hold four such; spread by distance, it says that a near miss is nearly right.

    Args:
        share: probability that does not go to the true token. spread: metres of corner distance over which it
            fades by a factor e.

    Returns:
        [3, K, K] float32, row = true token.
    """
    rows = []
    for corners in vocabulary.corners:
        distance = corner_distance(corners[:, None], corners[None])
        other = torch.exp(-distance / spread).fill_diagonal_(0.0)
        other = share * other / other.sum(-1, keepdim=True).clamp(min=1e-12)
        rows.append(other + torch.diag_embed(1 - other.sum(-1)))
    return torch.stack(rows)


def token_loss(logits: Tensor, target: Tensor, distribution: Tensor | None = None) -> Tensor:
    """Cross-entropy [...] of each token in nats.

    Args:
        logits: [..., K]. target: [...] int64. distribution: [..., K] to learn instead of the certainty of
            ``target``.
    """
    log_probability = logits.float().log_softmax(-1)
    if distribution is None:
        return -log_probability.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    return -(log_probability * distribution).sum(-1)


def token_figures(logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    """[4] float64 sums over the mask: cross-entropy, target is first, target is in the first five, tokens."""
    log_probability = logits.log_softmax(-1)
    chosen = log_probability.gather(-1, target.unsqueeze(-1))
    place = (log_probability > chosen).sum(-1)
    columns = (-chosen.squeeze(-1), place < 1, place < 5, torch.ones_like(place))
    return torch.stack([column[mask].double().sum() for column in columns])
