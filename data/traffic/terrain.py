"""A gently sloping ground, so that generated scenes are not flat."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Terrain", "draw_terrain"]


@dataclass(frozen=True)
class Terrain:
    """Height in metres: a tilted plane and a long wave, smooth enough that boxes stand level.

    Attributes:
        origin: [2] metres. level: height there. slope: [2] metres a metre. wave: amplitude in metres.
        direction: [2] unit vector of the wave. length: wavelength in metres.
    """

    origin: tuple[float, float]
    level: float
    slope: tuple[float, float]
    wave: float
    direction: tuple[float, float]
    length: float

    def height(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Height [...] at points [..., 2]."""
        x, y = points[..., 0] - self.origin[0], points[..., 1] - self.origin[1]
        phase = (x * self.direction[0] + y * self.direction[1]) * (2 * math.pi / self.length)
        return self.level + self.slope[0] * x + self.slope[1] * y + self.wave * np.sin(phase)


def draw_terrain(rng: np.random.Generator, origin: tuple[float, float]) -> Terrain:
    """Slopes of up to about 3 %."""
    grade, bearing, turn = abs(rng.normal(0, 0.01)), rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)
    return Terrain(
        origin=origin,
        level=float(rng.uniform(-20, 120)),
        slope=(float(grade * math.cos(bearing)), float(grade * math.sin(bearing))),
        wave=float(rng.uniform(0, 1.2)),
        direction=(math.cos(turn), math.sin(turn)),
        length=float(rng.uniform(300, 700)),
    )
