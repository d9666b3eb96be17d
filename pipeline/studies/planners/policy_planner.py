"""A policy of self-play as planner: it sees the world as in training, and its tokens are driven exactly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.scene import generator_for, until_now
from data.tokenizer import apply_token, local_pose
from data.vocabulary import Vocabulary
from models.policy import Policy
from models.sampling import SamplingConfig, draw
from pipeline.agents.policy_agent import open_policy
from pipeline.simulator.events import collisions
from pipeline.simulator.observation import ObservationConfig, observe
from pipeline.simulator.step import Motion, State, decisions, reset
from pipeline.simulator.world import World, build_world
from pipeline.studies.planners.interface import MakePlanner, Mission, Situation, Trajectory

__all__ = ["PolicyPlanner", "policy_planner"]


class PolicyPlanner:
    """Drives the AV with a policy, a token at a time. Goals are hidden, as in evaluation; lights are those observed
    by the scene's current step, as in training.

    Args:
        mission: what to drive. policy: in evaluation mode, on the CPU. vocabulary: of its tokens.
        view: what it sees. sampling: how tokens are drawn.
        uniform: [D] in [0, 1), with which they are drawn; from the mission's seed by default.
    """

    def __init__(
        self,
        mission: Mission,
        policy: Policy,
        vocabulary: Vocabulary,
        view: ObservationConfig,
        sampling: SamplingConfig | None = None,
        uniform: Tensor | None = None,
    ) -> None:
        self.mission, self.policy, self.vocabulary, self.view = mission, policy, vocabulary, view
        self.sampling = sampling or SamplingConfig()
        self._world = build_world(until_now(mission.scene), vocabulary, view.road_segments, with_edges=False)
        if uniform is None:
            # Numbers of its own: nobody else in the world may know what the AV draws.
            generator = generator_for(mission.seed, f"{mission.scene.scenario_id} planner")
            uniform = torch.rand(decisions(vocabulary), generator=generator)
        self._uniform = uniform
        self._state: State | None = None
        self._way = torch.zeros(0)

    @property
    def period(self) -> int:
        """Steps of a token."""
        return self.vocabulary.token_steps

    @torch.no_grad()
    def plan(self, situation: Situation) -> Trajectory:
        """One token."""
        world, state = self._seen(situation)
        ego = torch.tensor([self.mission.ego])
        who = (torch.zeros_like(ego), ego)
        seen = observe(world, state, who, self.view)
        logits, _ = self.policy(
            seen.ego, seen.neighbour, seen.neighbour_seen, seen.road, seen.road_seen, seen.type, seen.motion
        )
        number = self._uniform[state.decision % len(self._uniform)]
        token = draw(logits, number.view(1), seen.type, self.sampling)
        self._way = apply_token(self.vocabulary, state.pose[who], token, seen.type)[0]  # [s, 3]
        self._state = state
        return Trajectory(self._way.double().numpy())

    def _seen(self, now: Situation) -> tuple[World, State]:
        """The simulator's state, as it would be had it moved everybody to where they are."""
        pose, velocity, size = (
            torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))[None]
            for value in (now.pose, now.velocity, now.size)
        )
        present = torch.from_numpy(np.array(now.present))[None]
        world = dataclasses.replace(self._world, size=torch.cat((size, self._world.size[..., 2:]), dim=-1))
        last = self._state
        if last is None:
            first = reset(world, torch.ones_like(present), self.view.history)
            return world, dataclasses.replace(first, pose=pose, velocity=velocity, present=present)
        state = State(
            pose=pose,
            velocity=velocity,
            present=present,
            last_motion=local_pose(pose, last.pose),
            past=torch.cat((last.past, last.pose.unsqueeze(2)), dim=2)[:, :, 1:],
            past_known=torch.cat((last.past_known, last.present.unsqueeze(2)), dim=2)[:, :, 1:],
            collided=self._collided(world, last, pose, present),
            goal_reached=last.goal_reached,
            goal_hidden=last.goal_hidden,
            decision=last.decision + 1,
        )
        return world, state

    def _collided(self, world: World, last: State, pose: Tensor, present: Tensor) -> Tensor:
        """[1, A] whether the AV touched somebody on the way here. Where the others were between two decisions it is
        not told: on the straight line."""
        steps, ego = self.vocabulary.token_steps, self.mission.ego
        share = torch.arange(1, steps + 1) / steps
        turn = torch.atan2(torch.sin(pose[..., 2] - last.pose[..., 2]), torch.cos(pose[..., 2] - last.pose[..., 2]))
        change = torch.cat((pose[..., :2] - last.pose[..., :2], turn.unsqueeze(-1)), dim=-1)
        way = last.pose.unsqueeze(2) + change.unsqueeze(2) * share[:, None]  # [1, A, s, 3]
        way[0, ego, :-1], way[0, :, -1] = self._way[:-1], pose[0]
        there = present.unsqueeze(-1).expand(-1, -1, steps)
        who = (torch.zeros(1, dtype=torch.int64), torch.tensor([ego]))
        return collisions(world, Motion(last.pose, way, there, 0), self.view.box_scale, who)


def policy_planner(path: Path, likeliest: bool = False) -> MakePlanner:
    """Makes planners that drive with the policy of a checkpoint.

    Args:
        path: ``policy.ckpt``. likeliest: always the likeliest token, instead of one drawn from the distribution.

    Raises:
        UserError: not such a checkpoint.
    """
    policy, vocabulary, view = open_policy(path)
    sampling = SamplingConfig(top_k=1 if likeliest else 0)
    return lambda mission: PolicyPlanner(mission, policy, vocabulary, view, sampling)
