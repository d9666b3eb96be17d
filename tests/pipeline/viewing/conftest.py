"""A small run with everything a report reads, made by the stages but for the trainings, and a browser."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from data.tfrecord import write_records
from models.policy import save_policy
from models.reference.agent import ReferenceAgent
from models.reference.checkpoint import save_reference
from pipeline.execution.manifest import Recipe, Work, begin, finish, look
from pipeline.run.run_folder import POLICY, REFERENCE
from pipeline.stages.evaluate import EvaluateConfig, run_evaluate
from pipeline.stages.sample import SampleConfig, run_sample
from pipeline.stages.tokenize import TokenizeConfig, ingest
from tests.builders import scenario_proto
from tests.models.reference.conftest import make_model
from tests.pipeline.conftest import VIEW, make_policy

AGENTS = ("log", "constant_velocity", "reference", "policy")
SCENES = 4
ROLLOUTS = 3


@contextlib.contextmanager
def _stage(run: Path, name: str, **figures: Any) -> Iterator[Path]:
    """The folder of a stage, which then counts as done, as the runner has it."""
    recipe = Recipe(config={"stage": name}, seed=0, code="0" * 16, inputs={})
    work = Work(run / name, name, run / "replaced" / name)
    begin(work, recipe, look(work, recipe))
    yield work.folder
    finish(work, recipe, figures, seconds=1.5, peak_memory_mb=200.0)


@pytest.fixture(scope="session")
def made_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed: see ``run``."""
    folder = tmp_path_factory.mktemp("viewing") / "tiny"
    data, model = folder.parent / "womd", make_model(2)
    with _stage(folder, "tokenize", training_rejected=0, vehicle_position_mean_m=0.02) as out:
        for first, split in ((SCENES, "training"), (0, "validation")):
            (data / split).mkdir(parents=True)
            protos = [scenario_proto(f"{first + index:016x}", agents=2 + index) for index in range(SCENES)]
            records = [proto.SerializeToString() for proto in protos]
            write_records(data / split / f"{split}.tfrecord-00000-of-00001", records)
            (out / split).mkdir()
            ingest(TokenizeConfig(workers=1), data=str(data), split=split, out=out / split)
        model.vocabulary.save(out / "vocabulary.pt")
    with _stage(folder, "finetune", training_loss=2.5) as out:
        save_reference(out / "reference.ckpt", model)
        (out / "metrics.csv").write_text(
            "step,loss,learning_rate,validation_cross_entropy,validation_top1\n1,3.5,0.1,,\n2,2.5,0.1,2.25,0.5\n"
        )
    with _stage(folder, "selfplay", kl=1.0, trained_agent_steps_per_second=123.0) as out:
        save_policy(out / "policy.ckpt", make_policy(model.vocabulary), model.vocabulary, asdict(VIEW))
        (out / "metrics.csv").write_text(
            "agent_steps,kl,entropy,reward_goal,collision_rate\n100,2.5,3,0,0.5\n200,1.5,2,0.5,0.25\n300,1,2,1,0.125\n"
        )
    store = folder / "tokenize" / "validation"
    checkpoints = {"reference": folder / REFERENCE, "policy": folder / POLICY}
    with _stage(folder, "sample", validation_policy_scenarios_per_second=2.0) as out:
        for agent in AGENTS:
            config = SampleConfig(agent=agent, rollouts=ROLLOUTS, shard_scenarios=2, workers=1)
            place = out / "validation" / agent
            run_sample(config, scenarios=store, checkpoint=checkpoints.get(agent), out=place)
    with _stage(folder, "evaluate") as out:
        for agent in AGENTS:
            rollouts = folder / "sample" / "validation" / agent
            run_evaluate(EvaluateConfig(workers=1), scenarios=store, rollouts=rollouts, out=out / agent, show=False)
    return folder


@pytest.fixture
def run(made_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be spoilt."""
    return Path(shutil.copytree(made_run, tmp_path / "tiny"))


@pytest.fixture(scope="session")
def reference() -> ReferenceAgent:
    return ReferenceAgent(make_model(2))


def _browser_path() -> str | None:
    named = os.environ.get("CHROMIUM")
    names = ("chromium", "chromium-browser", "google-chrome")
    return named or next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, or a skip that says what was not tested."""
    path = _browser_path()
    if path is None:
        pytest.skip("no Chromium on this machine (set CHROMIUM): the pages were not tested in a browser")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        started = engine.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield started
        started.close()
