"""Stage ``pretrain``: the reference learns recorded motion by teacher forcing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from data.errors import UserError
from data.scene import CURRENT_INDEX
from data.vocabulary import Vocabulary
from models.reference.config import ReferenceConfig, size_preset
from models.reference.inputs import SceneInputs
from models.reference.loss import loss_mask, smoothed_targets, token_loss
from models.reference.network import Reference
from pipeline.fitting import FitConfig, fit_reference

__all__ = ["PretrainConfig", "run_pretrain"]


@dataclass(frozen=True)
class PretrainConfig:
    """Teacher forcing.

    Args:
        size: micro, nano (1 M parameters), mini (3.2 M), tiny (7 M) or large; custom takes ``model`` instead.
        model: sizes of the network where size is custom.
        label_smoothing: share of the target that goes to tokens ending near the true one; 0.1 in CAT-K. At five
            decisions a second its noise adds up in rollouts until a fine-tuning without it takes it away.
        label_spread: corner distance over which that share fades by a factor e, metres.
        history_drop: probability that an agent comes into view only at the current step.
        fit: optimisation, batches and validation.
    """

    size: str = "micro"
    model: ReferenceConfig = field(default_factory=ReferenceConfig)
    label_smoothing: float = 0.0
    label_spread: float = 0.1
    history_drop: float = 0.1
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1 or self.label_spread <= 0 or not 0 <= self.history_drop <= 1:
            raise UserError(
                "pretrain: label_smoothing must be in [0, 1), label_spread above 0 and history_drop in [0, 1]"
            )


def hide_history(inputs: SceneInputs, share: float, token_steps: int) -> SceneInputs:
    """Hide all but the last token of the history of some agents, drawn by the global generator."""
    tokens = inputs.tokens
    drawn = torch.rand(tokens.valid.shape[:2]).to(tokens.valid.device) < share
    index = torch.arange(tokens.valid.shape[-1], device=tokens.valid.device)
    early = index < CURRENT_INDEX // token_steps - 1
    valid = tokens.valid & ~(drawn.unsqueeze(-1) & early)
    return dataclasses.replace(inputs, tokens=dataclasses.replace(tokens, valid=valid))


def run_pretrain(
    config: PretrainConfig,
    *,
    scenes: Path,
    validation: Path | None = None,
    vocabulary: Path,
    out: Path,
    seed: int = 0,
) -> dict[str, float]:
    """Train the reference by teacher forcing on a store of scenes.

    Args:
        scenes: store of the training split. validation: store of the validation split, if there is one.
        vocabulary: motion vocabulary of the training split.
        out: where ``reference.ckpt`` and ``metrics.csv`` go. seed: of weights, order and augmentation.

    Raises:
        UserError: no store, no vocabulary, or training diverged.
    """
    words = Vocabulary.load(vocabulary)
    torch.manual_seed(seed)
    model = Reference(config.model if config.size == "custom" else size_preset(config.size), words)

    smoothed = smoothed_targets(words, config.label_smoothing, config.label_spread)

    def loss(model: Reference, inputs: SceneInputs) -> Tensor:
        inputs = hide_history(inputs, config.history_drop, words.token_steps)
        target = inputs.tokens.ids
        distribution = smoothed.to(target.device)[inputs.agents.types.unsqueeze(-1), target]
        return token_loss(model(inputs), target, loss_mask(inputs), distribution)

    return fit_reference(
        "pretrain",
        model,
        loss,
        config.fit,
        scenes=scenes,
        validation=validation,
        out=out,
        seed=seed,
        settings=dataclasses.asdict(config),
    )
