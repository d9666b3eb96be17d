"""Agents without learning: the log, and constant velocity."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.errors import UserError
from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, Scene
from data.tokenizer import scene_origin
from pipeline.agents.agent import Agent


class ReplayDrive:
    """Recorded motion, whatever the others do.

    Args:
        pose: [R, A, T, 3] after each 0.1 s. present: [R, A, T] bool. steps: in a decision.
    """

    def __init__(self, pose: Tensor, present: Tensor, steps: int) -> None:
        self._pose, self._present, self._steps, self._first = pose, present, steps, 0

    def step(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        now = slice(self._first, self._first + self._steps)
        return self._pose[:, :, now], self._present[:, :, now]

    def observe(
        self, pose: Tensor, present: Tensor | None = None, velocity: Tensor | None = None, red: Tensor | None = None
    ) -> None:
        self._first += self._steps


class StraightDrive:
    """Straight on at the velocity of the start, whatever the others do.

    Args:
        pose: [R, A, 3] and velocity: [R, A, 2] m/s at the start. steps: in a decision.
    """

    def __init__(self, pose: Tensor, velocity: Tensor, steps: int) -> None:
        self._pose, self._velocity, self._steps = pose, velocity, steps

    def step(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        seconds = STEP_SECONDS * torch.arange(1, self._steps + 1).view(-1, 1)
        pose = self._pose.unsqueeze(2).repeat(1, 1, self._steps, 1)
        pose[..., :2] += seconds * self._velocity.unsqueeze(2)
        return pose, torch.ones(pose.shape[:-1], dtype=torch.bool)

    def observe(
        self, pose: Tensor, present: Tensor | None = None, velocity: Tensor | None = None, red: Tensor | None = None
    ) -> None:
        self._pose = pose[:, :, -1]


def recorded_future(scene: Scene) -> tuple[Tensor, Tensor]:
    """Recorded states [A, 80, 4] of the simulated agents, and whether they are valid [A, 80].

    Raises:
        UserError: the scene ends now.
    """
    if not scene.has_future:
        raise UserError(f"scenario {scene.scenario_id}: {scene.num_steps} steps; the log agent needs a future")
    agents, future = scene.agents, slice(CURRENT_INDEX + 1, CURRENT_INDEX + 1 + FUTURE_STEPS)
    states = torch.cat((agents.position[:, future], agents.heading[:, future].unsqueeze(-1)), dim=-1)
    return states[scene.simulated], agents.valid[scene.simulated, future]


class LogReplay(Agent):
    """The logged states as they are, zeros where an agent was not seen, as Waymo's own converter does.

    The ceiling of the metric, not an agent: a submission cannot contain it.
    """

    def start(self, prepared: Scene, count: int, driven: Tensor | None = None) -> ReplayDrive:
        states, valid = recorded_future(prepared)
        pose = torch.cat((states[..., :2] - scene_origin(prepared), states[..., 3:]), dim=-1)
        return ReplayDrive(pose.expand(count, -1, -1, -1), valid.expand(count, -1, -1), self.token_steps)

    def rollouts(self, scene: Scene, count: int, seed: int) -> Tensor:
        states, _ = recorded_future(scene)
        return states.expand(count, *states.shape).clone()


class ConstantVelocity(Agent):
    """Every agent keeps its recorded velocity, heading and height of the current step."""

    def prepare(self, *scenes: Scene) -> tuple[Tensor, Tensor]:
        """Poses [scenes, A, 3] and velocities [scenes, A, 2]."""
        poses, velocities = [], []
        for scene in scenes:
            start, heading, velocity = self._now(scene)
            poses.append(torch.cat((start[:, :2] - scene_origin(scene), heading), dim=-1))
            velocities.append(velocity)
        return pad_sequence(poses, batch_first=True), pad_sequence(velocities, batch_first=True)

    def start(self, prepared: tuple[Tensor, Tensor], count: int, driven: Tensor | None = None) -> StraightDrive:
        pose, velocity = (part.repeat_interleave(count, 0) for part in prepared)
        return StraightDrive(pose, velocity, self.token_steps)

    def rollouts(self, scene: Scene, count: int, seed: int) -> Tensor:
        start, heading, velocity = self._now(scene)
        seconds = torch.arange(1, FUTURE_STEPS + 1) * STEP_SECONDS
        plane = start[:, None, :2] + velocity[:, None] * seconds[None, :, None]  # [A, 80, 2]
        rest = torch.cat((start[:, 2:], heading), dim=-1)
        states = torch.cat((plane, rest.unsqueeze(1).expand(-1, FUTURE_STEPS, -1)), dim=-1)
        return states.expand(count, *states.shape).clone()

    def _now(self, scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
        """Position [A, 3], heading [A, 1] and velocity [A, 2] at the current step."""
        agents, simulated = scene.agents, scene.simulated
        parts = (agents.position, agents.heading.unsqueeze(-1), agents.velocity)
        position, heading, velocity = (part[simulated, CURRENT_INDEX] for part in parts)
        return position, heading, velocity
