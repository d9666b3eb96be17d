"""Episodes in a batch of worlds: reset, observe, step. Self-play and the Gymnasium classes share this driver.

Shape legend: W worlds, A agents, N controlled agents of all worlds.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data.scene import FUTURE_STEPS
from data.vocabulary import Vocabulary
from pipeline.simulator.events import Events, events_at_start, find_events
from pipeline.simulator.observation import Observation, ObservationConfig, observe
from pipeline.simulator.reward import (
    RewardConfig,
    blameable,
    goal_progress,
    log_distance,
    note_events,
    ongoing_excused,
    task_rewards,
)
from pipeline.simulator.step import AgentIndex, Motion, State, agent_indices, reset, step
from pipeline.simulator.world import World


def advance(
    world: World,
    state: State,
    tokens: Tensor,
    driven: Tensor,
    agent_index: AgentIndex,
    vocabulary: Vocabulary,
    box_scale: float,
) -> tuple[State, Motion, Events]:
    """One decision as a pure function: ``step`` and ``find_events``, whose arguments these are.

    Returns:
        The state after the decision, with its events noted; the motion; all events.
    """
    state, motion = step(world, state, tokens, driven, vocabulary)
    events = find_events(world, state, motion, box_scale, agent_index)
    return note_events(state, events), motion, events


class Simulator:
    """Drives the controlled agents of a batch of worlds by tokens, one episode after the other.

    Every other agent replays the log. An episode is 8 s long and ends by truncation.

    Args:
        vocabulary: of the tokens. view: what agents see, and the scale of their boxes.
        reward: what events are worth; defaults are those of ``RewardConfig``.
        compiled: fuse observations and steps by torch.compile. One compilation serves all decisions and all numbers
            of worlds and agents, unless a size happens to equal another one, as with three worlds and three
            coordinates.
        for_critic: see ``observation.observe``.

    Attributes:
        world, state, motion: of the episode that runs; ``motion`` is that of the last decision.
        agent_index: ([N] world, [N] agent) of the controlled agents.
    """

    world: World
    state: State
    motion: Motion | None
    agent_index: AgentIndex

    def __init__(
        self,
        vocabulary: Vocabulary,
        view: ObservationConfig,
        reward: RewardConfig | None = None,
        compiled: bool = False,
        for_critic: bool = True,
    ) -> None:
        self._view, self._reward = view, reward or RewardConfig()
        self._observe: Any = partial(observe, config=view, for_critic=for_critic)
        self._advance: Any = partial(advance, vocabulary=vocabulary, box_scale=view.box_scale)
        if compiled:
            # Indices come from the world's own tables, and tokens from the vocabulary: checking each of them again
            # takes a seventh of the time.
            unchecked: dict[str, Any] = {"assert_indirect_indexing": False}
            self._observe = torch.compile(self._observe, fullgraph=True, dynamic=True, options=unchecked)
            self._advance = torch.compile(self._advance, fullgraph=True, dynamic=True, options=unchecked)

    def reset(
        self,
        world: World,
        controlled: Tensor,
        goal_hidden: Tensor,
        replay: bool = False,
        agent_index: AgentIndex | None = None,
    ) -> None:
        """Start an episode at the current step of the scenes.

        Args:
            world: batched. controlled: [W, A] bool, the agents that observe and are rewarded.
            goal_hidden: [W, A] bool, whose goal is not shown, though it is still paid.
            replay: let the controlled agents replay the log, too, whatever their tokens.
            agent_index: of the controlled agents, where it is known: to find it waits for the device.
        """
        self.world, self.motion = world, None
        self.agent_index = agent_indices(controlled) if agent_index is None else agent_index
        self._driven = torch.zeros_like(controlled) if replay else controlled
        self.state = reset(world, goal_hidden, self._view.history)
        self._before = events_at_start(world, self.state, self._view.box_scale, self.agent_index)
        nobody = torch.zeros_like(controlled)
        # What lasts from the start on is the log's doing: a penalty for it would teach parked cars to flee.
        self._excused = (
            self._before
            if self._reward.forgive_start
            else dataclasses.replace(self._before, collision=nobody, off_road=nobody)
        )

    @property
    def over(self) -> bool:
        """Whether the 8 s are over."""
        return self.state.step >= FUTURE_STEPS

    def observe(self) -> Observation:
        """What the N controlled agents see; see ``observation.observe``."""
        observation: Observation = self._observe(self.world, self.state, self.agent_index)
        return observation

    def step(self, tokens: Tensor) -> tuple[dict[str, Tensor], Events]:
        """Execute a token for every controlled agent.

        Args:
            tokens: [W, A] int64; those of other agents are ignored.

        Returns:
            Rewards by what they are for, [W, A] each, whose sum is the task reward; and the events that the agents
            are to blame for. Rows of agents that are not controlled mean nothing.
        """
        before = self.state
        self.state, self.motion, events = self._advance(
            self.world, self.state, tokens, self._driven, self.agent_index
        )
        self._excused = ongoing_excused(self._excused, events)
        events = blameable(events, self._excused)
        rewards = task_rewards(events, self._before, self._reward)
        if self._reward.least_goal:
            world = self.world
            far = (world.goal - world.pose[..., :2]).norm(dim=-1) >= self._reward.least_goal
            rewards["goal"] = rewards["goal"] * far
        if self._reward.progress:
            rewards["progress"] = self._reward.progress * goal_progress(self.world, before, self.motion)
        if self._reward.log_distance:
            rewards["log_distance"] = self._reward.log_distance * log_distance(self.world, self.state)
        self._before = events
        return rewards, events
