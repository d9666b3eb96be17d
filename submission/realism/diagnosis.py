"""What cost a scene its score: the loss of every feature shared out among the agents.

A feature of weight w and likelihood L = exp(mean log-likelihood) loses w (1 - L). That loss is shared in proportion
to the negative log-likelihoods that agents contributed, so that the parts of all features and agents add up to
1 - meta-metric. Even a replay of the log loses some; compare with it to see what is left to gain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from submission.realism.config import COMPONENTS, MetricConfig
from submission.realism.features import SceneContext
from submission.realism.score import SceneScore

__all__ = ["Loss", "diagnose"]


@dataclass(frozen=True)
class Loss:
    """Part of a scene's loss.

    Attributes:
        scenario_id, agent_id, feature: whose it is.
        loss: of the meta-metric; the losses of a scene add up to 1 - meta-metric.
        likelihood: of this feature for this agent alone, exp of its mean log-likelihood.
    """

    scenario_id: str
    agent_id: int
    feature: str
    loss: float
    likelihood: float


def diagnose(context: SceneContext, score: SceneScore, config: MetricConfig) -> list[Loss]:
    """Losses of all evaluated agents and features of a scene, the largest first.

    Args:
        context: of the scene. score: of simulated states in it. config: whose weights count.
    """
    losses = []
    agents = context.agent_id[: context.evaluated].tolist()
    for name in COMPONENTS:
        weight = config.component(name).weight
        missing = weight * (1.0 - float(score.values[f"{name}_likelihood"]))
        surprise = -score.agent_log_likelihood[name].double()
        share = surprise / surprise.sum().clamp(min=1e-12)
        # What nothing was asked of, such as time to collision of a pedestrian, has likelihood 1.
        mean = torch.exp(-surprise / score.agent_samples[name].clamp(min=1))
        losses += [
            Loss(score.scenario_id, agent, name, missing * part, likelihood)
            for agent, part, likelihood in zip(agents, share.tolist(), mean.tolist(), strict=True)
        ]
    return sorted(losses, key=lambda loss: -loss.loss)
