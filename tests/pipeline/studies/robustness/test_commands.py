"""The commands on a small run: figures that agree with those of ``evaluate``, resume, one-line errors."""

from __future__ import annotations

import csv
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.scene import Scene
from data.scenes_source import open_scenes
from data.tfrecord import write_records
from models.policy import save_policy
from models.reference.agent import ReferenceAgent
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.command.cli import whole_run
from pipeline.command.options import command_parser
from pipeline.run.presets import PRESETS, load_preset
from pipeline.run.run_config import RunConfig
from pipeline.run.run_folder import POLICY, REFERENCE
from pipeline.studies.robustness import trials
from pipeline.studies.robustness.command import RobustnessConfig, run_robustness
from pipeline.studies.robustness.spoiling import KINDS, Condition, Levels
from pipeline.studies.robustness.transfer import TransferConfig, run_transfer
from submission.realism import load_config, prepare_scene, score
from tests.builders import scenario_proto
from tests.pipeline.conftest import VIEW, make_policy
from tests.pipeline.viewing.conftest import ROLLOUTS, SCENES

ROOT = Path(__file__).parents[4]
AGENTS = ("constant_velocity", "reference", "policy")
LEVELS = Levels(
    **{name: [] for name in KINDS} | {"position_bias": [2.0], "dropped_map": [0.6], "wrong_lights": [1.0]}
)
CONFIG = RobustnessConfig(scenes=0, rollouts=ROLLOUTS, levels=LEVELS, chunk=3, workers=1)


