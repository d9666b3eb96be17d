"""A policy of self-play as planner: it drives the AV as it drives a simulated agent."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data.scene import FUTURE_STEPS, generator_for
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.simulator.step import State
from pipeline.studies.planners.interface import Mission, Situation, Trajectory


class PolicyPlanner:
    """Drives the AV with a policy on the CPU, a token at a time.

    Args:
        mission: what to drive. agent: the policy.
        uniform: [D] in [0, 1), with which tokens are drawn; from the mission's seed by default.
    """

    def __init__(self, mission: Mission, agent: PolicyAgent, uniform: Tensor | None = None) -> None:
        self.mission, self.period = mission, agent.token_steps
        world = agent.prepare(mission.scene)
        driven = torch.arange(world.types.shape[1]) == mission.ego
        self._drive = agent.start(world, 1, driven)
        if uniform is None:
            # Numbers of its own: nobody else in the world may know what the AV draws.
            generator = generator_for(mission.seed, f"{mission.scene.scenario_id} planner")
            uniform = torch.rand(FUTURE_STEPS // self.period, generator=generator)
        self._uniform, self._decision = uniform, 0
        self._path = torch.zeros(0)

    def plan(self, situation: Situation) -> Trajectory:
        """One token."""
        if self._decision:
            pose, velocity = (
                torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))[None]
                for value in (situation.pose, situation.velocity)
            )
            path = self._path_to(self._drive.state, pose)
            present = torch.from_numpy(np.array(situation.present))[None, :, None].expand(path.shape[:-1])
            self._drive.observe(path, present, velocity)
        uniform = torch.zeros_like(self._drive.state.pose[..., 0])
        uniform[0, self.mission.ego] = self._uniform[self._decision % len(self._uniform)]
        self._path = self._drive.step(uniform)[0][0, self.mission.ego]  # [s, 3]
        self._decision += 1
        return Trajectory(self._path.double().numpy())

    def _path_to(self, last: State, pose: Tensor) -> Tensor:
        """[1, A, s, 3] how everybody came to ``pose`` [1, A, 3]: the AV as planned, others, of whom the planner is
        only told where they are at its decisions, on a straight line."""
        fraction = torch.arange(1, self.period + 1) / self.period
        turn = torch.atan2(torch.sin(pose[..., 2] - last.pose[..., 2]), torch.cos(pose[..., 2] - last.pose[..., 2]))
        change = torch.cat((pose[..., :2] - last.pose[..., :2], turn.unsqueeze(-1)), dim=-1)
        path = last.pose.unsqueeze(2) + change.unsqueeze(2) * fraction[:, None]
        path[0, self.mission.ego, :-1], path[0, :, -1] = self._path[:-1], pose[0]
        return path
