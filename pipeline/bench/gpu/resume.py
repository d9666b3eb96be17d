"""Trainings on a device that are killed and resumed, compared with undisturbed ones."""

from __future__ import annotations

import csv
import dataclasses
import multiprocessing
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path

from models.reference.augmentation import AugmentationConfig
from pipeline.bench.gpu.inputs import Inputs
from pipeline.bench.rows import Row
from pipeline.fitting.config import FitConfig
from pipeline.fitting.recorder import TRAINING_FILE as FIT_FILE
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.selfplay.training import TRAINING_FILE
from pipeline.stages.finetune import FinetuneConfig, run_finetune
from pipeline.stages.pretrain import PretrainConfig, run_pretrain
from pipeline.stages.selfplay import run_selfplay

# Time limit for the first checkpoint of a process, seconds.
_LIMIT = 300.0

Train = Callable[..., dict[str, float]]


def _selfplay(inputs: Inputs) -> Train:
    worlds = inputs.scale.compared
    agents = sum(info.types.shape[1] for info in inputs.built[:worlds])
    decisions = 80 // inputs.vocabulary.token_steps
    config = SelfPlayConfig(
        agent_steps=max(1, int(0.6 * agents * decisions) * inputs.scale.updates),
        worlds=worlds,
        pool=worlds,
        checkpoint_every=1,
        tensorboard=False,
        device=inputs.device.type,
    )
    config = dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, minibatch=inputs.scale.minibatch))
    return partial(run_selfplay, config, scenes=inputs.store_folder, reference=inputs.reference_file)


def _fit_config(inputs: Inputs) -> FitConfig:
    return FitConfig(
        steps=inputs.scale.fit_steps,
        batch_size=inputs.scale.compared,
        warmup_steps=2,
        checkpoint_every=1,
        validate_every=inputs.scale.fit_steps,
        tensorboard=False,
        device=inputs.device.type,
    )


def _fit(inputs: Inputs) -> Train:
    config = PretrainConfig(size=inputs.scale.sizes[0], fit=_fit_config(inputs))
    return partial(run_pretrain, config, scenes=inputs.store_folder, vocabulary=inputs.data / "vocabulary.pt")


def _table(folder: Path) -> list[list[float]]:
    with (folder / "metrics.csv").open() as file:
        return [[float(cell or 0) for cell in row] for row in list(csv.reader(file))[1:]]


def _killed(inputs: Inputs, name: str, train: Train, checkpoint: str) -> Iterator[Row]:
    left, killed = inputs.scratch / f"{name}-left", inputs.scratch / f"{name}-killed"
    for folder in (left, killed):
        shutil.rmtree(folder, ignore_errors=True)
    # Spawned, since a process that has used a GPU cannot be forked.
    process = multiprocessing.get_context("spawn").Process(target=train, kwargs={"out": killed})
    process.start()
    killer = threading.Thread(target=_kill, args=(process, killed / checkpoint))
    killer.start()
    try:
        started = time.perf_counter()
        train(out=left)
        undisturbed = time.perf_counter() - started
    finally:
        killer.join()
    caught = (killed / checkpoint).exists()
    table = _table(left)
    yield Row(f"{name}: seconds undisturbed, {len(table)} rows", undisturbed, "s")
    yield Row(f"{name}: killed on the way (1) or too late (0)", float(caught), "")
    if not caught and not (killed / "metrics.csv").exists():
        raise RuntimeError(f"{name}: the process to be killed ended before its first checkpoint, see the log")
    train(out=killed)
    again = _table(killed)
    apart = max((abs(a - b) for one, other in zip(table, again) for a, b in zip(one, other)), default=0.0)
    yield Row(f"{name}: rows after going on, less those of the undisturbed", len(again) - len(table), "")
    yield Row(f"{name}: largest difference of a figure from the undisturbed", apart, "")


def _kill(process: BaseProcess, checkpoint: Path) -> None:
    """Kill a process once there is a checkpoint, or after ``_LIMIT``."""
    until = time.monotonic() + _LIMIT
    while not checkpoint.exists() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.join()


def selfplay(inputs: Inputs) -> Iterator[Row]:
    """Updates of anchored self-play."""
    yield from _killed(inputs, "self-play", _selfplay(inputs), TRAINING_FILE)


def fit(inputs: Inputs) -> Iterator[Row]:
    """Steps of pretraining, with batches prepared in the training process."""
    yield from _killed(inputs, "pretraining", _fit(inputs), FIT_FILE)


def finetune(inputs: Inputs) -> Iterator[Row]:
    """Steps of closed-loop fine-tuning of the trained reference, and memory per scene."""
    plain = AugmentationConfig(history_drop=0.0, noise=0.0)
    config = FinetuneConfig(fit=dataclasses.replace(_fit_config(inputs), steps=3, validate_every=3, augment=plain))
    inputs.start_memory()
    started = time.perf_counter()
    out = inputs.scratch / "finetune"
    shutil.rmtree(out, ignore_errors=True)
    figures = run_finetune(config, scenes=inputs.store_folder, checkpoint=inputs.reference_file, out=out)
    yield Row("fine-tuning: seconds of 3 steps", time.perf_counter() - started, "s")
    yield Row("fine-tuning: loss", figures["training_loss"], "nats")
    yield Row("fine-tuning: largest memory of a scene", inputs.peak_gb() / inputs.scale.compared, "GB", 1.6)
