"""Where the others are expected: at constant velocity, along the road if they follow it; and boxes around them.

Shape legend: A agents, H times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data.geometry import box_corners
from pipeline.studies.planners.interface import Floats, Situation
from pipeline.studies.planners.route import Route

__all__ = ["Prediction", "corners", "others_near", "predict"]

# Agents turned less than this from the path, or from its opposite, and not farther from it than this, metres,
# follow the road.
_ALONG = np.cos(np.pi / 5)
_BESIDE = 8.0


@dataclass(frozen=True)
class Prediction:
    """Some agents, seen from a path.

    Attributes:
        row: [A] among the simulated agents. follows: [A] bool, whether they follow the road, either way.
        s, d: [A] Frenet coordinates now. turn: [A] heading less that of the path. along, across: [A] velocity along
            and across the path, m/s.
        pose: [H, A, 3] at the times asked for. future_s, future_d: [H, A] likewise.
    """

    row: NDArray[np.int64]
    follows: NDArray[np.bool_]
    s: Floats
    d: Floats
    turn: Floats
    along: Floats
    across: Floats
    pose: Floats
    future_s: Floats
    future_d: Floats


def corners(pose: Floats, size: Floats) -> Floats:
    """[..., 4, 2] corners of boxes with poses [..., 3] and sizes [..., 2]."""
    at, box = torch.from_numpy(pose), torch.from_numpy(size)
    return np.asarray(box_corners(at[..., :2], at[..., 2], box[..., 0], box[..., 1]).numpy())


def others_near(now: Situation, ego: int, reach: float) -> NDArray[np.int64]:
    """Rows of those present within a distance of the AV, metres, without itself."""
    near = now.present & (np.linalg.norm(now.pose[:, :2] - now.pose[ego, :2], axis=1) < reach)
    near[ego] = False
    return np.flatnonzero(near)


def predict(path: Route, now: Situation, rows: NDArray[np.int64], times: Floats) -> Prediction:
    """Expect agents at times [H], seconds from now.

    Who follows the road keeps speed and drift relative to it, so that a bend does not lead a neighbour into the own
    lane; anybody else goes straight on. Headings stay what they are relative to the road, or as they are.
    """
    pose, velocity = now.pose[rows], now.velocity[rows]
    s, d = path.project(pose[:, :2])
    _, _, heading, bend = path.at(s)
    cos, sin = np.cos(heading), np.sin(heading)
    along = velocity[:, 0] * cos + velocity[:, 1] * sin
    across = velocity[:, 1] * cos - velocity[:, 0] * sin
    turn = pose[:, 2] - heading
    follows = (np.abs(np.cos(turn)) > _ALONG) & (np.abs(d) < _BESIDE)
    time = times[:, None]
    future = np.repeat(pose[None], len(times), axis=0)
    future[..., :2] += velocity * time[..., None]
    # On the inside of a bend the length along the path passes faster.
    future_s = s + along / np.maximum(1 - bend * d, 0.3) * time
    future_d = d + across * time
    if follows.any():
        future[:, follows, :2] = path.offset(future_s[:, follows], future_d[:, follows])
        future[:, follows, 2] = path.at(future_s[:, follows])[2] + turn[follows]
    others = ~follows & (np.abs(velocity).max(1) > 0)
    if others.any():
        future_s[:, others], future_d[:, others] = path.project(future[:, others, :2])
    return Prediction(rows, follows, s, d, turn, along, across, future, future_s, future_d)
