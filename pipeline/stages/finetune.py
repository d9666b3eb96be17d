"""Stage ``finetune``: fine-tuning of the reference in closed loop, by one of two methods.

``realism`` trains on the realism meta-metric itself (see ``pipeline.fitting.realism``). ``closed_loop`` is
supervised (CAT-K, arXiv 2412.05334):
The model is rolled out, at each step taking that of its own likeliest tokens which leads nearest to the log; what
it must learn there is the token that leads from where it got to back to the log. As step-by-step logits equal
teacher-forced ones and the choice carries no gradient, the rollout runs without gradients, and one teacher-forced
pass over what it executed gives the gradients through all cached features.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from data.files import sha256_of
from data.scene import CURRENT_INDEX
from data.tokenizer import MotionTokens, local_pose, match_token
from data.vocabulary import corner_distance, pose_corners
from models.reference.augmentation import AugmentationConfig
from models.reference.checkpoint import load_reference
from models.reference.engine import Engine
from models.reference.inputs import SceneInputs
from models.reference.loss import token_loss
from models.reference.network import Reference
from pipeline.fitting import FitConfig, Loss, fit_reference
from pipeline.fitting.realism import RealismConfig, RealismLoss

_METHODS = ("closed_loop", "realism")
# The metric knows the scene as it was recorded.
_UNCHANGED = AugmentationConfig(mirror=0.0, history_drop=0.0, noise=0.0)


@dataclass(frozen=True)
class FinetuneConfig:
    """Fine-tuning of a pretrained reference.

    Args:
        method: closed_loop (CAT-K) or realism (policy gradient of the realism meta-metric).
        top_k: of how many of its likeliest tokens the model takes the one nearest to the log (closed_loop).
        max_error: where the rollout is further than this from the log, metres of mean corner distance, nothing is
            learnt: the token back to the log would be a jump, not driving (closed_loop).
        freeze_encoders: train only the agent layers and the head, not the map encoder and the embeddings.
        realism: options of the method realism.
        fit: optimisation, batches and validation. The method realism takes scenes as they are recorded, without
            ``fit.augment``.
    """

    method: str = "closed_loop"
    top_k: int = 32
    max_error: float = 1.0
    freeze_encoders: bool = True
    realism: RealismConfig = field(default_factory=RealismConfig)
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(
            steps=200,
            learning_rate=2e-4,
            warmup_steps=10,
            final_rate=0.05,
            validate_every=100,
            augment=AugmentationConfig(history_drop=0.0, noise=0.0),
        )
    )

    def __post_init__(self) -> None:
        if self.top_k < 1 or self.max_error <= 0:
            raise UserError("finetune: top_k must be at least 1 and max_error above 0")
        if self.method not in _METHODS:
            raise UserError(f"--method {self.method}: choose one of {', '.join(_METHODS)}")


@dataclass(frozen=True)
class ClosedLoop:
    """What a rollout executed, and the tokens that would have led back to the log."""

    tokens: MotionTokens  # [B, A, N] history and executed tokens
    target: Tensor  # [B, A, N] int64
    mask: Tensor  # [B, A, N] bool, future tokens whose start and end the log has, and that start near it


def nearest_of_likeliest(
    model: Reference, inputs: SceneInputs, step: int, logits: Tensor, pose: Tensor, top_k: int
) -> Tensor:
    """Ids [B, A]: of the ``top_k`` likeliest tokens the one that leads nearest to the log, or the likeliest where
    the log has no pose.

    Args:
        step: number of the new token. logits: [B, A, K]. pose: [B, A, 3].
    """
    vocabulary, types = model.vocabulary, inputs.agents.types
    boundary = CURRENT_INDEX // vocabulary.token_steps + step + 1
    # Sorted, so that the first of them is the likeliest.
    likely = logits.topk(min(top_k, vocabulary.size), dim=-1).indices  # [B, A, k]
    goal = local_pose(inputs.recorded[:, :, boundary], pose)
    corners = vocabulary.corners[types.unsqueeze(-1), likely]  # [B, A, k, 4, 2]
    distance = corner_distance(corners, pose_corners(goal, vocabulary.box[types]).unsqueeze(-3))
    best = likely.gather(-1, distance.argmin(-1, keepdim=True)).squeeze(-1)
    return torch.where(inputs.tokens.pose_valid[:, :, boundary], best, likely[..., 0])


@torch.no_grad()
def roll_out(model: Reference, inputs: SceneInputs, top_k: int, max_error: float) -> ClosedLoop:
    """Roll the model out on a batch, near to the log."""
    vocabulary, tokens = model.vocabulary, inputs.tokens
    first, count = CURRENT_INDEX // vocabulary.token_steps, tokens.ids.shape[-1]
    training = model.training
    rollout = Engine(model).rollout(
        model.encode_batch(inputs),
        inputs.agents,
        tokens,
        inputs.lights,
        1,
        count - first,
        lambda step, logits, pose: nearest_of_likeliest(model, inputs, step, logits, pose, top_k),
    )
    model.train(training)
    executed = rollout.executed(inputs.agents, tokens)
    start, types = executed.poses[:, :, :-1], inputs.agents.types.unsqueeze(-1).expand(-1, -1, count)
    target, _ = match_token(vocabulary, start, inputs.recorded[:, :, 1:], types)
    box = vocabulary.box[types]
    error = corner_distance(pose_corners(start, box), pose_corners(inputs.recorded[:, :, :-1], box))
    mask = tokens.pose_valid[..., :-1] & tokens.pose_valid[..., 1:] & inputs.learnt.unsqueeze(-1)
    mask = mask & (torch.arange(count, device=mask.device) >= first) & (error <= max_error)
    return ClosedLoop(executed, target, mask)


@dataclass(frozen=True)
class ClosedLoopLoss:
    """Cross-entropy of the tokens that lead back to the log, along a rollout of the model."""

    top_k: int
    max_error: float

    def __call__(self, model: Reference, inputs: SceneInputs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        loop = roll_out(model, inputs, self.top_k, self.max_error)
        logits = model(dataclasses.replace(inputs, tokens=loop.tokens))
        return token_loss(logits, loop.target), loop.mask, {}


def run_finetune(
    config: FinetuneConfig,
    *,
    scenes: Path,
    validation: Path | None = None,
    checkpoint: Path,
    out: Path,
    seed: int = 0,
    keep: bool = False,
) -> dict[str, float]:
    """Fine-tune a pretrained reference.

    Args:
        scenes: store of the training split. validation: store of the validation split, if there is one.
        checkpoint: ``reference.ckpt`` of ``pretrain``.
        out: where ``reference.ckpt`` and ``metrics.csv`` go. seed: of the order.
        keep: a finished result stays as it is whatever changed; an unfinished training goes on from its last
            checkpoint with the options of now.

    Raises:
        UserError: no store, not a reference checkpoint, or training diverged.
    """
    model = load_reference(checkpoint)
    if config.freeze_encoders:
        for module in (model.map_encoder, model.token, model.agent):
            module.requires_grad_(False)
        model.no_token.requires_grad_(False)
    loss: Loss = ClosedLoopLoss(config.top_k, config.max_error)
    fit = config.fit
    special: dict[str, Any] = {"margin": 2.0}
    if config.method == "realism":
        loss = RealismLoss(config.realism, load_reference(checkpoint))
        fit = dataclasses.replace(fit, augment=_UNCHANGED)
        special = {"margin": math.inf, "rollouts": config.realism.rollouts, "reported": RealismLoss.figures}
    settings = {**dataclasses.asdict(config), "checkpoint": sha256_of(checkpoint)}
    return fit_reference(
        "finetune",
        model,
        loss,
        fit,
        scenes=scenes,
        validation=validation,
        out=out,
        seed=seed,
        settings=settings,
        **special,
        keep=keep,
    )
