"""How agents move beside the log: speed, standing, progress and jerk of those whose log moves.

Realism prefers agents that stand to agents that collide, so these figures belong beside it. Counted are simulated
agents whose last recorded position is not where they are now (``moves`` of a world), at the steps that the log has;
what an agent did while its log is missing counts on neither side. All are distances in the plane:

    speed      of the last 0.1 s, after 2, 4, 6 and 8 s; the ratio is that of the means of the same agents
    standing   fraction of agents slower than ``STANDING`` after 8 s
    progress   metres along the agent's own path in 8 s
    jerk       mean magnitude of the third derivative of the position, by a cubic fitted to every 1.5 s (the window
               of the planners' comfort): differences of 0.1 s would measure rounding and tokens, not driving

Sums of scenes add up, so a figure of many scenes is the ratio of two sums.

Shape legend: R rollouts, A simulated agents, M of them that move, T steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, Scene
from data.tokenizer import scene_origin
from pipeline.evaluation.statistics import ratio_intervals
from pipeline.simulator.world import STILL

SECONDS = (2, 4, 6, 8)
# Slower agents stand, m/s.
STANDING = 0.5
# Steps of 0.1 s, and the degree of the polynomial.
_WINDOW, _DEGREE = 15, 3
# Figures by name, as sums of ``motion_sums``: the first divided by the second.
FIGURES: dict[str, tuple[str, str]] = {
    **{f"speed_ratio_{second}s": (f"speed_{second}s", f"log_speed_{second}s") for second in SECONDS},
    "standing": ("standing", "agents_8s"),
    "log_standing": ("log_standing", "agents_8s"),
    "progress_ratio": ("progress", "log_progress"),
    "progress_m": ("progress", "agents"),
    "log_progress_m": ("log_progress", "agents"),
    "jerk_mps3": ("jerk", "windows"),
    "log_jerk_mps3": ("log_jerk", "windows"),
}


def _indices() -> list[int]:
    """Which of the 80 future steps the moments of ``SECONDS`` are."""
    return [round(second / STEP_SECONDS) - 1 for second in SECONDS]


def speeds(position: Tensor) -> Tensor:
    """[..., 4] m/s after 2, 4, 6 and 8 s, of future positions [..., 80, 2] in metres."""
    at = torch.tensor(_indices(), device=position.device)
    return (position[..., at, :] - position[..., at - 1, :]).norm(dim=-1) / STEP_SECONDS


@lru_cache(maxsize=1)
def _third_derivative() -> Tensor:
    """[15] float64: what positions of a window are multiplied by, 1/s^3."""
    time = STEP_SECONDS * (torch.arange(_WINDOW, dtype=torch.float64) - _WINDOW // 2)
    # The coefficient of t^3 of the least-squares cubic; 3! of it is its third derivative.
    return 6.0 * torch.linalg.pinv(torch.vander(time, _DEGREE + 1, increasing=True))[_DEGREE]


def _jerk(position: Tensor) -> Tensor:
    """[..., T - 14] m/s^3 in every window of 1.5 s, of positions [..., T, 2] float64."""
    kernel = _third_derivative().to(position.device)
    windows = position.shape[-2] - _WINDOW + 1
    parts = (position[..., first : first + windows, :] * kernel[first] for first in range(_WINDOW))
    return sum(parts, torch.zeros((), device=position.device)).norm(dim=-1)


def motion_sums(
    scene: Scene, agent_id: Tensor, states: Tensor, types: Sequence[int] | None = None
) -> dict[str, float]:
    """Sums of one scene, from which ``motion_figures`` makes the figures of many.

    Args:
        scene: single, with a future; without one all sums are 0.
        agent_id: [A] int64. states: [R, A, 80, 4] x, y, z, heading (global, metres, radians) in the order of
            ``agent_id``, of exactly the simulated agents; on any device.
        types: the values of ``AgentType`` that count; None for all.

    Returns:
        Means over rollouts, summed over agents (``jerk``: over windows too): ``speed_2s`` to ``speed_8s``,
        ``standing``, ``progress``, ``jerk``, each with ``log_`` for the log; and counts: ``agents_8s``, ``agents``,
        ``windows``.
    """
    agents, device = scene.agents, states.device
    simulated = scene.simulated
    origin = scene_origin(scene)
    position = (agents.position[simulated, :, :2] - origin).to(device)
    valid = agents.valid[simulated].to(device)
    last = torch.where(valid, torch.arange(scene.num_steps, device=device), -1).amax(-1)
    ends = position.gather(1, last.view(-1, 1, 1).expand(-1, 1, 2)).squeeze(1)
    moves = (ends - position[:, CURRENT_INDEX]).norm(dim=-1) > STILL
    if types is not None:
        moves &= torch.isin(agents.type[simulated], torch.tensor(types)).to(device)
    chosen = moves.nonzero().flatten()
    rows = (agents.id[simulated].to(device)[chosen, None] == agent_id.to(device)).int().argmax(-1)

    shape = (len(chosen), CURRENT_INDEX + 1 + FUTURE_STEPS)
    recorded, known = position.new_zeros(*shape, 2), valid.new_zeros(shape)
    recorded[:, : scene.num_steps], known[:, : scene.num_steps] = position[chosen], valid[chosen]
    log, known = recorded[:, CURRENT_INDEX:].double(), known[:, CURRENT_INDEX:]  # [M, 81]
    future = (states[:, rows, :, :2] - origin.to(device)).double()
    sampled = torch.cat((log[None, :, :1].expand(len(future), -1, -1, -1), future), dim=2)
    # The log first, then R rollouts.
    path = torch.cat((log[None], sampled))  # [1 + R, M, 81, 2]

    def both(values: Tensor, counts: Tensor) -> list[Tensor]:
        """Of the log, and the mean over rollouts: sums of values [1 + R, ...] where they count."""
        totals = torch.where(counts, values.double(), 0.0).flatten(1).sum(1)
        return [totals[1:].mean(), totals[0]]

    pair = known[:, 1:] & known[:, :-1]  # [M, 80]
    speed, at = speeds(path[:, :, 1:]), pair[:, _indices()]  # [1 + R, M, 4]
    whole = known.unfold(-1, _WINDOW, 1).all(-1)  # [M, 67]
    values = {f"speed_{second}s": both(speed[..., n], at[:, n]) for n, second in enumerate(SECONDS)}
    values["standing"] = both(speed[..., -1] < STANDING, at[:, -1])
    values["progress"] = both(path.diff(dim=2).norm(dim=-1), pair)
    values["jerk"] = both(_jerk(path), whole)
    sums = {f"{log}{name}": v for name, two in values.items() for log, v in zip(("", "log_"), two, strict=True)}
    sums |= {"agents_8s": at[:, -1].sum(), "agents": pair.any(-1).sum(), "windows": whole.sum()}
    return dict(zip(sums, torch.stack([value.double() for value in sums.values()]).tolist(), strict=True))


def motion_figures(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The figures of ``FIGURES`` over scenes; what is divided by 0 is left out.

    Args:
        rows: of ``motion_sums``, one for each scene.
    """
    totals = {name: sum(row[name] for row in rows) for pair in FIGURES.values() for name in pair}
    return {name: totals[top] / totals[bottom] for name, (top, bottom) in FIGURES.items() if totals[bottom] > 0}


def motion_intervals(rows: Sequence[Mapping[str, float]], seed: int = 0) -> dict[str, tuple[float, float]]:
    """95 % bootstrap intervals over scenes of ``motion_figures``; undefined ones are left out.

    Args:
        rows: of ``motion_sums``, one for each scene. seed: of the resampling.
    """
    found = ratio_intervals(rows, FIGURES, seed)
    return {name: ends for name, ends in found.items() if math.isfinite(ends[0])}
