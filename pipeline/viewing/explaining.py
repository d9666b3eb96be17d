"""The probabilities of the policy and the reference at every decision of a rollout."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from data.geometry import wrap_angle
from data.scene import Scene
from data.vocabulary import Vocabulary
from models.policy import Policy
from models.reference.agent import ReferenceAgent
from pipeline.selfplay.anchor import ReferenceScorer
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.rollout import Given, act, collect
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import ObservationConfig
from pipeline.simulator.step import decisions
from pipeline.simulator.world import World, build_world, decision_poses, log_tokens


@dataclass(frozen=True)
class Opinion:
    """Of one model at all decisions: A simulated agents, D decisions, N likeliest tokens."""

    token: Tensor  # [A, D, N] int64
    probability: Tensor  # [A, D, N] float32
    executed: Tensor  # [A, D] float32 probability of the token that was executed


@dataclass(frozen=True)
class Explanation:
    """Tokens of one rollout [A, D], agents in the order of ``Scene.simulated``, and opinions by model."""

    token: Tensor
    opinions: dict[str, Opinion]


@dataclass(frozen=True)
class Explainer:
    """Models whose opinions are wanted, each or none; they must have the same vocabulary.

    Attributes:
        policy: in evaluation mode, and what it sees. reference: frozen. vocabulary: of both.
        likeliest: number of tokens that are listed at each decision.
    """

    vocabulary: Vocabulary
    policy: tuple[Policy, ObservationConfig] | None = None
    reference: ReferenceAgent | None = None
    likeliest: int = 5

    @torch.no_grad()
    def explain(self, scene: Scene, states: Tensor) -> Explanation:
        """Opinions along one rollout.

        Args:
            scene: a single scene; its future, if it has one, is not read. states: [A, 80, 4] x, y, z, heading of
                the simulated agents in order. Motion that is no token is read as the nearest one.
        """
        segments = self.policy[1].road_segments if self.policy else ObservationConfig().road_segments
        world = self._replayed(build_world(scene, self.vocabulary, segments), states)
        tokens = world.log_ids  # [1, A, D]
        opinions = {}
        if self.policy is not None:
            net, view = self.policy
            opinions["policy"] = self._opinion(self._policy_scores(net, view, world, tokens), tokens[0])
        if self.reference is not None:
            opinions["reference"] = self._opinion(self._reference_scores(scene, world, tokens), tokens[0])
        return Explanation(tokens[0], opinions)

    def _opinion(self, log_probs: Tensor, tokens: Tensor) -> Opinion:
        probability = log_probs.exp()
        top = probability.topk(min(self.likeliest, probability.shape[-1]), dim=-1)
        return Opinion(top.indices, top.values, probability.gather(-1, tokens.unsqueeze(-1)).squeeze(-1))

    def _policy_scores(self, net: Policy, view: ObservationConfig, world: World, tokens: Tensor) -> Tensor:
        """[A, D, K]. Goals are hidden, as in ``sample``."""
        uniform = torch.zeros(decisions(self.vocabulary) + 2, *world.types.shape)
        config, simulator = PPOConfig(goal_dropout=1.0), Simulator(self.vocabulary, view)
        rollout = collect(net, simulator, world, None, config, uniform, Given(tokens, replay=True))
        logits = act(net, rollout.observations)[0].log_softmax(-1)
        return logits.unflatten(0, (-1, tokens.shape[1])).transpose(0, 1)

    def _reference_scores(self, scene: Scene, world: World, tokens: Tensor) -> Tensor:
        """[A, D, K]"""
        assert self.reference is not None
        poses = decision_poses(world.pose, world.log, self.vocabulary.token_steps)
        present = world.exists.unsqueeze(-1).expand(poses.shape[:-1])
        scorer = ReferenceScorer(self.reference, lambda _: scene)
        return scorer.log_probs([0], world, tokens, poses, world.exists, present)[0]

    def _replayed(self, world: World, states: Tensor) -> World:
        """The world with a rollout in the place of its log."""
        pose = torch.cat((states[..., :2] - world.origin[0], wrap_angle(states[..., 3:])), dim=-1)
        tokens = log_tokens(self.vocabulary, world.types[0], world.pose[0], pose)
        there = world.exists.unsqueeze(-1).expand(1, *pose.shape[:2])
        return replace(world, log=pose.unsqueeze(0), log_valid=there, log_ids=tokens.unsqueeze(0))
