"""Driving direction compliance: how far the AV drives against the lane within any second.

Score: 0 if more than 6 m, 0.5 if more than 2 m, else 1 (nuPlan's thresholds).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["direction_compliance"]

_WINDOW = 10  # steps of 0.1 s
_COMPLIANT, _VIOLATED = 2.0, 6.0


def direction_compliance(against: Tensor) -> Tensor:
    """[P] score, from ``metres_against`` [P, T - 1]."""
    worst = against.double().unfold(-1, _WINDOW, 1).sum(-1).amax(-1)
    score = torch.where(worst > _VIOLATED, 0.0, torch.where(worst > _COMPLIANT, 0.5, 1.0))
    return score.float()
