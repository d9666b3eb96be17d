"""Collecting rollouts; where all worlds are resident on a CUDA GPU, by a graph of the whole episode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.execution.devices import Clock
from pipeline.execution.graphs import Graphed
from pipeline.selfplay.learner import Learner
from pipeline.selfplay.rollout import Episode, Given, Rollout, Scorer, Start, drive, finish, start
from pipeline.simulator.episode import Simulator
from pipeline.simulator.world import World, choose_worlds

# The number of agents in a graph grows in such steps.
_AGENTS = 256


class Driver:
    """Lets the policy of a learner drive.

    Args:
        learner: whose actor drives. simulator: of the worlds.
        resident: all worlds on the device, or None; on a GPU they end with an agent that does not exist.
    """

    def __init__(self, learner: Learner, simulator: Simulator, resident: World | None) -> None:
        self._learner, self._simulator, self._resident = learner, simulator, resident
        on_gpu = learner.fabric.device.type == "cuda"
        self._dtype = torch.bfloat16 if on_gpu and learner.in_bfloat16 else torch.float32
        self._is_recorded = on_gpu and resident is not None
        self._episode = Graphed(self._drive, self._is_recorded)
        self._agents = 0

    def collect(
        self, scene_index: Sequence[int], world: World, score: Scorer | None, uniform: Tensor, given: Given | None
    ) -> Rollout:
        """See ``rollout.collect``; the worlds are those of ``scene_index``."""
        config, clock = self._learner.config, Clock(uniform.device)
        if not self._is_recorded or given is not None:
            begin = start(world, config, uniform)
            episode = drive(self._learner.actor, self._simulator, world, begin, given, clock, self._dtype)
            return finish(world, begin, episode, score, config, uniform, clock)
        begin = start(world, config, uniform, self._agents)
        if begin.agents > self._agents:
            # A twentieth more than ever before, so that it seldom grows.
            self._agents = (begin.agents * 21 // 20 // _AGENTS + 1) * _AGENTS
            begin = start(world, config, uniform, self._agents)
        rows = torch.tensor(scene_index).to(uniform.device, non_blocking=True)
        episode = self._episode(rows, begin.controlled, *begin.agent_index, begin.goal_hidden, begin.uniform)
        clock.lap("drive")
        return finish(world, begin, episode, score, config, uniform, clock)

    def _drive(
        self, rows: Tensor, controlled: Tensor, row: Tensor, agent: Tensor, hidden: Tensor, uniform: Tensor
    ) -> Episode:
        assert self._resident is not None
        begin = Start(controlled, (row, agent), hidden, uniform, len(row))
        world = choose_worlds(self._resident, rows)
        return drive(self._learner.actor, self._simulator, world, begin, dtype=self._dtype)
