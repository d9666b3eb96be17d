"""How far sampled futures end up from the log, beside constant velocity: a quick look, not the realism metric."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, Scene
from models.reference.agent import ReferenceAgent

__all__ = ["rollout_error"]


def rollout_error(agent: ReferenceAgent, scenes: Iterable[Scene], rollouts: int, seed: int) -> dict[str, float]:
    """Displacement errors over the future steps that the log has, metres, of the simulated agents.

    Returns:
        ``ade`` (mean over rollouts), ``min_ade`` (of each agent's best rollout), ``constant_velocity_ade``, all
        means over agents; empty without any agent that has a future.
    """
    rows: list[Tensor] = []
    for scene in scenes:
        agents = scene.agents
        simulated = scene.simulated
        future = slice(CURRENT_INDEX + 1, CURRENT_INDEX + 1 + FUTURE_STEPS)
        log, valid = agents.position[simulated, future, :2], agents.valid[simulated, future]
        sampled = agent.rollouts(scene, rollouts, seed)[..., :2]
        time = STEP_SECONDS * torch.arange(1, FUTURE_STEPS + 1).unsqueeze(-1)
        start, velocity = agents.position[:, CURRENT_INDEX, :2], agents.velocity[:, CURRENT_INDEX]
        straight = start[simulated].unsqueeze(1) + velocity[simulated].unsqueeze(1) * time
        errors = torch.cat((sampled, straight.unsqueeze(0))).sub(log).norm(dim=-1) * valid  # [R + 1, A, 80]
        known = valid.any(-1)
        mean = (errors.sum(-1) / valid.sum(-1).clamp(min=1))[:, known]
        rows.append(torch.stack((mean[:-1].mean(0), mean[:-1].amin(0), mean[-1]), dim=-1))
    figures = torch.cat(rows) if rows else torch.zeros(0, 3)
    if not len(figures):
        return {}
    return dict(zip(("ade", "min_ade", "constant_velocity_ade"), figures.double().mean(0).tolist(), strict=True))
