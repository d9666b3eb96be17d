"""The simulator behind Gymnasium's interfaces, for agents of other projects.

``DrivingVectorEnv`` lets one learner drive all agents of many scenes at once, each in a slot of its own;
``DrivingEnv`` lets it drive the AV of one scene while all others replay the log. Actions are tokens of 0.2 s. An
episode is 8 s long and ends by truncation, never by termination: its last state has a value.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from pipeline.simulator.episode import Simulator
from pipeline.simulator.events import Events
from pipeline.simulator.observation import Observation, ObservationConfig, feature_sizes
from pipeline.simulator.reward import RewardConfig
from pipeline.simulator.world import World, build_world, stack_worlds

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


class DrivingVectorEnv(VectorEnv):
    """All agents of ``worlds`` scenes at once; slot ``i * agents + j`` is the j-th agent of the i-th scene.

    Slots that no agent fills are inactive (``info["active"]``): they see zeros and earn nothing. After the last
    decision new scenes are drawn at once (``AutoresetMode.SAME_STEP``): what was seen at the end is in
    ``info["final_obs"]``.

    Args:
        scenes: to draw from. vocabulary: of the actions. worlds: scenes at once. agents: slots of each, at least as
            many as any scene has simulated agents.
        view: what agents see. reward: what events are worth. goal_dropout: fraction of agents whose goal is hidden.
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
        largest = max(int(scene.simulated.sum()) for scene in scenes)
        if largest > agents:
            raise UserError(
                f"a scene has {largest} simulated agents; give at least as many slots (agents={largest})"
            )
        self._scenes, self._vocabulary, self._shape = scenes, vocabulary, (worlds, agents)
        self._view, self._goal_dropout = view or ObservationConfig(), goal_dropout
        self._simulator, self._started = Simulator(vocabulary, self._view, reward), False
        self._built: dict[int, World] = {}
        self.num_envs = worlds * agents
        self.single_observation_space = _observation_space(self._view)
        self.single_action_space = spaces.Discrete(vocabulary.size)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Start an episode in scenes drawn by ``seed``, or in those with the numbers ``options["scenes"]``."""
        super().reset(seed=seed)
        return self._start((options or {}).get("scenes"))

    def _start(self, numbers: Sequence[int] | None) -> tuple[Arrays, dict[str, Any]]:
        worlds, agents = self._shape
        if numbers is None:
            numbers = self.np_random.integers(len(self._scenes), size=worlds).tolist()
        if len(numbers) != worlds:
            raise UserError(f"options['scenes'] has {len(numbers)} numbers, expected {worlds}, one a world")
        for number in numbers:
            if number not in self._built:
                self._built[number] = build_world(
                    self._scenes[number], self._vocabulary, self._view.listed_segments
                )
        world = stack_worlds([self._built[number] for number in numbers])
        hidden = torch.from_numpy(self.np_random.random(self._shape) < self._goal_dropout)[
            :, : world.types.shape[1]
        ]
        self._simulator.reset(world, world.exists, hidden)
        self._started = True
        active = self._spread(torch.ones(len(self._simulator.agent_index[0]), dtype=torch.bool))
        names = np.repeat([str(self._scenes[number].scenario_id) for number in numbers], agents)
        return self._observe(), {"active": active, "scenario_id": names}

    def _spread(self, values: Tensor) -> np.ndarray:
        """Values [N, ...] of the driven agents in their slots [num_envs, ...]; zeros elsewhere."""
        w, a = self._simulator.agent_index
        slots = torch.zeros(self.num_envs, *values.shape[1:], dtype=values.dtype)
        slots[w * self._shape[1] + a] = values
        return np.asarray(slots.numpy())

    def _observe(self) -> Arrays:
        return {name: self._spread(value) for name, value in _tensors(self._simulator.observe()).items()}

    def step(self, actions: np.ndarray) -> tuple[Arrays, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Execute a token for each slot; those of inactive slots are ignored."""
        if not self._started:
            raise UserError("step before reset: call reset() first")
        worlds, agents = self._shape
        simulator, (w, a) = self._simulator, self._simulator.agent_index
        given = torch.from_numpy(np.asarray(actions, dtype=np.int64)).view(worlds, agents)
        tokens = torch.zeros_like(simulator.world.types).index_put((w, a), given[w, a])
        rewards, events = _step(simulator, tokens)
        reward = self._spread(rewards[w, a]).astype(np.float64)
        info: dict[str, Any] = {name: self._spread(flag[w, a]) for name, flag in vars(events).items()}
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        observation = self._observe()
        if simulator.over:
            truncated[:] = True
            final_info = dict(info)
            final = np.empty(self.num_envs, dtype=object)
            for slot in range(self.num_envs):
                final[slot] = {name: value[slot] for name, value in observation.items()}
            observation, start = self._start(None)
            info |= start | {"final_obs": final, "_final_obs": truncated.copy(), "final_info": final_info}
        return observation, reward, terminated, truncated, info


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
        self._view = view or ObservationConfig()
        self._simulator, self._started = Simulator(vocabulary, self._view, reward), False
        self.observation_space = _observation_space(self._view)
        self.action_space = spaces.Discrete(vocabulary.size)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Start an episode in a scene drawn by ``seed``, or in the one with the number ``options["scene"]``."""
        super().reset(seed=seed)
        number = (options or {}).get("scene")
        if number is None:
            number = int(self.np_random.integers(len(self._scenes)))
        scene = self._scenes[number]
        world = build_world(scene, self._vocabulary, self._view.listed_segments)
        controlled = torch.zeros_like(world.exists)
        controlled[0] = scene.agents.is_sdc[scene.simulated]
        hidden = torch.full_like(controlled, not self._show_goal)
        self._simulator.reset(world, controlled, hidden)
        self._started = True
        return self._observe(), {"scenario_id": str(scene.scenario_id)}

    def _observe(self) -> dict[str, Any]:
        tensors = _tensors(self._simulator.observe())
        arrays: dict[str, Any] = {name: value[0].numpy() for name, value in tensors.items()}
        # Gymnasium wants a NumPy scalar here, not an array.
        arrays["type"] = np.int64(arrays["type"])
        return arrays

    def step(self, action: int) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """Execute a token."""
        if not self._started:
            raise UserError("step before reset: call reset() first")
        simulator, av = self._simulator, self._simulator.agent_index
        rewards, events = _step(simulator, torch.full_like(simulator.world.types, int(action)))
        info = {name: bool(flag[av]) for name, flag in vars(events).items()}
        return self._observe(), float(rewards[av]), False, simulator.over, info


def _step(simulator: Simulator, tokens: Tensor) -> tuple[Tensor, Events]:
    """Task rewards [W, A] and events of a decision."""
    rewards, events = simulator.step(tokens)
    return torch.stack(list(rewards.values())).sum(0), events


def _tensors(observation: Observation) -> dict[str, Tensor]:
    """What agents see, by name; flags as int8, as ``MultiBinary`` has them."""
    return {
        name: value.to(torch.int8) if value.dtype == torch.bool else value
        for name, value in vars(observation).items()
        if name != "beyond"
    }
