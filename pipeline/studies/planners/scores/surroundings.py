"""The map around some drives as their scores need it: road edges by cell of a grid, and lanes.

Shape legend: P drives, T steps, N lane segments.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.road import Segments, edge_segments, road_segments
from data.road_grid import RoadGrid, edge_grid, stack_grids
from data.scene import MapKind, Scene
from pipeline.simulator.world import EDGE_CELL
from pipeline.studies.planners.drive_record import Drive

__all__ = ["Surroundings", "surroundings"]

# Metres around the AV's centres in all drives, more than its box reaches.
_MARGIN = 15.0


@dataclass(frozen=True)
class Surroundings:
    """The map of a single scene where its drives went, minus the scene's origin.

    Attributes:
        edges, grid: of the road, as a batch of one (``data.road.stack_grids``). has_edges: whether the map has any.
        lanes: [N, 4] x, y of the start of lane segments of at most 10 m, and x, y from there to the end.
    """

    edges: Segments
    grid: RoadGrid
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
    merged, grid = stack_grids([(edges, edge_grid(edges, low, high, EDGE_CELL, bottom[None], sides_only=True))])
    road = road_segments(scene, origin)
    first, last = torch.minimum(road.start, road.end), torch.maximum(road.start, road.end)
    near = ((last > low) & (first < high)).all(-1) & (road.kind == MapKind.LANE)
    lanes = road.line[near, :4]
    return Surroundings(merged, grid, len(edges.kind) > 0, lanes[lanes[:, 2:].norm(dim=-1) > 0])
