"""What tells the policy what to do in its place: a reference that sees the whole scene, a policy that sees what the
agent sees, or the log."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from data.tokenizer import match_token
from data.vocabulary import Vocabulary
from models.checkpoints import checkpoint_kind
from models.policy import POLICY_KIND, Policy, load_policy
from models.reference.agent import ReferenceAgent
from pipeline.selfplay.anchor import Anchor
from pipeline.selfplay.episode import Driven, Scorer, act
from pipeline.selfplay.pool import WorldPool
from pipeline.simulator.world import World

__all__ = ["Judge", "LocalJudge", "ReferenceJudge", "label_scores", "load_judge", "logged_tokens", "score_all"]

# Log-probability of what the log does not do: next to nothing, and finite.
_NEVER = -30.0


class Judge(Protocol):
    """A frozen model with log-probabilities of tokens."""

    @property
    def vocabulary(self) -> Vocabulary:
        """Of its tokens, which are the policy's actions."""
        ...

    def scorer(self, pool: WorldPool, names: Sequence[int], world: World) -> Scorer:
        """For an episode in the worlds of these names."""
        ...


class ReferenceJudge:
    """The reference of SPACeR: one teacher-forced pass on the true context of all agents."""

    def __init__(self, agent: ReferenceAgent, capacity: int) -> None:
        self._agent, self._capacity = agent, capacity
        self._anchor: Anchor | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        return self._agent.vocabulary

    def scorer(self, pool: WorldPool, names: Sequence[int], world: World) -> Scorer:
        if self._anchor is None:
            self._anchor = Anchor(self._agent, pool.scene, self._capacity)
        return partial(score_all, self._anchor, names, world)


def score_all(anchor: Anchor, names: Sequence[int], world: World, driven: Driven) -> Tensor:
    """[D, N, K] log-probabilities of an anchor for who drove, with an anchor and worlds a ``Scorer``."""
    scored = anchor.log_probs(names, world, driven.tokens, driven.poses, driven.controlled, driven.present)
    return scored[driven.agent_index].transpose(0, 1)  # [D, N, K]


class LocalJudge:
    """A policy learnt from the log, as in HR-PPO (arXiv 2403.19648): it knows what the judged agent sees."""

    def __init__(self, policy: Policy, vocabulary: Vocabulary) -> None:
        self._policy, self._vocabulary = policy, vocabulary

    @property
    def vocabulary(self) -> Vocabulary:
        return self._vocabulary

    def scorer(self, pool: WorldPool, names: Sequence[int], world: World) -> Scorer:
        return self._score

    @torch.no_grad()
    def _score(self, driven: Driven) -> Tensor:
        logits, _ = act(self._policy, driven.observation)
        return logits.log_softmax(-1).unflatten(0, (driven.tokens.shape[-1], -1))


def load_judge(path: Path, device: torch.device, capacity: int) -> tuple[Judge, dict[str, object] | None]:
    """A judge from ``reference.ckpt`` or ``policy.ckpt``, and the observation that a policy needs.

    Raises:
        UserError: neither.
    """
    if checkpoint_kind(path) == POLICY_KIND:
        policy, vocabulary, view = load_policy(path)
        return LocalJudge(policy.to(device), vocabulary.to(device)), view
    return ReferenceJudge(ReferenceAgent.from_checkpoint(path, device=str(device)), capacity), None


def logged_tokens(world: World, vocabulary: Vocabulary) -> Tensor:
    """[W, A, D] the tokens nearest to what the log does at each decision; where it is not valid, any."""
    poses = torch.cat(
        (world.pose.unsqueeze(2), world.log[:, :, vocabulary.token_steps - 1 :: vocabulary.token_steps]), 2
    )
    types = world.types.unsqueeze(-1).expand(-1, -1, poses.shape[2] - 1)
    return match_token(vocabulary, poses[:, :, :-1], poses[:, :, 1:], types)[0]


def label_scores(size: int, driven: Driven) -> Tensor:
    """[D, N, K] log-probabilities of an expert who does what was executed; not a number where it was not there."""
    there = driven.present[..., :-1] & driven.present[..., 1:]  # [W, A, D]
    tokens, there = driven.tokens[driven.agent_index].T, there[driven.agent_index].T  # [D, N]
    scores = torch.full((*tokens.shape, size), _NEVER, device=tokens.device)
    scores = scores.scatter(-1, tokens.unsqueeze(-1), 0.0)
    return torch.where(there.unsqueeze(-1), scores, torch.nan)
