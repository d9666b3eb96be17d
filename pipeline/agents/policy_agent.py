"""The policy as an agent: every rollout is a world of its own, in which it sees what it saw in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from data.scene import Scene, map_tensors, until_now
from data.tokenizer import apply_token
from data.vocabulary import Vocabulary
from models.policy import Policy, load_policy
from models.sampling import SamplingConfig, draw
from pipeline.agents.agent import Agent
from pipeline.simulator.events import collisions
from pipeline.simulator.observation import ObservationConfig, observe_ego, observe_neighbours, observe_road
from pipeline.simulator.step import AgentIndex, Motion, State, agent_indices, follow, reset
from pipeline.simulator.world import World, build_world, repeat_world, stack_worlds

# Rollouts times agents that are driven at once, to bound the memory.
_MAX_ROWS, MAX_ROWS_GPU = 2048, 16_384


def open_policy(path: Path) -> tuple[Policy, Vocabulary, ObservationConfig]:
    """A policy of a checkpoint, the vocabulary of its actions, and what it sees.

    Raises:
        UserError: not such a checkpoint.
    """
    policy, vocabulary, fields = load_policy(path)
    try:
        return policy, vocabulary, ObservationConfig(**fields)
    except TypeError as error:
        raise UserError(f"{path}: policy checkpoint of another version of the code; train again") from error


class PolicyAgent(Agent):
    """A policy in evaluation mode. Goals are never shown; lights are those observed by the current step.

    Args:
        policy: the net; its device is where scenes are simulated. vocabulary: of its actions. view: what it sees.
        sampling: how tokens are drawn; from the whole distribution by default.
        compiled: fuse the computations of a decision with torch.compile, once for all scenes.
    """

    def __init__(
        self,
        policy: Policy,
        vocabulary: Vocabulary,
        view: ObservationConfig,
        sampling: SamplingConfig | None = None,
        compiled: bool = False,
    ) -> None:
        self.policy, self.view, self.sampling = policy.eval(), view, sampling or SamplingConfig()
        self.device, self.token_steps = next(policy.parameters()).device, vocabulary.token_steps
        self.joins_scenes = self.device.type != "cpu"
        self.max_rows = MAX_ROWS_GPU if self.joins_scenes else _MAX_ROWS
        self.vocabulary = vocabulary.to(self.device)
        # The road as the net sees it, where agents go, and the state after that.
        self.see_road: Any = self._see_road
        self.decide: Any = self._decide
        self.follow: Any = self._follow
        if compiled:
            self.see_road, self.decide, self.follow = (
                torch.compile(function, fullgraph=True, dynamic=True)
                for function in (self._see_road, self._decide, self._follow)
            )

    @classmethod
    def from_checkpoint(
        cls,
        path: Path,
        sampling: SamplingConfig | None = None,
        device: torch.device | str = "cpu",
        compiled: bool = False,
    ) -> PolicyAgent:
        """Load ``policy.ckpt``.

        Raises:
            UserError: not such a checkpoint.
        """
        policy, vocabulary, view = open_policy(path)
        return cls(policy.to(device), vocabulary, view, sampling, compiled)

    def prepare(self, *scenes: Scene) -> World:
        """Scenes up to their current step as worlds, on the policy's device."""
        return self._worlds(scenes, brief=False)

    def prepare_briefly(self, *scenes: Scene) -> World:
        return self._worlds(scenes, brief=True)

    def _worlds(self, scenes: Sequence[Scene], brief: bool) -> World:
        words, size = self.vocabulary.to("cpu"), self.view.listed_segments
        worlds = [build_world(until_now(scene), words, size, with_edges=False, brief=brief) for scene in scenes]
        together = worlds[0] if len(worlds) == 1 else stack_worlds(worlds)
        return map_tensors(together, lambda tensor: tensor.to(self.device))

    def start(self, prepared: World, count: int, driven: Tensor | None = None) -> PolicyDrive:
        chosen = prepared.exists if driven is None else prepared.exists & driven.to(self.device)
        alike = len(prepared.exists) == 1
        return PolicyDrive(self, repeat_world(prepared, count), chosen.repeat_interleave(count, 0), alike)

    def _see_road(self, worlds: World, state: State, agent_index: AgentIndex) -> Tensor:
        """[N, D] of ``Policy.see_road``."""
        return self.policy.see_road(*observe_road(worlds, state, agent_index, self.view))

    def _decide(
        self, worlds: World, state: State, agent_index: AgentIndex, road: Tensor, uniform: Tensor
    ) -> Tensor:
        """Poses [R, A, s, 3] of the next decision, drawn with ``uniform`` [R, A]."""
        neighbours = observe_neighbours(worlds, state, agent_index, self.view)
        logits, _ = self.policy.decide(
            observe_ego(worlds, state, agent_index, self.view),
            neighbours["neighbour"],
            neighbours["neighbour_seen"],
            road,
            worlds.types[agent_index],
            state.last_motion[agent_index],
        )
        drawn = draw(logits, uniform[agent_index], worlds.types[agent_index], self.sampling)
        tokens = torch.zeros_like(worlds.types).index_put(agent_index, drawn)
        return apply_token(self.vocabulary, state.pose, tokens, worlds.types)

    def _follow(self, worlds: World, state: State, pose: Tensor, present: Tensor, agent_index: AgentIndex) -> State:
        """The state after a decision; of its events, agents see collisions alone."""
        motion = Motion(state.pose, pose, present, state.step + 1)
        collided = collisions(worlds, motion, self.view.box_scale, agent_index)
        return dataclasses.replace(follow(state, motion), collided=collided)


