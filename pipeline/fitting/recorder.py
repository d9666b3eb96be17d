"""Lightning callback: validation, a row of figures per step, the log, and checkpoints."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from data.errors import UserError
from data.files import atomic_path
from data.scene import Scene, map_tensors
from models.reference.agent import ReferenceAgent
from models.reference.inputs import SceneInputs
from models.reference.loss import loss_mask, token_figures
from pipeline.agents.closed_loop import METRIC_PARTS, mean_figures, scene_figures
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.drawing.training_log import TrainingLog, write_table
from pipeline.evaluation.motion import FIGURES
from pipeline.fitting.config import FitConfig
from pipeline.fitting.module import FitModule

TRAINING_FILE = "training.ckpt"
_TOKENS = ("validation_cross_entropy", "validation_top1", "validation_top5")
# Of sampled futures: means over scenes of ``closed_loop_figures``, and ratios of sums over scenes.
_ROLLOUTS = tuple(
    f"validation_{name}"
    for name in ("ade_m", "min_ade_m", "constant_velocity_ade_m", "realism", "diversity_m", *METRIC_PARTS)
)
_RATIOS = {f"validation_{name}": FIGURES[name] for name in ("speed_ratio_8s", "standing", "progress_ratio")}
_BASIC = ("step", "loss", "learning_rate")
# Sampled futures per validation scene.
_FUTURES = 8


def _read_every(device: torch.device) -> int:
    """Steps after which losses are read: on a GPU each reading waits for the step."""
    return 1 if device.type == "cpu" else 50


def silence_lightning() -> None:
    """Hide Lightning's hints for authors of training loops."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("lightning.fabric").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


