"""Who drives the vehicles that were taken over."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from data.scene import STEP_SECONDS, generator_for
from data.tokenizer import apply_token
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.simulator.step import State
from pipeline.simulator.world import World

__all__ = ["ConstantVelocityDriver", "Driver", "PolicyDriver", "ReplayDriver"]


class Driver(Protocol):
    """Decides for all taken vehicles at once.

    Attributes:
        steps: of 0.1 s from one decision to the next. history: earlier decisions that it wants to know.
        box_scale: of the boxes whose collisions it is told.
    """

    @property
    def steps(self) -> int: ...

    @property
    def history(self) -> int: ...

    @property
    def box_scale(self) -> float: ...

    def drive(self, world: World, state: State, taken: Tensor, decision: int) -> Tensor:
        """Where vehicles go.

        Args:
            world, state: one world, now. taken: [N] rows of the vehicles. decision: its number, from 0.

        Returns:
            [N, steps, 3] poses after each 0.1 s, NaN from where one is to leave the world.
        """
        ...


class PolicyDriver:
    """Tokens of a policy, executed as they are. Goals are never shown.

    Args:
        agent: the policy. seed, name: of the random numbers; name is that of the world.
        users: A in this world. decisions: that it will be asked for.
    """

    def __init__(self, agent: PolicyAgent, seed: int, name: str, users: int, decisions: int) -> None:
        self._agent = agent
        self.steps, self.history = agent.vocabulary.token_steps, agent.view.history
        self.box_scale = agent.view.box_scale
        self._uniform = torch.rand(decisions, users, generator=generator_for(seed, name))

    def drive(self, world: World, state: State, taken: Tensor, decision: int) -> Tensor:
        """See ``Driver``."""
        who = (torch.zeros_like(taken), taken)
        tokens = self._agent.decide(world, state, who, self._uniform[decision].unsqueeze(0))[who]
        return apply_token(self._agent.vocabulary, state.pose[who], tokens, world.types[who])


class ConstantVelocityDriver:
    """Straight on at the speed of the moment of take-over, whatever comes: a yardstick."""

    history, box_scale = 0, 1.0

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self._velocity: Tensor | None = None

    def drive(self, world: World, state: State, taken: Tensor, decision: int) -> Tensor:
        """See ``Driver``."""
        if self._velocity is None:
            self._velocity = state.velocity[0]
        time = STEP_SECONDS * torch.arange(1, self.steps + 1).view(1, -1, 1)
        pose = state.pose[0, taken].unsqueeze(1).repeat(1, self.steps, 1)
        pose[..., :2] += time * self._velocity[taken].unsqueeze(1)
        return pose


class ReplayDriver:
    """Where SUMO itself drove the same vehicles: tells what being moved from outside costs, before any policy.

    Args:
        pose: [A, T + 1, 3] from the moment of take-over on. present: [A, T + 1] bool. steps: of a decision.
    """

    history, box_scale = 0, 1.0

    def __init__(self, pose: Tensor, present: Tensor, steps: int) -> None:
        self.steps = steps
        self._pose = torch.where(present.unsqueeze(-1), pose, torch.nan)

    def drive(self, world: World, state: State, taken: Tensor, decision: int) -> Tensor:
        """See ``Driver``."""
        first = decision * self.steps + 1
        return self._pose[taken, first : first + self.steps]