class PolicyDrive:
    """See ``Drive``; agents that are absent decide nothing.

    Args:
        alike: all worlds are one at the start.

    Attributes:
        state: of all agents.
    """

    def __init__(self, agent: PolicyAgent, worlds: World, driven: Tensor, alike: bool) -> None:
        self._agent, self._worlds, self._driven = agent, worlds, driven
        self._agent_index, self._roads = agent_indices(driven), _Roads(agent.see_road, alike)
        self.state = reset(worlds, torch.ones_like(driven), agent.view.history)

    @torch.no_grad()
    def step(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        if len(self._agent_index[0]):
            road = self._roads.seen(self._worlds, self.state, self._agent_index)
            pose: Tensor = self._agent.decide(self._worlds, self.state, self._agent_index, road, uniform)
        else:
            pose = self.state.pose.unsqueeze(2).repeat(1, 1, self._agent.token_steps, 1)
        return pose, self.state.present.unsqueeze(-1).expand(pose.shape[:-1])

    @torch.no_grad()
    def observe(
        self, pose: Tensor, present: Tensor | None = None, velocity: Tensor | None = None, red: Tensor | None = None
    ) -> None:
        there = self.state.present.unsqueeze(-1).expand(pose.shape[:-1]) if present is None else present
        self.state = self._agent.follow(self._worlds, self.state, pose, there, self._agent_index)
        if velocity is not None:
            self.state = dataclasses.replace(self.state, velocity=velocity)
        if red is not None:
            self._worlds = dataclasses.replace(self._worlds, light_now=red)
        if present is not None:
            agent_index = agent_indices(self._driven & self.state.present)
            if not all(map(torch.equal, agent_index, self._agent_index)):
                self._agent_index, self._roads = agent_index, _Roads(self._agent.see_road)


class _Roads:
    """The road as the net sees it, encoded anew only for agents that moved: most agents stand still.

    Args:
        encode: ``Policy.see_road`` of some agents. alike: all worlds are one the first time.
    """

    def __init__(self, encode: Callable[[World, State, AgentIndex], Tensor], alike: bool = False) -> None:
        self._encode, self._alike = encode, alike
        self._pose, self._code = torch.zeros(0), torch.zeros(0)

    def seen(self, worlds: World, state: State, agent_index: AgentIndex) -> Tensor:
        """[N, D] of ``Policy.see_road``."""
        w, a = agent_index
        pose = state.pose[w, a]
        if not len(self._code):
            first = (w == 0) | (not self._alike)
            code = self._encode(worlds, state, (w[first], a[first]))
            self._code = code.repeat(len(pose) // len(code), 1)
        else:
            (moved,) = (pose != self._pose).any(-1).nonzero(as_tuple=True)
            if len(moved):
                code = self._encode(worlds, state, (w[moved], a[moved]))
                self._code = self._code.index_copy(0, moved, code)
        self._pose = pose
        return self._code
