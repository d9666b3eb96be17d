"""A run of random scenes with models of random weights: enough for every claim to go through."""

from __future__ import annotations

import dataclasses
from dataclasses import asdict
from pathlib import Path

import pytest

from data.store import shard_name, write_shard
from models.policy import PolicyConfig, save_policy
from models.reference.checkpoint import save_reference
from pipeline.fitting import FitConfig
from pipeline.selfplay.config import PPOConfig, SelfPlayConfig
from pipeline.stages.pretrain import PretrainConfig
from pipeline.studies.claims.config import ClaimsConfig
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, finish_stages, make_policy

TINY = ClaimsConfig(
    agent_steps=300,
    single_steps=80,
    rollouts=2,
    sampling_modes=[0],
    evaluations=1,
    levels=[0.25, 1.0],
    likelihood_rollouts=2,
    likelihood_scored=1,
    references=["micro:1"],
    vocabularies=[20, 30],
    vocabulary_reference="micro:1",
    worlds_of_one=1,
    workers=1,
    selfplay=SelfPlayConfig(
        worlds=2,
        pool=3,
        tensorboard=False,
        evaluate_scenes=1,
        policy=PolicyConfig(embedding=8, hidden=8, dropout=0.0),
        view=VIEW,
        ppo=PPOConfig(minibatch=128, learning_rate=3e-3, epochs=1),
    ),
    pretrain=PretrainConfig(fit=FitConfig(steps=1, batch_size=1, tensorboard=False)),
)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims") / "tiny"
    model = make_model(2)
    for split in ("training", "validation"):
        (folder / "tokenize" / split).mkdir(parents=True)
        scenes = [random_scene(seed, agents=agents) for seed, agents in ((0, 6), (1, 4), (2, 5))]
        named = [dataclasses.replace(scene, scenario_id=f"{split}{number}") for number, scene in enumerate(scenes)]
        write_shard(folder / "tokenize" / split / shard_name(split, 0, 1), named)
    model.vocabulary.save(folder / "tokenize" / "vocabulary.pt")
    for stage in ("finetune", "selfplay"):
        (folder / stage).mkdir()
    save_reference(folder / "finetune" / "reference.ckpt", model)
    save_policy(folder / "selfplay" / "policy.ckpt", make_policy(model.vocabulary), model.vocabulary, asdict(VIEW))
    finish_stages(folder, "tokenize", "finetune", "selfplay")
    return folder
