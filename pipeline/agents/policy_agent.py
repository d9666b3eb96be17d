"""The trained policy as a simulated agent: all agents of a scene, every rollout a world of its own."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from data.ground import joint_states
from data.scene import Scene, generator_for, map_tensors, until_now
from data.vocabulary import Vocabulary
from models.policy import Policy, load_policy
from models.sampling import SamplingConfig, draw
from pipeline.simulator.events import collisions
from pipeline.simulator.observation import ObservationConfig, observe_ego, observe_neighbours, observe_road
from pipeline.simulator.step import State, agent_indices, controlled_agents, decisions, reset, step
from pipeline.simulator.world import World, build_world, repeat_world

__all__ = ["PolicyAgent", "open_policy"]

# Rollouts times agents that move together; more are done one part after the other, to bound the memory.
_MAX_ROWS = 2048


class _Roads:
    """What agents see of the road, encoded anew only for those that moved: of all agents, most stand still."""

    def __init__(self, encode: Callable[[World, State, tuple[Tensor, Tensor]], Tensor]) -> None:
        self._encode = encode
        self._pose, self._code = torch.zeros(0), torch.zeros(0)

    def seen(self, worlds: World, state: State, who: tuple[Tensor, Tensor]) -> Tensor:
        """[N, D] of ``Policy.see_road``."""
        w, a = who
        pose = state.pose[w, a]
        if not len(self._code):
            # In the beginning all worlds are one.
            first = w == 0
            code = self._encode(worlds, state, (w[first], a[first]))
            self._code = code.repeat(len(pose) // len(code), 1)
        else:
            (moved,) = (pose != self._pose).any(-1).nonzero(as_tuple=True)
            if len(moved):
                code = self._encode(worlds, state, (w[moved], a[moved]))
                self._code = self._code.index_copy(0, moved, code)
        self._pose = pose
        return self._code


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


class PolicyAgent:
    """A policy in evaluation mode. Goals are never shown: where an agent goes is its own affair.

    Args:
        policy: the net; its device is where scenes are simulated. vocabulary: of its actions. view: what it sees.
        sampling: how tokens are drawn; from the whole distribution by default.
        compiled: fuse what a decision does with torch.compile, once for all scenes.
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
        self.device = policy.critic.weight.device
        self.vocabulary = vocabulary.to(self.device)
        # The road as the net sees it, what agents do, and what then happens.
        self._see_road: Any = self._seen_road
        self._decide: Any = self._drawn
        self._advance: Any = self._moved
        if compiled:
            self._see_road, self._decide, self._advance = (
                torch.compile(function, fullgraph=True, dynamic=True)
                for function in (self._seen_road, self._drawn, self._moved)
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

    @torch.no_grad()
    def rollouts(self, scene: Scene, count: int, seed: int) -> Tensor:
        """[R, A, 80, 4] joint futures of a single scene; only its first 11 steps influence them."""
        world = self.world(scene)
        agents = world.types.shape[1]
        uniform = torch.rand(
            count, decisions(self.vocabulary), agents, generator=generator_for(seed, str(scene.scenario_id))
        ).to(self.device)
        parts = []
        for part in uniform.split(self.together(agents)):
            worlds = repeat_world(world, len(part))
            driving = self.begin(worlds, controlled_agents(worlds))
            poses = []
            for index in range(part.shape[1]):
                tokens = driving.decide(part[:, index].contiguous())
                poses.append(driving.execute(tokens))
            parts.append(torch.cat(poses, dim=2))  # [R, A, 80, 3]
        return joint_states(scene, torch.cat(parts), world.origin[0])

    def together(self, agents: int) -> int:
        """How many rollouts of a scene with so many agents move at once, to bound the memory."""
        return max(1, _MAX_ROWS // agents)

    def world(self, scene: Scene) -> World:
        """A single scene up to its current step as a batch of one world, on the policy's device."""
        world = build_world(until_now(scene), self.vocabulary.to("cpu"), self.view.road_segments, with_edges=False)
        return map_tensors(world, lambda tensor: tensor.to(self.device))

    def begin(self, worlds: World, controlled: Tensor) -> Driving:
        """Let the policy drive some agents [R, A] of R copies of a world; the others replay ``worlds.log``."""
        return Driving(self, worlds, controlled)

    @torch.no_grad()
    def decide(self, worlds: World, state: State, who: tuple[Tensor, Tensor], uniform: Tensor) -> Tensor:
        """Tokens [W, A] of some agents, 0 for the others, drawn with ``uniform`` [W, A]."""
        tokens: Tensor = self._decide(worlds, state, who, self._see_road(worlds, state, who), uniform)
        return tokens

    def _seen_road(self, worlds: World, state: State, who: tuple[Tensor, Tensor]) -> Tensor:
        return self.policy.see_road(*observe_road(worlds, state, who, self.view))

    def _drawn(
        self, worlds: World, state: State, who: tuple[Tensor, Tensor], road: Tensor, uniform: Tensor
    ) -> Tensor:
        """[R, A] tokens, drawn with ``uniform`` [R, A]."""
        neighbours = observe_neighbours(worlds, state, who, self.view)
        logits, _ = self.policy.decide(
            observe_ego(worlds, state, who, self.view),
            neighbours["neighbour"],
            neighbours["neighbour_seen"],
            road,
            worlds.types[who],
            state.last_motion[who],
        )
        drawn = draw(logits, uniform[who], worlds.types[who], self.sampling)
        return torch.zeros_like(worlds.types).index_put(who, drawn)

    def _moved(
        self, worlds: World, state: State, tokens: Tensor, controlled: Tensor, who: tuple[Tensor, Tensor]
    ) -> tuple[State, Tensor]:
        """The state behind a decision, and the poses [R, A, s, 3] on the way."""
        state, motion = step(worlds, state, tokens, controlled, self.vocabulary)
        collided = collisions(worlds, motion, self.view.box_scale, who)
        return dataclasses.replace(state, collided=collided), motion.pose


class Driving:
    """Agents of R worlds under way, one decision after the other; made by ``PolicyAgent.begin``.

    Attributes:
        state: where everybody is.
    """

    def __init__(self, agent: PolicyAgent, worlds: World, controlled: Tensor) -> None:
        # Rows of the road are looked up in one table of all worlds, which takes a copy: once, not at each decision.
        road = map_tensors(worlds.road, Tensor.contiguous)
        self._agent, self._worlds, self._controlled = agent, dataclasses.replace(worlds, road=road), controlled
        self._who = agent_indices(controlled)
        self.state = reset(worlds, torch.ones_like(controlled), agent.view.history)
        self._roads = _Roads(agent._see_road)

    @torch.no_grad()
    def decide(self, uniform: Tensor) -> Tensor:
        """[R, A] tokens of those that are driven, drawn with ``uniform`` [R, A]."""
        road = self._roads.seen(self._worlds, self.state, self._who)
        tokens: Tensor = self._agent._decide(self._worlds, self.state, self._who, road, uniform)
        return tokens

    @torch.no_grad()
    def execute(self, tokens: Tensor) -> Tensor:
        """Move everybody; [R, A, s, 3] the poses on the way."""
        self.state, pose = self._agent._advance(self._worlds, self.state, tokens, self._controlled, self._who)
        moved: Tensor = pose
        return moved
