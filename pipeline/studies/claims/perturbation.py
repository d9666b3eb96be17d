"""Smooth disturbances of recorded motion: drives that look like the log from afar and are not it.

Shape legend: R draws, A agents, T steps of 0.1 s.
"""

from __future__ import annotations

import torch
from torch import Tensor

from data.geometry import wrap_angle

__all__ = ["perturbed", "smooth_noise"]

# Standard deviation of the Gaussian that white noise is smoothed with, steps: a disturbance lasts about a second.
_SMOOTHNESS = 10
# Steps over which it grows from nothing, since all futures begin where the record is.
_ONSET = 20
# How much the heading is disturbed for each metre, radians.
_TURN = 0.1


def smooth_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """[..., T] Gaussian noise of unit variance that changes over about a second."""
    steps = shape[-1]
    half = 3 * _SMOOTHNESS
    kernel = torch.exp(-0.5 * (torch.arange(-half, half + 1) / _SMOOTHNESS).square())
    kernel = kernel / kernel.square().sum().sqrt()
    white = torch.randn(*shape[:-1], steps + 2 * half, generator=generator)
    return white.unfold(-1, 2 * half + 1, 1) @ kernel


def perturbed(states: Tensor, moving: Tensor, sigma: float, draws: int, generator: torch.Generator) -> Tensor:
    """Disturb futures of agents that move; who stands goes on standing.

    Args:
        states: [A, T, 4] x, y, z, heading. moving: [A] bool.
        sigma: standard deviation of x and of y behind the onset, metres; that of the heading is 0.1 rad a metre.
        draws: R. generator: of the noise.

    Returns:
        [R, A, T, 4].
    """
    agents, steps = states.shape[:2]
    onset = (torch.arange(1, steps + 1) / _ONSET).clamp(max=1.0)
    noise = smooth_noise((draws, agents, 3, steps), generator).transpose(-1, -2) * onset.unsqueeze(
        -1
    )  # [R, A, T, 3]
    noise = torch.where(moving[:, None, None], sigma * noise, 0.0)
    result = states.expand(draws, -1, -1, -1).clone()
    result[..., :2] += noise[..., :2]
    result[..., 3] = wrap_angle(result[..., 3] + _TURN * noise[..., 2])
    return result
