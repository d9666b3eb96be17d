"""The command on a small run: all outputs, nothing done twice, own planners, one-line errors."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.scenes_source import open_scenes
from pipeline.run.run_folder import POLICY, REFERENCE, RunFolder
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.studies.planners import command as stage
from pipeline.studies.planners import pictures, rewards
from pipeline.studies.planners.command import PlannersConfig, run_planners
from pipeline.studies.planners.pictures import Case, write_cases
from pipeline.studies.planners.rewards import PLAIN, characters
from pipeline.studies.planners.scores import SCORE_NAMES
from pipeline.studies.planners.tasks import DriveTask, Entrant
from tests.pipeline.viewing.conftest import SCENES, made_run

__all__ = ["made_run"]

BUILTIN = ["constant_velocity", "idm_baseline", "frenet_baseline", "log"]
CONFIG = PlannersConfig(planners=BUILTIN, trained=0, chunk=2, workers=1)
EXAMPLE = "pipeline.studies.planners.example:make"


@pytest.fixture(scope="module")
def done(made_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("planners")
    plain = made_run / POLICY
    figures = run_planners(CONFIG, run=made_run, plain=plain, planner=[EXAMPLE, str(plain)], out=out)
    assert (figures["scenes"], figures["planners"]) == (SCENES, len(BUILTIN) + 2)
    return out


def test_outputs(done: Path) -> None:
    report = json.loads((done / "planners.json").read_text())
    assert report["simulators"] == ["log", "reference", "policy", "plain"]
    assert set(report["means"]["log"]) == {*BUILTIN, EXAMPLE, "selfplay/policy"}
    rows = list(csv.DictReader((done / "drives.csv").open()))
    assert len(rows) == 4 * (len(BUILTIN) + 2) * SCENES
    for row in rows:
        assert all(0 <= float(row[name]) <= 1 for name in SCORE_NAMES)
    # Plain self-play is the same checkpoint here: the same traffic, the same scores.
    by_simulator = {
        name: [{**row, "simulator": ""} for row in rows if row["simulator"] == name] for name in ("policy", "plain")
    }
    assert by_simulator["policy"] == by_simulator["plain"]
    means = report["means"]["log"]["idm_baseline"]["pdm"]
    values = [float(row["pdm"]) for row in rows if (row["simulator"], row["planner"]) == ("log", "idm_baseline")]
    assert means["value"] == pytest.approx(sum(values) / SCENES, abs=1e-5)
    text = (done / "report.md").read_text()
    assert "| idm_baseline |" in text
    assert "Agreement of simulators" in text
    for name in ("scores.pdf", "scores.png", "agreement.pdf", "agreement.png"):
        assert (done / "figures" / name).stat().st_size > 1000
    assert len(report["cases"]) == len(list((done / "cases").glob("*.mp4")) if (done / "cases").exists() else [])


def test_nothing_is_driven_twice(made_run: Path, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = made_run / POLICY
    before = (done / "planners.json").read_bytes()
    monkeypatch.setattr(stage, "drive_task", None)
    run_planners(CONFIG, run=made_run, plain=plain, planner=[EXAMPLE, str(plain)], out=done)
    assert (done / "planners.json").read_bytes() == before


def test_an_own_planner_is_driven_anew_when_its_file_changes(
    made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    config = PlannersConfig(scenes=1, planners=["log"], trained=0, cases=0, simulators=["log"], workers=1)
    name = "planner_of_somebody:make"
    driven = []
    for text in ("ConstantVelocityPlanner", "LogPlanner", "LogPlanner"):
        (tmp_path / "planner_of_somebody.py").write_text(
            f"from pipeline.studies.planners.catalogue import {text} as make\n"
        )
        sys.modules.pop("planner_of_somebody", None)
        importlib.invalidate_caches()
        run_planners(config, run=made_run, planner=[name], out=tmp_path / "out")
        driven.append(len(list((tmp_path / "out" / "parts").iterdir())))
    assert driven == [1, 2, 2]


def test_a_moved_checkpoint_is_not_driven_again() -> None:
    def task(folder: str) -> DriveTask:
        policy = Entrant("policy", f"{folder}/policy.ckpt", "abc")
        return DriveTask(f"{folder}/store", "content", ("a",), policy, (Entrant("log", "log"), policy), 0)

    assert task("here").name == task("there").name
    other = dataclasses.replace(task("here"), simulator=Entrant("policy", "here/policy.ckpt", "other"))
    assert other.name != task("here").name
    # What is no file is known by where it comes from, whatever it is called.
    built_in, own = (Entrant("mine", source) for source in ("frenet_fast", "package:Planner"))
    one, two = (dataclasses.replace(task("here"), planners=(entrant,)) for entrant in (built_in, own))
    assert one.name != two.name


def test_policies_of_other_rewards_are_trained_once(
    made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[SelfPlayConfig] = []
    seeds: list[int] = []
    train = rewards.run_selfplay

    def noted(config: SelfPlayConfig, *, seed: int, **paths: Any) -> dict[str, float]:
        asked.append(config)
        seeds.append(seed)
        return train(config, seed=seed, **paths)

    monkeypatch.setattr(rewards, "run_selfplay", noted)
    base = SelfPlayConfig(worlds=2, pool=2)
    config = PlannersConfig(
        scenes=1,
        simulators=["log", "plain"],
        planners=["log"],
        trained=2,
        trained_steps=50,
        cases=0,
        workers=1,
        selfplay=base,
    )
    for _ in range(2):
        figures = run_planners(config, run=made_run, out=tmp_path)
    assert figures["planners"] == 3
    assert [one.agent_steps for one in asked] == [50] * 3
    assert seeds == [0, 1, 2]
    assert all(one.ppo.beta == 0 and one.ppo.alpha == 0 for one in asked)
    assert [one.reward.goal for one in asked] == [1.0, 1.0, 0.5]
    names = [one.name for one in characters(2)]
    assert {path.name for path in (tmp_path / "trained").iterdir()} == {"plain", *names}
    # The first character has plain self-play's reward, and is another policy all the same.
    policies = [(tmp_path / "trained" / name / "policy.ckpt").read_bytes() for name in ("plain", names[0])]
    assert policies[0] != policies[1]


def test_sheets_of_cases_show_moments_of_the_drive(
    made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """About the collision, and none before the start or behind the end."""
    shown: list[list[float]] = []
    monkeypatch.setattr(pictures, "write_video", lambda path, frames: 0)
    monkeypatch.setattr(pictures, "write_sheet", lambda path, rasters, panels, seconds: shown.append(seconds))
    scenarios, log = str(RunFolder(made_run).needed("tokenize/validation")), Entrant("log", "log")
    (name, *_) = open_scenes(scenarios).ids
    cases = [Case(name, "log", "log", seconds, True, 0.0, 1.0) for seconds in (1.0, 4.0, 7.5)]
    write_cases(cases, scenarios, [log], (log,), tmp_path, seed=0)
    assert shown == [[0.0, 0.0, 1.0, 2.5], [1.0, 2.5, 4.0, 5.5], [4.5, 6.0, 7.5, 8.0]]


def test_planners_are_not_trained_where_they_drive(made_run: Path, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, simulators=["log"], trained=1)
    scenes = str(made_run / "tokenize" / "training")
    with pytest.raises(UserError, match=rf"{SCENES} of its scenarios, on which planners are trained, are among"):
        run_planners(config, run=made_run, scenarios=scenes, out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_grid_has_the_papers_number_of_characters() -> None:
    grid = characters(22)
    assert len(set(grid)) == len({one.name for one in grid}) == 22
    assert grid[0] == PLAIN
    assert {one.goal for one in grid} == {1.0, 0.5}
    # Nobody is paid to collide who is not fined for leaving the road.
    pairs = set(itertools.product((-0.75, -0.375, 0.0, 0.1), (-0.75, -0.375, 0.0))) - {(0.1, 0.0)}
    assert {(one.collision, one.off_road) for one in grid} == pairs
    assert len(characters(3)) == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"planners": ["idm_basline"]}, "expected some of"),
        ({"simulators": []}, "at least one"),
        ({"simulators": ["log", "log"]}, "each once"),
        ({"chunk": 0}, "--chunk 0"),
        ({"trained": 23}, "22"),
    ],
)
def test_options_that_make_no_sense(changes: dict, words: str) -> None:
    with pytest.raises(UserError, match=words):
        PlannersConfig(**changes)


def test_what_is_missing_is_named(made_run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        run_planners(CONFIG, run=tmp_path / "nothing")
    with pytest.raises(UserError, match="--run FOLDER"):
        run_planners(CONFIG, scenarios=str(made_run / "tokenize" / "validation"))
    store, out = str(made_run / "tokenize" / "validation"), tmp_path / "out"
    with pytest.raises(UserError, match="reference needs a checkpoint"):
        run_planners(PlannersConfig(trained=0, simulators=["reference"]), scenarios=store, out=out)
    with pytest.raises(UserError, match="give --run"):
        run_planners(PlannersConfig(trained=1, simulators=["log"]), scenarios=store, out=out)
    with pytest.raises(UserError, match="no such planner"):
        run_planners(PlannersConfig(trained=0, simulators=["log"]), scenarios=store, planner=["nobody"], out=out)
    reference = made_run / REFERENCE
    with pytest.raises(UserError, match="takes part twice"):
        run_planners(CONFIG, run=made_run, plain=reference, planner=[EXAMPLE, EXAMPLE], out=out)
