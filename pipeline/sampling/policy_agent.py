"""The trained policy as a simulated agent: all agents of a scene, every rollout a world of its own."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from data.geometry import wrap_angle
from data.scene import Scene, until_now
from data.vocabulary import Vocabulary
from models.policy import Policy, load_policy
from pipeline.sampling.seeds import generator_for
from pipeline.selfplay.events import collisions
from pipeline.selfplay.observation import ObservationConfig, observe
from pipeline.selfplay.ppo import act
from pipeline.selfplay.simulator import controlled_agents, decisions, places, reset, step
from pipeline.selfplay.worlds import build_world, repeat_world

__all__ = ["PolicyAgent"]

# Rollouts times agents that move together; more are done one part after the other, to bound the memory.
_MAX_ROWS = 4096


class PolicyAgent:
    """A policy in evaluation mode. Goals are never shown: where an agent goes is its own affair.

    Args:
        policy: the net. vocabulary: of its actions. view: what it sees.
        top_k: sample among the k likeliest tokens; 0 among all.
    """

    def __init__(self, policy: Policy, vocabulary: Vocabulary, view: ObservationConfig, top_k: int = 0) -> None:
        self.policy, self.vocabulary, self.view, self.top_k = policy.eval(), vocabulary, view, top_k

    @classmethod
    def from_checkpoint(cls, path: Path, *, top_k: int = 0) -> PolicyAgent:
        """Load ``policy.ckpt``.

        Raises:
            UserError: not such a checkpoint.
        """
        policy, vocabulary, view = load_policy(path)
        return cls(policy, vocabulary, ObservationConfig(**view), top_k)

    @torch.no_grad()
    def rollouts(self, scene: Scene, count: int, seed: int) -> Tensor:
        """[R, A, 80, 4] joint futures of a single scene; only its first 11 steps influence them."""
        world = build_world(until_now(scene), self.vocabulary, self.view.road_segments)
        agents = world.types.shape[1]
        uniform = torch.rand(
            count, decisions(self.vocabulary), agents, generator=generator_for(seed, str(scene.scenario_id))
        )
        parts = []
        for part in uniform.split(max(1, _MAX_ROWS // agents)):
            worlds = repeat_world(world, len(part))
            controlled = controlled_agents(worlds)
            who = places(controlled)
            state = reset(worlds, torch.ones_like(controlled))
            poses = []
            for index in range(part.shape[1]):
                logits, _ = act(self.policy, observe(worlds, state, who, self.view))
                tokens = torch.zeros_like(worlds.types).index_put(who, self._draw(logits, part[:, index][who]))
                state, motion = step(worlds, state, tokens, controlled, self.vocabulary)
                state = dataclasses.replace(state, collided=collisions(worlds, motion, self.view.box_scale))
                poses.append(motion.pose)
            parts.append(torch.cat(poses, dim=2))  # [R, A, 80, 3]
        pose = torch.cat(parts).double()
        position = pose[..., :2] + world.origin.double()
        height = world.height.double().view(1, agents, 1, 1).expand(*pose.shape[:3], 1)
        result = torch.cat((position, height, pose[..., 2:]), dim=-1).float()
        result[..., 3] = wrap_angle(result[..., 3])
        return result

    def _draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """[N] the token at which the cumulative probability passes a number in [0, 1) drawn beforehand."""
        if self.top_k:
            least = logits.topk(min(self.top_k, logits.shape[-1]), dim=-1).values[:, -1:]
            logits = logits.masked_fill(logits < least, -torch.inf)
        cumulative = logits.softmax(-1).cumsum(-1)
        drawn = uniform.unsqueeze(-1) * cumulative[:, -1:]
        return (cumulative <= drawn).sum(-1).clamp(max=logits.shape[-1] - 1)
