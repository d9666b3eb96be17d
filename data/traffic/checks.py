"""Violations of road users that the realism metric counts: overlaps, road edges, red lights.

The rules are those of the Sim Agents metric (rounded boxes, box corners against road edges, crossing a stop point
on red). The computation is independent of it: shapely on polygons instead of distances to segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from data.traffic.signals import STOP_STATES, SignalLane

__all__ = ["Boxes", "box_corners", "off_road", "overlaps", "runs_red_light"]

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

# The metric rounds the corners of boxes by this fraction of half their shorter side.
_ROUNDING = 0.7
# Boxes nearer than this (metres) count as overlapping, and corners nearer than this to the edge as off the road, so
# that rounding to float32 at coordinates of some kilometres cannot add a violation.
_MARGIN = 0.03
# A user within this distance (m) across and this angle (cosine) of a signalled lane's start is on that lane.
_LANE_REACH = 1.8
_LANE_COSINE = 0.5


@dataclass(frozen=True)
class Boxes:
    """N boxes over T steps: centre [N, T, 2] and size [N, 2] (length, width) in metres, heading [N, T] radians,
    valid [N, T]; centre and heading may be NaN where not valid."""

    centre: FloatArray
    heading: FloatArray
    size: FloatArray
    valid: BoolArray


def box_corners(boxes: Boxes, shrink: FloatArray | float = 0.0) -> FloatArray:
    """Corners [N, T, 4, 2] counter-clockwise from the front left; sides are moved in by ``shrink`` [N] metres."""
    half = np.maximum(boxes.size / 2 - np.reshape(shrink, (-1, 1)), 0.0)
    sign = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    local = half[:, None, None, :] * sign
    cos, sin = np.cos(boxes.heading)[..., None], np.sin(boxes.heading)[..., None]
    x = local[..., 0] * cos - local[..., 1] * sin
    y = local[..., 0] * sin + local[..., 1] * cos
    return np.stack([x, y], axis=-1) + boxes.centre[..., None, :]


def overlaps(boxes: Boxes) -> BoolArray:
    """Which pairs [N, N] of rounded boxes overlap at any step at which both are valid."""
    count = len(boxes.size)
    rounding = _ROUNDING * boxes.size.min(axis=1) / 2
    reach = np.linalg.norm(boxes.size, axis=1) / 2
    first, second = np.triu_indices(count, 1)
    distance = np.linalg.norm(boxes.centre[first] - boxes.centre[second], axis=-1)
    near = boxes.valid[first] & boxes.valid[second] & (distance < (reach[first] + reach[second])[:, None])
    pair, step = np.nonzero(near)
    cores = shapely.polygons(np.nan_to_num(box_corners(boxes, rounding)))
    a, b = first[pair], second[pair]
    gap = shapely.distance(cores[a, step], cores[b, step]) - rounding[a] - rounding[b]
    hit = gap < _MARGIN
    result = np.zeros((count, count), dtype=bool)
    result[a[hit], b[hit]] = True
    return result | result.T


def off_road(boxes: Boxes, road: BaseGeometry) -> BoolArray:
    """Which boxes [N] have a corner beyond the road edge at any valid step."""
    inner = road.buffer(-_MARGIN)
    shapely.prepare(inner)
    corners = box_corners(boxes)[boxes.valid]
    on_road = shapely.contains_xy(inner, corners[..., 0], corners[..., 1]).all(axis=-1)
    result = np.zeros(boxes.valid.shape, dtype=bool)
    result[boxes.valid] = ~on_road
    return result.any(axis=1)


def runs_red_light(boxes: Boxes, signals: Sequence[SignalLane], starts: Sequence[FloatArray]) -> BoolArray:
    """Which users [N] cross the stop point of a signalled lane while it shows red.

    Args:
        boxes: the users. signals: their states over the same T steps. starts: the unit direction [2] at the first
            point of each signalled lane.
    """
    result = np.zeros(len(boxes.size), dtype=bool)
    both = boxes.valid[:, 1:] & boxes.valid[:, :-1]
    for signal, direction in zip(signals, starts, strict=True):
        red = np.isin(signal.state, STOP_STATES)[1:]
        if not red.any():
            continue
        relative = boxes.centre - signal.stop_point
        along = relative @ direction
        across = np.abs(relative @ np.array([-direction[1], direction[0]]))[:, 1:]
        facing = (np.cos(boxes.heading) * direction[0] + np.sin(boxes.heading) * direction[1])[:, 1:]
        crosses = (along[:, :-1] < 0) & (along[:, 1:] >= 0)
        on_lane = (across < _LANE_REACH) & (facing > _LANE_COSINE)
        result |= (crosses & on_lane & red & both).any(axis=1)
    return result
