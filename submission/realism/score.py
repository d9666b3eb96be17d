"""The realism meta-metric: score of a scene from its features (wosac metric, ``SimAgentMetrics``), mean over
scenes, buckets, and the loss of every agent and feature."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from data.scene import CURRENT_INDEX, AgentType, Scene
from submission.realism.config import BUCKETS, COMPONENTS, MetricConfig
from submission.realism.estimators import log_likelihoods
from submission.realism.features import Features, SceneContext, compute_features
from submission.realism.kinematics import central_and

_HISTORY = CURRENT_INDEX + 1
METRIC_FIELDS = (
    "metametric",
    "average_displacement_error",
    "min_average_displacement_error",
    *(f"{name}_likelihood" for name in COMPONENTS),
    "simulated_collision_rate",
    "simulated_offroad_rate",
    "simulated_traffic_light_violation_rate",
)
# Components that count an event at any step, and the feature of each.
INDICATORS = {
    "collision_indication": "collision",
    "offroad_indication": "offroad",
    "traffic_light_violation": "traffic_light_violation",
}


@dataclass(frozen=True)
class SceneScore:
    """Score of one scene.

    Attributes:
        scenario_id: of the scene.
        values: float32 scalars by the field names of the proto (``METRIC_FIELDS``).
        features: of the simulation.
        agent_log_likelihood: for each feature the summed log-likelihood of every evaluated agent [E].
        agent_samples: for each feature the number of log-likelihoods in that sum [E].
        agent_events: by the fields of the rates, whether an evaluated agent had the event [R, E].
    """

    scenario_id: str
    values: dict[str, Tensor]
    features: Features
    agent_log_likelihood: dict[str, Tensor]
    agent_samples: dict[str, Tensor]
    agent_events: dict[str, Tensor]


def align(context: SceneContext, agent_id: Tensor, states: Tensor) -> Tensor:
    """Reorder simulated states [R, A, 80, 4] to the order of the context.

    Raises:
        ValueError: the agents are not exactly those to be simulated.
    """
    agent_id = agent_id.to(context.agent_id.device)
    if not torch.equal(torch.sort(agent_id).values, torch.sort(context.agent_id).values):
        missing = set(context.agent_id.tolist()) ^ set(agent_id.tolist())
        raise ValueError(f"scenario {context.scenario_id}: wrong set of objects, first {sorted(missing)[:3]}")
    by_id = torch.argsort(agent_id)
    return states[:, by_id[torch.argsort(torch.argsort(context.agent_id))]]


def score(
    context: SceneContext, agent_id: Tensor, states: Tensor, config: MetricConfig, ttc_all_types: bool = False
) -> SceneScore:
    """Score simulated states of a scene.

    Args:
        context: from ``prepare_scene``.
        agent_id: [A]. states: [R, A, 80, 4] float32 x, y, z, heading in the order of ``agent_id``.
        config: from ``load_config``.
        ttc_all_types: count time to collision for all types, as the 2024 leaderboard did, not only for vehicles.
    """
    return score_states(context, align(context, agent_id, states), config, ttc_all_types)


def score_states(
    context: SceneContext, states: Tensor, config: MetricConfig, ttc_all_types: bool = False
) -> SceneScore:
    """Score states [R, A, 80, 4] whose agents are in the order of ``context.agent_id``; see ``score``.

    For use in training: on a GPU it never waits for the host, and the values are tensors on the GPU.
    """
    return score_features(context, compute_features(context, states), config, ttc_all_types)


def _counted(valid: Tensor, is_vehicle: Tensor, ttc_all_types: bool) -> dict[str, Tensor]:
    """Masks [E, 80] of the log-likelihoods of features over time; valid: [E, 80] of the log, is_vehicle: [E]."""
    speed = central_and(valid)
    acceleration = central_and(speed)
    return {
        "linear_speed": speed,
        "angular_speed": speed,
        "linear_acceleration": acceleration,
        "angular_acceleration": acceleration,
        "distance_to_nearest_object": valid,
        "time_to_collision": valid if ttc_all_types else valid & is_vehicle.unsqueeze(-1),
        "distance_to_road_edge": valid,
    }


def unscorable_reason(scene: Scene, ttc_all_types: bool = False) -> str | None:
    """Why a scene has no score for any simulation, or None if it has one.

    Waymo's code refuses it, or one of its likelihoods is a mean of no values, 0/0, which makes the meta-metric NaN.

    Args:
        scene: a single one, on a CPU. ttc_all_types: as in ``score``.
    """
    if (reason := scene.unscorable_reason) is not None:
        return reason
    agents, scored = scene.agents, scene.evaluated & scene.simulated
    valid = agents.valid[scored, _HISTORY:]
    masks = _counted(valid, agents.type[scored] == AgentType.VEHICLE, ttc_all_types)
    empty = [name for name in COMPONENTS if name in masks and not bool(masks[name].any())]
    if not empty:
        return None
    if not bool(valid.any()):
        return "no evaluated agent is recorded after the current step: likelihoods are 0/0"
    if empty == ["time_to_collision"]:
        return "no evaluated vehicle is recorded after the current step: time_to_collision is 0/0"
    return f"no evaluated agent is recorded long enough after the current step: {', '.join(empty)} are 0/0"


@lru_cache(maxsize=64)
def _weights(config: MetricConfig, device: torch.device) -> Tensor:
    """Weights [10] float64 of the components, float32 in the proto; kept, see ``estimators._constants``."""
    return torch.tensor([config.weights[name] for name in COMPONENTS], dtype=torch.float64).to(device)


def scored_values(
    context: SceneContext, sim: Features, ttc_all_types: bool = False
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor], Tensor]:
    """What the estimators compare, by component.

    Returns:
        Logged values [E, T] and simulated ones [R, E, T], T = 80, or 1 for indicators of an event at any step;
        masks [E, T] of the log-likelihoods that count; and by indicator whether an agent had the event
        [3, R, E, 1].
    """
    log = context.log_features
    assert log is not None
    valid = context.log_valid[: context.evaluated, _HISTORY:]  # [E, 80]
    masks = _counted(valid, context.is_vehicle, ttc_all_types)
    # Steps that are missing in the log do not count for the simulation either.
    logged_events, simulated_events = (scored_events(context, of).any(-1, keepdim=True) for of in (log, sim))
    vehicle = context.is_vehicle.unsqueeze(-1)
    counts = torch.stack(
        [vehicle if name == "traffic_light_violation" else torch.ones_like(vehicle) for name in INDICATORS]
    ).unsqueeze(1)
    values = {name: (getattr(log, name)[0], getattr(sim, name)) for name in masks}
    logged, simulated = ((events & counts).to(torch.float32) for events in (logged_events, simulated_events))
    values |= {name: (logged[row, 0], simulated[row]) for row, name in enumerate(INDICATORS)}
    masks |= dict.fromkeys(INDICATORS, torch.ones_like(vehicle))
    return values, masks, simulated_events


def scored_events(context: SceneContext, features: Features) -> Tensor:
    """Events [3, R, E, 80] by indicator, at the steps that the log has."""
    valid = context.log_valid[: context.evaluated, _HISTORY:]
    return torch.stack([getattr(features, field) for field in INDICATORS.values()]) & valid


def score_features(
    context: SceneContext, sim: Features, config: MetricConfig, ttc_all_types: bool = False
) -> SceneScore:
    """Score computed features; see ``score``."""
    timed, masks, simulated_events = scored_values(context, sim, ttc_all_types)
    inputs = [(*timed[name], config.component(name)) for name in COMPONENTS]
    masks = {name: mask for name, mask in masks.items() if name not in INDICATORS}
    found = dict(zip(COMPONENTS, log_likelihoods(inputs, drop_nan=not context.bug_compatible), strict=True))
    mask = torch.stack(list(masks.values()))  # [F, E, 80]
    counted = torch.where(mask, torch.stack([found[name] for name in masks]), 0.0)
    mean = (counted.flatten(1).sum(-1) / mask.flatten(1).sum(-1).to(torch.float32)).exp()
    by_agent, number = counted.sum(-1), mask.sum(-1)
    values = {f"{name}_likelihood": value for name, value in zip(masks, mean, strict=True)}
    per_agent = dict(zip(masks, by_agent, strict=True))
    samples = dict(zip(masks, number, strict=True))
    for name in INDICATORS:
        per_agent[name] = found[name].squeeze(-1)
        samples[name] = torch.ones_like(per_agent[name])
        values[f"{name}_likelihood"] = per_agent[name].mean().exp()
    events = {f"simulated_{field}_rate": row for field, row in zip(INDICATORS.values(), simulated_events[..., 0])}
    likelihoods = torch.stack([values[f"{name}_likelihood"] for name in COMPONENTS])
    metametric = (likelihoods.double() * _weights(config, likelihoods.device)).sum().float()
    # Over the future only, an agent without valid future steps has no error (NaN) and is skipped.
    displacement = torch.mean if context.bug_compatible else torch.nanmean
    values = {
        "metametric": metametric,
        "average_displacement_error": displacement(sim.displacement),
        "min_average_displacement_error": displacement(sim.displacement, dim=-1).min(),
        **{f"{name}_likelihood": values[f"{name}_likelihood"] for name in COMPONENTS},
        **dict(zip(events, simulated_events.float().flatten(1).mean(1), strict=True)),
    }
    return SceneScore(context.scenario_id, values, sim, per_agent, samples, events)


def mean_metrics(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Plain mean over scenes of every field, in double precision, as the leaderboard does.

    Raises:
        ValueError: NaN or infinity in a row.
    """
    for number, row in enumerate(rows):
        for name, value in row.items():
            if not math.isfinite(value):
                raise ValueError(f"row {number}: {name} is {value}")
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def buckets(metrics: Mapping[str, float], config: MetricConfig) -> dict[str, float]:
    """Kinematic, interactive and map-based score: likelihoods weighted within each bucket."""
    result = {"realism_meta_metric": metrics["metametric"]}
    for bucket, names in BUCKETS.items():
        weights = [config.weights[name] for name in names]
        total = sum(weight * metrics[f"{name}_likelihood"] for name, weight in zip(names, weights))
        result[bucket] = total / sum(weights)
    return result


