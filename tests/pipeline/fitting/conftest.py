"""Stores of random scenes, and a short training on them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from data.store import shard_name, write_shard
from data.vocabulary import VocabularyConfig, build_vocabulary
from pipeline.fitting import FitConfig
from pipeline.stages.finetune import FinetuneConfig
from pipeline.stages.pretrain import PretrainConfig, run_pretrain
from tests.models.reference.conftest import CONFIG
from tests.models.scenes import random_scene

FIT = FitConfig(
    steps=8,
    batch_size=2,
    max_agents=4,
    learning_rate=3e-3,
    warmup_steps=2,
    validation_scenes=2,
    validate_every=4,
    rollout_scenes=1,
    checkpoint_every=3,
)
MODEL = dataclasses.replace(CONFIG, dropout=0.2)
PRETRAIN = PretrainConfig(size="custom", model=MODEL, fit=FIT)
FINETUNE = FinetuneConfig(top_k=4, fit=dataclasses.replace(FIT, steps=4))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    """Stores of both splits, and the vocabulary."""
    folder = tmp_path_factory.mktemp("data")
    paths = {
        "scenes": folder / "training",
        "validation": folder / "validation",
        "vocabulary": folder / "vocabulary.pt",
    }
    scenes = [random_scene(seed) for seed in range(8)]
    for split, some in (("training", scenes[:6]), ("validation", scenes[6:])):
        (folder / split).mkdir()
        write_shard(folder / split / shard_name(split, 0, 1), some)
    build_vocabulary(scenes, VocabularyConfig(size=40, token_steps=5), seed=0).save(paths["vocabulary"])
    return paths


@pytest.fixture(scope="module")
def pretrained(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pretrain")
    run_pretrain(PRETRAIN, **data, out=out, seed=5)
    return out
