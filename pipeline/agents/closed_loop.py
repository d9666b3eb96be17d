"""A quick score of a model in closed loop during training: distance from the log, realism, and how agents move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from data.errors import warn_once
from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, Scene
from pipeline.agents.agent import Agent
from pipeline.evaluation.motion import motion_figures, motion_sums
from submission.realism import load_config, prepare_scene, score, unscorable_reason

_SCORES = {
    "realism": "metametric",
    "collision_rate": "simulated_collision_rate",
    "off_road_rate": "simulated_offroad_rate",
}


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
    config = load_config("2025")
    rows: list[Tensor] = []
    scores: list[list[float]] = []
    motion: list[dict[str, float]] = []
    for scene in scenes:
        agents = scene.agents
        simulated = scene.simulated
        future = slice(CURRENT_INDEX + 1, CURRENT_INDEX + 1 + FUTURE_STEPS)
        log, valid = agents.position[simulated, future, :2], agents.valid[simulated, future]
        states = agent.rollouts(scene, rollouts, seed)
        motion.append(motion_sums(scene, agents.id[simulated], states, types))
        reason = unscorable_reason(scene)
        if reason is not None and scene.has_future:
            warn_once(f"scenario {scene.scenario_id}: cannot be scored, its realism does not count ({reason})")
        if reason is None:
            result = score(prepare_scene(scene), agents.id[simulated], states, config)
            scores.append([float(result.values[name]) for name in _SCORES.values()])
        sampled = states[..., :2]
        time = STEP_SECONDS * torch.arange(1, FUTURE_STEPS + 1).unsqueeze(-1)
        start, velocity = agents.position[:, CURRENT_INDEX, :2], agents.velocity[:, CURRENT_INDEX]
        straight = start[simulated].unsqueeze(1) + velocity[simulated].unsqueeze(1) * time
        errors = torch.cat((sampled, straight.unsqueeze(0))).sub(log).norm(dim=-1) * valid  # [R + 1, A, 80]
        known = valid.any(-1)
        mean = (errors.sum(-1) / valid.sum(-1).clamp(min=1))[:, known]
        rows.append(torch.stack((mean[:-1].mean(0), mean[:-1].amin(0), mean[-1]), dim=-1))
    figures = torch.cat(rows) if rows else torch.zeros(0, 3)
    names = ("ade_m", "min_ade_m", "constant_velocity_ade_m") if len(figures) else ()
    means = dict(zip(names, figures.double().mean(0).tolist(), strict=False))
    parts = [sum(column) / len(scores) for column in zip(*scores, strict=True)]
    return means | dict(zip(_SCORES, parts, strict=False)) | motion_figures(motion)
