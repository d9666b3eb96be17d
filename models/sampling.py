"""Drawing tokens from logits with numbers drawn beforehand, so that nothing else is random in a rollout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import UserError

__all__ = ["SamplingConfig", "draw"]


@dataclass(frozen=True)
class SamplingConfig:
    """How tokens are drawn from a model's distribution.

    Args:
        temperature: divides the logits; below 1 sharpens.
        top_k: only the k likeliest tokens; 0 for all.
        top_p: only the likeliest tokens that together have this probability; 1 for all.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError("sampling: temperature must be above 0, top_k at least 0 and top_p in (0, 1]")


def draw(logits: Tensor, uniform: Tensor, config: SamplingConfig) -> Tensor:
    """[...] int64 the first token whose cumulative probability exceeds the draw; never one of probability zero.

    Args:
        logits: [..., K]. uniform: [...] in [0, 1). config: what to draw from.
    """
    logits = logits / config.temperature
    if config.top_k:
        least = logits.topk(min(config.top_k, logits.shape[-1]), dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if config.top_p < 1:
        ordered = logits.sort(dim=-1, descending=True)
        probability = ordered.values.softmax(-1)
        # A token stays if those before it have not reached the share: the first always does.
        beyond = probability.cumsum(-1) - probability >= config.top_p
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, ordered.indices, beyond), -torch.inf)
    cumulative = logits.softmax(-1).cumsum(-1)
    drawn = uniform.unsqueeze(-1) * cumulative[..., -1:]
    return (cumulative <= drawn).sum(-1).clamp(max=logits.shape[-1] - 1)
