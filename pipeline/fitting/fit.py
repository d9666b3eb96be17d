"""One training from a store of scenes to ``reference.ckpt``, resumed if it was interrupted."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch

from data.completeness import some
from data.errors import UserError
from data.files import atomic_write
from data.scene import Scene
from data.store import SceneStore, check_disjoint, spread
from data.vocabulary import LOAD_ERRORS, Vocabulary, load_saved
from models.checkpoints import merge_digests, scene_digests, seen_scenes
from models.reference.checkpoint import read_notes, save_reference
from models.reference.inputs import SceneInputs
from models.reference.network import Reference
from models.reference.recording import recording_inputs
from pipeline.execution.devices import Devices, find_devices
from pipeline.execution.manifest import deciding
from pipeline.fitting.batches import RecordedScenes
from pipeline.fitting.config import FitConfig
from pipeline.fitting.module import FitModule, Loss
from pipeline.fitting.recorder import TRAINING_FILE, Recorder, silence_lightning
from pipeline.fitting.scored import ScoredScenes

CHECKPOINT_FILE = "reference.ckpt"


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
    rollouts: int = 0,
    reported: Sequence[str] = (),
    keep: bool = False,
) -> dict[str, float]:
    """Train ``model`` and write ``reference.ckpt`` and ``metrics.csv``.

    Args:
        name: of the stage, for the progress bar. loss: see ``Loss``.
        scenes: store to train on. validation: store to validate on, or None.
        settings: plain values that identify the training (configuration, initial checkpoint); an interrupted run is
            resumed only with the same. margin: see ``RecordedScenes``.
        rollouts: of each scene that the loss has the metric score, in batches of ``ScoredInputs``, which are not
            augmented; 0 for ``SceneInputs``. reported: names of what the loss reports.
        keep: resume an interrupted run with other settings too, from its last checkpoint with the new settings.

    Returns:
        Final ``training_loss`` (mean of the last 50 steps), validation figures, and errors of sampled futures.

    Raises:
        UserError: ``out`` holds an interrupted training with other settings, training and validation share
            scenarios, or training diverged.
    """
    devices = find_devices(config.device, "--fit.device", config.devices, config.check_share)
    store = SceneStore(scenes)
    held_out = None if validation is None else SceneStore(validation)
    if held_out is not None:
        check_disjoint(store, held_out)
        if seen := seen_scenes(model.trained_on, held_out.ids):
            raise UserError(
                f"{validation}: {len(seen)} of its scenarios are among those that the initial checkpoint was "
                f"trained on ({some(seen)}); validate on others"
            )
    model.trained_on = merge_digests(model.trained_on, scene_digests(store.ids))
    fingerprint = _fingerprint(settings, seed, store.ids, held_out.ids if held_out else [], model.vocabulary)
    final, interrupted = out / CHECKPOINT_FILE, out / TRAINING_FILE
    if final.exists() and not interrupted.exists():
        notes = read_notes(final)
        if notes["fingerprint"] == fingerprint:
            return dict(notes["figures"])
    done = _resumable(interrupted, fingerprint, config.steps, keep)

    def recorded(
        source: SceneStore, rows: Sequence[int], shift: int, kind: Callable[..., RecordedScenes] = RecordedScenes
    ) -> RecordedScenes:
        shifted = replace(config, augment=replace(config.augment, time_shift=shift))
        return kind(source, rows, model.vocabulary, model.config, shifted, seed=seed, margin=margin)

    rows = [] if held_out is None else spread(len(held_out), config.validation_scenes)
    prepared: list[SceneInputs] = []
    futures: list[Scene] = []
    if held_out is not None:
        held = recorded(held_out, rows, 0)
        prepared = [recording_inputs(held.recording(index), model.vocabulary) for index in range(len(held))]
        futures = [held_out[row] for row in rows[: config.rollout_scenes]]
    used: list[int] = list(range(len(store)))
    kind: Callable[..., RecordedScenes] = RecordedScenes
    if rollouts:
        used = [row for row in used if store.infos[row].unscorable_reason is None]
        if not used:
            raise UserError(f"{scenes}: none of its {len(store)} scenes can be scored; give others")
        kind = partial(ScoredScenes, rollouts=rollouts)
    training = recorded(store, used, config.augment.time_shift, kind)
    module = FitModule(model, loss, training, config, seed=seed, start=done, fingerprint=fingerprint)
    if done and keep:
        _adopt(interrupted, module, config)
    recorder = Recorder(name, out, config, prepared, futures, seed=seed, start=done, figures=reported)
    trainer = _trainer(config, devices, recorder)
    if done < config.steps:
        devices.tell(name, precision=config.precision, nodes=config.nodes)
        try:
            trainer.fit(module, ckpt_path=interrupted if done else None, weights_only=True)
        except SystemExit as exit_:
            # Lightning turns Ctrl-C into SystemExit; the caller needs the KeyboardInterrupt.
            if isinstance(exit_.__context__, KeyboardInterrupt):
                raise exit_.__context__ from None
            raise
    if not trainer.is_global_zero:
        return recorder.figures()
    # The file is read back, since with several devices other processes hold the trained weights.
    content = _load_training(interrupted)
    module.load_state_dict(content["state_dict"])
    recorder.load_state_dict(content["callbacks"][recorder.state_key])
    figures = recorder.figures()
    save_reference(final, module.result.cpu(), {"fingerprint": fingerprint, "figures": figures, "stage": name})
    recorder.write_metrics()
    interrupted.unlink(missing_ok=True)
    return figures


def _fingerprint(
    settings: Mapping[str, Any], seed: int, training: list[str], validation: list[str], vocabulary: Vocabulary
) -> str:
    digest = hashlib.sha256(repr((sorted(deciding(settings).items()), seed, training, validation)).encode())
    digest.update(vocabulary.poses.cpu().numpy().tobytes())
    return digest.hexdigest()


def _load_training(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = load_saved(path)
    except LOAD_ERRORS as error:
        raise UserError(f"{path}: damaged checkpoint; delete {path.parent} and train again") from error
    return content


def _stamp(content: dict[str, Any]) -> str:
    """Fingerprint of the settings of a checkpoint."""
    return bytes(content["state_dict"]["fingerprint"].tolist()).hex()


def _resumable(path: Path, fingerprint: str, steps: int, keep: bool) -> int:
    """Steps done by an interrupted run, 0 if there is none."""
    if not path.exists():
        return 0
    content = _load_training(path)
    done = int(content["global_step"])
    if _stamp(content) == fingerprint:
        return done
    if not keep:
        raise UserError(
            f"{path}: an interrupted training with other settings or data; resume it with --keep, start again with "
            "--fresh, or choose another --out"
        )
    if done > steps:
        raise UserError(f"--keep: {path}: {done} steps are done already, fit.steps is {steps}")
    return done


def _adopt(path: Path, module: FitModule, config: FitConfig) -> None:
    """Adapt a checkpoint with other settings to these: weights and moments stay, rates change.

    Raises:
        UserError: it is of another network.
    """
    content = _load_training(path)
    own = module.state_dict()
    if _stamp(content) == _stamp({"state_dict": own}):
        return
    stored = content["state_dict"]
    if {name: value.shape for name, value in stored.items()} != {name: value.shape for name, value in own.items()}:
        raise UserError(f"--keep: {path}: the checkpoint of another network; leave --keep out, or give its options")
    stored["fingerprint"] = own["fingerprint"]
    for state in content["optimizer_states"]:
        for group, decay in zip(state["param_groups"], (config.weight_decay, 0.0), strict=True):
            group |= {"initial_lr": config.learning_rate, "weight_decay": decay}
    for schedule in content["lr_schedulers"]:
        schedule["base_lrs"] = [config.learning_rate for _ in schedule["base_lrs"]]
    atomic_write(path, lambda file: torch.save(content, file))


def _trainer(config: FitConfig, devices: Devices, recorder: Recorder) -> lightning.Trainer:
    silence_lightning()
    return lightning.Trainer(
        **devices.launch(config.nodes, config.precision),
        max_steps=config.steps,
        max_epochs=-1,
        gradient_clip_val=config.gradient_clip,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        # Otherwise threads of a CPU add gradients in a random order. On a GPU it would sort instead of adding, and
        # equal bits are not promised there.
        deterministic="warn" if devices.kind == "cpu" else None,
    )
