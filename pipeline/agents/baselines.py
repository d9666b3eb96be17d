"""Agents without learning: what was recorded, and everybody going on as now."""

from __future__ import annotations

import torch
from torch import Tensor

from data.errors import UserError
from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, Scene

__all__ = ["ConstantVelocity", "LogReplay"]


class LogReplay:
    """The logged states as they are, zeros where an agent was not seen, as Waymo's own converter does.

    The ceiling of the metric, not an agent: a submission cannot contain it.
    """

    def rollouts(self, scene: Scene, count: int, seed: int) -> Tensor:
        if not scene.has_future:
            raise UserError(f"scenario {scene.scenario_id}: {scene.num_steps} steps; the log agent needs a future")
        agents, chosen = scene.agents, scene.simulated
        future = slice(CURRENT_INDEX + 1, CURRENT_INDEX + 1 + FUTURE_STEPS)
        states = torch.cat((agents.position[:, future], agents.heading[:, future].unsqueeze(-1)), dim=-1)[chosen]
        return states.expand(count, *states.shape).clone()


class ConstantVelocity:
    """Every agent keeps its recorded velocity, heading and height of the current step."""

    def rollouts(self, scene: Scene, count: int, seed: int) -> Tensor:
        agents, chosen = scene.agents, scene.simulated
        start = agents.position[chosen, CURRENT_INDEX]  # [A, 3]
        velocity = agents.velocity[chosen, CURRENT_INDEX]  # [A, 2]
        seconds = torch.arange(1, FUTURE_STEPS + 1) * STEP_SECONDS
        plane = start[:, None, :2] + velocity[:, None] * seconds[None, :, None]  # [A, 80, 2]
        rest = torch.stack((start[:, 2], agents.heading[chosen, CURRENT_INDEX]), dim=-1)
        states = torch.cat((plane, rest.unsqueeze(1).expand(-1, FUTURE_STEPS, -1)), dim=-1)
        return states.expand(count, *states.shape).clone()
