"""Stage ``pretrain``: the reference learns recorded motion by teacher forcing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from data.errors import UserError
from data.files import sha256_of
from data.scene import CURRENT_INDEX
from data.vocabulary import Vocabulary
from models.reference.checkpoint import load_reference
from models.reference.config import ReferenceConfig, size_preset
from models.reference.inputs import SceneInputs
from models.reference.loss import loss_mask, smoothed_targets, token_loss
from models.reference.network import Reference
from pipeline.fitting import FitConfig, fit_reference


@dataclass(frozen=True)
class PretrainConfig:
    """Teacher forcing.

    Args:
        size: micro, nano (1 M parameters), mini (3.2 M), tiny (7 M) or large; custom takes ``model`` instead.
        model: sizes of the network where size is custom.
        label_smoothing: share of the target that goes to tokens ending near the true one; 0.1 in CAT-K. At five
            decisions a second its noise adds up in rollouts until a fine-tuning without it takes it away.
        label_spread: corner distance over which that share fades by a factor e, metres.
        learn_history: also learn the tokens of the recorded first second; CAT-K learns the future alone.
        fit: optimisation, batches and validation.
    """

    size: str = "micro"
    model: ReferenceConfig = field(default_factory=ReferenceConfig)
    label_smoothing: float = 0.0
    label_spread: float = 0.1
    learn_history: bool = True
    fit: FitConfig = field(default_factory=FitConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1 or self.label_spread <= 0:
            raise UserError("pretrain: label_smoothing must be in [0, 1) and label_spread above 0")


class TeacherForcing:
    """Cross-entropy of recorded tokens, given those before them."""

    def __init__(self, config: PretrainConfig, vocabulary: Vocabulary) -> None:
        self._start = 1 if config.learn_history else CURRENT_INDEX // vocabulary.token_steps
        self._smoothed: Tensor | None = None
        if config.label_smoothing:
            self._smoothed = smoothed_targets(vocabulary, config.label_smoothing, config.label_spread)

    def __call__(self, model: Reference, inputs: SceneInputs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        target, distribution = inputs.target, None
        if self._smoothed is not None:
            self._smoothed = self._smoothed.to(target.device)
            distribution = self._smoothed[inputs.agents.types.unsqueeze(-1), target]
        return token_loss(model(inputs), target, distribution), loss_mask(inputs, self._start), {}


def run_pretrain(
    config: PretrainConfig,
    *,
    scenes: Path,
    validation: Path | None = None,
    vocabulary: Path,
    start: Path | None = None,
    out: Path,
    seed: int = 0,
    keep: bool = False,
) -> dict[str, float]:
    """Train the reference by teacher forcing on a store of scenes.

    Args:
        scenes: store of the training split. validation: store of the validation split, if there is one.
        vocabulary: motion vocabulary of the training split.
        start: ``reference.ckpt`` of the same size and vocabulary to begin with, perhaps trained on other scenes;
            random weights if not given.
        out: where ``reference.ckpt`` and ``metrics.csv`` go. seed: of weights, order and augmentation.
        keep: a finished result stays as it is whatever changed; an unfinished training goes on from its last
            checkpoint with the options of now.

    Raises:
        UserError: no store, no vocabulary, or training diverged.
    """
    words = Vocabulary.load(vocabulary)
    torch.manual_seed(seed)
    model = Reference(config.model if config.size == "custom" else size_preset(config.size), words)
    if start is not None:
        begun = load_reference(start)
        if begun.config != model.config or not torch.equal(begun.vocabulary.poses, words.poses):
            raise UserError(
                f"{start}: a reference of another size or vocabulary; give the options it was trained with"
            )
        model = begun
    return fit_reference(
        "pretrain",
        model,
        TeacherForcing(config, words),
        config.fit,
        scenes=scenes,
        validation=validation,
        out=out,
        seed=seed,
        settings={**dataclasses.asdict(config), "start": None if start is None else sha256_of(start)},
        # Shifted and noisy motion strays from where the pieces were looked up.
        keep=keep,
        margin=1.5 if config.fit.augment.time_shift or config.fit.augment.noise else 1.0,
    )
