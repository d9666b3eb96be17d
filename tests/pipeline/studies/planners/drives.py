"""Hand-made drives on a straight road along +x, of which everything is known."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from data.scene import AgentType, MapKind, Scene
from pipeline.studies.planners.drive_record import Drive
from pipeline.studies.planners.route import Route
from tests.scenes import Mover, Point, hand_made

__all__ = ["ORIGIN", "SIZE", "TIME", "drive_of", "road", "route_of", "straight"]

Floats = NDArray[np.float64]

TIME = 0.1 * np.arange(81)
SIZE = (4.0, 2.0, 1.5)
ORIGIN = torch.zeros(2)


def straight(
    x: float = 0.0, y: float = 0.0, heading: float = 0.0, speed: float = 0.0, acceleration: float = 0.0
) -> Floats:
    """Poses [81, 3] of who drives straight on, accelerating until it stands."""
    end = -speed / acceleration if acceleration < 0 else math.inf
    time = np.minimum(TIME, end)
    way = speed * time + acceleration / 2 * time**2
    return np.stack((x + way * math.cos(heading), y + way * math.sin(heading), np.full(81, heading)), axis=1)


def drive_of(
    egos: Sequence[Floats],
    *others: Floats | Sequence[Floats],
    sizes: Sequence[tuple[float, float, float]] | None = None,
    ego: int = 0,
) -> Drive:
    """One drive for each of the AV's motions [81, 3]; another agent does the same in all, or has one for each."""
    rows = [np.broadcast_to(np.asarray(motion), (len(egos), 81, 3)) for motion in others]
    rows.insert(ego, np.stack(egos))
    pose = torch.from_numpy(np.stack(rows, axis=1)).float()
    count = pose.shape[1]
    return Drive(
        pose=pose,
        present=torch.ones(pose.shape[:3], dtype=torch.bool),
        ego=ego,
        sizes=torch.tensor(list(sizes or [SIZE] * count)),
        heights=torch.full((count,), 0.75),
    )


def road(
    *lanes: tuple[float, int],
    half_width: float = 8.0,
    speed: float = 10.0,
    turns: Sequence[Sequence[Point]] = (),
) -> Scene:
    """A road from x = -200 to 300 with lanes at (y, direction +1 or -1), and edges; the log is on y = 0."""
    features: list[tuple[MapKind, Sequence[Point]]] = [
        (MapKind.LANE, [(-200.0, y), (300.0, y)] if way > 0 else [(300.0, y), (-200.0, y)]) for y, way in lanes
    ]
    features += [(MapKind.LANE, line) for line in turns]
    # The road is on the port side of its edges.
    features.append((MapKind.ROAD_EDGE, [(-200.0, -half_width), (300.0, -half_width)]))
    features.append((MapKind.ROAD_EDGE, [(300.0, half_width), (-200.0, half_width)]))
    return hand_made([Mover(speed=speed, size=SIZE, kind=AgentType.VEHICLE, z=0.75)], features)


def route_of(limit: float = 0.0, length: int = 300, y: float = 0.0) -> Route:
    """Along the x axis from -50."""
    x = np.arange(-50.0, length)
    return Route(
        point=np.stack((x, np.full_like(x, y)), axis=1),
        heading=np.zeros_like(x),
        distance=x + 50.0,
        speed_limit=np.full_like(x, limit),
    )