class Recorder(Callback):
    """Validates, logs and saves. With several devices each validates some scenes, and the first one writes.

    Args:
        name: of the stage, for the progress bar. out: folder of the outputs.
        validation: held-out scenes, each alone. scenes: those of them to sample futures of. seed: of the futures.
        start: steps done by an interrupted run. figures: names of what the loss reports beside itself.
    """

    def __init__(
        self,
        name: str,
        out: Path,
        config: FitConfig,
        validation: Sequence[SceneInputs],
        scenes: Sequence[Scene],
        *,
        seed: int,
        start: int,
        figures: Sequence[str] = (),
    ) -> None:
        self._own = tuple(figures)
        self.columns = (*_BASIC, *self._own, *_TOKENS, *_ROLLOUTS, *_RATIOS)
        self._name, self._out, self._config, self._start = name, out, config, start
        self._validation, self._scenes, self._seed = validation, scenes, seed
        self._log: TrainingLog | None = None
        self.rows: list[list[float | int | None]] = []
        self._unread: list[tuple[int, Tensor, float]] = []  # step, loss and own figures, learning rate

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        silence_lightning()
        if trainer.is_global_zero:
            # Not in the constructor, since with several devices this is another process.
            curves = self._config.tensorboard
            self._log = TrainingLog(self._out, self._name, self._config.steps, self._start, curves, shown=True)

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self._log is not None:
            self._log.close()
            self._log = None

    def on_exception(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, exception: BaseException
    ) -> None:
        self.teardown(trainer, pl_module, "fit")

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["rows"]

    def recent_loss(self) -> float:
        """Mean over the last 50 steps."""
        losses = [float(row[1] or 0.0) for row in self.rows[-50:]]
        return sum(losses) / len(losses)

    def figures(self) -> dict[str, float]:
        """The last figure of each kind."""
        figures = {"training_loss": self.recent_loss()}
        for row in self.rows:
            figures |= {n: float(v) for n, v in zip(self.columns[3:], row[3:], strict=True) if v is not None}
        return figures

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        assert isinstance(pl_module, FitModule)
        step, config = trainer.global_step, self._config
        loss = trainer.strategy.reduce(outputs["loss"].detach(), reduce_op="mean")
        assert isinstance(loss, Tensor)
        values = torch.stack([loss, *(outputs[name].to(loss.dtype) for name in self._own)])
        self._unread.append((step, values, trainer.optimizers[0].param_groups[0]["lr"]))
        last = step == config.steps
        validated, saved = (last or step % every == 0 for every in (config.validate_every, config.checkpoint_every))
        if not (validated or saved or step % _read_every(loss.device) == 0):
            return
        losses = self._read()
        figures: dict[str, float] = {}
        if validated:
            figures |= self._tokens(trainer, pl_module)
            if last or (config.rollout_every and step % config.rollout_every == 0):
                figures |= self._futures(trainer, pl_module)
        for done, (value, *own), rate in losses:
            beside = dict(zip(self._own, own, strict=True))
            self._add(done, value, rate, beside | (figures if done == step else {}))
        if saved:
            self.save(trainer)

    def _read(self) -> list[tuple[int, list[float], float]]:
        """Step, loss and own figures, and learning rate of the steps since the last reading."""
        losses = torch.stack([values for _, values, _ in self._unread]).tolist()
        rows = [(step, values, rate) for (step, _, rate), values in zip(self._unread, losses, strict=True)]
        self._unread.clear()
        for step, (loss, *_), _ in rows:
            if not math.isfinite(loss):
                raise UserError(f"training diverged: the loss is {loss} at step {step}; lower fit.learning_rate")
        return rows

    def _add(self, step: int, loss: float, rate: float, figures: Mapping[str, float]) -> None:
        """Log a step."""
        self.rows.append([step, loss, rate, *(figures.get(name) for name in self.columns[3:])])
        if self._log is not None:
            row = {"loss": loss, "learning_rate": rate, **figures}
            tagged = {f"{self._name}/{name}": value for name, value in row.items()}
            self._log.add(tagged, step, f"loss={self.recent_loss():.3f}")

    def save(self, trainer: lightning.Trainer) -> None:
        """Write a checkpoint to resume from; every device takes part."""
        if not trainer.is_global_zero:
            trainer.save_checkpoint(self._out / TRAINING_FILE)
            return
        self.write_metrics()
        with atomic_path(self._out / TRAINING_FILE) as temporary:
            trainer.save_checkpoint(temporary)

    def write_metrics(self) -> None:
        write_table(self._out, self.columns, [dict(zip(self.columns, row, strict=True)) for row in self.rows])

    @torch.no_grad()
    def _tokens(self, trainer: lightning.Trainer, module: FitModule) -> dict[str, float]:
        """Cross-entropy (nats), top-1 and top-5 accuracy over tokens of held-out scenes."""
        network = module.result.eval()
        total = torch.zeros(4, dtype=torch.float64, device=module.device)
        for inputs in self._validation[trainer.global_rank :: trainer.world_size]:
            moved = map_tensors(inputs, lambda tensor: tensor.to(module.device))
            total += token_figures(network(moved), moved.target, loss_mask(moved))
        module.model.train()
        total = trainer.strategy.reduce(total, reduce_op="sum")
        if not total[3]:
            return {}
        return dict(zip(_TOKENS, (total[:3] / total[3]).tolist(), strict=True))

    def _futures(self, trainer: lightning.Trainer, module: FitModule) -> dict[str, float]:
        """Means over scenes of their figures, and ratios of sums over scenes."""
        mine = self._scenes[trainer.global_rank :: trainer.world_size]
        columns = (*_ROLLOUTS, *_RATIOS)
        total = torch.zeros(2, len(columns), dtype=torch.float64)
        trained = [parameter.requires_grad for parameter in module.result.parameters()]
        agent = ReferenceDriver(ReferenceAgent(module.result))
        for scene, states in agent.rollouts_of(mine, _FUTURES, self._seed):
            row = scene_figures(scene, states)
            means = mean_figures([row])
            pairs = [(means.get(name.removeprefix("validation_"), math.nan), 1.0) for name in _ROLLOUTS]
            pairs += [(row.motion[top], row.motion[bottom]) for top, bottom in _RATIOS.values()]
            found = torch.tensor(pairs, dtype=torch.float64).T
            # A scene without a figure does not count.
            total += torch.where(found.isnan().any(0), 0.0, found)
        total = total.to(module.device)
        if self._log is not None and self._scenes:
            self._log.film(agent, self._scenes[0], trainer.global_step, self._seed)
        for parameter, flag in zip(module.result.parameters(), trained, strict=True):
            parameter.requires_grad_(flag)
        module.model.train()
        total = trainer.strategy.reduce(total, reduce_op="sum")
        return {
            name: float(value / count)
            for name, value, count in zip(columns, total[0], total[1], strict=True)
            if count
        }
