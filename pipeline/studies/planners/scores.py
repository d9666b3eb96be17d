"""All scores of some drives of one scene, and two totals (the driving scores of nuPlan and NAVSIM).

    pdm      = collision * area * direction * (5 progress + 5 ttc + 4 speed limit + 2 comfort) / 16
    pdm_mean = (5 collision + 5 area + 5 direction + 5 progress + 5 ttc + 4 speed limit + 2 comfort) / 31

``pdm`` is NAVSIM's product of multipliers and a weighted mean. ``pdm_mean`` is the weighted mean of all parts: the
SPACeR paper does not state its formula, and its examples with a collision score of 0 still have totals of 0.38 to
0.49, which a product would not. That its multipliers weigh like the heaviest other part is our choice.

Shape legend: P drives, T steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.scene import Scene
from pipeline.studies.planners.collision_scores import Collisions, find_collisions, least_ttc, ttc_within_bound
from pipeline.studies.planners.drive_record import Drive, logged_drive
from pipeline.studies.planners.motion_scores import comfort, progress, speed_limit_compliance
from pipeline.studies.planners.road_scores import (
    between_lanes,
    corners_off_road,
    direction_compliance,
    drivable_area_compliance,
    metres_against,
    surroundings,
)
from pipeline.studies.planners.route import Route

MULTIPLIERS = ("no_at_fault_collision", "drivable_area", "driving_direction")
WEIGHTS = {"progress": 5.0, "ttc": 5.0, "speed_limit": 4.0, "comfort": 2.0}
_MULTIPLIER_WEIGHT = 5.0
TOTALS = ("pdm", "pdm_mean")
SCORE_NAMES = (*MULTIPLIERS, *WEIGHTS, *TOTALS)


@dataclass(frozen=True)
class DriveScores:
    """Scores of P drives.

    Attributes:
        values: [P] float32 in [0, 1] for each of ``SCORE_NAMES``.
        collisions: with whom and when, and whose fault. least_ttc: [P] seconds, infinite where there is none.
    """

    values: dict[str, Tensor]
    collisions: Collisions
    least_ttc: Tensor


def totals(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """``pdm`` and ``pdm_mean`` [P], from all parts [P]."""
    product = torch.stack([parts[name] for name in MULTIPLIERS]).prod(0)
    weighted = torch.stack([weight * parts[name] for name, weight in WEIGHTS.items()]).sum(0)
    multipliers = _MULTIPLIER_WEIGHT * torch.stack([parts[name] for name in MULTIPLIERS]).sum(0)
    weight = sum(WEIGHTS.values())
    return {
        "pdm": product * weighted / weight,
        "pdm_mean": (multipliers + weighted) / (weight + _MULTIPLIER_WEIGHT * len(MULTIPLIERS)),
    }


def score_drives(drive: Drive, scene: Scene, origin: Tensor, route: Route) -> DriveScores:
    """Score P drives of one scene at once.

    Args:
        drive: on the CPU. scene: single, with its future, for the map and the logged progress.
        origin: [2] of the drives' coordinates. route: that the AV was to follow.

    Raises:
        ValueError: the scene has no future to compare progress with.
    """
    around = surroundings(drive, scene, origin)
    velocity = drive.velocity
    ego, ego_velocity = drive.ego_pose, velocity[:, drive.ego]
    line = torch.from_numpy(route.point).to(ego.dtype)
    limit = torch.from_numpy(route.speed_limit).to(ego.dtype)
    between = between_lanes(drive, around)
    off = corners_off_road(drive, around)
    collisions = find_collisions(drive, velocity, between, off.any(-1))
    least = least_ttc(drive, velocity, between)
    parts = {
        "no_at_fault_collision": collisions.score,
        "drivable_area": drivable_area_compliance(off),
        "driving_direction": direction_compliance(metres_against(drive, around)),
        "progress": progress(ego, logged_drive(scene, origin).ego_pose, line),
        "ttc": ttc_within_bound(least),
        "speed_limit": speed_limit_compliance(ego, ego_velocity, line, limit),
        "comfort": comfort(ego),
    }
    return DriveScores({**parts, **totals(parts)}, collisions, least)
