"""How an agent behind the AV reacts to it: collisions that it causes, gap, time to collision, braking.

Shape legend: P drives, A agents, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.geometry import box_separation
from data.scene import STEP_SECONDS
from pipeline.studies.planners.collision_scores import Collisions, ego_boxes, ego_time_to_contact
from pipeline.studies.planners.drive_record import Drive
from pipeline.studies.planners.manoeuvres import MANOEUVRE_STEP

# A follower reacts when it brakes so much harder than before, m/s^2.
_REACTION = 1.0
# Accelerations are slopes of the speed over five steps (least squares).
_SLOPE = (-2.0, -1.0, 0.0, 1.0, 2.0)
_HALF = len(_SLOPE) // 2


@dataclass(frozen=True)
class Reaction:
    """[P] float32 each, NaN where undefined, from the manoeuvre on until the follower hits the AV.

    Attributes:
        false_rear_end: 1 if any agent drove into the AV from behind in the whole drive, else 0.
        min_gap: metres between the boxes of AV and follower while it is behind, 0 at a collision. Undefined if it
            is never behind.
        min_ttc: seconds to contact at the velocities of the time, likewise. Undefined if it never comes nearer.
        strongest_deceleration: of the follower along its heading, m/s^2, not negative. Undefined if it is absent.
        reaction_time: seconds until the follower brakes by more than 1 m/s^2 harder than it did on average before.
            Undefined if it never does.
    """

    false_rear_end: Tensor
    min_gap: Tensor
    min_ttc: Tensor
    strongest_deceleration: Tensor
    reaction_time: Tensor


def _acceleration(drive: Drive, agent: int) -> Tensor:
    """[P, T] m/s^2 of an agent along its heading; NaN where it is absent at a step that it takes."""
    pose, here = drive.pose[:, agent].double(), drive.present[:, agent]
    moved = pose[:, 1:, :2] - pose[:, :-1, :2]
    speed = (moved * torch.stack((pose[:, 1:, 2].cos(), pose[:, 1:, 2].sin()), dim=-1)).sum(-1) / STEP_SECONDS
    speed = torch.where(here[:, 1:] & here[:, :-1], speed, torch.nan)
    slope = torch.tensor(_SLOPE, dtype=speed.dtype)
    result = (speed.unfold(-1, len(_SLOPE), 1) * slope).sum(-1) / (slope.square().sum() * STEP_SECONDS)
    # A speed is that of the middle of its step; the slope around a step uses as many speeds before as after it,
    # half a step late.
    return torch.nn.functional.pad(result, (_HALF + 1, _HALF), value=torch.nan)


def _extreme(values: Tensor, counts: Tensor, sign: float) -> Tensor:
    """[P] greatest (sign 1) or least (sign -1) of values [P, T] that count, NaN where none does."""
    best = torch.where(counts, sign * values, -torch.inf).amax(-1)
    return torch.where(counts.any(-1), sign * best, torch.nan).float()


def measure(drive: Drive, collisions: Collisions, follower: int, start: int = MANOEUVRE_STEP) -> Reaction:
    """How a follower reacts to what the AV does.

    Args:
        drive: P drives of a scene. collisions: of ``score_drives``. follower: row of the agent
            (``find_follower``, ``find_cut_in``). start: step at which the AV begins.
    """
    steps = torch.arange(drive.pose.shape[2])
    hit = collisions.step[:, follower]
    end = torch.where(hit >= 0, hit, len(steps)).unsqueeze(-1)
    here = drive.present[:, follower]
    since = (steps >= start) & (steps <= end) & here  # the collision itself is a gap of 0
    ego = drive.ego_pose
    delta = drive.pose[:, follower, :, :2] - ego[..., :2]
    behind = (delta[..., 0] * ego[..., 2].cos() + delta[..., 1] * ego[..., 2].sin()) < 0
    own, others = ego_boxes(drive)
    box, other = [part[:, 0] for part in own], [part[:, follower] for part in others]
    gap = box_separation(box[:2], box[2:4], box[4:], other[:2], other[2:4], other[4:]).clamp(min=0.0)
    seconds = ego_time_to_contact(drive, drive.velocity)[:, follower]
    braking = -_acceleration(drive, follower)
    known = braking.isfinite() & (steps < end)
    before, after = known & (steps < start), known & (steps >= start)
    usual = torch.where(before, braking, 0.0).sum(-1) / before.sum(-1).clamp(min=1)
    reacts = after & (braking > (usual + _REACTION).unsqueeze(-1))
    first = reacts.int().argmax(-1) - start
    return Reaction(
        false_rear_end=collisions.rear_hit.any(-1).float(),
        min_gap=_extreme(gap, since & behind, -1.0),
        min_ttc=_extreme(seconds, since & behind & seconds.isfinite(), -1.0),
        strongest_deceleration=_extreme(braking, after, 1.0).clamp(min=0.0),
        reaction_time=torch.where(reacts.any(-1), first * STEP_SECONDS, torch.nan).float(),
    )
