"""Preparing the folder for a bare machine with a GPU: scenes, models, wheels, metric configurations, scores."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import torch

from data.errors import UserError
from data.files import atomic_write, write_json
from pipeline.bench.gpu.inputs import FULL, Inputs
from pipeline.bench.gpu.travelling import fetch_wheels
from pipeline.bench.metric import noisy_rollouts
from pipeline.run.run_folder import VOCABULARY, RunFolder
from submission.realism import METRIC_FIELDS, load_config, prepare_scene, score
from submission.realism.config import CONFIG_FILES, config_path

READY_FILE = "prepared.json"
_ROOT = Path(__file__).resolve().parents[3]
# Little traffic and short trainings, since the measurements do not depend on them.
_OPTIONS = {
    "traffic.training": 72,
    "traffic.validation": 4,
    "traffic.testing": 1,
    "tokenize.error_scenes": 4,
    "pretrain.fit.steps": 100,
    "finetune.fit.steps": 10,
    "selfplay.agent_steps": 20000,
}


def prepare(folder: Path, run: Path | None, python: str = "3.12", wheels: bool = True) -> None:
    """Fill the folder.

    Args:
        folder: to prepare. run: a finished run of ``make stages`` whose store and models are used; None runs the
            stages up to self-play on generated traffic, beside ``folder``.
        python: version of Python on the other machine. wheels: download wheels for it.

    Raises:
        UserError: the run is incomplete, or stages or pip failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _generated(folder) if run is None else run
    source_run = RunFolder.opened(run)
    for source, target in (
        (source_run.needed("tokenize/training"), folder / "store"),
        (source_run.needed("tokenize/validation"), folder / "validation"),
        (source_run.needed(VOCABULARY), folder / "vocabulary.pt"),
        (source_run.reference, folder / "reference.ckpt"),
        (source_run.policy, folder / "policy.ckpt"),
    ):
        if source.is_dir():
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "*.json"))
        else:
            shutil.copyfile(source, target)
    for name in CONFIG_FILES:
        path = config_path(name)
        target = folder / "site" / Path(*path.parts[path.parts.index("waymo_open_dataset") :])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    _score(folder)
    if wheels and (status := fetch_wheels(folder / "wheels", python)):
        raise UserError(f"{folder}/wheels: pip download ended with status {status}; see above, or give --no-wheels")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    write_json(folder / READY_FILE, {"python": python, "megabytes": round(size, 1), "run": run.name})


def _generated(folder: Path) -> Path:
    """Make a small run of the stages beside the folder."""
    runs, name = folder.parent, f"{folder.name}-run"
    command = [sys.executable, "-m", "pipeline", "stages", "--preset", "scratch", "--target", "selfplay"]
    command += [part for option, value in _OPTIONS.items() for part in (f"--{option}", str(value))]
    status = subprocess.call([*command, "--run", name, "--folder", str(runs)], cwd=_ROOT)
    if status:
        raise UserError(f"{runs / name}: the stages ended with status {status}; see above, or give --run")
    return runs / name


def _score(folder: Path) -> None:
    """Save scores of deterministic futures on this machine's CPU."""
    inputs, config = Inputs(folder, folder, folder, torch.device("cpu"), FULL), load_config("2025")
    scores = {}
    for scene in inputs.scenes[: FULL.compared]:
        ids, states = scene.agents.id[scene.simulated], noisy_rollouts(scene, FULL.rollouts)
        values = score(prepare_scene(scene), ids, states, config).values
        values_ = torch.stack([values[name] for name in METRIC_FIELDS])
        scores[str(scene.scenario_id)] = {"rollouts": FULL.rollouts, "values": values_}
    atomic_write(folder / "scores.pt", lambda file: torch.save(scores, file))
