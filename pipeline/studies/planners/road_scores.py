"""The map around drives, and scores of where the AV is on it: drivable area and driving direction.

Drivable area compliance: 0 if a corner of the AV's box was beyond the road's edge at some step, else 1. A corner
that starts beyond the edge is forgiven until it has been on the road; without road edges in the map nothing is off
the road.

Driving direction compliance: 0 if the AV drives more than 6 m against the lane within any second, 0.5 if more than
2 m, else 1 (nuPlan's thresholds). The map has centrelines without widths, so a lane is a strip of usual width.

Shape legend: P drives, T steps, M poses, N lane segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.geometry import box_corners
from data.road import Segments, edge_segments, road_segments
from data.road_grid import RoadLists, as_batch, edge_grid
from data.scene import MapKind, Scene
from pipeline.simulator.events import signed_edge_distance
from pipeline.simulator.world import EDGE_CELL
from pipeline.studies.planners.drive_record import Drive

# Metres around the AV's centres in all drives, more than its box reaches.
_MARGIN = 15.0


@dataclass(frozen=True)
class Surroundings:
    """The map of a single scene where its drives went, minus the scene's origin.

    Attributes:
        edges, grid: of the road, as a batch of one (``data.road.as_batch``). has_edges: whether the map has any.
        lanes: [N, 4] x, y of the start of lane segments of at most 10 m, and x, y from there to the end.
    """

    edges: Segments
    grid: RoadLists
    has_edges: bool
    lanes: Tensor


def surroundings(drive: Drive, scene: Scene, origin: Tensor) -> Surroundings:
    """The map around the AV in all drives.

    Args:
        drive: P drives of ``scene``, a single one. origin: [2] of the drives' coordinates.
    """
    place = drive.ego_pose[..., :2].flatten(0, 1)
    low, high = place.amin(0) - _MARGIN, place.amax(0) + _MARGIN
    edges = edge_segments(scene, origin)
    bottom = drive.heights[drive.ego] - drive.sizes[drive.ego, 2] / 2
    merged, grid = as_batch(edges, edge_grid(edges, low, high, EDGE_CELL, bottom[None], sides_only=True))
    road = road_segments(scene, origin)
    first, last = torch.minimum(road.start, road.end), torch.maximum(road.start, road.end)
    near = ((last > low) & (first < high)).all(-1) & (road.kind == MapKind.LANE)
    lanes = road.line[near, :4]
    return Surroundings(merged, grid, len(edges.kind) > 0, lanes[lanes[:, 2:].norm(dim=-1) > 0])


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

    An AV with its centre in no lane does nothing wrong. It may be in lanes of many directions, as in a junction:
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


def corners_off_road(drive: Drive, around: Surroundings) -> Tensor:
    """[P, T, 4] bool: which corners of the AV's box lie beyond the nearest road edge, nothing forgiven."""
    pose = drive.ego_pose
    drives, steps, _ = pose.shape
    if not around.has_edges:
        return torch.zeros(drives, steps, 4, dtype=torch.bool)
    length, width, height = drive.sizes[drive.ego]
    corners = box_corners(pose[..., :2], pose[..., 2], length, width).view(1, -1, 2)
    near = around.grid.near(torch.zeros(1, dtype=torch.int64), corners, EDGE_CELL)
    distance = signed_edge_distance(around.edges, corners, (drive.heights[drive.ego] - height / 2)[None], near)
    return (distance > 0).view(drives, steps, 4)


def drivable_area_compliance(off: Tensor) -> Tensor:
    """[P] score, from ``corners_off_road`` [P, T, 4]."""
    was_on = (~off).cummax(1).values
    return 1.0 - (off & was_on).any(2).any(1).float()


_WINDOW = 10  # steps of 0.1 s
_COMPLIANT, _VIOLATED = 2.0, 6.0


def direction_compliance(against: Tensor) -> Tensor:
    """[P] score, from ``metres_against`` [P, T - 1]."""
    worst = against.double().unfold(-1, _WINDOW, 1).sum(-1).amax(-1)
    score = torch.where(worst > _VIOLATED, 0.0, torch.where(worst > _COMPLIANT, 0.5, 1.0))
    return score.float()
