"""Who drives the vehicles that were taken over inside SUMO.

Shape legend: A users, n vehicles that are driven now, s steps of 0.1 s in a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.scene import RoadMap, generator_for
from data.wire import STATE_FIELDS
from pipeline.agents.agent import Agent
from pipeline.agents.baselines import StraightDrive
from pipeline.agents.live import LiveTraffic, Moment
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.session import Frame
from pipeline.studies.cosimulation.setting import recent_velocity, signals_of, stacked

# Of 11 frames, the present one last, and rows [n] that are driven: global poses [n, s, 3]; NaN for who leaves.
Decide = Callable[[Sequence[Frame], NDArray[np.int64]], NDArray[np.float64]]


@dataclass(frozen=True)
class Driver:
    """Decides for all taken vehicles at once.

    Attributes:
        begin: takes over, on a map. steps: of 0.1 s in a decision.
    """

    begin: Callable[[RoadMap], Decide]
    steps: int


def agent_driver(area: Area, agent: Agent, seed: int) -> Driver:
    """Any agent, as other simulators embed it (``pipeline/agents/live.py``). Goals are never shown."""
    own_seed = generator_for(seed, area.name).initial_seed()

    def begin(road: RoadMap) -> Decide:
        traffic = LiveTraffic(agent, road, own_seed)

        def decide(frames: Sequence[Frame], rows: NDArray[np.int64]) -> NDArray[np.float64]:
            here = np.flatnonzero(frames[-1].present)
            [pose] = traffic.step([moment(area, frames, here, np.isin(here, rows))])
            return pose[np.searchsorted(here, rows)]

        return decide

    return Driver(begin, agent.token_steps)


def straight_driver(area: Area, steps: int) -> Driver:
    """Straight on at the speed of the moment of take-over, whatever comes: a yardstick."""

    def begin(road: RoadMap) -> Decide:
        drives: list[StraightDrive] = []

        def decide(frames: Sequence[Frame], rows: NDArray[np.int64]) -> NDArray[np.float64]:
            if not drives:
                pose, present = stacked(frames[-2:])
                velocity = recent_velocity(pose, present, area.fastest)
                now, moved = (torch.from_numpy(part[None, :, -1]) for part in (pose, velocity))
                drives.append(StraightDrive(now, moved, steps))
            plan, _ = drives[0].step(torch.zeros(0))
            drives[0].observe(plan)
            return plan[0, rows].numpy()

        return decide

    return Driver(begin, steps)


def replay_driver(pose: Tensor, present: Tensor, origin: Tensor, steps: int) -> Driver:
    """Where SUMO itself drove the same vehicles: tells what being moved from outside costs, before any policy.

    Args:
        pose: [A, T + 1, 3] minus ``origin`` [2], from the moment of take-over on. present: [A, T + 1] bool.
        steps: of a decision.
    """
    path = torch.where(present.unsqueeze(-1), pose.double(), torch.nan)
    path[..., :2] += origin

    def begin(road: RoadMap) -> Decide:
        parts = iter(path[:, 1:].split(steps, dim=1))
        return lambda frames, rows: next(parts)[rows].numpy()

    return Driver(begin, steps)


def moment(area: Area, frames: Sequence[Frame], rows: NDArray[np.int64], driven: NDArray[np.bool_]) -> Moment:
    """Users [n] that are there, on flat ground at height zero, and the signals."""
    pose, valid = stacked(frames)
    pose, valid = pose[rows], valid[rows]
    states = np.zeros((*pose.shape[:2], len(STATE_FIELDS)))
    states[..., :2], states[..., 6] = pose[..., :2], pose[..., 2]
    users = [area.users[row] for row in rows]
    states[..., 3:6] = np.array([(user.length, user.width, user.height) for user in users])[:, None]
    states[..., 2] = states[..., 5] / 2
    states[..., 7:9] = recent_velocity(pose, valid, area.fastest[rows])
    signals = torch.from_numpy(np.stack([frame.signals for frame in frames], axis=1))
    kinds = np.array([user.kind.track_type for user in users], dtype=np.int64)
    return Moment(rows + 1, kinds, states, valid, driven, signals_of(area, signals))
