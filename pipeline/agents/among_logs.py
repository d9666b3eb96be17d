"""An agent drives the moving vehicles while all others replay the log, as in the paper's vehicle tables."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from data.scene import AgentType, Scene
from data.tokenizer import scene_origin
from pipeline.agents.agent import Agent, Drive
from pipeline.agents.baselines import recorded_future
from pipeline.simulator.world import moving_agents

# Where agents are that the log does not have at a time, metres from the scene: they meet nobody.
_AWAY = 1e4


class AmongLogs(Agent):
    """Another agent among recorded ones.

    Args:
        agent: that drives the moving vehicles.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent
        self.token_steps, self.device = agent.token_steps, agent.device
        self.max_rows, self.joins_scenes = agent.max_rows, agent.joins_scenes

    def prepare(self, *scenes: Scene) -> tuple[Any, Tensor, Tensor, Tensor]:
        poses, valids = [], []
        for scene in scenes:
            states, valid = recorded_future(scene)
            pose = torch.cat((states[..., :2] - scene_origin(scene), states[..., 3:]), dim=-1)
            poses.append(torch.where(valid.unsqueeze(-1), pose, _AWAY))
            valids.append(valid)
        vehicles = [moving_vehicles(scene) for scene in scenes]
        recorded = (pad_sequence(part, batch_first=True).to(self.device) for part in (poses, valids, vehicles))
        return self._agent.prepare(*scenes), *recorded

    def start(
        self, prepared: tuple[Any, Tensor, Tensor, Tensor], count: int, driven: Tensor | None = None
    ) -> AmongLogsDrive:
        inner, *recorded = prepared
        pose, valid, vehicles = (part.repeat_interleave(count, 0) for part in recorded)
        drive = self._agent.start(inner, count, recorded[-1])
        return AmongLogsDrive(drive, pose, valid, vehicles, self.token_steps)


class AmongLogsDrive:
    """See ``Drive``; [R, A, T, 3] and [R, A, T] of the log, [R, A] of who does not replay it."""

    def __init__(self, drive: Drive, pose: Tensor, present: Tensor, driven: Tensor, steps: int) -> None:
        self._drive, self._pose, self._present, self._driven, self._steps = drive, pose, present, driven, steps
        self._first = 0

    def _now(self) -> slice:
        return slice(self._first, self._first + self._steps)

    def step(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        pose, present = self._drive.step(uniform)
        driven = self._driven.unsqueeze(-1)
        pose = torch.where(driven.unsqueeze(-1), pose, self._pose[:, :, self._now()])
        return pose, torch.where(driven, present, self._present[:, :, self._now()])

    def observe(
        self, pose: Tensor, present: Tensor | None = None, velocity: Tensor | None = None, red: Tensor | None = None
    ) -> None:
        if present is None:
            present = self._driven.unsqueeze(-1) | self._present[:, :, self._now()]
        self._drive.observe(pose, present, velocity, red)
        self._first += self._steps


def moving_vehicles(scene: Scene) -> Tensor:
    """[A] bool of the simulated agents: vehicles whose log ends elsewhere."""
    return (scene.agents.type[scene.simulated] == AgentType.VEHICLE) & moving_agents(scene)
