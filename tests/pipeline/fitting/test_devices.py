"""Several processes that share the batches learn what one learns."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from models.reference.augmentation import AugmentationConfig
from models.reference.checkpoint import load_reference
from pipeline.fitting import FitConfig
from pipeline.stages.pretrain import PretrainConfig, run_pretrain
from tests.models.reference.conftest import CONFIG
from tests.pipeline.fitting.conftest import FIT

# Everything that is random but dropout, which each process draws for itself; three scenes cannot be shared evenly.
CONFIG_OF_ONE = PretrainConfig(
    size="custom",
    model=dataclasses.replace(CONFIG, dropout=0.0),
    fit=dataclasses.replace(
        FIT,
        steps=6,
        batch_size=4,
        ema=0.5,
        rollout_every=4,
        augment=AugmentationConfig(time_shift=5, agent_drop=0.2, noise=0.3),
        device="cpu",
    ),
)


def rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").open()))


def test_two_processes_learn_what_one_learns(data, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run_pretrain(CONFIG_OF_ONE, **data, out=one, seed=5)
    shared = dataclasses.replace(CONFIG_OF_ONE, fit=dataclasses.replace(CONFIG_OF_ONE.fit, devices=2))
    figures = run_pretrain(shared, **data, out=two, seed=5)
    assert len(rows(one)) == len(rows(two)) == 6
    for alone, together in zip(rows(one), rows(two), strict=True):
        for name, value in alone.items():
            if value:
                assert float(together[name]) == pytest.approx(float(value), rel=2e-3, abs=1e-5), (
                    name,
                    alone["step"],
                )
            else:
                assert not together[name]
        assert float(together["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-5)
    weights = [load_reference(folder / "reference.ckpt").state_dict() for folder in (one, two)]
    flat = [torch.cat([tensor.flatten() for tensor in state.values()]) for state in weights]
    # Adam makes steps of equal size of gradients that are nothing but rounding, so single weights may differ.
    assert float((flat[0] - flat[1]).norm() / flat[0].norm()) < 1e-3
    assert figures["validation_cross_entropy"] > 0
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())


def test_a_batch_must_reach_every_device():
    with pytest.raises(UserError, match="batch_size is 2, less than a scene for each of 4 devices"):
        FitConfig(batch_size=2, devices=2, nodes=2)
