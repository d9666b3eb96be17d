"""Options of training the reference."""

from __future__ import annotations

from dataclasses import dataclass, field

from data.errors import UserError
from models.reference.augmentation import AugmentationConfig
from pipeline.execution.devices import Count

_PRECISIONS = ("auto", "32-true", "bf16-mixed")


@dataclass(frozen=True)
class FitConfig:
    """Optimisation, batches and validation.

    Args:
        steps: optimisation steps in all.
        batch_size: scenes in a step, of all devices together.
        max_agents: maximum of agents per scene: those evaluated, then those nearest to the AV.
        learning_rate: peak of AdamW's learning rate.
        warmup_steps: steps over which the learning rate rises from 0.
        final_rate: final learning rate of the cosine schedule, as a fraction of the peak.
        weight_decay: of AdamW, on matrices only.
        gradient_clip: maximum norm of the gradient.
        ema: decay per step of the moving average of weights that is validated and saved; 0 for the last weights
            (0.999 is common for long trainings).
        augment: augmentation of recordings.
        validation_scenes: number of scenes of the validation split to use, spread over it.
        validate_every: steps between validations.
        rollout_scenes: number of these for which futures are sampled and compared with the log.
        rollout_every: steps between such comparisons, a multiple of validate_every; 0 for one at the end.
        checkpoint_every: steps between checkpoints to resume from.
        workers: processes that prepare batches; 0 prepares them in the training process.
        cache_scenes: scenes cached by each process (about 0.2 MB each).
        recompute: recompute activations in the backward pass: less memory, more time.
        tensorboard: write curves, and a film of a rollout at every comparison with the log.
        compile: compile the network with torch.compile; worthwhile for trainings of many minutes.
        precision: 32-true, bf16-mixed, or auto for bf16-mixed on GPUs and 32-true elsewhere.
        device: cpu, cuda, cuda:N, gpu, mps, or auto for a GPU if there is one.
        devices: number of devices on each machine; auto for all GPUs.
        nodes: number of machines; each runs this command, started by torchrun or Slurm.
    """

    steps: int = 1000
    batch_size: int = 2
    max_agents: int = 32
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    final_rate: float = 0.01
    weight_decay: float = 0.01
    gradient_clip: float = 0.5
    ema: float = 0.0
    augment: AugmentationConfig = field(default_factory=AugmentationConfig)
    validation_scenes: int = 16
    validate_every: int = 250
    rollout_scenes: int = 8
    rollout_every: int = 0
    checkpoint_every: int = 100
    workers: int = 0
    cache_scenes: int = 1024
    recompute: bool = False
    tensorboard: bool = True
    compile: bool = False
    precision: str = "auto"
    device: str = "auto"
    devices: Count = "auto"
    nodes: int = 1

    def __post_init__(self) -> None:
        positive = (
            "steps",
            "batch_size",
            "max_agents",
            "validate_every",
            "checkpoint_every",
            "learning_rate",
            "devices",
            "nodes",
        )
        for name in positive:
            if (value := getattr(self, name)) != "auto" and value <= 0:
                raise UserError(f"fit.{name} is {getattr(self, name)}; it must be above 0")
        if not 0 <= self.ema < 1:
            raise UserError(f"fit.ema is {self.ema}; it must be in [0, 1)")
        if self.precision not in _PRECISIONS:
            raise UserError(f"fit.precision is {self.precision!r}; choose one of {', '.join(_PRECISIONS)}")
        if self.devices != "auto":
            self.check_share(self.devices)
        if self.rollout_every % self.validate_every:
            raise UserError("fit.rollout_every must be a multiple of fit.validate_every, or 0")

    def check_share(self, devices: int) -> None:
        """Raise ``UserError`` where so many devices on each machine cannot share a batch."""
        if self.batch_size < devices * self.nodes:
            raise UserError(
                f"fit.batch_size is {self.batch_size}, less than a scene for each of "
                f"{devices * self.nodes} devices; raise it"
            )
