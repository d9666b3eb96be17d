"""The simulator behind Gymnasium's interfaces, so that other people's agents can drive in it.

``DrivingVectorEnv`` lets one learner drive all agents of many scenes at once, each in a slot of its own;
``DrivingEnv`` lets it drive the AV of one scene while all others replay the log. Actions are tokens of 0.2 s. An
episode is 8 s long and ends by truncation, never by termination: what comes after it has a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from torch import Tensor

from data.errors import UserError
from data.scene import Scene
from data.vocabulary import TYPE_NAMES, Vocabulary
from pipeline.simulator.events import events_at_start
from pipeline.simulator.observation import Observation, ObservationConfig, feature_sizes
from pipeline.simulator.reward import RewardConfig, still, task_rewards, without
from pipeline.simulator.step import decisions, places, reset
from pipeline.simulator.stepping import Stepper
from pipeline.simulator.world import World, build_world, stack_worlds

__all__ = ["DrivingEnv", "DrivingVectorEnv"]

_EVENTS = ("collision", "off_road", "red_light", "goal")
Arrays = dict[str, np.ndarray]


def _observation_space(view: ObservationConfig) -> spaces.Dict:
    ego, neighbour, road = feature_sizes(view)

    def numbers(*shape: int) -> spaces.Box:
        return spaces.Box(-np.inf, np.inf, shape, np.float32)

    return spaces.Dict(
        {
            "ego": numbers(ego),
            "neighbour": numbers(view.neighbours, neighbour),
            "neighbour_seen": spaces.MultiBinary(view.neighbours),
            "road": numbers(view.road_segments, road),
            "road_seen": spaces.MultiBinary(view.road_segments),
            "type": spaces.Discrete(len(TYPE_NAMES)),
            "motion": numbers(3),
        }
    )


class _Drive:
    """One episode in some worlds, of which some agents are driven and the others replay the log."""

    def __init__(
        self,
        world: World,
        controlled: Tensor,
        vocabulary: Vocabulary,
        view: ObservationConfig,
        reward: RewardConfig,
        hidden: Tensor,
    ) -> None:
        self.world, self.controlled = world, controlled
        self.who = places(controlled)
        self._drivers = places(controlled & (world.types == 0))
        self._stepper, self._reward, self._length = Stepper(vocabulary, view), reward, decisions(vocabulary)
        self._state = reset(world, hidden, view.history)
        self._before = events_at_start(world, self._state, view.box_scale, self.who, self._drivers)
        nothing = without(self._before, self._before)
        self._excused = self._before if reward.forgive_start else nothing
        self.happened = {name: getattr(nothing, name) for name in _EVENTS}

    @property
    def over(self) -> bool:
        return self._state.decision >= self._length

    def observe(self) -> Observation:
        """Of those driven."""
        return self._stepper.observe(self.world, self._state, self.who)

    def step(self, tokens: Tensor) -> Tensor:
        """[W, A] rewards of a decision; ``happened`` has its events."""
        self._state, _, events = self._stepper.step(
            self.world, self._state, tokens, self.controlled, self.who, self._drivers
        )
        self._excused = still(self._excused, events)
        blamed = without(events, self._excused)
        terms = task_rewards(blamed, self._before, self._reward)
        self._before = blamed
        self.happened = {name: getattr(blamed, name) for name in _EVENTS}
        return torch.stack(list(terms.values())).sum(0)


class DrivingVectorEnv(VectorEnv):
    """All agents of ``worlds`` scenes at once; slot ``i * agents + j`` is the j-th agent of the i-th scene.

    Slots that no agent fills are inactive (``info["active"]``): they see zeros and earn nothing. After the last
    decision new scenes are drawn at once (``AutoresetMode.SAME_STEP``): what was seen at the end is in
    ``info["final_obs"]``.

    Args:
        scenes: to draw from. vocabulary: of the actions. worlds: scenes at once. agents: slots of each, at least as
            many as any scene has simulated agents.
        view: what agents see. reward: what events are worth. goal_dropout: share of agents whose goal is hidden.
    """

    def __init__(
        self,
        scenes: Sequence[Scene],
        vocabulary: Vocabulary,
        worlds: int = 4,
        agents: int = 64,
        view: ObservationConfig | None = None,
        reward: RewardConfig | None = None,
        goal_dropout: float = 0.5,
    ) -> None:
        most = max(int(scene.simulated.sum()) for scene in scenes)
        if most > agents:
            raise UserError(f"a scene has {most} simulated agents; give at least as many slots (agents={most})")
        self._scenes, self._vocabulary, self._shape = scenes, vocabulary, (worlds, agents)
        self._view, self._reward = view or ObservationConfig(), reward or RewardConfig()
        self._dropout = goal_dropout
        self._built: dict[int, World] = {}
        self.num_envs = worlds * agents
        self.single_observation_space = _observation_space(self._view)
        self.single_action_space = spaces.Discrete(vocabulary.size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}
        self._drive: _Drive | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Begin an episode in scenes drawn by ``seed``, or in those that ``options["scenes"]`` numbers."""
        super().reset(seed=seed)
        numbers = (options or {}).get("scenes")
        return self._begin(numbers)

    def _begin(self, numbers: Sequence[int] | None) -> tuple[Arrays, dict[str, Any]]:
        worlds, agents = self._shape
        if numbers is None:
            numbers = self.np_random.integers(len(self._scenes), size=worlds).tolist()
        if len(numbers) != worlds:
            raise UserError(f"options['scenes'] has {len(numbers)} numbers, expected {worlds}, one a world")
        for number in numbers:
            if number not in self._built:
                self._built[number] = build_world(self._scenes[number], self._vocabulary, self._view.road_segments)
        world = stack_worlds([self._built[number] for number in numbers])
        hidden = torch.from_numpy(self.np_random.random(self._shape) < self._dropout)[:, : world.types.shape[1]]
        self._drive = _Drive(world, world.exists, self._vocabulary, self._view, self._reward, hidden)
        active = self._spread(torch.ones(len(self._drive.who[0]), dtype=torch.bool))
        names = np.repeat([str(self._scenes[number].scenario_id) for number in numbers], agents)
        return self._seen(), {"active": active, "scenario_id": names}

    def _spread(self, values: Tensor) -> np.ndarray:
        """Values [N, ...] of the agents that are driven, to their slots [num_envs, ...]; zeros elsewhere."""
        assert self._drive is not None
        w, a = self._drive.who
        slots = torch.zeros(self.num_envs, *values.shape[1:], dtype=values.dtype)
        slots[w * self._shape[1] + a] = values
        return np.asarray(slots.numpy())

    def _seen(self) -> Arrays:
        assert self._drive is not None
        return {name: self._spread(value) for name, value in _arrays(self._drive.observe()).items()}

    def step(self, actions: np.ndarray) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute a token for each slot; those of inactive slots do nothing."""
        if self._drive is None:
            raise UserError("step before reset: call reset() first")
        worlds, agents = self._shape
        chosen = torch.from_numpy(np.asarray(actions, dtype=np.int64)).view(worlds, agents)
        w, a = self._drive.who
        tokens = torch.zeros_like(self._drive.world.types).index_put((w, a), chosen[w, a])
        rewards = self._spread(self._drive.step(tokens)[w, a]).astype(np.float64)
        info: dict[str, Any] = {name: self._spread(flag[w, a]) for name, flag in self._drive.happened.items()}
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        seen = self._seen()
        if self._drive.over:
            truncated[:] = True
            last = dict(info)
            final = np.empty(self.num_envs, dtype=object)
            for slot in range(self.num_envs):
                final[slot] = {name: value[slot] for name, value in seen.items()}
            seen, begun = self._begin(None)
            info |= begun | {"final_obs": final, "_final_obs": truncated.copy(), "final_info": last}
        return seen, rewards, terminated, truncated, info


class DrivingEnv(gymnasium.Env):
    """The AV of a scene, while all others replay the log.

    Args:
        scenes: to draw from. vocabulary: of the actions. view, reward: as for ``DrivingVectorEnv``.
        show_goal: whether the AV sees where the log ends.
    """

    metadata = {"render_modes": []}  # noqa: RUF012  Gymnasium reads it from the class.

    def __init__(
        self,
        scenes: Sequence[Scene],
        vocabulary: Vocabulary,
        view: ObservationConfig | None = None,
        reward: RewardConfig | None = None,
        show_goal: bool = True,
    ) -> None:
        self._scenes, self._vocabulary, self._show_goal = scenes, vocabulary, show_goal
        self._view, self._reward = view or ObservationConfig(), reward or RewardConfig()
        self.observation_space = _observation_space(self._view)
        self.action_space = spaces.Discrete(vocabulary.size)
        self._drive: _Drive | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Begin an episode in a scene drawn by ``seed``, or in the one that ``options["scene"]`` numbers."""
        super().reset(seed=seed)
        number = (options or {}).get("scene")
        if number is None:
            number = int(self.np_random.integers(len(self._scenes)))
        scene = self._scenes[number]
        world = build_world(scene, self._vocabulary, self._view.road_segments)
        controlled = torch.zeros_like(world.exists)
        controlled[0] = scene.agents.is_sdc[scene.simulated]
        hidden = torch.full_like(controlled, not self._show_goal)
        self._drive = _Drive(world, controlled, self._vocabulary, self._view, self._reward, hidden)
        return self._seen(), {"scenario_id": str(scene.scenario_id)}

    def _seen(self) -> dict[str, Any]:
        assert self._drive is not None
        arrays: dict[str, Any] = {name: value[0].numpy() for name, value in _arrays(self._drive.observe()).items()}
        # Gymnasium wants a number of its own kind here, no array.
        arrays["type"] = np.int64(arrays["type"])
        return arrays

    def step(self, action: int) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """Execute a token."""
        if self._drive is None:
            raise UserError("step before reset: call reset() first")
        tokens = torch.full_like(self._drive.world.types, int(action))
        earned = float(self._drive.step(tokens)[self._drive.who])
        info = {name: bool(flag[self._drive.who]) for name, flag in self._drive.happened.items()}
        return self._seen(), earned, False, self._drive.over, info


def _arrays(seen: Observation) -> dict[str, Tensor]:
    values = {field.name: getattr(seen, field.name) for field in fields(seen)}
    return {name: value.to(torch.int8) if value.dtype == torch.bool else value for name, value in values.items()}
