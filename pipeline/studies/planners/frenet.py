"""Frenet lattice planner: of many smooth candidates along the route, the cheapest that hits nothing.

    cost = w_lat d^2 + w_vel ((v - v*)^2 + 10 over^2) + w_acc (a^2 + a_lat^2) + w_prog (v* - v) + w_jerk j^2

and penalties for nearness, averaged over the horizon; v* is the highest speed within reach that the driver wants
and the road allows, the same for all candidates, and ``over`` by how much one is faster than the road allows where
it is. Candidates that leave the road, run a red light, overlap an agent as predicted at constant velocity, or are
beyond the car's limits are out. If none is left the car brakes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from data.geometry import box_separation
from pipeline.studies.planners.interface import Floats, Mission, Situation, Trajectory
from pipeline.studies.planners.lanes import wrapped
from pipeline.studies.planners.lattice import Candidates, Start, along_route, candidates, road_corridor
from pipeline.studies.planners.prediction import Prediction, others_near, predict, red_lines_ahead
from pipeline.studies.planners.route import allowed_speeds

_DT = 0.1
# The car's limits: m/s^2 across the heading, 1/m, and the braking when nothing else is left, m/s^2.
_LATERAL = 4.0
_CURVATURE = 0.25
_HARDEST = 7.0
_COMFORTABLE_LATERAL = 2.0
_OVER = 10.0
_LOOKS = 20
# Agents nearer than this to a candidate cost something, metres; the penalty falls to zero there.
_CLEARANCE = 0.5
# A candidate that could not stop behind an agent or a red light costs the full penalty if it lacks so many metres.
_MISSING = 10.0
_EDGE_MARGIN = 0.1
# Collisions are looked for at every second step; candidates are looked at so many at a time, the cheapest first.
_EVERY = 2
_CHUNK = 48
# A plan is continued from itself if the AV is where it should be, metres and m/s.
_ASTRAY, _ASTRAY_SPEED = 0.3, 1.0
# Slack of limits, m/s^2 and m; below this speed an agent stands, m/s; room left behind standing agents, metres.
_TOLERANCE, _TOUCH = 0.25, 0.05
_STILL = 0.3
_STANDSTILL = 1.5
# Agents that far beyond what the AV can reach are not looked at, metres.
_REACH = 60.0


@dataclass(frozen=True)
class FrenetSettings:
    """One driver. The numbers are the paper's (A.7) where it has any; it names the parameters and no more, so that
    what they do, and the defaults where it gives none, is an interpretation, marked (i).

    Attributes:
        lowest, highest: speeds sampled and wanted, m/s; the road's limit and its curves cap them (i).
        lateral, velocity, acceleration, progress, jerk: weights of the cost.
        offsets, speeds, times: how many of each are sampled; the offset nearest to the centreline is put on it (i).
        span: offsets reach so far to either side, metres (i: 3 m where the paper gives none).
        velocity_span: speeds reach so far up and down from the present one, m/s (i: 10 where the paper gives none),
            but no farther than the accelerations below lead.
        horizon: of the longest candidates, steps of 0.1 s (i: 30 where the paper gives none); the shortest take
            half of it.
        forwards, braking: greatest accelerations along the route, m/s^2. The paper's pairs (a, b) are read as these
            (i), the Baseline's serve where it has none.
        penalty: (i) of nearness to agents and of being unable to stop behind them; the paper names a collision
            penalty for one setting.
        collisions: (i) whether agents are looked at; No Collision does not.
    """

    lowest: float = 0.0
    highest: float = 30.0
    lateral: float = 10.0
    velocity: float = 1.0
    acceleration: float = 1.0
    progress: float = 1.0
    jerk: float = 0.5
    offsets: int = 10
    speeds: int = 5
    times: int = 3
    span: float = 3.0
    velocity_span: float = 10.0
    horizon: int = 30
    forwards: float = 2.0
    braking: float = 3.0
    penalty: float = 1000.0
    collisions: bool = True


FRENET_SETTINGS: dict[str, FrenetSettings] = {
    "baseline": FrenetSettings(),
    "aggressive": FrenetSettings(0, 35, 5, 0.5, 1, 2, 0.5, forwards=3, braking=4),
    "conservative": FrenetSettings(0, 20, 50, 1, 3, 1, 1.5, forwards=1.5, braking=2, penalty=5000),
    "smooth": FrenetSettings(0, 30, 20, 2, 5, 1, 3, forwards=1.5, braking=2),
    "lane_keeper": FrenetSettings(0, 30, 100, 1, 1, 1, 0.5, offsets=15, speeds=5, times=3, span=1.5),
    "wide_search": FrenetSettings(offsets=20, speeds=10, times=7),
    "fast": FrenetSettings(offsets=5, speeds=3, times=2),
    "long_horizon": FrenetSettings(horizon=40),
    "no_collision": FrenetSettings(collisions=False),
    "high_speed": FrenetSettings(5, 40, velocity_span=15),
}


class FrenetPlanner:
    """Plans every half second."""

    period = 5

    def __init__(self, mission: Mission, settings: FrenetSettings | None = None) -> None:
        self.mission, self.settings = mission, settings or FrenetSettings()
        self._corridor = road_corridor(mission.scene, mission.origin, mission.route)
        self._allowed: Floats | None = None
        self._last: tuple[int, Candidates, Floats] | None = None

    def plan(self, situation: Situation) -> Trajectory:
        """The cheapest free candidate, or braking."""
        route, half = self.mission.route, situation.size[self.mission.ego] / 2
        start = self._start(situation)
        tried, wanted = self._lattice(start)
        cost, possible = self._costs(tried, wanted), self._possible(tried, start, half)
        reach = start.rate**2 + 20.0
        lines = red_lines_ahead(route, start.s, situation, 2 * half[0], start.rate, reach)
        if len(lines):
            # The front stays behind the line, or where it is if it is over the line already.
            stop = np.array([max(lines.min() - half[0], start.s)])
            possible &= tried.s[:, -1] <= stop + _TOUCH
            cost = cost + self._unable_to_stop(tried, stop, np.zeros(1))
        cheapest = self._cheapest_free(tried, cost, possible, situation, start)
        kept = self._braking(start) if cheapest is None else tried.one(cheapest)
        pose = kept.pose(route)[0]
        self._last = situation.step, kept, pose
        return Trajectory(pose)

    def _start(self, now: Situation) -> Start:
        """From the last plan if that is what happened, so that accelerations do not jump; or as things are."""
        pose, velocity = now.pose[self.mission.ego], now.velocity[self.mission.ego]
        speed = float(np.linalg.norm(velocity))
        if self._last is not None:
            step, last, planned = self._last
            k = now.step - step - 1
            if 0 <= k < len(planned):
                astray = float(np.linalg.norm(planned[k, :2] - pose[:2]))
                if astray < _ASTRAY and abs(last.speed[0, k] - speed) < _ASTRAY_SPEED:
                    return last.state(0, k)
        s, d = (float(value) for value in self.mission.route.project(pose[:2]))
        _, _, heading, bend = (float(value) for value in self.mission.route.at(s))
        turn = float(np.clip(wrapped(pose[2] - heading), -1.0, 1.0))
        stretch = max(1 - bend * d, 0.3)
        settings = self.settings
        acceleration = float(np.clip(now.acceleration, -settings.braking, settings.forwards))
        if speed < _STILL:
            speed = acceleration = 0.0
        return Start(s, speed * np.cos(turn) / stretch, acceleration, d, stretch * np.tan(turn), 0.0)

    def _lattice(self, start: Start) -> tuple[Candidates, float]:
        """The candidates, and the speed that is wanted."""
        settings, route = self.settings, self.mission.route
        if self._allowed is None:
            self._allowed = allowed_speeds(
                route, settings.highest, start.rate, _COMFORTABLE_LATERAL, settings.braking / 2
            )
        longest = settings.horizon * _DT
        # A quartic between two speeds accelerates by up to 1.5 times the mean.
        up, down = (
            min(settings.velocity_span, most * longest / 1.5) for most in (settings.forwards, settings.braking)
        )
        highest = min(settings.highest, start.rate + up)
        speeds = np.linspace(min(max(settings.lowest, start.rate - down), highest), highest, settings.speeds)
        # One speed for all: were each candidate compared with what is allowed where it gets, staying in a bend
        # would be cheaper than leaving it.
        ahead = np.linspace(start.s, start.s + (start.rate + highest) / 2 * longest, _LOOKS)
        fastest = np.interp(ahead, route.distance, self._allowed).max()
        wanted = float(np.clip(fastest, speeds[0], speeds[-1]))
        speeds[np.abs(speeds - wanted).argmin()] = wanted
        offsets = np.linspace(-settings.span, settings.span, settings.offsets)
        offsets[np.abs(offsets).argmin()] = 0.0
        durations = np.linspace(longest / 2, longest, settings.times)
        return candidates(route, start, speeds, durations, offsets, settings.horizon, _DT), wanted

    def _costs(self, tried: Candidates, wanted: float) -> Floats:
        """[C] without what depends on others."""
        settings, route = self.settings, self.mission.route
        assert self._allowed is not None
        missing = wanted - tried.speed
        over = np.maximum(tried.speed - np.interp(tried.s, route.distance, self._allowed), 0.0)
        sideways = np.diff(tried.lateral, axis=1) / _DT
        return np.asarray(
            settings.lateral * (tried.d**2).mean(1)
            + settings.velocity * (missing**2 + _OVER * over**2).mean(1)
            + settings.acceleration * (tried.acceleration**2 + tried.lateral**2).mean(1)
            + settings.progress * missing.mean(1)
            + settings.jerk * ((tried.jerk**2).mean(1) + (sideways**2).mean(1))
        )

    def _possible(self, tried: Candidates, start: Start, half: Floats) -> NDArray[np.bool_]:
        """[C] whether the car can do it, on the road; where nothing stays on the road, whether the car can."""
        settings = self.settings
        low = min(-settings.braking, start.acceleration) - _TOLERANCE
        high = max(settings.forwards, start.acceleration) + _TOLERANCE
        possible = (tried.rate.min(1) > -_TOUCH) & (np.abs(tried.lateral).max(1) < _LATERAL)
        possible &= (tried.acceleration.min(1) >= low) & (tried.acceleration.max(1) <= high)
        left, right = self._corridor.at(self.mission.route, tried.s)
        swept = half[1] + half[0] * np.abs(np.sin(tried.turn)) + _EDGE_MARGIN
        # Off the road to begin with, or where the map leaves no room, the present offset must do.
        least = half[1] + 2 * _EDGE_MARGIN
        inside = tried.d + swept < np.maximum(left, max(0.0, start.d) + least)
        inside &= swept - tried.d < np.maximum(right, max(0.0, -start.d) + least)
        steerable = np.abs(tried.curvature).max(1) < _CURVATURE
        for wish in (inside.all(1), steerable):
            if (possible & wish).any():
                possible = possible & wish
        return np.asarray(possible)

    def _unable_to_stop(self, tried: Candidates, behind: Floats, speed: Floats) -> Floats:
        """[C] the penalty for ends from which the AV could not brake to stay behind ``behind`` [M] or [C, M], which
        moves at ``speed`` [M] and may brake as well."""
        room = behind + (np.maximum(speed, 0.0) ** 2 - tried.speed[:, -1:] ** 2) / (2 * self.settings.braking)
        missing = (tried.s[:, -1:] - room).max(1)
        return np.asarray(self.settings.penalty * np.clip(missing / _MISSING, 0.0, 1.0))

    def _cheapest_free(
        self, tried: Candidates, cost: Floats, possible: NDArray[np.bool_], now: Situation, start: Start
    ) -> int | None:
        """The candidate that is cheapest with the penalties for nearness, none of those that hit somebody."""
        ego, settings = self.mission.ego, self.settings
        rows = others_near(now, ego, start.rate * settings.horizon * _DT + _REACH)
        if settings.collisions and len(rows):
            times = _DT * np.arange(_EVERY, settings.horizon + 1, _EVERY)
            seen = predict(self.mission.route, now, rows, times)
            # Followers in the own lane keep their distance; agents that overlap already tell nothing.
            width = (now.size[rows, 1] + now.size[ego, 1]) / 2
            touching = _separation(now.pose[ego], now.size[ego], now.pose[rows], now.size[rows]) < 0
            matters = ~touching & ((seen.s > start.s) | (np.abs(seen.d - start.d) > width))
            cost = cost + self._behind_others(tried, seen, matters, now)
            pose, size = seen.pose[:, matters], now.size[rows[matters]]
        else:
            pose, size = np.zeros((0, 0, 3)), np.zeros((0, 2))
        order = np.flatnonzero(possible)
        order = order[cost[order].argsort(kind="stable")]
        best, least = None, np.inf
        for first in range(0, len(order), _CHUNK):
            part = order[first : first + _CHUNK]
            if cost[part[0]] >= least:
                break
            full = cost[part]
            if pose.size:
                own = tried.pose(self.mission.route, part)[:, _EVERY - 1 :: _EVERY]
                gap = _least_gap(own, now.size[ego], pose, size)
                full = full + settings.penalty * (1 - np.maximum(gap, 0.0) / _CLEARANCE)
                full = np.where(gap < 0, np.inf, full)
            if full.min() < least:
                best, least = int(part[full.argmin()]), float(full.min())
        return best

    def _behind_others(
        self, tried: Candidates, seen: Prediction, matters: NDArray[np.bool_], now: Situation
    ) -> Floats:
        """[C] the penalty for ends from which the AV could not stop behind the agent ahead in that lane."""
        size, ego = now.size[seen.row], now.size[self.mission.ego]
        still = np.linalg.norm(now.velocity[seen.row], axis=1) < _STILL
        there = matters & (seen.follows | still)
        s, d, size, pace = seen.future_s[-1, there], seen.future_d[-1, there], size[there], seen.along[there]
        if not len(s):
            return np.zeros(len(tried.s))
        ahead = s > tried.s[:, -1:]
        ahead &= np.abs(d - tried.d[:, -1:]) < (size[:, 1] + ego[1]) / 2 + _CLEARANCE / 2
        rear = s - size[:, 0] / 2 - ego[0] / 2 - _STANDSTILL
        return self._unable_to_stop(tried, np.where(ahead, rear, np.inf), pace)

    def _braking(self, start: Start) -> Candidates:
        """As hard as possible, at the present offset."""
        time = _DT * np.arange(1, self.settings.horizon + 1)
        until = np.minimum(time, start.rate / _HARDEST)
        rate = np.maximum(start.rate - _HARDEST * time, 0.0)
        s = start.s + start.rate * until - _HARDEST / 2 * until**2
        a = np.where(rate > 0, -_HARDEST, 0.0)
        motion = [part[None] for part in (s, rate, a, np.zeros_like(a))]
        return along_route(self.mission.route, start, motion, np.array([start.d]))


def _separation(pose: Floats, size: Floats, other: Floats, others: Floats) -> Floats:
    """[...] gaps between boxes, poses [..., 3] and sizes [..., 2], negative where they overlap; all broadcast."""
    parts = []
    for at, extent in ((pose, size), (other, others)):
        x, y, heading = torch.from_numpy(at).unbind(-1)
        parts += [(x, y), (torch.cos(heading), torch.sin(heading)), torch.from_numpy(extent / 2).unbind(-1)]
    return np.asarray(box_separation(*parts).numpy())


def _least_gap(pose: Floats, size: Floats, other: Floats, others: Floats) -> Floats:
    """[c] the least gap at any time, as ``_separation``, at most ``_CLEARANCE``."""
    radius = np.hypot(*size) / 2 + np.hypot(*others.T) / 2 + _CLEARANCE
    apart = ((pose[:, :, None, :2] - other[None, ..., :2]) ** 2).sum(-1)
    near, k, agent = np.nonzero(apart < radius**2)
    result = np.full(len(pose), _CLEARANCE)
    if len(near):
        # Pairs of a candidate's box and an agent's, one to one.
        gap = _separation(pose[near, k], size, other[k, agent], others[agent])
        np.minimum.at(result, near, gap)
    return result
