"""Yardsticks: the AV goes on as it goes, or does what was recorded."""

from __future__ import annotations

import numpy as np

from data.scene import STEP_SECONDS
from pipeline.studies.planners.interface import Mission, Situation, Trajectory

__all__ = ["ConstantVelocityPlanner", "LogPlanner"]


class ConstantVelocityPlanner:
    """Keeps velocity and heading, whatever comes.

    Args:
        mission: what to drive.
    """

    period = 10

    def __init__(self, mission: Mission) -> None:
        self._ego = mission.ego

    def plan(self, situation: Situation) -> Trajectory:
        """Straight on."""
        pose, velocity = situation.pose[self._ego], situation.velocity[self._ego]
        seconds = STEP_SECONDS * np.arange(1, self.period + 1)[:, None]
        move = np.concatenate((velocity * seconds, np.zeros_like(seconds)), axis=1)
        return Trajectory(pose + move)


class LogPlanner:
    """Drives as recorded: no planner, since it knows what happened.

    Args:
        mission: with the recording.
    """

    period = 10

    def __init__(self, mission: Mission) -> None:
        self._recorded = mission.recorded

    def plan(self, situation: Situation) -> Trajectory:
        """The next second of the recording; behind its end the AV stands."""
        step = np.minimum(np.arange(situation.step, situation.step + self.period), len(self._recorded) - 1)
        return Trajectory(self._recorded[step])
