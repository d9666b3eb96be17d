"""Collisions of the AV, whose fault they are, and the time to the next one.

The score of no-at-fault collisions is 0 if any is the AV's fault, else 1. An agent counts when its box first
overlaps the AV's, and those that overlap at step 0 never do. At the moment of contact (nuPlan's rules, in order):

1. the AV stands (at most 0.05 m/s): not at fault;
2. the other stands: at fault;
3. the other is behind, more than 150 degrees from the AV's heading seen from its rear axle: not at fault;
4. the front bumper touches the other: at fault;
5. else the contact is lateral: at fault if the AV is not in one lane, or has a corner off the road.

Vehicles, pedestrians and cyclists count alike; boxes on different levels do not collide.

Time to collision within bound: 0 if at some step less than 0.95 s were left, else 1. At every step the boxes of AV
and agents go on at their velocities without turning, and the time to contact is exact
(``data.geometry.time_to_contact``). An agent counts at a step if

- it is ahead: less than 30 degrees from the AV's heading, seen from its rear axle; or
- it is neither ahead nor behind (more than 150 degrees), and moves at an angle of 30 to 150 degrees to the AV's
  heading, or the AV is not in one lane;

and neither the AV stands nor have they touched yet (nuPlan, where the AV's being in an intersection takes the place
of the other's crossing).

Shape legend: P drives, A agents, T steps, E contacts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data.geometry import box_separation, time_to_contact
from data.scene import STEP_SECONDS
from pipeline.simulator.events import LEVEL_GAP
from pipeline.studies.planners.drive_record import Drive

# nuPlan's speed of those who stand, m/s.
STOPPED = 0.05
# From the centre of the box to the rear axle, metres: half of the wheelbase of the bicycle model.
_REAR_AXLE = 1.4
_BEHIND = math.radians(150.0)
# How near the bumper is to what it touches, metres; more than float32 rounds, less than one sees.
_TOUCH = 0.02


@dataclass(frozen=True)
class Collision:
    """One collision: in which drive, with which agent, when (seconds from step 0), whose fault."""

    drive: int
    agent: int
    seconds: float
    at_fault: bool
    rear_hit: bool


@dataclass(frozen=True)
class Collisions:
    """[P, A] each.

    Attributes:
        step: int64 of the first overlap with the AV, -1 where there is none or it was there at step 0.
        at_fault: bool, the AV's fault. rear_hit: bool, the other drove into the AV from behind, the AV standing or
            not; never its fault.
    """

    step: Tensor
    at_fault: Tensor
    rear_hit: Tensor

    @property
    def score(self) -> Tensor:
        """[P] 0 after a collision at fault, else 1."""
        return 1.0 - self.at_fault.any(-1).float()

    def listed(self) -> list[Collision]:
        """All collisions, by drive and time."""
        found = [
            Collision(
                drive,
                agent,
                int(self.step[drive, agent]) * STEP_SECONDS,
                bool(self.at_fault[drive, agent]),
                bool(self.rear_hit[drive, agent]),
            )
            for drive, agent in (self.step >= 0).nonzero().tolist()
        ]
        return sorted(found, key=lambda collision: (collision.drive, collision.seconds, collision.agent))


def ego_boxes(drive: Drive) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """x, y, cosine, sine, half length, half width of the AV [P, 1, T] and of all agents [P, A, T]."""
    x, y, heading = drive.pose.unbind(-1)
    half = (drive.sizes[:, :2] / 2).unsqueeze(1)  # [A, 1, 2]
    agents = (x, y, heading.cos(), heading.sin(), *(side.expand_as(x) for side in half.unbind(-1)))
    return tuple(part[:, drive.ego : drive.ego + 1] for part in agents), agents


def first_overlaps(drive: Drive) -> tuple[Tensor, Tensor]:
    """When each agent's box first overlaps the AV's: steps [P, A], T where never, and gaps [P, A, T] in metres.

    Gaps are the widest along an axis of either box, and infinite where an agent is absent or on another level.
    """
    own, others = ego_boxes(drive)
    gap = box_separation(own[:2], own[2:4], own[4:], others[:2], others[2:4], others[4:])
    bottom = drive.heights - drive.sizes[:, 2] / 2
    level = (bottom - bottom[drive.ego]).abs() < LEVEL_GAP
    gap = torch.where(drive.others & level[:, None], gap, torch.inf)
    overlap = gap < 0
    steps = gap.shape[-1]
    first = torch.where(overlap.any(-1), overlap.int().argmax(-1), steps)
    return first, gap


def off_axis(ego: Tensor, point: Tensor) -> Tensor:
    """Angle [...] in [0, pi] between the AV's heading and the way from its rear axle to points.

    Args:
        ego: [..., 3] poses of the AV's box. point: [..., 2].
    """
    cos, sin = ego[..., 2].cos(), ego[..., 2].sin()
    x = point[..., 0] - (ego[..., 0] - _REAR_AXLE * cos)
    y = point[..., 1] - (ego[..., 1] - _REAR_AXLE * sin)
    return torch.atan2((y * cos - x * sin).abs(), x * cos + y * sin)


def _at_contact(before: Tensor, after: Tensor, known: Tensor, half: Tensor) -> Tensor:
    """Poses [E, 2, 3] of AV and agent when they first touched between two steps, headings as after the step.

    Args:
        before, after: [E, 2, 3] poses at the steps. known: [E] bool, whether the agent was there before.
        half: [E, 2, 2] half length and width.
    """
    motion = after[..., :2] - before[..., :2]
    axes = torch.stack((after[..., 2].cos(), after[..., 2].sin()))  # [2, E, 2]
    fraction = time_to_contact(
        before[:, 0, :2].unbind(-1),
        axes[..., 0],
        half[:, 0].unbind(-1),
        before[:, 1, :2].unbind(-1),
        axes[..., 1],
        half[:, 1].unbind(-1),
        (motion[:, 1] - motion[:, 0]).unbind(-1),
    )
    fraction = torch.where(known, fraction.clamp(max=1.0), 1.0)
    place = torch.lerp(before[..., :2], after[..., :2], fraction[:, None, None])
    return torch.cat((place, after[..., 2:]), dim=-1)


def find_collisions(drive: Drive, velocity: Tensor, between: Tensor, off_road: Tensor) -> Collisions:
    """All collisions of the AV.

    Args:
        drive: P drives. velocity: [P, A, T, 2] of ``Drive.velocity``.
        between: [P, T] bool, the AV is not in one lane. off_road: [P, T] bool, it has a corner off the road.
    """
    first, _ = first_overlaps(drive)
    collided = (first > 0) & (first < drive.pose.shape[2])
    p, a = collided.nonzero(as_tuple=True)
    k = first[p, a]
    pair = torch.stack((torch.full_like(a, drive.ego), a), dim=-1)  # [E, 2]
    p2, k2 = p[:, None], k[:, None]
    before, after = drive.pose[p2, pair, k2 - 1], drive.pose[p2, pair, k2]
    half = drive.sizes[pair, :2] / 2
    touching = _at_contact(before, after, drive.present[p, a, k - 1], half)
    # How fast they came: central differences would mix in what the collision does to those that react to it.
    came = (after[..., :2] - before[..., :2]) / STEP_SECONDS
    came = torch.where(drive.present[p, a, k - 1][:, None, None], came, velocity[p2, pair, k2])
    speed = came.norm(dim=-1)
    ego, other = touching[:, 0], touching[:, 1]
    behind = off_axis(ego, other[:, :2]) > _BEHIND
    cos, sin = ego[:, 2].cos(), ego[:, 2].sin()
    front = torch.stack((ego[:, 0] + half[:, 0, 0] * cos, ego[:, 1] + half[:, 0, 0] * sin), dim=-1)
    bumper = box_separation(
        front.unbind(-1),
        (cos, sin),
        (torch.zeros_like(cos), half[:, 0, 1]),
        other[:, :2].unbind(-1),
        (other[:, 2].cos(), other[:, 2].sin()),
        half[:, 1].unbind(-1),
    )
    ego_stands, other_stands = (speed <= STOPPED).unbind(-1)
    lateral = between[p, k] | off_road[p, k]
    fault = ~ego_stands & (other_stands | (~behind & ((bumper < _TOUCH) | lateral)))
    closing = ((came[:, 1] - came[:, 0]) * torch.stack((cos, sin), dim=-1)).sum(-1) > 0
    none = torch.zeros_like(collided)
    return Collisions(
        step=torch.where(collided, first, -1),
        at_fault=none.index_put((p, a), fault),
        rear_hit=none.index_put((p, a), behind & closing & ~other_stands),
    )


TTC_BOUND = 0.95
_AHEAD = math.radians(30.0)


def ego_time_to_contact(drive: Drive, velocity: Tensor) -> Tensor:
    """Seconds [P, A, T] until each agent and the AV touch at their present velocities.

    Infinite where they would not, from their first overlap on, and for agents that are absent or on another level.

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
