"""Augmentation of batches of recordings, with uniform numbers drawn for each scene.

The numbers are a function of (seed, step, scene), so they do not depend on the number of loaders or devices. Shape
legend: B scenes, A agents, T steps, N tokens, M pieces, S lights.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from data.errors import UserError
from data.geometry import rotate, wrap_angle
from data.scene import CURRENT_INDEX, generator_for
from models.reference.recording import Recording


@dataclass(frozen=True)
class AugmentationConfig:
    """Augmentation of recordings for training; probabilities are per scene or per agent.

    Args:
        mirror: probability that a scene is mirrored left to right.
        rotate: rotate every scene by a random angle. The reference uses relative poses only, so this changes its
            logits by rounding only; it is for models with absolute poses.
        time_shift: a scene starts up to this many steps of 0.1 s later; missing steps at its end become invalid.
        agent_drop: probability that an agent is removed from the scene.
        history_drop: probability that an agent has no history before the current step (0.1 in CAT-K).
        noise: probability that a token of the context is a random near one instead of the nearest, so that the
            model
            learns to recover (SMART, Trajeglish). The target is the token that leads back to the recording.
        noise_choices: number of nearest tokens that the noisy one is drawn from.
    """

    mirror: float = 0.5
    rotate: bool = False
    time_shift: int = 0
    agent_drop: float = 0.0
    history_drop: float = 0.1
    noise: float = 0.2
    noise_choices: int = 5

    def __post_init__(self) -> None:
        for name in ("mirror", "agent_drop", "history_drop", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augment.{name} is {getattr(self, name)}; it must be in [0, 1]")
        if self.time_shift < 0 or self.noise_choices < 1:
            raise UserError("augment: time_shift must be at least 0 and noise_choices at least 1")


@dataclass(frozen=True)
class Draws:
    """Uniform numbers in [0, 1) for the augmentation of a batch."""

    scene: Tensor  # [B, 3] mirror, angle, shift
    agent: Tensor  # [B, A, 2] drop, drop of the history
    token: Tensor  # [B, A, N, 2] noise, which token


def draw_for(seed: int, step: int, row: int, agents: int, tokens: int) -> Draws:
    """Uniform numbers of one scene (B = 1); ``row`` is the index of the scene, ``agents`` A and ``tokens`` N."""
    generator = generator_for(seed, f"{step}/{row}")
    shapes = ((1, 3), (1, agents, 2), (1, agents, tokens, 2))
    return Draws(*(torch.rand(shape, generator=generator) for shape in shapes))


def augment(recording: Recording, draws: Draws, config: AugmentationConfig) -> Recording:
    """Drop agents and histories of a batch, and shift, mirror and rotate its scenes."""
    if config.agent_drop:
        dropped = draws.agent[..., 0] < config.agent_drop
        recording = dataclasses.replace(recording, valid=recording.valid & ~dropped.unsqueeze(-1))
    if config.time_shift:
        recording = _shift(recording, (draws.scene[:, 2] * (config.time_shift + 1)).long())
    if config.history_drop:
        recording = _hide_history(recording, draws.agent[..., 1] < config.history_drop)
    if config.mirror:
        recording = _mirror(recording, draws.scene[:, 0] < config.mirror)
    if config.rotate:
        recording = _rotate(recording, (2 * draws.scene[:, 1] - 1) * math.pi)
    return recording


def token_ranks(draws: Draws, config: AugmentationConfig) -> Tensor | None:
    """Ranks [B, A, N] for ``tokenize_noisy``; None for the nearest tokens."""
    if not config.noise:
        return None
    other = (draws.token[..., 1] * config.noise_choices).long()
    return torch.where(draws.token[..., 0] < config.noise, other, 0)


def _hide_history(recording: Recording, hidden: Tensor) -> Recording:
    """Invalidate the steps before the current one of some agents [B, A]; their last token is extrapolated then."""
    early = torch.arange(recording.valid.shape[-1], device=hidden.device) < CURRENT_INDEX
    return dataclasses.replace(recording, valid=recording.valid & ~(hidden.unsqueeze(-1) & early))


def _shift(recording: Recording, shift: Tensor) -> Recording:
    """Start ``shift`` [B] steps later."""
    steps = recording.valid.shape[-1]
    index = torch.arange(steps, device=shift.device) + shift.unsqueeze(-1)  # [B, T]
    exists = (index < steps).unsqueeze(1)
    index = index.clamp(max=steps - 1)

    def take(values: Tensor) -> Tensor:
        at = index.view(len(index), 1, steps, *(1,) * (values.dim() - 3)).expand_as(values)
        return values.gather(2, at)

    return dataclasses.replace(
        recording,
        light_state=take(recording.light_state),
        light_observed=take(recording.light_observed) & exists,
        pose=take(recording.pose),
        velocity=take(recording.velocity),
        valid=take(recording.valid) & exists,
    )


def _moved(recording: Recording, move: Callable[[Tensor, bool], Tensor]) -> Recording:
    """Apply ``move(values, whether they are poses)`` to all positions, poses and velocities."""
    pieces = recording.pieces
    return dataclasses.replace(
        recording,
        pieces=dataclasses.replace(pieces, point=move(pieces.point, False), pose=move(pieces.pose, True)),
        pose=move(recording.pose, True),
        velocity=move(recording.velocity, False),
    )


def _mirror(recording: Recording, mirrored: Tensor) -> Recording:
    """Reflect some scenes [B] at the x axis."""
    sign = torch.where(mirrored, -1.0, 1.0)

    def flipped(values: Tensor, is_pose: bool) -> Tensor:
        factor = sign.view(-1, *(1,) * (values.dim() - 2))
        rest = [wrap_angle(values[..., 2] * factor)] if is_pose else []
        return torch.stack((values[..., 0], values[..., 1] * factor, *rest), dim=-1)

    return _moved(recording, flipped)


def _rotate(recording: Recording, angle: Tensor) -> Recording:
    """Rotate each scene about its centre by ``angle`` [B]."""

    def rotated(values: Tensor, is_pose: bool) -> Tensor:
        about = angle.view(-1, *(1,) * (values.dim() - 2)).expand(values.shape[:-1])
        position = rotate(values[..., :2], about)
        if not is_pose:
            return position
        return torch.cat((position, wrap_angle(values[..., 2] + about).unsqueeze(-1)), dim=-1)

    return _moved(recording, rotated)
