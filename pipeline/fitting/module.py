"""Lightning module of the reference: loss, optimiser, schedule and moving average of weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import lightning
import numpy as np
import torch
from torch import Tensor

from data.scene import map_tensors
from models.reference.inputs import SceneInputs
from models.reference.network import Reference
from pipeline.fitting.batches import RecordedScenes, training_loader
from pipeline.fitting.config import FitConfig
from pipeline.fitting.scored import ScoredInputs

# (model, batch of the loader) to the loss of every token and its mask, both [B, A, N], or to their mean and number,
# and to further means over the tokens by name, the same names in every step. Randomness in it uses the global
# generator, which is seeded for each step.
Loss = Callable[[Reference, Any], tuple[Tensor, Tensor, dict[str, Tensor]]]


class FitModule(lightning.LightningModule):
    """Trains ``model``; ``result`` is validated and saved.

    Args:
        start: index of the first step, to resume a training. fingerprint: of the settings, saved in checkpoints.
    """

    def __init__(
        self,
        model: Reference,
        loss: Loss,
        scenes: RecordedScenes,
        config: FitConfig,
        seed: int,
        start: int,
        fingerprint: str,
    ) -> None:
        super().__init__()
        self.model, self._loss, self._scenes, self._config = model, loss, scenes, config
        self._seed, self._start = seed, start
        model.recompute = config.recompute
        self.register_buffer("fingerprint", torch.frombuffer(bytearray.fromhex(fingerprint), dtype=torch.uint8))
        self.averaged = copy.deepcopy(model).requires_grad_(False) if config.ema else None

    def setup(self, stage: str) -> None:
        if self._config.compile:
            # Sizes differ between batches; dynamic shapes need one compilation.
            self.model.compile(fullgraph=True, dynamic=True)

    @property
    def result(self) -> Reference:
        """The trained network, or the moving average of its weights."""
        return self.model if self.averaged is None else self.averaged

    def train_dataloader(self) -> Any:
        return training_loader(
            self._scenes,
            self._config,
            seed=self._seed,
            start=self._start,
            rank=self.trainer.global_rank,
            devices=self.trainer.world_size,
            pinned=self.trainer.strategy.root_device.type == "cuda",
        )

    def transfer_batch_to_device(
        self, batch: SceneInputs | ScoredInputs, device: torch.device, dataloader_idx: int
    ) -> SceneInputs | ScoredInputs:
        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(device, non_blocking=True)

        return batch.map_tensors(moved) if isinstance(batch, ScoredInputs) else map_tensors(batch, moved)

    def training_step(self, batch: SceneInputs | ScoredInputs, batch_idx: int) -> dict[str, Tensor]:
        """The loss of one device's batch, and the loss's further figures of all devices."""
        torch.manual_seed(int(np.random.SeedSequence([self._seed, self.global_step]).generate_state(1)[0]))
        loss, mask, figures = self._loss(self.model, batch)
        own = mask.sum()
        # Devices average their gradients, so each divides by the tokens of all.
        count = self.trainer.strategy.reduce(own, reduce_op="sum").clamp(min=1)
        means = {
            name: self.trainer.strategy.reduce(value * own, reduce_op="sum") / count
            for name, value in figures.items()
        }
        return {"loss": (loss * mask).sum() * self.trainer.world_size / count, **means}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # The average begins with the weights after the first step. torch's AveragedModel counts on the device and
        # waits for it in every step.
        weight = 1 - self._config.ema if self.global_step else 1.0
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None:
            with torch.no_grad():
                torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), weight)

    def _rate(self, step: int) -> float:
        config = self._config
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return config.final_rate + (1 - config.final_rate) * (1 + math.cos(math.pi * min(1.0, progress))) / 2

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": self._config.weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self._config.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
