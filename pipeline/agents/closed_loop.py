"""A quick score of a model in closed loop during training: distance from the log, realism, and how agents move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import warn_once
from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, Scene
from pipeline.agents.agent import Agent
from pipeline.evaluation.motion import motion_figures, motion_sums
from submission.realism import METRIC_FIELDS, load_config, prepare_scene, score, unscorable_reason

# Fields of the metric beside the meta-metric and displacement errors: likelihoods and rates.
METRIC_PARTS = tuple(name for name in METRIC_FIELDS if name.endswith(("_likelihood", "_rate")))
# Of a policy in training.
_SHOWN = {
    "realism": "realism",
    "simulated_collision_rate": "collision_rate",
    "simulated_offroad_rate": "off_road_rate",
}
_ERRORS = ("ade_m", "min_ade_m", "constant_velocity_ade_m", "diversity_m")


@dataclass(frozen=True)
class SceneFigures:
    """What the rollouts of one scene give.

    Attributes:
        errors: [A', 4] of the agents that the log has in the future, by the names of ``_ERRORS``.
        metric: fields of the metric; empty where the scene cannot be scored. motion: of ``motion_sums``.
    """

    errors: Tensor
    metric: dict[str, float]
    motion: dict[str, float]


def scene_figures(scene: Scene, states: Tensor, types: Sequence[int] | None = None) -> SceneFigures:
    """Figures of one scene with a future.

    Args:
        states: of ``Agent.rollouts``. types: as of ``closed_loop_figures``.
    """
    agents, simulated = scene.agents, scene.simulated
    future = slice(CURRENT_INDEX + 1, CURRENT_INDEX + 1 + FUTURE_STEPS)
    log, valid = agents.position[simulated, future, :2], agents.valid[simulated, future]
    reason = unscorable_reason(scene)
    if reason is not None and scene.has_future:
        warn_once(f"scenario {scene.scenario_id}: cannot be scored, its realism does not count ({reason})")
    metric: dict[str, float] = {}
    if reason is None:
        values = score(prepare_scene(scene), agents.id[simulated], states, load_config("2025")).values
        metric = {name: float(values[name]) for name in METRIC_FIELDS}
    sampled = states[..., :2]
    time = STEP_SECONDS * torch.arange(1, FUTURE_STEPS + 1).unsqueeze(-1)
    start, velocity = agents.position[:, CURRENT_INDEX, :2], agents.velocity[:, CURRENT_INDEX]
    straight = start[simulated].unsqueeze(1) + velocity[simulated].unsqueeze(1) * time
    errors = torch.cat((sampled, straight.unsqueeze(0))).sub(log).norm(dim=-1) * valid  # [R + 1, A, 80]
    known = valid.any(-1)
    mean = (errors.sum(-1) / valid.sum(-1).clamp(min=1))[:, known]
    columns = (mean[:-1].mean(0), mean[:-1].amin(0), mean[-1], _diversity(sampled)[known])
    motion = motion_sums(scene, agents.id[simulated], states, types)
    return SceneFigures(torch.stack(columns, dim=-1), metric, motion)


def _diversity(position: Tensor) -> Tensor:
    """Mean distance [A] between two of the futures [R, A, T, 2] of an agent at the same time; 0 of a single one."""
    count = len(position)
    total = position.new_zeros(position.shape[1])
    for shift in range(1, count):
        total += (position - position.roll(shift, 0)).norm(dim=-1).mean(-1).sum(0)
    return total / max(1, count * (count - 1))


def mean_figures(rows: Sequence[SceneFigures]) -> dict[str, float]:
    """Errors and diversity as means over agents; ``realism`` and ``METRIC_PARTS`` as means over scorable scenes."""
    errors = torch.cat([row.errors for row in rows]) if rows else torch.zeros(0, len(_ERRORS))
    means = dict(zip(_ERRORS, errors.double().mean(0).tolist(), strict=True)) if len(errors) else {}
    scored = [row.metric for row in rows if row.metric]
    for name in ("metametric", *METRIC_PARTS) if scored else ():
        means["realism" if name == "metametric" else name] = sum(row[name] for row in scored) / len(scored)
    return means


def closed_loop_figures(
    agent: Agent, scenes: Iterable[Scene], rollouts: int, seed: int, types: Sequence[int] | None = None
) -> dict[str, float]:
    """Displacement errors of all simulated agents over the future steps that the log has, realism, and motion.

    Args:
        agent: who drives all simulated agents. scenes: single, with futures. rollouts: of each. seed: of them.
        types: the values of ``AgentType`` whose motion counts; None for all.

    Returns:
        ``ade_m`` (mean over rollouts), ``min_ade_m`` (of each agent's best rollout) and
        ``constant_velocity_ade_m``, means over agents in metres; ``realism``, ``collision_rate`` and
        ``off_road_rate``, means of the metric over scenes; and the figures of ``evaluation.motion``. What no scene
        allows is left out. Fewer rollouts than the challenge's
        32 give lower likelihoods: compare only with figures of this kind.
    """
    rows = [scene_figures(scene, states, types) for scene, states in agent.rollouts_of(scenes, rollouts, seed)]
    means = mean_figures(rows)
    basic = {_SHOWN.get(name, name): means[name] for name in (*_ERRORS[:3], *_SHOWN) if name in means}
    return basic | motion_figures([row.motion for row in rows])
