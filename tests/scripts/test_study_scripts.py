"""The scripts of the docs' figures, on scenes of a small run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from data.tfrecord import write_records
from pipeline.agents.closed_loop import SceneFigures
from scripts.studies import demonstrate, draw_curves, students
from scripts.studies.measure import main
from tests.builders import scenario_proto
from tests.other_formats import gpudrive_text, scenarionet_record, to_pickle
from tests.pipeline.viewing.conftest import made_run

__all__ = ["made_run"]


def test_constant_velocity_keeps_its_speed(made_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenarios = str(made_run / "tokenize" / "validation")
    folders = {agent: str(made_run / "sample" / "validation" / agent) for agent in ("constant_velocity", "log")}
    assert main(["speeds", "--scenarios", scenarios, *(f"--rollouts={folder}" for folder in folders.values())]) == 0
    text = capsys.readouterr().out
    start = float(re.search(r"now ([\d.]+)", text)[1])  # type: ignore[index]
    rows = {
        name.strip(): [float(value) for value in values.split(",")]
        for name, _, values in (line.rpartition(":") for line in text.splitlines()[1:])
    }
    assert rows[folders["constant_velocity"]] == pytest.approx([start] * 4, abs=0.011)
    # The log as rollouts is the log.
    assert rows[folders["log"]] == rows["log"]


def test_recorded_motion_and_heights_are_measured(made_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenarios = str(made_run / "tokenize" / "validation")
    assert main(["motion", "--scenarios", scenarios]) == 0
    assert re.search(r"vehicle +\d+ steps", capsys.readouterr().out)
    assert main(["heights", "--scenarios", scenarios]) == 0
    assert "followed" in capsys.readouterr().out
    checkpoint = str(made_run / "finetune" / "reference.ckpt")
    assert main(["gap", "--scenarios", scenarios, "--checkpoint", checkpoint, "--top_k", "1", "5"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[2:]] == ["1", "5"]


def test_the_most_real_sampling_is_chosen_on_one_half_and_compared_on_the_other(
    made_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenarios, checkpoint = str(made_run / "tokenize" / "validation"), str(made_run / "finetune" / "reference.ckpt")
    few = ["--rollouts", "2", "--seeds", "2", "--temperature", "0.5", "1", "--top_p", "0.8"]
    assert main(["sampling", "--scenarios", scenarios, "--checkpoint", checkpoint, *few]) == 0
    text = capsys.readouterr().out
    first, second, _, chosen, whole = (line.split() for line in text.splitlines()[2:7])
    best = max(first, second, key=lambda row: float(row[2]))
    assert chosen[:2] == best[:2]
    assert whole[:2] == ["1", "1"]
    gain = float(re.search(r"second: ([+-][\d.]+) \[", text)[1])  # type: ignore[index]
    assert gain == pytest.approx(float(chosen[2]) - float(whole[2]), abs=0.0011)


def test_scenes_of_other_formats_are_compared_with_those_of_protos(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same scenario in two formats, in the second with an agent half a metre aside; and a file of nonsense."""
    proto = scenario_proto("ab" * 8)
    for name in ("womd", "scenarionet", "gpudrive"):
        (tmp_path / name).mkdir()
    write_records(tmp_path / "womd" / "validation.tfrecord-00000-of-00001", [proto.SerializeToString()])
    (tmp_path / "scenarionet" / "sd_a.pkl").write_bytes(to_pickle(scenarionet_record(proto)))
    (tmp_path / "scenarionet" / "sd_b.pkl").write_bytes(b"nonsense")
    for state in proto.tracks[1].states:
        state.center_y += 0.5 * state.valid
    (tmp_path / "gpudrive" / "a.json").write_bytes(gpudrive_text(proto))
    files = [f"--files={tmp_path / name}" for name in ("scenarionet", "gpudrive")]
    assert main(["formats", *files, "--scenarios", str(tmp_path / "womd")]) == 0
    lines = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines()]
    rows = {line[0]: line[1:] for line in lines if line[0] in ("scenarionet", "gpudrive")}
    assert rows["scenarionet"][:3] == ["2", "1", "pickle 1"]
    assert rows["gpudrive"][:3] == ["1", "1", "none"]
    assert float(rows["scenarionet"][-1]) > 5
    same, moved = ([float(value) for value in line[1:]] for line in lines if line[0] == "ab" * 8)
    assert max(same) < 1e-5
    assert moved[0] == pytest.approx(0.5, abs=0.01)
    assert moved[-1] > 1e-5


