"""The route: lane centrelines that the AV is to follow, as one polyline."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Route"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Route:
    """A polyline of N points about a metre apart, in metres from the scene's origin.

    Attributes:
        point: [N, 2]. heading: [N] radians, unwrapped along the route. distance: [N] length travelled, from 0.
        speed_limit: [N] m/s, 0 where the map has none.
    """

    point: Floats
    heading: Floats
    distance: Floats
    speed_limit: Floats
