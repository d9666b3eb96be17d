"""How fast the road allows: its limit, its curves, and braking in time for both."""

from __future__ import annotations

import numpy as np

from pipeline.studies.planners.interface import Floats
from pipeline.studies.planners.route import Route

__all__ = ["ASSUMED_LIMIT", "allowed_speeds"]

# Of roads whose limit the map does not tell, m/s: 35 mph, a common one of surface streets. If the AV is faster to
# begin with, it may stay as fast: it will be a faster road.
ASSUMED_LIMIT = 15.65
# Curvature is averaged over so many metres, so that a kink of the map is no hairpin.
_AVERAGED = 5


def allowed_speeds(
    path: Route, desired: float, speed: float, lateral: float, braking: float, keep_limit: bool = True
) -> Floats:
    """[N] m/s at the points of a path, low enough before curves and lower limits that braking for them is gentle.

    Args:
        path: to drive. desired: what the driver wants, m/s. speed: now, m/s.
        lateral: acceleration that is comfortable in curves, m/s^2. braking: deceleration before them, m/s^2.
        keep_limit: never faster than the limit of the road, or the assumed one.
    """
    allowed = np.full(len(path.distance), desired)
    if keep_limit:
        assumed = max(ASSUMED_LIMIT, speed)
        allowed = np.minimum(allowed, np.where(path.speed_limit > 0, path.speed_limit, assumed))
    window = np.ones(_AVERAGED) / _AVERAGED
    padded = np.pad(np.abs(path.curvature), _AVERAGED // 2, mode="edge")
    bend = np.convolve(padded, window, mode="valid")
    allowed = np.minimum(allowed, np.sqrt(lateral / np.maximum(bend, 1e-6)))
    # Along the path v^2 falls by 2 b for every metre at most: a running minimum from the end.
    energy = allowed**2 + 2 * braking * path.distance
    return np.asarray(np.sqrt(np.minimum.accumulate(energy[::-1])[::-1] - 2 * braking * path.distance))