def test_curves_of_both_kinds_of_training_are_drawn(tmp_path: Path) -> None:
    reference, policy = tmp_path / "reference.csv", tmp_path / "policy.csv"
    reference.write_text("step,loss,validation_realism\n1,2.0,\n2,1.5,0.4\n")
    policy.write_text("update,agent_steps,kl,entropy,goal_rate\n1,100,0.0,1.5,0.2\n2,200,0.0,1.4,0.3\n")
    for name, file in (("a", reference), ("b", policy)):
        out = tmp_path / f"{name}.png"
        assert draw_curves.main([f"--curve={name}={file}", f"--curve=again={file}", "--out", str(out)]) == 0
        assert out.stat().st_size > 5_000


def test_students_learn_from_the_same_states(made_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--scenes=2", "--held-out=1", "--steps=60"]
    students.main([str(made_run), *few, "--student", "a", "--student", "b", "--student", "c", "policy.gelu=true"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line[:2] in ("a ", "b ", "c ")][-3:]
    assert [row[0] for row in rows] == ["a", "b", "c"]
    assert rows[0][1:5] == rows[1][1:5] != rows[2][1:5]
    students.main([str(made_run), *few[:2], "--steps=0", "--student", "untaught"])
    untaught = capsys.readouterr().out.splitlines()[-1].split()
    assert float(rows[0][4]) < 0.8 * float(untaught[4])


def test_policies_are_compared_on_the_same_scenes_once(
    made_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = str(made_run / "selfplay" / "policy.ckpt")
    options = [
        str(made_run / "tokenize" / "validation"),
        "--reference",
        str(made_run / "finetune" / "reference.ckpt"),
    ]
    options += ["--policy", "own", policy, "--policy", "ppo", policy, "--out", str(tmp_path)]
    options += ["--count=2", "--rollouts=2", "--sheets=1"]
    demonstrate.main(options)
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()][2:6] == ["realism", "collision", "off-road", "minADE,"]
    assert "realism +0.000 [+0.000, +0.000] above PPO's" in text
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")}
    assert len(kept) == 2 * 4
    assert len(list(tmp_path.glob("*.png"))) == 1
    demonstrate.main(options)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.json")} == kept
    assert capsys.readouterr().out == text
    demonstrate.main([*options, "--vehicles"])
    assert len(list(tmp_path.rglob("*.json"))) == 2 * len(kept)


def figures(realism: float, collision: float, speed: float, standing: float, error: float) -> list[SceneFigures]:
    motion = {f"{log}{name}": 1.0 for log in ("", "log_") for name in ("progress", "jerk", "standing")}
    motion |= {f"{log}speed_{second}s": 10.0 for log in ("", "log_") for second in (2, 4, 6, 8)}
    motion |= {"agents": 4.0, "agents_8s": 4.0, "windows": 9.0, "speed_8s": 10.0 * speed, "standing": 4 * standing}
    metric = {"simulated_collision_rate": collision, "min_average_displacement_error": error}
    return [
        SceneFigures(torch.zeros(1, 4), {**metric, "metametric": realism + shift}, motion)
        for shift in (0, 0.01, -0.01)
    ]


def test_criteria_are_met_or_not() -> None:
    """At the limits of docs/selfplay.md; the log stands in a quarter."""
    reference, ppo = figures(0.6, 0.2, 1.0, 0.25, 2.0), figures(0.7, 0.0, 0.2, 0.9, 9.0)
    good = {"good": figures(0.75, 0.1, 0.8, 0.34, 4.5), "reference": reference, "ppo": ppo}
    bad = {"bad": figures(0.7, 0.11, 0.79, 0.36, 4.6), "reference": reference, "ppo": ppo}
    lines = demonstrate._criteria(good, "good")
    assert [line[:7].strip() for line in lines] == ["met"] * 5 + ["order:"]
    assert lines[5] == "order: good minus reference +0.150 [+0.150, +0.150]"
    assert [line[:7].strip() for line in demonstrate._criteria(bad, "bad")] == ["NOT MET"] * 5 + ["order:"]
