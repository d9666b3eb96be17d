"""What a picture says of rollouts: their score, likelihoods of every agent, and where something happened."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from submission.protos import Rollouts
from submission.realism import MetricConfig, SceneContext, diagnose, score
from submission.realism.config import COMPONENTS
from submission.realism.features import Features


class Event(IntEnum):
    """What is marked in a picture."""

    COLLISION = 0
    OFF_ROAD = 1
    RED_LIGHT = 2


_FIELDS = {
    Event.COLLISION: "collision",
    Event.OFF_ROAD: "offroad",
    Event.RED_LIGHT: "traffic_light_violation",
}


@dataclass(frozen=True)
class Judgement:
    """Of R rollouts of a scene, for its E evaluated agents.

    Attributes:
        values: fields of the metric's proto by name.
        displacement: [R] mean displacement of each rollout from the log, metres.
        events: [n, 5] int32: rollout, agent id, ``Event``, first and last step (1 to 80 behind the current one).
        likelihoods: for each agent id, by feature, exp of its mean log-likelihood.
        losses: for each agent id, by feature, what it took from the meta-metric.
    """

    values: dict[str, float]
    displacement: list[float]
    events: NDArray[np.int32]
    likelihoods: dict[int, dict[str, float]]
    losses: dict[int, dict[str, float]]


def find_intervals(flags: Tensor) -> NDArray[np.int32]:
    """Intervals in which flags [R, E, T] are set: [n, 4] rollout, agent row, first and last step from 1 on."""
    padded = torch.nn.functional.pad(flags.to(torch.int8), (1, 1))
    change = padded.diff(dim=-1)  # [R, E, T + 1]
    begin, end = (change == 1).nonzero(), (change == -1).nonzero()
    # Both lists are sorted by rollout, agent and step, so that the ends belong to the beginnings.
    return torch.cat((begin[:, :2], begin[:, 2:] + 1, end[:, 2:]), dim=1).to(torch.int32).numpy()


def _events(context: SceneContext, features: Features, valid: Tensor | None) -> NDArray[np.int32]:
    """[n, 5] of ``Judgement.events``."""
    ids = context.agent_id[: context.evaluated].numpy()
    parts = []
    for kind, name in _FIELDS.items():
        flags = getattr(features, name)
        if kind == Event.RED_LIGHT:
            flags = flags & context.is_vehicle.unsqueeze(-1)
        found = find_intervals(flags if valid is None else flags & valid)
        named = np.column_stack((found[:, 0], ids[found[:, 1]], np.full(len(found), kind), found[:, 2:]))
        parts.append(named.astype(np.int32))
    return np.concatenate(parts)


def log_events(context: SceneContext) -> NDArray[np.int32]:
    """Events of the log itself, as [n, 5] with rollout 0; steps that the log lacks do not count."""
    assert context.log_features is not None
    return _events(context, context.log_features, context.log_valid[: context.evaluated, -80:])


def judge(context: SceneContext, rollouts: Rollouts, metric: MetricConfig) -> Judgement:
    """Score rollouts and find what happened in them.

    Args:
        context: of ``prepare_scene``. rollouts: of all simulated agents. metric: from ``load_config``.

    Raises:
        ValueError: the agents are not exactly those to be simulated.
    """
    result = score(context, rollouts.agent_id, rollouts.states, metric)
    likelihoods: dict[int, dict[str, float]] = {}
    losses: dict[int, dict[str, float]] = {}
    for loss in diagnose(context, result, metric):
        likelihoods.setdefault(loss.agent_id, {})[loss.feature] = loss.likelihood
        losses.setdefault(loss.agent_id, {})[loss.feature] = loss.loss
    return Judgement(
        values={name: float(value) for name, value in result.values.items()},
        displacement=result.features.displacement.mean(-1).tolist(),
        events=_events(context, result.features, None),
        likelihoods={agent: {name: row[name] for name in COMPONENTS} for agent, row in likelihoods.items()},
        losses=losses,
    )
