"""Stage ``selfplay``: a policy learns to drive among copies of itself, anchored to the frozen reference."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from lightning.fabric import Fabric

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

    Raises:
        UserError: no store, not a reference checkpoint, no usable scene.
    """
    silence_lightning()
    out.mkdir(parents=True, exist_ok=True)
    several = config.devices * config.nodes > 1
    # Started by torchrun or Slurm, the other processes exist already.
    launched = "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ
    on_gpu = config.device in ("cuda", "gpu") or (config.device == "auto" and torch.cuda.is_available())
    precision = config.precision if config.precision != "auto" else "bf16-mixed" if on_gpu else "32-true"
    fabric = Fabric(
        accelerator=config.device,
        devices=config.devices,
        num_nodes=config.nodes,
        strategy="auto" if not several else "ddp" if launched else "ddp_spawn",
        precision=precision,  # type: ignore[arg-type]
    )
    training = Training(config, scenes, reference, out, seed, validation)
    if several and not launched:
        figures: dict[str, float] = fabric.launch(training)
        return figures
    if launched:
        fabric.launch()
    return training(fabric)
