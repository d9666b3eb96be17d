"""Speed limit compliance: 1 - (mean overspeed) / (2.23 m/s), at least 0.

Overspeed is what the AV drives above the limit of the nearest piece of the route, over all steps; 0 where no limit
is known.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.geometry import project_on_polyline

__all__ = ["speed_limit_compliance"]

_WORST = 2.23  # m/s, 5 mph


def speed_limit_compliance(pose: Tensor, velocity: Tensor, route: Tensor, limit: Tensor) -> Tensor:
    """[P] score.

    Args:
        pose: [P, T, 3] of the AV. velocity: [P, T, 2]. route: [N, 2] points. limit: [N] m/s there, 0 if unknown.
    """
    _, _, segment = project_on_polyline(pose[..., :2], route)
    allowed = limit[segment]
    over = (velocity.norm(dim=-1) - allowed).clamp(min=0.0)
    return (1.0 - torch.where(allowed > 0, over, 0.0).mean(-1) / _WORST).clamp(min=0.0)
