"""What one rollout of one agent adds to the meta-metric: credit for training on the metric itself.

Likelihoods pool the values of all rollouts in histograms. So the score without a rollout of an agent is that of the
same histograms minus its own counts (leave one out). From a step on, it is the score without what the rollout did
from there on; with that as its baseline, a decision is credited only with what came after it.

Shape legend: R rollouts, E evaluated agents, F components, N decisions, T = 80 scored steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from submission.realism.config import COMPONENTS, MetricConfig
from submission.realism.estimators import left_out
from submission.realism.features import SceneContext
from submission.realism.score import INDICATORS, SceneScore, scored_events, scored_values

# Steps by which a pose influences values before it: an acceleration is a difference of differences on both sides.
_LEAD = 2


def leave_one_out(context: SceneContext, score: SceneScore, config: MetricConfig, first: Tensor) -> Tensor:
    """What each likelihood loses without what one rollout of one agent did from a step on.

    Values over time that the poses from ``first`` on can influence are left out. Of an event (collision, off-road,
    red light) the rollout is left out, unless the event happened before: then nothing is.

    Args:
        context: of the scene. score: of at least two rollouts, by ``score_states``.
        config: with a distribution for each agent and all steps, as those of Waymo have.
        first: [N] int64 steps from 0; 0 leaves the whole rollout out.

    Returns:
        [F, R, E, N] float32, likelihoods in the order of ``COMPONENTS``: with everything minus without. Times the
        components' weights they add up to the gain of the meta-metric. 0 where no agent has a value.

    Raises:
        ValueError: a configuration that pools agents or keeps steps apart.
    """
    values, masks, _ = scored_values(context, score.features)
    step = torch.arange(score.features.linear_speed.shape[-1], device=first.device)
    late = step.unsqueeze(-1) >= first - _LEAD  # [T, N]
    happened = scored_events(context, score.features).to(torch.float32) @ (~late).to(torch.float32)  # [3, R, E, N]
    undecided = dict(zip(INDICATORS, (happened == 0).to(torch.float32).unsqueeze(-2), strict=True))
    gains = []
    for name in COMPONENTS:
        removed = undecided.get(name, late.to(torch.float32))
        change = left_out(
            *values[name], config.component(name), masks[name], removed, drop_nan=not context.bug_compatible
        )
        count = masks[name].sum()
        gain = -score.values[f"{name}_likelihood"] * torch.expm1(change / count)
        gains.append(torch.where(count > 0, gain, 0.0))
    return torch.stack(gains)
