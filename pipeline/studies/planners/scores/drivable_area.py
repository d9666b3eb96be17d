"""Drivable area compliance: 0 if a corner of the AV's box was beyond the road's edge at some step, else 1.

A corner that starts beyond the edge is forgiven until it has been on the road; without road edges in the map
nothing is off the road.

Shape legend: P drives, T steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.geometry import box_corners
from data.road_grid import cell_of
from pipeline.simulator.events import signed_edge_distance
from pipeline.simulator.world import EDGE_CELL
from pipeline.studies.planners.drive_record import Drive
from pipeline.studies.planners.scores.surroundings import Surroundings

__all__ = ["corners_off_road", "drivable_area_compliance"]


def corners_off_road(drive: Drive, around: Surroundings) -> Tensor:
    """[P, T, 4] bool: which corners of the AV's box lie beyond the nearest road edge, nothing forgiven."""
    pose = drive.ego_pose
    drives, steps, _ = pose.shape
    if not around.has_edges:
        return torch.zeros(drives, steps, 4, dtype=torch.bool)
    length, width, height = drive.sizes[drive.ego]
    corners = box_corners(pose[..., :2], pose[..., 2], length, width).view(1, -1, 2)
    near = around.grid.table[0, cell_of(around.grid, corners, EDGE_CELL)[0]].long()
    count = corners.shape[1]
    distance = signed_edge_distance(
        around.edges,
        torch.zeros(1, dtype=torch.int64),
        corners,
        (drive.heights[drive.ego] - height / 2)[None],
        near.view(1, count, -1),
    )
    return (distance > 0).view(drives, steps, 4)


def drivable_area_compliance(off: Tensor) -> Tensor:
    """[P] score, from ``corners_off_road`` [P, T, 4]."""
    was_on = (~off).cummax(1).values
    return 1.0 - (off & was_on).any(2).any(1).float()
