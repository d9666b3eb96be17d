"""Where other agents are expected, and what lies ahead on a path: agents on or about to cross it, red lights.

Agents are expected at constant velocity, along the road if they follow it.

Shape legend: A agents, S signals, M obstacles, H prediction times.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data.geometry import box_corners
from pipeline.studies.planners.interface import Floats, Situation
from pipeline.studies.planners.route import Route

# Agents turned less than this from the path, or from its opposite, and not farther from it than this, metres,
# follow the road.
_ALONG = np.cos(np.pi / 5)
_BESIDE = 8.0


@dataclass(frozen=True)
class Prediction:
    """Some agents, seen from a path.

    Attributes:
        row: [A] among the simulated agents. follows: [A] bool, whether they follow the road, either way.
        s, d: [A] Frenet coordinates now. turn: [A] heading less that of the path. along: [A] velocity along the
            path, m/s.
        pose: [H, A, 3] at the times asked for. future_s, future_d: [H, A] likewise.
    """

    row: NDArray[np.int64]
    follows: NDArray[np.bool_]
    s: Floats
    d: Floats
    turn: Floats
    along: Floats
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

    An agent that follows the road keeps speed and drift relative to it, so that a bend does not lead a neighbour
    into the own lane; anybody else goes straight on. Headings stay what they are relative to the road, or as they
    are.
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
    return Prediction(rows, follows, s, d, turn, along, future, future_s, future_d)


# Added to half the own width: what is nearer than that to the path is in the way, metres.
_MARGIN, _CLOSEST = 0.25, 0.05
_STILL = 0.5
# How long before and after the AV somebody may cross without being in the way, seconds; braking, m/s^2.
_GRACE = 1.0
_GENTLE = 3.0
_TIMES = np.arange(0.25, 3.01, 0.25)
# Longest vehicle and what it may travel in the predicted time, metres.
_BEYOND = 40.0
_LINE_HALF_WIDTH = 2.0
# A red light for which one would have to brake harder is passed, m/s^2: it has just turned.
_HARDEST_STOP = 6.0


@dataclass(frozen=True)
class Obstacles:
    """What to stay behind.

    Attributes:
        s: [M] length along the path of the nearest part. speed: [M] along the path, m/s.
        merging: [M] bool, not on the path yet, but about to get in front of the AV, which need not brake hard.
        row: [M] of the agent among the simulated ones.
    """

    s: Floats
    speed: Floats
    merging: NDArray[np.bool_]
    row: NDArray[np.int64]


def obstacles_ahead(
    path: Route, s: float, ego: int, now: Situation, length: float, half_width: float, reach: float
) -> Obstacles:
    """Agents that are on the path, or will be when the AV comes.

    An agent on the path has the speed of its motion along it. One who drives along the road and is expected on the
    path within 3 s merges if it will be ahead of the AV then; it counts as where the AV will see it then. Anybody
    else who is expected, neither clearly after the AV has passed nor gone before it comes, counts as standing where
    it enters. Where the AV could not stop gently, it goes first if only it can.

    Args:
        path: to drive. s: of the AV's centre on it. ego: row of the AV. now: the world.
        length: of the AV, metres. half_width: likewise. reach: how far is looked, metres from the AV's front.
    """
    rows = others_near(now, ego, reach + _BEYOND)
    if not len(rows):
        return Obstacles(np.zeros(0), np.zeros(0), np.zeros(0, dtype=bool), rows)
    front, wide = s + length / 2, half_width + _MARGIN
    speed = max(float(np.linalg.norm(now.velocity[ego])), 0.1)
    seen = predict(path, now, rows, _TIMES)
    corner_s, corner_d = path.project(corners(now.pose[rows], now.size[rows]))  # [A, 4]
    # One may pass closer to what stands than to what moves.
    still = np.linalg.norm(now.velocity[rows], axis=1) < _STILL
    beside = wide - np.where(still, _MARGIN - _CLOSEST, 0.0)
    in_way = (corner_d.min(1) < beside) & (corner_d.max(1) > -beside)
    # Where a route comes near itself, a corner may belong to another part of it.
    in_way &= np.abs(corner_s - seen.s[:, None]).max(1) < now.size[rows].sum(1)
    enters, leaves, where = _entry(seen, now.size[rows], wide)
    # Who merges is ahead of where the AV will be; seen from there, its gap is that at its entry.
    moved = np.where(np.isfinite(enters), enters, 0.0) * speed
    along = seen.follows & (seen.along > _STILL)
    merging = ~in_way & along & np.isfinite(enters) & (where + now.size[rows, 0] / 2 > s + moved)
    there, passed = (np.maximum(where - front + more, 0.0) / speed for more in (0.0, 2 * length))
    gentle = speed**2 < 2 * _GENTLE * np.maximum(where - front, 1e-3)
    crossing = ~in_way & ~along & ~still
    crossing &= (passed + np.where(gentle, _GRACE, 0.0) > enters) & (there - _GRACE < leaves) & (where > s)
    place = np.where(in_way, corner_s.min(1), where - np.where(merging, moved, 0.0))
    pace = np.where(in_way | merging, seen.along, 0.0)
    # Whose rear is not even ahead of the own middle has run into the AV, which does not brake for it.
    found = ((in_way & (corner_s.min(1) > s)) | merging | crossing) & (place < front + reach)
    return Obstacles(place[found], pace[found], merging[found], rows[found])


def _entry(seen: Prediction, size: Floats, wide: float) -> tuple[Floats, Floats, Floats]:
    """When agents get onto a strip along the path and off it again [A] seconds, inf for never, and where [A]."""
    cos, sin = np.abs(np.cos(seen.turn)), np.abs(np.sin(seen.turn))
    across, half_length = (sin * size[:, 0] + cos * size[:, 1]) / 2, (cos * size[:, 0] + sin * size[:, 1]) / 2
    inside = np.abs(seen.future_d) < wide + across
    enters = np.where(inside.any(0), _TIMES[inside.argmax(0)], np.inf)
    leaves = np.where(inside[-1], np.inf, _TIMES[len(_TIMES) - 1 - inside[::-1].argmax(0)])
    first = seen.future_s[inside.argmax(0), np.arange(len(enters))]
    return enters, leaves, np.where(inside.any(0), first, np.inf) - half_length


def red_lines_ahead(path: Route, s: float, now: Situation, length: float, speed: float, reach: float) -> Floats:
    """Lengths along the path of the red stop lines to stop at, [M]; none that can no longer be stopped for.

    Args:
        path: to drive. s: of the AV's centre on it. now: the world. length: of the AV, metres. speed: its own, m/s.
        reach: how far is looked, metres from the AV's front.
    """
    line = now.stop_line[now.red]
    if not len(line):
        return np.zeros(0)
    where, aside = path.project(line[:, :2])
    heading = path.at(where)[2]
    mine = (np.abs(aside) < _LINE_HALF_WIDTH) & (np.cos(heading - line[:, 2]) > 0.5)
    # An AV that stands with its nose over the line still stops: the line is passed by the centre.
    mine &= (where > s) & (where < s + length / 2 + reach)
    mine &= speed**2 <= 2 * _HARDEST_STOP * (where - s)
    return np.asarray(where[mine])
