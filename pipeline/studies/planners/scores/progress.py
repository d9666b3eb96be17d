"""Progress along the route, relative to what the AV drove in the log.

Score: min(1, max(0, s) / s_log), where s is the way along the route between the first and last step; 1 if the log
made less than 2 m of progress.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.geometry import project_on_polyline

__all__ = ["progress", "progress_along"]

_LEAST = 2.0


def progress_along(pose: Tensor, route: Tensor) -> Tensor:
    """Metres [P] along a route [N, 2] between the first and the last of poses [P, T, 3]."""
    along, _, _ = project_on_polyline(pose[:, (0, -1), :2], route)
    return along[:, 1] - along[:, 0]


def progress(pose: Tensor, logged: Tensor, route: Tensor) -> Tensor:
    """[P] score.

    Args:
        pose: [P, T, 3] of the AV. logged: [1, T, 3] of the AV in the log. route: [N, 2] points.
    """
    made, expected = progress_along(pose, route), progress_along(logged, route)
    share = (made / expected.clamp(min=_LEAST)).clamp(0.0, 1.0)
    return torch.where(expected < _LEAST, 1.0, share)
