"""Agents are not judged on what they were trained on, as far as it is known."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.store import shard_name, write_shard
from models.checkpoints import merge_digests, scene_digests, seen_scenes, trained_on
from models.reference.checkpoint import load_reference, save_reference
from models.reference.network import Reference
from pipeline.agents.leaks import check_rollouts, check_unseen
from pipeline.stages.evaluate import EvaluateConfig, run_evaluate
from pipeline.stages.pretrain import PretrainConfig, run_pretrain
from pipeline.stages.sample import SampleConfig, run_sample
from pipeline.stages.selfplay import SelfPlayConfig, run_selfplay
from pipeline.studies.planners.command import PlannersConfig, run_planners
from pipeline.studies.robustness.command import RobustnessConfig, run_robustness
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene

# A single scene has a single id.
FIRST = str(random_scene(0).scenario_id)
IDS = [f"{index:016x}" for index in range(100)]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A reference that says it was trained on the first scene."""
    model = make_model(2)
    model.trained_on = scene_digests([FIRST, "other"])
    save_reference(tmp_path / "reference.ckpt", model)
    return tmp_path / "reference.ckpt"


def store(folder: Path, *seeds: int) -> Path:
    write_shard(folder / shard_name("validation", 0, 1), [random_scene(seed, agents=4) for seed in seeds])
    return folder


def _config(model: Reference) -> PretrainConfig:
    return PretrainConfig(size="custom", model=model.config)


def test_digests_are_sets_of_ids() -> None:
    both = merge_digests(scene_digests(IDS[:10]), scene_digests(IDS[5:20]))
    assert len(both) == 20
    assert torch.equal(both, scene_digests(reversed(IDS[:20])))
    assert seen_scenes(both, IDS) == IDS[:20]
    assert seen_scenes(scene_digests([]), IDS) == []


def test_checkpoints_keep_them(checkpoint: Path) -> None:
    assert torch.equal(trained_on(checkpoint), load_reference(checkpoint).trained_on)
    # As an earlier version wrote it.
    content = torch.load(checkpoint, weights_only=True)
    del content["trained_on"]
    torch.save(content, checkpoint)
    assert len(trained_on(checkpoint)) == len(load_reference(checkpoint).trained_on) == 0


def test_what_was_trained_on_is_not_scored(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes, rollouts = store(tmp_path / "validation", 0, 1), tmp_path / "rollouts"
    config = SampleConfig(agent="reference", rollouts=1, workers=1)
    assert run_sample(config, scenarios=scenes, checkpoint=checkpoint, out=rollouts)["trained_scenarios"] == 1
    assert "was trained on 1 of the 2 scenarios" in capsys.readouterr().err
    assert json.loads((rollouts / "sampling.json").read_text())["trained_on"] == 1
    for path in (rollouts, next(rollouts.glob("*.binproto-*"))):
        with pytest.raises(UserError, match=r"the agent was trained on 1 of these scenarios.*--allow-trained"):
            run_evaluate(EvaluateConfig(workers=1), scenarios=scenes, rollouts=path, out=tmp_path / "score")
    check_rollouts(tmp_path)
    check_unseen(None, scenes, [FIRST])
    with pytest.raises(UserError, match="was trained on 1 of the 1 scenarios of validation"):
        check_unseen(checkpoint, "validation", [FIRST])


def test_no_experiment_judges_on_what_was_trained_on(checkpoint: Path, tmp_path: Path) -> None:
    scenes, out = str(store(tmp_path / "validation", 0, 1)), tmp_path / "out"
    config = PlannersConfig(simulators=["log", "reference"], planners=["log"], trained=0, workers=1)
    text = rf"reference\.ckpt: was trained on 1 of the 2 scenarios of {scenes} \({FIRST}\)"
    with pytest.raises(UserError, match=text):
        run_robustness(
            RobustnessConfig(agents=["reference"], workers=1), scenarios=scenes, reference=checkpoint, out=out
        )
    with pytest.raises(UserError, match=text):
        run_planners(config, scenarios=scenes, reference=checkpoint, out=out)
    # A planner may be a checkpoint too.
    alone = dataclasses.replace(config, simulators=["log"])
    with pytest.raises(UserError, match=text):
        run_planners(alone, scenarios=scenes, planner=[str(checkpoint)], out=out)
    assert not list(out.rglob("*.json"))


def test_trainings_refuse_shared_scenarios(checkpoint: Path, tmp_path: Path) -> None:
    training, validation = store(tmp_path / "a", 1, 2), store(tmp_path / "b", 2, 3)
    model = load_reference(checkpoint)
    model.vocabulary.save(tmp_path / "vocabulary.pt")
    for run in (
        lambda **paths: run_selfplay(SelfPlayConfig(), reference=checkpoint, **paths),
        lambda **paths: run_pretrain(_config(model), vocabulary=tmp_path / "vocabulary.pt", **paths),
    ):
        with pytest.raises(UserError, match=r"a: 1 of its scenarios are in .*b too"):
            run(scenes=training, validation=validation, out=tmp_path / "out")
    # The reference had learnt what the policy, or the next reference, is validated on.
    with pytest.raises(UserError, match="was trained on 1 of the 1 scenarios"):
        run_selfplay(
            SelfPlayConfig(),
            scenes=training,
            reference=checkpoint,
            validation=store(tmp_path / "c", 0),
            out=tmp_path,
        )
    with pytest.raises(UserError, match="1 of its scenarios are among those that the initial checkpoint"):
        run_pretrain(
            _config(model),
            scenes=training,
            validation=tmp_path / "c",
            vocabulary=tmp_path / "vocabulary.pt",
            start=checkpoint,
            out=tmp_path / "out",
        )