def evaluated(run: Path, agent: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((run / "evaluate" / agent / "metrics.json").read_text())
    return report


@pytest.fixture(scope="module")
def done(made_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("robustness")
    figures = run_robustness(CONFIG, run=made_run, out=out)
    assert (figures["scenes"], figures["conditions"]) == (SCENES, 4)
    return out


def results(out: Path) -> dict[tuple[str, str], dict[str, Any]]:
    report = json.loads((out / "metrics.json").read_text())
    return {(row["kind"], row["agent"]): row for row in report["results"]}


def test_the_clean_scenes_have_the_figures_of_evaluate(done: Path, made_run: Path) -> None:
    found = results(done)
    for agent in AGENTS:
        row = found["clean", agent]
        assert (row["scenes"], row["changed_scenes"], row["differences"]) == (SCENES, 0, {})
        for name, value in evaluated(made_run, agent)["metrics"].items():
            assert row["metrics"][name] == pytest.approx(value, abs=1e-6), name


def test_what_an_agent_does_not_see_costs_it_nothing(done: Path) -> None:
    found = results(done)
    for kind in ("dropped_map", "wrong_lights"):
        row = found[kind, "constant_velocity"]
        assert row["changed_scenes"] == SCENES
        assert set(row["differences"].values()) == {0.0}
    for agent in AGENTS:
        row = found["position_bias", agent]
        assert row["differences"]["metametric"] == pytest.approx(
            row["metrics"]["metametric"] - found["clean", agent]["metrics"]["metametric"]
        )
        low, high = row["difference_intervals"]["metametric"]
        assert low <= row["differences"]["metametric"] <= high
    shifted = found["position_bias", "constant_velocity"]["metrics"]["average_displacement_error"]
    assert shifted > found["clean", "constant_velocity"]["metrics"]["average_displacement_error"]


def test_files(done: Path) -> None:
    with (done / "table.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * len(AGENTS)
    assert [row["kind"] for row in rows[::3]] == ["clean", "position_bias", "dropped_map", "wrong_lights"]
    table = (done / "table.md").read_text().splitlines()
    assert table[0] == "| inputs | changed scenes | constant velocity | reference | policy |"
    assert table[4].startswith("| dropped map 60% | 4 | +0.000 [+0.000, +0.000] | ")
    assert table[7].startswith("| inputs | agent | changed | realism | difference |")
    assert any(line.startswith("| dropped map 60% | policy | 4 |") for line in table)
    assert (done / "degradation.pdf").read_bytes().startswith(b"%PDF")
    assert (done / "degradation.png").stat().st_size > 10_000


def test_interrupted_and_taken_up_again(
    done: Path, made_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, rows = trials.spoil, list[str]()

    def counted(scene: Scene, condition: Condition, seed: int) -> Scene:
        if len(rows) == 17:
            raise KeyboardInterrupt
        rows.append(str(scene.scenario_id))
        return plain(scene, condition, seed)

    monkeypatch.setattr(trials, "spoil", counted)
    with pytest.raises(KeyboardInterrupt):
        run_robustness(CONFIG, run=made_run, out=tmp_path)
    assert not (tmp_path / "metrics.json").exists()
    # Five chunks of three scenes are done; of the sixth, two scenes were and are again.
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "parts").glob("*.json")}
    assert len(kept) == 5
    rows[:] = [""] * 18
    run_robustness(CONFIG, run=made_run, out=tmp_path)
    assert len(rows) - 18 == 4 * len(AGENTS) * SCENES - 15
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    for name in ("metrics.json", "table.csv", "table.md", "degradation.pdf"):
        assert (tmp_path / name).read_bytes() == (done / name).read_bytes(), name
    # Nothing is left to do, and another level costs itself alone.
    rows[:] = [""] * 18
    run_robustness(CONFIG, run=made_run, out=tmp_path)
    assert len(rows) == 18
    levels = Levels(**vars(LEVELS) | {"position_bias": [1.0, 2.0]})
    run_robustness(RobustnessConfig(**vars(CONFIG) | {"levels": levels}), run=made_run, out=tmp_path)
    assert len(rows) - 18 == len(AGENTS) * SCENES


def test_figures_do_not_depend_on_workers_or_chunks(done: Path, made_run: Path, tmp_path: Path) -> None:
    config = RobustnessConfig(**vars(CONFIG) | {"workers": 2, "chunk": 1, "agents": ["policy"]})
    run_robustness(config, run=made_run, out=tmp_path)
    for key, row in results(tmp_path).items():
        assert row == results(done)[key]


def test_scenes_are_drawn_and_those_of_fewer_are_among_those_of_more(made_run: Path) -> None:
    store = str(made_run / "tokenize" / "validation")
    two, three, every = (trials.choose_scenes(store, count, seed=5).ids for count in (2, 3, 0))
    assert three[:2] == two
    assert every[:3] == three
    assert len(set(every)) == SCENES
    assert len({trials.choose_scenes(store, 1, seed).ids for seed in range(12)}) > 1


def test_transfer(made_run: Path, tmp_path: Path) -> None:
    """The second run has the same scenes and reference, and another policy."""
    other = Path(shutil.copytree(made_run, tmp_path / "other"))
    vocabulary = ReferenceAgent.from_checkpoint(made_run / REFERENCE).vocabulary
    save_policy(other / POLICY, make_policy(vocabulary, gain=20.0), vocabulary, asdict(VIEW))
    figures = run_transfer(
        TransferConfig(rollouts=ROLLOUTS, workers=1), runs=[made_run, other], out=tmp_path / "out"
    )
    assert figures["scenes"] == 2 * SCENES
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    cells = {(row["tested"], row["agent"], row["trained"]): row for row in report["results"]}
    names = (made_run.name, "other")
    expected = {(tested, "constant_velocity", "") for tested in names}
    expected |= {(a, agent, b) for a in names for b in names for agent in AGENTS[1:]}
    assert set(cells) == expected
    # The other policy's figures, without any of the code under test.
    agent, config = PolicyAgent.from_checkpoint(other / POLICY), load_config("2025")
    truth = {}
    for scene in open_scenes(made_run / "tokenize" / "validation"):
        states = agent.rollouts(scene, ROLLOUTS, 0)
        result = score(prepare_scene(scene), scene.agents.id[scene.simulated], states, config)
        truth[str(scene.scenario_id)] = float(result.values["metametric"])
    foreign = sum(truth.values()) / SCENES
    native = {name: evaluated(made_run, name)["metrics"]["metametric"] for name in AGENTS}
    assert abs(foreign - native["policy"]) > 0.01
    for (tested, name, trained), row in cells.items():
        value = foreign if (name, trained) == ("policy", "other") else native[name]
        assert row["metrics"]["metametric"] == pytest.approx(value, abs=1e-6)
        if trained in ("", tested):
            assert row["differences"] == {}
            continue
        change = {"other": foreign - native["policy"], made_run.name: native["policy"] - foreign}[trained]
        assert row["differences"]["metametric"] == pytest.approx(change if name == "policy" else 0.0, abs=1e-6)
    table = (tmp_path / "out" / "table.md").read_text()
    assert f"| other | {SCENES} | reference | {made_run.name} |" in table


def test_bad_options_are_one_line(made_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "o"
    classes: tuple[Callable[..., Any], ...] = (RobustnessConfig, TransferConfig)
    for name, value, least in (("scenes", -1, 0), ("rollouts", 0, 1), ("chunk", 0, 1), ("workers", -2, 0)):
        for config_class in classes:
            with pytest.raises(UserError, match=f"--{name} {value}: expected {least} or more"):
                config_class(**{name: value})
    for agents in (["log"], [], ["policy", "policy"], ["polcy"]):
        with pytest.raises(UserError, match=r"--agents .*expected some of constant_velocity, reference, policy"):
            RobustnessConfig(agents=agents)
    with pytest.raises(UserError, match="give --run FOLDER, or --scenarios and --out"):
        run_robustness(CONFIG, scenarios="x")
    store = str(made_run / "tokenize" / "validation")
    with pytest.raises(UserError, match="reference needs a checkpoint and give --reference FILE"):
        run_robustness(CONFIG, scenarios=store, out=out)
    missing, there = tmp_path / "policy.ckpt", made_run / REFERENCE
    with pytest.raises(UserError, match=r"--policy .*no such file; expected policy.ckpt"):
        run_robustness(CONFIG, scenarios=store, reference=there, policy=missing, out=out)
    with pytest.raises(UserError, match="metric configuration 2031"):
        run_robustness(RobustnessConfig(metric="2031"), run=made_run, out=out)
    with pytest.raises(UserError, match="no finished stage of a run here"):
        run_robustness(CONFIG, run=tmp_path, out=out)
    with pytest.raises(UserError, match="two or more with different names"):
        run_transfer(TransferConfig(), runs=[made_run, made_run], out=out)
    half = shutil.copytree(made_run, tmp_path / "half")
    shutil.rmtree(half / "selfplay")
    with pytest.raises(UserError, match="half: no finished policy; run its stages, or leave policy out"):
        run_transfer(TransferConfig(), runs=[made_run, half], out=out)
    # A run that was trained on what the other is tested on.
    leak = shutil.copytree(made_run, tmp_path / "leak")
    shutil.rmtree(leak / "tokenize" / "training")
    shutil.copytree(made_run / "tokenize" / "validation", leak / "tokenize" / "training")
    with pytest.raises(
        UserError, match=f"training: {SCENES} of its scenarios are among those that .* is tested on"
    ):
        run_transfer(TransferConfig(), runs=[made_run, leak], out=out)


def test_scenes_that_cannot_be_scored(tmp_path: Path) -> None:
    records = [scenario_proto(f"s{n}", with_map=n == 1).SerializeToString() for n in range(3)]
    write_records(tmp_path / "validation.tfrecord-00000-of-00001", records)
    assert trials.choose_scenes(str(tmp_path), 0, seed=0).ids == ("s1",)
    write_records(tmp_path / "validation.tfrecord-00000-of-00001", records[:1])
    with pytest.raises(UserError, match=r"no scenario can be scored \(s0: no road edge\)"):
        trials.choose_scenes(str(tmp_path), 0, seed=0)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_what_the_commands_take(name: str) -> None:
    """And a whole run takes the same presets, without the sections of commands that are not its stages."""
    preset = load_preset(name)
    command_parser("robustness", run_robustness, RobustnessConfig, preset.get("robustness", {}), "")
    command_parser("transfer", run_transfer, TransferConfig, preset.get("transfer", {}), "")
    run = whole_run(preset, RunConfig)
    assert set(preset) - set(run) <= {"robustness", "transfer", "claims", "planners"}


def test_command_line(made_run: Path, tmp_path: Path) -> None:
    arguments = [
        "robustness",
        "--preset",
        "smoke",
        "--run",
        str(made_run),
        "--out",
        str(tmp_path),
        "--workers",
        "1",
    ]
    arguments += [
        "--scenes",
        "1",
        "--kinds",
        '["latency"]',
        "--levels.latency",
        "[0.2, 0.4]",
        "--agents",
        '["policy"]',
    ]
    done = subprocess.run([sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["conditions"] == 3
    assert "latency 0.4 s" in done.stderr
    arguments[-1] = '["polcy"]'
    failed = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert failed.returncode != 0
    assert "expected some of constant_velocity, reference, policy" in failed.stderr
    assert "Traceback" not in failed.stderr
