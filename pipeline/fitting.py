"""Training of the reference with Lightning, shared by ``pretrain`` and ``finetune``.

Batch t, its randomness and its learning rate are functions of (seed, t), and everything else lives in
``training.ckpt``; so a run that is killed and started again ends with the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from data.augmentation import mirror
from data.batch import collate
from data.datamodule import SizeBatchSampler
from data.errors import UserError
from data.files import atomic_path, write_text
from data.scene import map_tensors
from data.store import SceneStore
from data.vocabulary import LOAD_ERRORS, Vocabulary
from models.reference.agent import ReferenceAgent
from models.reference.checkpoint import read_notes, save_reference
from models.reference.inputs import SceneInputs, collate_inputs, keep_agents, scene_inputs
from models.reference.loss import loss_mask, token_figures
from models.reference.network import Reference
from models.reference.pruning import prune_map
from pipeline.closed_loop import closed_loop_figures
from pipeline.progress import bar

__all__ = ["CHECKPOINT_FILE", "FitConfig", "Loss", "fit_reference"]

CHECKPOINT_FILE = "reference.ckpt"
_TRAINING_FILE = "training.ckpt"
_METRICS_FILE = "metrics.csv"
_COLUMNS = ("step", "loss", "learning_rate", "validation_cross_entropy", "validation_top1", "validation_top5")

# (model, batch) to the loss; what is random in it uses the global generator, seeded for each step.
Loss = Callable[[Reference, SceneInputs], Tensor]


@dataclass(frozen=True)
class FitConfig:
    """Optimisation, batches and validation.

    Args:
        steps: optimisation steps in all.
        batch_size: scenes in a step.
        max_agents: agents of a scene that are trained on: those evaluated, then those nearest to the AV.
        learning_rate: peak of AdamW's learning rate.
        warmup_steps: steps over which the learning rate rises from 0.
        final_rate: share of the peak at which the cosine ends.
        weight_decay: of AdamW, on matrices only.
        gradient_clip: largest norm of the gradient.
        mirror: also train on every scene mirrored left to right.
        validation_scenes: scenes of the validation split that are looked at, spread over it.
        validate_every: steps between validations.
        rollout_scenes: of these, how many on which futures are sampled at the end and compared with the log.
        checkpoint_every: steps between checkpoints for going on after an interruption.
        workers: processes that prepare batches; 0 prepares them in the training process.
        cache_scenes: prepared scenes kept in memory by each process (some 0.2 MB each).
        device: cpu, cuda, or auto for a GPU where there is one.
    """

    steps: int = 1000
    batch_size: int = 2
    max_agents: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    final_rate: float = 0.01
    weight_decay: float = 0.01
    gradient_clip: float = 0.5
    mirror: bool = True
    validation_scenes: int = 16
    validate_every: int = 250
    rollout_scenes: int = 8
    checkpoint_every: int = 100
    workers: int = 0
    cache_scenes: int = 1024
    device: str = "auto"

    def __post_init__(self) -> None:
        positive = ("steps", "batch_size", "max_agents", "validate_every", "checkpoint_every", "learning_rate")
        for name in positive:
            if getattr(self, name) <= 0:
                raise UserError(f"fit.{name} is {getattr(self, name)}; it must be above 0")


class _PreparedScenes(Dataset[SceneInputs]):
    """Scenes of a store, tokenised and with the map cut to what matters; row 2 i + 1 is the mirror of 2 i."""

    def __init__(
        self, store: SceneStore, rows: list[int], model: Reference, config: FitConfig, mirrored: bool, margin: float
    ) -> None:
        self._store, self._rows, self._copies = store, rows, 2 if mirrored else 1
        self._vocabulary, self._model_config = model.vocabulary.to("cpu"), model.config
        self._config, self._margin = config, margin
        self._cache: dict[int, SceneInputs] = {}
        agents = [min(store.infos[row].simulated, config.max_agents) for row in rows]
        self.sizes = [size for size in agents for _ in range(self._copies)]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> SceneInputs:
        if index in self._cache:
            return self._cache[index]
        scene = keep_agents(self._store[self._rows[index // self._copies]], self._config.max_agents)
        if index % self._copies:
            scene = mirror(scene)
        inputs = scene_inputs(collate([scene]), self._vocabulary)
        inputs = prune_map(inputs, self._model_config, self._vocabulary.token_steps, self._margin)
        if len(self._cache) < self._config.cache_scenes:
            self._cache[index] = inputs
        return inputs


class _Fit(lightning.LightningModule):
    """The reference with its loss, optimiser and schedule."""

    def __init__(self, model: Reference, loss: Loss, config: FitConfig, seed: int) -> None:
        super().__init__()
        self.model, self._loss, self._config, self._seed = model, loss, config, seed

    def transfer_batch_to_device(
        self, batch: SceneInputs, device: torch.device, dataloader_idx: int
    ) -> SceneInputs:
        return map_tensors(batch, lambda tensor: tensor.to(device, non_blocking=True))

    def training_step(self, batch: SceneInputs, batch_idx: int) -> Tensor:
        torch.manual_seed(int(np.random.SeedSequence([self._seed, self.global_step]).generate_state(1)[0]))
        return self._loss(self.model, batch)

    def _rate(self, step: int) -> float:
        config = self._config
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return config.final_rate + (1 - config.final_rate) * (1 + math.cos(math.pi * min(1.0, share))) / 2

    def configure_optimizers(self) -> Any:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.dim() >= 2], "weight_decay": self._config.weight_decay},
            {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=self._config.learning_rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _Recorder(Callback):
    """Validates, keeps one row of figures a step, moves the progress bar, and writes checkpoints."""

    def __init__(self, out: Path, config: FitConfig, validation: list[SceneInputs], progress: tqdm) -> None:
        self._out, self._config, self._validation, self._progress = out, config, validation, progress
        self.rows: list[list[float | int | None]] = []

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def recent_loss(self) -> float:
        """Mean over the last 50 steps."""
        losses = [float(row[1] or 0.0) for row in self.rows[-50:]]
        return sum(losses) / len(losses)

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise UserError(f"training diverged: the loss is {loss} at step {step}; lower fit.learning_rate")
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        last = step == self._config.steps
        figures: list[float | None] = [None, None, None]
        if self._validation and (last or step % self._config.validate_every == 0):
            assert isinstance(pl_module, _Fit)
            figures = list(_validate(pl_module, self._validation))
        self.rows.append([step, loss, rate, *figures])
        self._progress.update()
        self._progress.set_postfix(loss=f"{self.recent_loss():.3f}", refresh=False)
        if last or step % self._config.checkpoint_every == 0:
            self.write_metrics()
            with atomic_path(self._out / _TRAINING_FILE) as temporary:
                trainer.save_checkpoint(temporary)

    def write_metrics(self) -> None:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_COLUMNS)
        writer.writerows(["" if value is None else value for value in row] for row in self.rows)
        write_text(self._out / _METRICS_FILE, text.getvalue())


@torch.no_grad()
def _validate(module: _Fit, batches: list[SceneInputs]) -> tuple[float, float, float]:
    """Cross-entropy (nats), top-1 and top-5 accuracy over tokens of held-out scenes."""
    module.model.eval()
    total = torch.zeros(4, dtype=torch.float64)
    for batch in batches:
        moved = map_tensors(batch, lambda tensor: tensor.to(module.device))
        total += token_figures(module.model(moved), moved.tokens.ids, loss_mask(moved)).cpu()
    module.model.train()
    cross_entropy, first, five = (total[:3] / total[3].clamp(min=1)).tolist()
    return cross_entropy, first, five


def fit_reference(
    name: str,
    model: Reference,
    loss: Loss,
    config: FitConfig,
    *,
    scenes: Path,
    validation: Path | None,
    out: Path,
    seed: int,
    settings: Mapping[str, Any],
    margin: float = 1.0,
) -> dict[str, float]:
    """Train ``model`` and write ``reference.ckpt`` and ``metrics.csv``.

    Args:
        name: of the stage, for the progress bar. loss: see ``Loss``.
        scenes: store to train on. validation: store to validate on, or None.
        settings: plain values that say what is being trained (configuration, start); an interrupted run goes on
            only with the same. margin: see ``prune_map``.

    Returns:
        Final ``training_loss`` (mean of the last 50 steps), validation figures, and errors of sampled futures.

    Raises:
        UserError: ``out`` holds an interrupted training with other settings, or training diverged.
    """
    store = SceneStore(scenes)
    held_out = None if validation is None else SceneStore(validation)
    fingerprint = _fingerprint(settings, seed, store.ids, held_out.ids if held_out else [], model.vocabulary)
    final, interrupted = out / CHECKPOINT_FILE, out / _TRAINING_FILE
    if final.exists() and not interrupted.exists():
        notes = read_notes(final)
        if notes["fingerprint"] == fingerprint:
            return dict(notes["figures"])
    done = _resumable(interrupted, fingerprint)
    dataset = _PreparedScenes(store, list(range(len(store))), model, config, config.mirror, margin)
    loader = DataLoader(
        dataset,
        batch_sampler=SizeBatchSampler(dataset.sizes, config.batch_size, seed, start=done),
        collate_fn=collate_inputs,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
    looked_at = [] if held_out is None else _spread(len(held_out), config.validation_scenes)
    prepared: list[SceneInputs] = []
    if held_out is not None:
        kept = _PreparedScenes(held_out, looked_at, model, config, False, margin)
        prepared = [kept[index] for index in range(len(kept))]
    module = _Fit(model, loss, config, seed)
    module.register_buffer("fingerprint", torch.frombuffer(bytearray.fromhex(fingerprint), dtype=torch.uint8))
    with bar(name, config.steps, " steps", initial=done) as progress:
        recorder = _Recorder(out, config, prepared, progress)
        trainer = _trainer(config, recorder)
        if done < config.steps:
            model.train()
            try:
                trainer.fit(module, loader, ckpt_path=interrupted if done else None, weights_only=True)
            except SystemExit as exit_:
                # Lightning turns Ctrl-C into an exit of its own; what the caller must see is the interruption.
                if isinstance(exit_.__context__, KeyboardInterrupt):
                    raise KeyboardInterrupt from None
                raise
        else:
            _restore(interrupted, module, recorder)
    figures = _final_figures(recorder)
    if held_out is not None:
        futures = (held_out[row] for row in looked_at[: config.rollout_scenes])
        found = closed_loop_figures(ReferenceAgent(model), futures, rollouts=8, seed=seed)
        figures |= {f"validation_{key}": value for key, value in found.items()}
    save_reference(final, model.cpu(), {"fingerprint": fingerprint, "figures": figures, "stage": name})
    recorder.write_metrics()
    interrupted.unlink(missing_ok=True)
    return figures


def _spread(total: int, count: int) -> list[int]:
    """``count`` numbers spread over ``range(total)``, since neighbours in a shard may resemble one another."""
    count = min(count, total)
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]


def _fingerprint(
    settings: Mapping[str, Any], seed: int, training: list[str], validation: list[str], vocabulary: Vocabulary
) -> str:
    digest = hashlib.sha256(repr((sorted(settings.items()), seed, training, validation)).encode())
    digest.update(vocabulary.poses.cpu().numpy().tobytes())
    return digest.hexdigest()


def _load_training(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        raise UserError(f"{path}: damaged checkpoint; delete {path.parent} and train again") from error
    return content


def _resumable(path: Path, fingerprint: str) -> int:
    """Steps done by an interrupted run, 0 where there is none."""
    if not path.exists():
        return 0
    content = _load_training(path)
    saved = bytes(content["state_dict"]["fingerprint"].tolist()).hex()
    if saved != fingerprint:
        raise UserError(f"{path}: an interrupted training with other settings or data; delete it to start anew")
    return int(content["global_step"])


def _restore(path: Path, module: _Fit, recorder: _Recorder) -> None:
    content = _load_training(path)
    module.load_state_dict(content["state_dict"])
    recorder.load_state_dict(content["callbacks"][recorder.state_key])


def _trainer(config: FitConfig, recorder: _Recorder) -> lightning.Trainer:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    return lightning.Trainer(
        accelerator=config.device,
        devices=1,
        max_steps=config.steps,
        max_epochs=-1,
        gradient_clip_val=config.gradient_clip,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        # Threads must not add up gradients in the order in which they happen to come.
        deterministic="warn",
    )


def _final_figures(recorder: _Recorder) -> dict[str, float]:
    figures = {"training_loss": recorder.recent_loss()}
    for name, value in zip(_COLUMNS[3:], recorder.rows[-1][3:], strict=True):
        if value is not None:
            figures[name] = float(value)
    return figures