@dataclass(frozen=True)
class Loss:
    """Loss of one agent and feature of a scene.

    Attributes:
        loss: of the meta-metric; the losses of a scene add up to 1 - meta-metric.
        likelihood: of this feature for this agent, exp of its mean log-likelihood.
    """

    scenario_id: str
    agent_id: int
    feature: str
    loss: float
    likelihood: float


def diagnose(context: SceneContext, score: SceneScore, config: MetricConfig) -> list[Loss]:
    """Losses of all evaluated agents and features of a scene, the largest first.

    A feature of weight w and likelihood L = exp(mean log-likelihood) loses w (1 - L). The loss is divided among
    agents in proportion to their negative log-likelihoods, so that all losses add up to 1 - meta-metric. A replay
    of the log also has a loss; the difference to it is what can be gained.
    """
    losses = []
    agents = context.agent_id[: context.evaluated].tolist()
    for name in COMPONENTS:
        weight = config.component(name).weight
        missing = weight * (1.0 - float(score.values[f"{name}_likelihood"]))
        surprise = -score.agent_log_likelihood[name].double()
        fraction = surprise / surprise.sum().clamp(min=1e-12)
        # A feature without samples, such as time to collision of a pedestrian, has likelihood 1.
        mean = torch.exp(-surprise / score.agent_samples[name].clamp(min=1))
        losses += [
            Loss(score.scenario_id, agent, name, missing * part, likelihood)
            for agent, part, likelihood in zip(agents, fraction.tolist(), mean.tolist(), strict=True)
        ]
    return sorted(losses, key=lambda loss: -loss.loss)
