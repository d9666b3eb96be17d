"""Two processes over gloo do what one does: the same worlds, minibatches, losses and weights."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.store import shard_name, write_shard
from models.policy import PolicyConfig, load_policy
from models.reference.checkpoint import save_reference
from pipeline.selfplay.config import PPOConfig, SelfPlayConfig
from pipeline.stages.selfplay import run_selfplay
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW

CONFIG = SelfPlayConfig(
    agent_steps=900,
    worlds=4,
    pool=5,
    max_agents=8,
    tensorboard=False,
    device="cpu",
    policy=PolicyConfig(embedding=16, hidden=32, dropout=0.0),
    view=VIEW,
    ppo=PPOConfig(minibatch=100, learning_rate=1e-3, epochs=2, beta=0.5, alpha=0.01),
)


def test_two_processes_equal_one(tmp_path: Path) -> None:
    store = tmp_path / "training"
    store.mkdir()
    # Different numbers of agents: the processes have different numbers of transitions.
    scenes = [random_scene(seed, agents=agents) for seed, agents in enumerate((6, 1, 5, 2, 3))]
    write_shard(store / shard_name("training", 0, 1), scenes)
    reference = tmp_path / "reference.ckpt"
    save_reference(reference, make_model(2))
    figures = {}
    for devices in (1, 2):
        config = dataclasses.replace(CONFIG, devices=devices)
        out = tmp_path / str(devices)
        figures[devices] = run_selfplay(config, scenes=store, reference=reference, out=out, seed=4)
    one, two = ([*csv.DictReader((tmp_path / name / "metrics.csv").open())] for name in ("1", "2"))
    assert len(one) == len(two) >= 2
    for row, other in zip(one, two, strict=True):
        assert row.keys() == other.keys()
        for name in row:
            assert float(row[name]) == pytest.approx(float(other[name]), rel=2e-4, abs=2e-5), name
    first, second = (load_policy(tmp_path / name / "policy.ckpt")[0] for name in ("1", "2"))
    for weight, other_weight in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(weight, other_weight, atol=2e-4, rtol=1e-3)


def test_worlds_must_be_shared_evenly() -> None:
    with pytest.raises(UserError, match="cannot share evenly"):
        dataclasses.replace(CONFIG, devices=3)
