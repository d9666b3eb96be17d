"""From features to the realism meta-metric of a scene (wosac metric, ``SimAgentMetrics``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.scene import CURRENT_INDEX, AgentType, Scene
from submission.realism.config import COMPONENTS, MetricConfig
from submission.realism.estimators import indicator_log_likelihood, timeseries_log_likelihood
from submission.realism.features import Features, SceneContext, compute_features
from submission.realism.kinematics import central_and

__all__ = [
    "METRIC_FIELDS",
    "SceneScore",
    "align",
    "score",
    "score_features",
    "score_scenes",
    "score_states",
    "unscorable_reason",
]

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
_INDICATORS = {
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
        agent_samples: for each feature how many log-likelihoods that sum has [E].
        agent_events: by the fields of the rates, whether it happened to an evaluated agent [R, E].
    """

    scenario_id: str
    values: dict[str, Tensor]
    features: Features
    agent_log_likelihood: dict[str, Tensor]
    agent_samples: dict[str, Tensor]
    agent_events: dict[str, Tensor]


def align(context: SceneContext, agent_id: Tensor, states: Tensor) -> Tensor:
    """Bring simulated states [R, A, 80, 4] into the order of the context.

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
        ttc_all_types: time to collision counts for all types, as the 2024 leaderboard did, not for vehicles alone.
    """
    return score_states(context, align(context, agent_id, states), config, ttc_all_types)


def score_states(
    context: SceneContext, states: Tensor, config: MetricConfig, ttc_all_types: bool = False
) -> SceneScore:
    """Score states [R, A, 80, 4] whose agents are in the order of ``context.agent_id``; see ``score``.

    For use inside training: on a GPU nothing here waits for the host, and the values are tensors there.
    """
    return score_features(context, compute_features(context, states), config, ttc_all_types)


def score_scenes(
    contexts: Sequence[SceneContext], states: Sequence[Tensor], config: MetricConfig, ttc_all_types: bool = False
) -> dict[str, Tensor]:
    """Fields of the proto [B] of B scenes; see ``score_states``. Scenes queue up on a device, one by one."""
    rows = [score_states(*item, config, ttc_all_types).values for item in zip(contexts, states, strict=True)]
    return {name: torch.stack([row[name] for row in rows]) for name in METRIC_FIELDS}


def _mean(values: Tensor, valid: Tensor) -> Tensor:
    return torch.where(valid, values, 0.0).sum() / valid.sum().to(torch.float32)


def _counted(valid: Tensor, is_vehicle: Tensor, ttc_all_types: bool) -> dict[str, Tensor]:
    """Which log-likelihoods [E, 80] of features over time count; valid: [E, 80] of the log, is_vehicle: [E]."""
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
    """Why a scene has no score whatever is simulated, or None if it has one.

    Waymo's code refuses it, or one of its likelihoods is the mean of nothing, 0/0, which makes the meta-metric NaN.

    Args:
        scene: a single one, on a CPU. ttc_all_types: as in ``score``.
    """
    if (reason := scene.unscorable_reason) is not None:
        return reason
    agents, chosen = scene.agents, scene.evaluated & scene.simulated
    valid = agents.valid[chosen, _HISTORY:]
    masks = _counted(valid, agents.type[chosen] == AgentType.VEHICLE, ttc_all_types)
    empty = [name for name in COMPONENTS if name in masks and not bool(masks[name].any())]
    if not empty:
        return None
    if not bool(valid.any()):
        return "no evaluated agent is recorded after the current step: likelihoods are 0/0"
    if empty == ["time_to_collision"]:
        return "no evaluated vehicle is recorded after the current step: time_to_collision is 0/0"
    return f"no evaluated agent is recorded long enough after the current step: {', '.join(empty)} are 0/0"


def score_features(
    context: SceneContext, sim: Features, config: MetricConfig, ttc_all_types: bool = False
) -> SceneScore:
    """Score features that have been computed before; see ``score``."""
    log = context.log_features
    assert log is not None
    valid = context.log_valid[: context.evaluated, _HISTORY:]  # [E, 80]
    vehicle = context.is_vehicle.unsqueeze(-1)
    masks = _counted(valid, context.is_vehicle, ttc_all_types)
    values: dict[str, Tensor] = {}
    per_agent: dict[str, Tensor] = {}
    samples: dict[str, Tensor] = {}
    events: dict[str, Tensor] = {}
    for name in COMPONENTS:
        if name in _INDICATORS:
            field = _INDICATORS[name]
            # Steps that the log lacks are not held against the simulation either.
            mask = valid & vehicle if name == "traffic_light_violation" else valid
            logged = (getattr(log, field) & mask).any(-1)[0]
            simulated = (getattr(sim, field) & mask).any(-1)
            events[f"simulated_{field}_rate"] = (getattr(sim, field) & valid).any(-1)
            likelihood = indicator_log_likelihood(logged, simulated, config.component(name))
            values[f"{name}_likelihood"] = likelihood.mean().exp()
            per_agent[name], samples[name] = likelihood, torch.ones_like(likelihood)
        else:
            likelihood = timeseries_log_likelihood(
                getattr(log, name)[0],
                getattr(sim, name),
                config.component(name),
                drop_nan=not context.bug_compatible,
            )
            values[f"{name}_likelihood"] = _mean(likelihood, masks[name]).exp()
            per_agent[name] = torch.where(masks[name], likelihood, 0.0).sum(-1)
            samples[name] = masks[name].sum(-1)
    # Weights are float32 in the proto, the sum is taken in double precision and in this order.
    total = sum(config.weights[name] * values[f"{name}_likelihood"].double() for name in COMPONENTS)
    assert isinstance(total, Tensor)
    metametric = total.float()
    # Of the future alone, an agent that is recorded at the current step only has no error. It does not count.
    displacement = torch.mean if context.bug_compatible else torch.nanmean
    values = {
        "metametric": metametric,
        "average_displacement_error": displacement(sim.displacement),
        "min_average_displacement_error": displacement(sim.displacement, dim=-1).min(),
        **values,
        **{name: happened.float().mean() for name, happened in events.items()},
    }
    return SceneScore(context.scenario_id, values, sim, per_agent, samples, events)
