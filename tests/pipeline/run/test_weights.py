"""Runs that begin with weights: those of the repository, of somebody else, or none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.tfrecord import write_records
from data.vocabulary import Vocabulary
from models.policy import load_policy
from models.reference.checkpoint import load_reference
from pipeline.command.cli import whole_run
from pipeline.run.presets import leaves, load_preset, override
from pipeline.run.run_config import RunConfig
from pipeline.run.run_folder import POLICY, PRETRAINED, VOCABULARY
from pipeline.run.runner import run_stages
from pipeline.run.stage_table import STAGES
from tests.builders import scenario_proto

_SHORT = {
    "tokenize.workers": 1,
    "pretrain.fit.steps": 1,
    "pretrain.fit.warmup_steps": 0,
    "pretrain.fit.rollout_every": 0,
    "finetune.fit.steps": 1,
    "finetune.fit.rollout_every": 0,
    "selfplay.agent_steps": 100,
    "selfplay.worlds": 1,
    "selfplay.pool": 1,
}


def config(preset: str, **further: object) -> RunConfig:
    return override(RunConfig(), {**leaves(whole_run(load_preset(preset), RunConfig)), **_SHORT, **further})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for number, split in enumerate(("training", "validation", "testing")):
        steps = 11 if split == "testing" else 91
        records = [scenario_proto(f"{number:015x}{i}", agents=3, steps=steps).SerializeToString() for i in range(2)]
        write_records(folder / split / f"{split}.tfrecord-00000-of-00001", records)
    return folder


def apart(one: torch.nn.Module, other: torch.nn.Module) -> float:
    """The largest difference of their weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs)


def test_the_demo_begins_with_the_weights_of_the_repository(data: Path, tmp_path: Path) -> None:
    """A step and an update move them little; all sizes and tokens of the preset fit them."""
    demo = config("demo")
    run_stages(demo, run="r", data=str(data), target="selfplay", folder=tmp_path)
    kept, kept_policy = demo.start_of("reference"), demo.start_of("policy")
    assert kept is not None
    assert kept_policy is not None
    reference, policy = load_reference(kept), load_policy(kept_policy)[0]
    assert torch.equal(Vocabulary.load(tmp_path / "r" / VOCABULARY).poses, reference.vocabulary.poses)
    assert apart(load_reference(tmp_path / "r" / PRETRAINED), reference) < 0.005
    assert apart(load_policy(tmp_path / "r" / POLICY)[0], policy) < 0.02
    # Finished, and made again with other weights.
    assert run_stages(demo, run="r", data=str(data), target="selfplay", folder=tmp_path)["stages_run"] == 0
    scratch = config("demo", weights="none")
    run_stages(scratch, run="r", data=str(data), target="pretrain", folder=tmp_path)
    # Another vocabulary, so even the sizes may differ.
    assert not torch.equal(Vocabulary.load(tmp_path / "r" / VOCABULARY).poses, reference.vocabulary.poses)


def test_the_demo_without_them_is_one_option_away() -> None:
    assert load_preset("demo")["weights"] == "zoo"
    assert "weights" not in load_preset("scratch")
    for kind in ("reference", "policy"):
        assert RunConfig().start_of(kind) is None


def test_weights_that_are_not_there_are_named(data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"--weights .*there is no .*reference/model.safetensors; give zoo, none, or"
    ):
        run_stages(
            config("demo", weights=str(tmp_path)), run="r", data=str(data), target="tokenize", folder=tmp_path
        )


def test_the_content_of_the_weights_makes_a_stage_stale(tmp_path: Path) -> None:
    for kind in ("reference", "policy"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "model.safetensors").write_bytes(b"one")
    given = RunConfig(weights=str(tmp_path))
    beginning = [stage for stage in STAGES if stage.begins_with]
    assert [stage.name for stage in beginning] == ["tokenize", "pretrain", "selfplay"]
    for stage in beginning:
        before = stage.options(given)
        assert before != stage.options(RunConfig())
        (tmp_path / str(stage.begins_with) / "model.safetensors").write_bytes(stage.name.encode())
        assert stage.options(given) != before
