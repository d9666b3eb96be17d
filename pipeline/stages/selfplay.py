"""Stage ``selfplay``: a policy learns to drive among copies of itself, anchored to the frozen reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from lightning.fabric import Fabric

from pipeline.execution.devices import find_devices, is_launched
from pipeline.fitting.recorder import silence_lightning
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.selfplay.training import train


def run_selfplay(
    config: SelfPlayConfig,
    *,
    scenes: Path,
    reference: Path,
    out: Path,
    validation: Path | None = None,
    start: Path | None = None,
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
        start: policy.ckpt with whose weights it begins, such as a distilled one; its own view and sizes are needed.
        seed: of weights, worlds, actions and minibatches; the randomness of update u depends on (seed, u) alone.
        keep: a finished result stays as it is whatever changed; an unfinished training goes on from its last
            checkpoint with the options of now.

    Raises:
        UserError: no store, not a reference checkpoint, no usable scene, no such device.
    """
    silence_lightning()
    found = find_devices(config.device, count=config.devices, share=config.check_share)
    found.tell("selfplay", precision=config.precision, nodes=config.nodes)
    out.mkdir(parents=True, exist_ok=True)
    fabric = Fabric(**found.launch(config.nodes, config.precision))
    training = partial(
        train,
        config=config,
        scenes=scenes,
        reference=reference,
        out=out,
        seed=seed,
        validation=validation,
        start=start,
        keep=keep,
    )
    if is_launched():
        fabric.launch()
    elif found.count * config.nodes > 1:
        figures: dict[str, float] = fabric.launch(training)
        return figures
    return training(fabric)
