"""Stage ``selfplay``: a policy learns to drive among copies of itself, anchored to the frozen reference."""

from __future__ import annotations

import os
from pathlib import Path

from lightning.fabric import Fabric

from pipeline.execution.devices import find_devices
from pipeline.fitting.recorder import silence_lightning
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.selfplay.training import POLICY_FILE, Training

__all__ = ["POLICY_FILE", "SelfPlayConfig", "run_selfplay"]


def run_selfplay(
    config: SelfPlayConfig,
    *,
    scenes: Path,
    reference: Path,
    out: Path,
    validation: Path | None = None,
    seed: int = 0,
    keep: bool = False,
) -> dict[str, float]:
    """Train a policy by self-play with PPO, anchored to a reference.

    Args:
        config: of the stage.
        scenes: store of the training split.
        reference: checkpoint of the frozen reference, or of a policy trained with --driver log, which makes it
            HR-PPO; its vocabulary is the policy's actions.
        out: where policy.ckpt, metrics.csv, curves for TensorBoard and perhaps best.ckpt go.
        validation: store of the validation split, for --evaluate_every.
        seed: of weights, worlds, actions and minibatches; the randomness of update u depends on (seed, u) alone.
        keep: a finished result stays as it is whatever changed; an unfinished training goes on from its last
            checkpoint with the options of now.

    Raises:
        UserError: no store, not a reference checkpoint, no usable scene, no such device.
    """
    silence_lightning()
    found = find_devices(config.device, count=config.devices)
    out.mkdir(parents=True, exist_ok=True)
    several = config.devices * config.nodes > 1
    # Started by torchrun or Slurm, the other processes exist already.
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    fabric = Fabric(
        accelerator=found.kind,
        devices=found.launched,
        num_nodes=config.nodes,
        strategy="auto" if not several else "ddp" if launched else "ddp_spawn",
        precision=found.precision(config.precision),  # type: ignore[arg-type]
    )
    training = Training(config, scenes, reference, out, seed, validation, keep)
    if several and not launched:
        figures: dict[str, float] = fabric.launch(training)
        return figures
    if launched:
        fabric.launch()
    return training(fabric)
