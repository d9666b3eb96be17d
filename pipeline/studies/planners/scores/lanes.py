"""Where the AV is among the lanes. The map has centrelines without widths, so a lane is a strip of usual width.

Shape legend: P drives, T steps, M poses, N lane segments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.studies.planners.drive_record import Drive
from pipeline.studies.planners.scores.surroundings import Surroundings

__all__ = ["LANE_HALF_WIDTH", "between_lanes", "metres_against"]

# Half of 3.7 m, the usual lane of the roads in question.
LANE_HALF_WIDTH = 1.85
# Segments reach so far beyond their ends, metres: around the outside of bends, and over gaps between features.
_OVERLAP = 0.5


def _beside(position: Tensor, lanes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Offset [M, N] of points [M, 2] from lane segments [N, 4], whether they lie beside them, directions [N, 2]."""
    length = lanes[:, 2:].norm(dim=-1)
    direction = lanes[:, 2:] / length.unsqueeze(-1)
    x, y = position[:, :1] - lanes[:, 0], position[:, 1:] - lanes[:, 1]
    along = x * direction[:, 0] + y * direction[:, 1]
    aside = (y * direction[:, 0] - x * direction[:, 1]).abs()
    return aside, (along >= -_OVERLAP) & (along <= length + _OVERLAP), direction


def between_lanes(drive: Drive, around: Surroundings) -> Tensor:
    """Whether no lane holds all corners of the AV's box (as in nuPlan, with strips for polygons).

    Returns:
        [P, T] bool; true also where there is no lane.
    """
    pose = drive.ego_pose.flatten(0, 1)
    aside, beside, direction = _beside(pose[:, :2], around.lanes)
    length, width = drive.sizes[drive.ego, :2].tolist()
    cos, sin = pose[:, 2:].cos(), pose[:, 2:].sin()
    # The farthest corner from the line: half the box seen along it, beyond the centre.
    across = (sin * direction[:, 0] - cos * direction[:, 1]).abs()
    parallel = (cos * direction[:, 0] + sin * direction[:, 1]).abs()
    reach = aside + length / 2 * across + width / 2 * parallel
    return ~((reach <= LANE_HALF_WIDTH) & beside).any(-1).view(drive.ego_pose.shape[:2])


def metres_against(drive: Drive, around: Surroundings) -> Tensor:
    """How far the AV moved against the lane in each step of 0.1 s.

    Who has its centre in no lane does nothing wrong, nor does who is in lanes of many directions, as in a junction:
    of all lanes that its box reaches into, the one that suits its motion best counts.

    Returns:
        [P, T - 1] metres, not negative.
    """
    pose = drive.ego_pose
    if not len(around.lanes):
        return torch.zeros(pose.shape[0], pose.shape[1] - 1)
    moved = (pose[:, 1:, :2] - pose[:, :-1, :2]).flatten(0, 1)
    aside, beside, direction = _beside(pose[:, 1:, :2].flatten(0, 1), around.lanes)
    inside = (aside <= LANE_HALF_WIDTH) & beside
    reached = (aside <= LANE_HALF_WIDTH + float(drive.sizes[drive.ego, 1]) / 2) & beside
    along = moved[:, :1] * direction[:, 0] + moved[:, 1:] * direction[:, 1]
    best = torch.where(reached, along, -torch.inf).amax(-1)
    against = torch.where(inside.any(-1), -best, 0.0).clamp(min=0.0)
    return against.view(pose.shape[0], -1)
