"""Time to collision within bound: 0 if at some step less than 0.95 s were left, else 1.

At every step the boxes of AV and agents go on at their velocities without turning, and the time to contact is exact
(``data.geometry.time_to_contact``). An agent counts at a step if

- it is ahead: less than 30 degrees from the AV's heading, seen from its rear axle; or
- it is neither ahead nor behind (more than 150 degrees), and moves at an angle of 30 to 150 degrees to the AV's
  heading, or the AV is not in one lane;

and neither the AV stands nor have they touched yet (nuPlan, where the AV's being in an intersection takes the place
of the other's crossing).

Shape legend: P drives, A agents, T steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from data.geometry import time_to_contact
from pipeline.studies.planners.drive_record import Drive
from pipeline.studies.planners.scores.collision import STOPPED, ego_boxes, first_overlaps, off_axis

__all__ = ["TTC_BOUND", "ego_time_to_contact", "least_ttc", "ttc_within_bound"]

TTC_BOUND = 0.95
_AHEAD, _BEHIND = math.radians(30.0), math.radians(150.0)


def ego_time_to_contact(drive: Drive, velocity: Tensor) -> Tensor:
    """Seconds [P, A, T] until each agent and the AV touch at their present velocities.

    Infinite where they would not, from their first overlap on, and for who is absent or on another level.

    Args:
        velocity: [P, A, T, 2] of ``Drive.velocity``.
    """
    own, others = ego_boxes(drive)
    relative = velocity - velocity[:, drive.ego : drive.ego + 1]
    seconds = time_to_contact(own[:2], own[2:4], own[4:], others[:2], others[2:4], others[4:], relative.unbind(-1))
    first, gap = first_overlaps(drive)
    apart = torch.arange(gap.shape[-1]) < first.unsqueeze(-1)
    return torch.where(apart & gap.isfinite(), seconds, torch.inf)


def least_ttc(drive: Drive, velocity: Tensor, between: Tensor) -> Tensor:
    """[P] least time to collision in seconds, of all steps and agents that count; infinite where there is none.

    Args:
        drive: P drives. velocity: [P, A, T, 2]. between: [P, T] bool, the AV is not in one lane.
    """
    seconds = ego_time_to_contact(drive, velocity)
    ego = drive.ego_pose.unsqueeze(1)
    angle = off_axis(ego, drive.pose[..., :2])
    heading = torch.stack((ego[..., 2].cos(), ego[..., 2].sin()), dim=-1)
    speed = velocity.norm(dim=-1)
    along = (velocity * heading).sum(-1).abs()
    crosses = (speed > STOPPED) & (along < math.cos(_AHEAD) * speed)
    counts = (angle < _AHEAD) | ((angle < _BEHIND) & (crosses | between.unsqueeze(1)))
    drives = speed[:, drive.ego : drive.ego + 1] > STOPPED
    return torch.where(counts & drives, seconds, torch.inf).amin((1, 2))


def ttc_within_bound(least: Tensor) -> Tensor:
    """[P] score, from ``least_ttc`` [P]."""
    return (least >= TTC_BOUND).float()
