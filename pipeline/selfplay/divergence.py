"""How far a policy has gone from a reference on scenes of one's choice, whether it was anchored to it or not."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from data.scene import Scene
from models.policy import Policy
from models.reference.agent import ReferenceAgent
from pipeline.selfplay.anchor import Anchor
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.episode import act, collect
from pipeline.selfplay.judges import score_all
from pipeline.selfplay.observation import ObservationConfig
from pipeline.selfplay.reward import RewardConfig
from pipeline.selfplay.simulator import decisions
from pipeline.selfplay.worlds import build_world, stack_worlds

__all__ = ["divergence"]

# Worlds driven at once.
_TOGETHER = 4


@torch.no_grad()
def divergence(
    policy: Policy, reference: ReferenceAgent, scenes: Sequence[Scene], view: ObservationConfig, seed: int
) -> dict[str, float]:
    """Drive every scene once by the policy, all agents, goals shown, and compare it with the reference on the way.

    Args:
        policy: in evaluation mode. reference: with the same vocabulary. scenes: single ones.
        view: what the policy sees. seed: of its draws.

    Returns:
        ``kl`` KL(policy || reference) in nats, ``entropy`` of the policy, ``log_likelihood`` of tokens under the
        reference: means over decisions that the reference has an opinion on; ``coverage``: their share.
    """
    vocabulary = reference.vocabulary
    anchor = Anchor(reference, scenes.__getitem__)
    config, reward = PPOConfig(goal_dropout=0.0), RewardConfig()
    sums = torch.zeros(3, dtype=torch.float64)
    covered, decided = 0, 0
    for first in range(0, len(scenes), _TOGETHER):
        names = range(first, min(first + _TOGETHER, len(scenes)))
        world = stack_worlds([build_world(scenes[name], vocabulary, view.road_segments) for name in names])
        generator = torch.Generator().manual_seed(seed * len(scenes) + first)
        uniform = torch.rand(decisions(vocabulary) + 2, *world.types.shape, generator=generator)
        score = partial(score_all, anchor, names, world)
        episode = collect(policy, world, vocabulary, score, config, reward, view, uniform)
        assert episode.reference is not None
        log_policy = act(policy, episode.observation)[0].log_softmax(-1)
        known = episode.covered.flatten()
        log_policy, log_reference = log_policy[known], episode.reference.flatten(0, 1)[known]
        share = log_policy.exp()
        chosen = episode.action.flatten()[known].unsqueeze(-1)
        sums += torch.stack(
            (
                (share * (log_policy - log_reference)).sum(),
                -(share * log_policy).sum(),
                log_reference.gather(-1, chosen).sum(),
            )
        ).double()
        covered += int(known.sum())
        decided += known.numel()
    kl, entropy, likelihood = (sums / max(1, covered)).tolist()
    return {"kl": kl, "entropy": entropy, "log_likelihood": likelihood, "coverage": covered / max(1, decided)}
