"""The check of a GPU, on a CPU at the smallest sizes: every step runs, what fails is said, nothing else is lost."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from data.store import shard_name, write_shard
from models.policy import save_policy
from models.reference.checkpoint import save_reference
from pipeline.bench.gpu.steps import STEPS
from scripts import gpu_check
from submission.realism.config import CONFIG_FILES, config_path
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.selfplay.conftest import VIEW, make_policy


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``--prepare`` makes, of two made-up scenes."""
    folder = tmp_path_factory.mktemp("prepared")
    write_shard(folder / "store" / shard_name("training", 0, 1), [random_scene(0), random_scene(1, agents=3)])
    model = make_model(2)
    model.vocabulary.save(folder / "vocabulary.pt")
    save_reference(folder / "reference.ckpt", model)
    save_policy(folder / "policy.ckpt", make_policy(model.vocabulary), model.vocabulary, dataclasses.asdict(VIEW))
    torch.save({}, folder / "scores.pt")
    for name in CONFIG_FILES:
        path = config_path(name)
        target = folder / "site" / Path(*path.parts[path.parts.index("waymo_open_dataset") :])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    (folder / "prepared.json").write_text("{}")
    return folder


_ = (json, sys, STEPS, gpu_check)
