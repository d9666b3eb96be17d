"""Drawing tokens from logits with given uniform numbers, the only randomness of a rollout; and how two
distributions over tokens differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import UserError
from data.vocabulary import TYPE_NAMES


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling options, each one value for all or three for vehicles, pedestrians and cyclists.

    Args:
        temperature: divides the logits; below 1 sharpens.
        top_k: keep the k most likely tokens; 0 for all.
        top_p: keep the most likely tokens up to this cumulative probability; 1 for all.
    """

    temperature: float | tuple[float, float, float] = 1.0
    top_k: int | tuple[int, int, int] = 0
    top_p: float | tuple[float, float, float] = 1.0

    def __post_init__(self) -> None:
        temperature, top_k, top_p = self.by_type
        if min(temperature) <= 0 or min(top_k) < 0 or min(top_p) <= 0 or max(top_p) > 1:
            raise UserError("sampling: temperature must be above 0, top_k at least 0 and top_p in (0, 1]")

    @property
    def by_type(self) -> tuple[tuple[float, ...], tuple[int, ...], tuple[float, ...]]:
        """Temperature, top_k and top_p, each of the three types."""
        count = len(TYPE_NAMES)
        temperature, top_k, top_p = self.temperature, self.top_k, self.top_p
        return (
            temperature if isinstance(temperature, tuple) else (temperature,) * count,
            top_k if isinstance(top_k, tuple) else (top_k,) * count,
            top_p if isinstance(top_p, tuple) else (top_p,) * count,
        )


def _by_type(values: Sequence[float], types: Tensor, dtype: torch.dtype) -> Tensor:
    """The value [..., 1] of each agent's type, filled in on the device: a tensor of numbers would be a wait."""
    return torch.stack([torch.full((1,), value, dtype=dtype, device=types.device) for value in values])[types]


def draw(logits: Tensor, uniform: Tensor, types: Tensor, config: SamplingConfig) -> Tensor:
    """First token [...] int64 whose cumulative probability exceeds the draw; never one of probability zero.

    Args:
        logits: [..., K]. uniform: [...] in [0, 1). types: [...] int64 from ``type_index``. config: options.
    """
    temperature, top_k, top_p = config.by_type
    if set(temperature) != {1.0}:
        logits = logits / _by_type(temperature, types, logits.dtype)
    if any(top_k) or min(top_p) < 1:
        ordered = logits.sort(dim=-1, descending=True, stable=True)
        size = logits.shape[-1]
        count = _by_type([k or size for k in top_k], types, torch.int64)
        beyond = torch.arange(size, device=logits.device) >= count
        probability = ordered.values.masked_fill(beyond, -torch.inf).softmax(-1)
        # A token stays if the cumulative probability before it is below the limit, so the first always stays.
        limit = _by_type(top_p, types, logits.dtype)
        beyond = beyond | ((probability.cumsum(-1) - probability >= limit) & (limit < 1))
        logits = logits.masked_fill(torch.zeros_like(beyond).scatter(-1, ordered.indices, beyond), -torch.inf)
    cumulative = logits.softmax(-1).cumsum(-1)
    drawn = uniform.unsqueeze(-1) * cumulative[..., -1:]
    token = torch.searchsorted(cumulative, drawn, right=True).squeeze(-1)
    return token.clamp(max=logits.shape[-1] - 1)


def exact_kl(log_one: Tensor, log_other: Tensor) -> Tensor:
    """KL(one || other) [...] of log-probabilities over the vocabulary [..., K], in nats."""
    return (log_one.exp() * (log_one - log_other)).sum(-1)
