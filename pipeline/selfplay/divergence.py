"""How far a policy has gone from a reference on scenes of one's choice, whether it was anchored to it or not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from data.scene import Scene, map_tensors
from models.policy import Policy
from models.reference.agent import ReferenceAgent
from pipeline.selfplay.anchor import Anchor
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.episode import act, collect
from pipeline.selfplay.judges import score_all
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import ObservationConfig
from pipeline.simulator.step import agent_indices, controlled_agents, decisions
from pipeline.simulator.world import build_world, stack_worlds

__all__ = ["SceneDivergence", "divergence", "mean_divergence", "scene_divergences"]

# Worlds driven at once.
_TOGETHER = 4


@dataclass(frozen=True)
class SceneDivergence:
    """One scene: sums over the decisions that the reference has an opinion on, in nats.

    Attributes:
        kl: of KL(policy || reference). entropy: of the policy. log_likelihood: of tokens under the reference.
        covered: how many decisions that were. decided: how many there were in all.
    """

    kl: float
    entropy: float
    log_likelihood: float
    covered: int
    decided: int


@torch.no_grad()
def scene_divergences(
    policy: Policy, reference: ReferenceAgent, scenes: Sequence[Scene], view: ObservationConfig, seed: int
) -> list[SceneDivergence]:
    """Drive every scene once by the policy, all agents, goals shown, and compare it with the reference on the way.

    Args:
        policy: in evaluation mode. reference: with the same vocabulary. scenes: single ones.
        view: what the policy sees. seed: of its draws.
    """
    vocabulary, words = reference.vocabulary, reference.vocabulary.to("cpu")
    anchor = Anchor(reference, scenes.__getitem__)
    config, simulator = PPOConfig(goal_dropout=0.0), Simulator(vocabulary, view)
    found: list[SceneDivergence] = []
    for first in range(0, len(scenes), _TOGETHER):
        names = range(first, min(first + _TOGETHER, len(scenes)))
        built = [build_world(scenes[name], words, view.road_segments) for name in names]
        world = map_tensors(stack_worlds(built), lambda tensor: tensor.to(reference.device))
        generator = torch.Generator().manual_seed(seed * len(scenes) + first)
        uniform = torch.rand(decisions(vocabulary) + 2, *world.types.shape, generator=generator)
        score = partial(score_all, anchor, names, world)
        episode = collect(policy, simulator, world, score, config, uniform.to(reference.device))
        assert episode.reference is not None
        log_policy = act(policy, episode.observation)[0].log_softmax(-1).unflatten(0, episode.action.shape)
        share = log_policy.exp()
        parts = torch.stack(
            (
                (share * (log_policy - episode.reference)).sum(-1),
                -(share * log_policy).sum(-1),
                episode.reference.gather(-1, episode.action.unsqueeze(-1)).squeeze(-1),
            ),
            dim=-1,
        )  # [D, N, 3]
        parts = torch.where(episode.covered.unsqueeze(-1), parts, 0.0).double().sum(0)
        owner = agent_indices(controlled_agents(world))[0]
        for number in range(len(names)):
            mine = owner == number
            kl, entropy, likelihood = parts[mine].sum(0).tolist()
            covered = episode.covered[:, mine]
            found.append(SceneDivergence(kl, entropy, likelihood, int(covered.sum()), covered.numel()))
    return found


def divergence(
    policy: Policy, reference: ReferenceAgent, scenes: Sequence[Scene], view: ObservationConfig, seed: int
) -> dict[str, float]:
    """Means over the decisions of all scenes; arguments as of ``scene_divergences``.

    Returns:
        ``kl`` KL(policy || reference) in nats, ``entropy`` of the policy, ``log_likelihood`` of tokens under the
        reference: means over decisions that the reference has an opinion on; ``coverage``: their share.
    """
    return mean_divergence(scene_divergences(policy, reference, scenes, view, seed))


def mean_divergence(parts: Sequence[SceneDivergence]) -> dict[str, float]:
    """Of some scenes as one; see ``divergence``."""
    covered, decided = (sum(getattr(part, name) for part in parts) for name in ("covered", "decided"))
    means = {
        name: sum(getattr(part, name) for part in parts) / max(1, covered)
        for name in ("kl", "entropy", "log_likelihood")
    }
    return means | {"coverage": covered / max(1, decided)}
