"""SUMO's poses and ours: SUMO has the middle of the front bumper and degrees clockwise from north, we have the
centre of the box and radians counter-clockwise from east."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["angle_of", "box_pose", "front_point", "heading_of"]

FloatArray = NDArray[np.float64]


def heading_of(angle: ArrayLike) -> FloatArray:
    """Radians of SUMO's degrees, not wrapped."""
    return np.asarray(np.radians(90.0 - np.asarray(angle, dtype=np.float64)))


def angle_of(heading: ArrayLike) -> FloatArray:
    """SUMO's degrees in [0, 360) of radians."""
    return np.asarray((90.0 - np.degrees(np.asarray(heading, dtype=np.float64))) % 360.0)


def box_pose(front: FloatArray, angle: ArrayLike, length: ArrayLike) -> FloatArray:
    """Poses of boxes from what SUMO says.

    Args:
        front: [..., 2] metres. angle: [...] degrees. length: [...] metres.

    Returns:
        [..., 3] x and y of the centre in metres, and the heading in [-pi, pi).
    """
    heading = (heading_of(angle) + math.pi) % (2 * math.pi) - math.pi
    back = np.asarray(length, dtype=np.float64)[..., None] / 2
    centre = front - back * np.stack((np.cos(heading), np.sin(heading)), axis=-1)
    return np.concatenate((centre, heading[..., None]), axis=-1)


def front_point(pose: FloatArray, length: ArrayLike) -> FloatArray:
    """Front points [..., 2] of box poses [..., 3]: the inverse of ``box_pose``."""
    ahead = np.asarray(length, dtype=np.float64)[..., None] / 2
    return np.asarray(pose[..., :2] + ahead * np.stack((np.cos(pose[..., 2]), np.sin(pose[..., 2])), axis=-1))
