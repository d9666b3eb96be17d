"""Everybody but the AV: the log, the reference, or a policy, in P copies of a scene, one for each planner.

Within a decision nobody knows what the others are about to do: traffic decides from what has happened by then, and
is told afterwards where the planner drove. All copies draw the same numbers, so that planners meet the same people.
Shape legend: P copies, A simulated agents, s steps of 0.1 s in a decision.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.scene import FUTURE_STEPS, Scene, generator_for
from pipeline.agents.agent import Agent


class Traffic:
    """An agent drives everybody but the AV in P copies of a scene; what it draws depends on (seed, scene) alone.

    Args:
        agent: of the traffic. scene: a single one. copies: P. seed: of the draws.

    Raises:
        UserError: log replay in a scene without a future.
    """

    def __init__(self, agent: Agent, scene: Scene, copies: int, seed: int) -> None:
        self._ego = int(scene.agents.is_sdc[scene.simulated].int().argmax())
        driven = torch.ones(int(scene.simulated.sum()), dtype=torch.bool)
        driven[self._ego] = False
        self._drive = agent.start(agent.prepare(scene), copies, driven)
        shape = (FUTURE_STEPS // agent.token_steps, 1, len(driven))
        uniform = torch.rand(shape, generator=generator_for(seed, str(scene.scenario_id)))
        self._uniform = iter(uniform.to(agent.device).expand(-1, copies, -1))
        self._pose = torch.zeros(0)

    def decide(self) -> tuple[Tensor, Tensor]:
        """Where everybody is at the next steps: poses [P, A, s, 3] from the scene's origin on the CPU, and who is
        there [P, A, s]; the AV's row means nothing."""
        self._pose, present = self._drive.step(next(self._uniform).contiguous())
        return self._pose.cpu(), present.cpu()

    def happened(self, ego: Tensor) -> None:
        """Where the AV went meanwhile: [P, s, 3] on the CPU."""
        pose = self._pose.clone()
        pose[:, self._ego] = ego.to(pose.device)
        self._drive.observe(pose)
