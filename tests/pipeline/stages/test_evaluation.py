"""Stage ``evaluate``: files, warnings, resume and one-line errors."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from waymo_open_dataset.protos import scenario_pb2
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from data.errors import IncompleteError, UserError
from data.scene import AgentType, Scene
from data.tfrecord import write_records
from pipeline.agents.baselines import ConstantVelocity
from pipeline.command.cli import main
from pipeline.evaluation.motion import FIGURES
from pipeline.evaluation.scoring import with_targets
from pipeline.evaluation.tables import motion_table, result_table
from pipeline.stages.evaluate import EvaluateConfig, run_evaluate
from pipeline.stages.sample import SampleConfig, run_sample
from submission.protos import Rollouts, read_rollouts, to_proto
from submission.realism import METRIC_FIELDS, load_config, mean_metrics, prepare_scene, score
from submission.realism.config import config_path
from tests.builders import scenario_proto
from tests.models.scenes import random_scene
from tests.submission.realism.odd import MENDED, UNSCORABLE

CONFIG = EvaluateConfig(workers=1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    protos = [scenario_proto(f"{index:016x}", agents=2 + index) for index in range(3)]
    protos.append(scenario_proto("f" * 16, with_map=False))
    write_records(folder / "validation.tfrecord-00000-of-00001", [proto.SerializeToString() for proto in protos])
    config = SampleConfig(agent="constant_velocity", rollouts=3, shard_scenarios=2, workers=1)
    run_sample(config, scenarios=str(folder), out=folder / "rollouts")
    return folder


def evaluate(made: Path, out: Path, config: EvaluateConfig = CONFIG) -> dict[str, float]:
    """Of the four scenarios one has no map."""
    config = dataclasses.replace(config, allow_unscorable=True)
    return run_evaluate(config, scenarios=str(made), rollouts=str(made / "rollouts"), out=out)


def test_files_and_warnings(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = evaluate(made, tmp_path)
    assert figures["scenarios"] == 3
    assert figures["unscorable"] == 1
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert set(report["metrics"]) == set(METRIC_FIELDS)
    assert set(report["buckets"]) >= {"kinematic_metrics", "interactive_metrics", "map_based_metrics"}
    low, high = report["intervals"]["metametric"]
    assert low <= report["metrics"]["metametric"] <= high
    assert report["unscorable"] == {"f" * 16: "no road edge"}
    with (tmp_path / "per_scenario.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["scenario_id"] for row in rows] == [f"{index:016x}" for index in range(3)]
    mean = sum(float(row["metametric"]) for row in rows) / 3
    assert mean == pytest.approx(report["metrics"]["metametric"], abs=1e-9)
    captured = capsys.readouterr()
    assert "4 scenarios have not 32 joint scenes" in captured.err
    assert "1 scenarios cannot be scored" in captured.err
    assert "realism_meta_metric" in captured.out
    assert f"  cannot be scored:\n    {'f' * 16}  no road edge\n" in captured.out


def test_motion_is_judged_beside_realism(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Everybody keeps the speed of the log in two futures of three, and stands in the other one."""
    messages = []
    for read in read_rollouts(made / "rollouts"):
        read.states[1] = read.states[1, :, :1]
        # Objects in another order than the scene's.
        order = torch.arange(len(read.agent_id)).flip(0)
        messages.append(to_proto(Rollouts(read.scenario_id, read.agent_id[order], read.states[:, order])))
    (tmp_path / "r").mkdir()
    for number, message in enumerate(messages):
        name = f"rollouts.binproto-{number:05}-of-{len(messages):05}"
        (tmp_path / "r" / name).write_bytes(message.SerializeToString())
    config = dataclasses.replace(CONFIG, allow_unscorable=True)
    found = run_evaluate(config, scenarios=str(made), rollouts=str(tmp_path / "r"), out=tmp_path / "o")
    report = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert set(report["motion"]) == set(FIGURES)
    assert report["motion"]["speed_ratio_8s"] == pytest.approx(2 / 3, abs=1e-3)
    assert report["motion"]["standing"] == pytest.approx(1 / 3)
    assert report["motion"]["log_standing"] == 0
    assert found["speed_ratio_8s"] == pytest.approx(report["motion"]["speed_ratio_8s"], abs=1e-6)
    assert report["intervals"]["speed_ratio_8s"] == pytest.approx([2 / 3, 2 / 3], abs=1e-3)
    with (tmp_path / "o" / "motion.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Every second agent is not recorded after 8 s: of 2, 3 and 4 agents 1, 2 and 2 are.
    assert [(row["scenario_id"], float(row["agents_8s"])) for row in rows] == [
        (f"{index:016x}", count) for index, count in enumerate((1, 2, 2))
    ]
    assert sum(float(row["log_speed_8s"]) for row in rows) == pytest.approx(5 * 3 + 7 * 2, abs=0.05)
    assert "  speed_ratio_8s                             0.6667 [0.66" in capsys.readouterr().out
    header, policy = motion_table({"policy": report})
    assert dict(zip(header, policy, strict=True))["4 s"].startswith("0.666")
    header, policy = result_table({"policy": report})
    assert dict(zip(header, policy, strict=True))["standing"] == "0.3333"
    # Of a run by earlier code.
    old = {**report, "intervals": {"metametric": [0.1, 0.2]}}
    del old["motion"]
    assert motion_table({"policy": old})[1][1:] == ["-"] * (len(motion_table({"policy": old})[0]) - 1)
    assert result_table({"policy": old})[1][-4:-2] == ["-", "-"]


def test_years_and_defects_differ(made: Path, tmp_path: Path) -> None:
    years = [evaluate(made, tmp_path / year, EvaluateConfig(workers=1, metric=year)) for year in ("2025", "2024")]
    assert years[0]["metametric"] != years[1]["metametric"]
    own = tmp_path / "own.textproto"
    own.write_text(config_path("2024").read_text())
    same = evaluate(made, tmp_path / "own", EvaluateConfig(workers=1, metric_config=own))
    assert same["metametric"] == years[1]["metametric"]
    both = evaluate(made, tmp_path / "both", EvaluateConfig(workers=1, mended=True))
    assert both["metametric"] == years[0]["metametric"], "the leaderboard's figures stay what they are"
    report = json.loads((tmp_path / "both" / "metrics.json").read_text())
    assert set(report["mended"]) == set(METRIC_FIELDS)
    assert report["mended"]["metametric"] != report["metrics"]["metametric"]


def test_bad_rollouts_are_named(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "validation.tfrecord-00000-of-00001"
    write_records(other, [scenario_proto("other").SerializeToString()])
    with pytest.raises(UserError, match=r"rollouts\.binproto-00000-of-00002: scenario 0000000000000000 is not in"):
        run_evaluate(CONFIG, scenarios=str(other), rollouts=str(made / "rollouts"), out=tmp_path / "o")
    twice = tmp_path / "twice"
    twice.mkdir()
    shard = (made / "rollouts" / "rollouts.binproto-00000-of-00002").read_bytes()
    for name in ("a", "b"):
        (twice / f"{name}.binproto").write_bytes(shard)
    with pytest.raises(UserError, match="occurs more than once"):
        run_evaluate(CONFIG, scenarios=str(made), rollouts=str(twice), out=tmp_path / "o")
    with pytest.raises(UserError, match="metric configuration 2031"):
        evaluate(made, tmp_path / "o", EvaluateConfig(metric="2031"))


def test_what_is_damaged_is_named_and_the_rest_counts(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "rollouts"
    folder.mkdir()
    first, second = sorted((made / "rollouts").glob("*.binproto-*"))
    (folder / "a.binproto").write_bytes(first.read_bytes())
    (folder / "b.binproto").write_bytes(second.read_bytes()[:-50])
    (folder / "c.binproto").write_bytes(b"\x01\x02 no rollouts")

    def run(config: EvaluateConfig) -> dict[str, float]:
        return run_evaluate(config, scenarios=str(made), rollouts=str(folder), out=tmp_path / "o")

    with pytest.raises(UserError, match=r"2 rollouts cannot be scored .*b\.binproto.*--allow-broken"):
        run(CONFIG)
    report = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert report["scenarios"] >= 2
    assert ["b.binproto" in report["broken"][0], "c.binproto" in report["broken"][1]] == [True, True]
    errors = capsys.readouterr().err
    assert "b.binproto" in errors
    assert "c.binproto" in errors
    assert run(EvaluateConfig(workers=1, allow_broken=True))["scenarios"] == report["scenarios"]


def test_wrong_objects_are_named(made: Path, tmp_path: Path) -> None:
    """Rollouts of the same scenario id, from scenes with other agents."""
    other = tmp_path / "other"
    protos = [scenario_proto(f"{index:016x}", agents=5) for index in range(3)]
    write_records(other / "validation.tfrecord-00000-of-00001", [p.SerializeToString() for p in protos])
    with pytest.raises(UserError, match="wrong set of objects"):
        run_evaluate(CONFIG, scenarios=str(other), rollouts=str(made / "rollouts"), out=tmp_path / "o")


def test_wrong_conventions_are_said(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turned = tmp_path / "turned.binproto"
    submission = pb.SimAgentsChallengeSubmission()
    for read in read_rollouts(made / "rollouts"):
        read.states[..., 3] += math.pi / 2
        # Neither the recorded future nor all the same.
        read.states[:, :, 40:, 0] += 0.1 * torch.arange(1, len(read.states) + 1)[:, None, None]
        # Objects in another order than the scene's.
        order = torch.arange(len(read.agent_id)).flip(0)
        message = to_proto(Rollouts(read.scenario_id, read.agent_id[order], read.states[:, order]))
        submission.scenario_rollouts.add().CopyFrom(message)
    turned.write_bytes(submission.SerializeToString())
    evaluate(made, tmp_path / "good")
    assert "headings" not in capsys.readouterr().err
    config = dataclasses.replace(CONFIG, allow_unscorable=True)
    run_evaluate(config, scenarios=str(made), rollouts=turned, out=tmp_path / "turned")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("suspicious: ")]
    assert len(said) == 1, said
    (line,) = said
    # Two, three and four objects, and three; three joint scenes.
    assert "headings are turned by 90 degrees (36 of 36 trajectories in 4 scenarios)" in line
    assert "scenario 0000000000000000: joint scene 0: object 100: heading 1.57 after a step, expected 0.00" in line
    report = json.loads((tmp_path / "turned" / "metrics.json").read_text())
    assert [f"suspicious: {text}" for text in report["suspicions"]] == [line]


def test_diagnosis_starts_with_the_worst(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate(made, tmp_path, EvaluateConfig(workers=1, diagnose=True))
    with (tmp_path / "diagnosis.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "per_scenario.csv").open() as file:
        scores = {row["scenario_id"]: float(row["metametric"]) for row in csv.DictReader(file)}
    order = list(dict.fromkeys(row["scenario_id"] for row in rows))
    assert order == sorted(scores, key=scores.__getitem__)
    for name, value in scores.items():
        lost = sum(float(row["loss"]) for row in rows if row["scenario_id"] == name)
        assert lost == pytest.approx(1 - value, abs=1e-3)
    text = capsys.readouterr().out
    assert order[0] in text
    assert "where the score was lost" in text


def test_cached_scenes_give_the_same_figures(made: Path, tmp_path: Path) -> None:
    config = EvaluateConfig(workers=1, cache=tmp_path / "cache")
    first = evaluate(made, tmp_path / "a", config)
    kept = sorted((tmp_path / "cache").rglob("*.pt"))
    assert len(kept) == 3
    times = [path.stat().st_mtime_ns for path in kept]
    assert evaluate(made, tmp_path / "b", config) == first == evaluate(made, tmp_path / "c")
    assert [path.stat().st_mtime_ns for path in kept] == times


def test_agrees_with_waymos_code(made: Path, tmp_path: Path) -> None:
    evaluate(made, tmp_path, EvaluateConfig(workers=1, official=True, official_scenarios=2))
    official = json.loads((tmp_path / "metrics.json").read_text())["official"]
    assert len(official["scenarios"]) == 2
    assert max(official["differences"].values()) <= 1e-6


def test_targets_of_some_types_alone_count(made: Path, tmp_path: Path) -> None:
    """As if the scenarios had asked for the others only; who is not a target is still there to be hit."""
    found = {}
    for targets in ("all", "vehicle"):
        out = tmp_path / targets
        evaluate(made, out, EvaluateConfig(workers=1, targets=targets))
        with (out / "per_scenario.csv").open() as file:
            found[targets] = {row["scenario_id"]: float(row["metametric"]) for row in csv.DictReader(file)}
    # All targets of these scenes are vehicles; the pedestrian is none.
    assert found["vehicle"] == found["all"]
    with pytest.raises(UserError, match=r"no scenario can be scored .*no target of --targets vru"):
        evaluate(made, tmp_path / "vru", EvaluateConfig(workers=1, targets="vru"))
    with pytest.raises(UserError, match="choose one of all, vehicle, vru"):
        EvaluateConfig(targets="cars")
    # Of one scene, the targets of both kinds are all targets: rates are means of the parts.
    scene = random_scene(0)
    known = scene.simulated & (scene.agents.type != AgentType.OTHER)
    scene = dataclasses.replace(scene, agents=dataclasses.replace(scene.agents, to_predict=known))
    states = ConstantVelocity().rollouts(scene, 2, 0)
    ids, metric = scene.agents.id[scene.simulated], load_config("2024")

    def scored(scene: Scene) -> tuple[int, dict[str, float]]:
        values = score(prepare_scene(scene), ids, states, metric, ttc_all_types=True).values
        return int(scene.evaluated.sum()), {name: float(value) for name, value in values.items()}

    cars, of_cars = scored(with_targets(scene, "vehicle"))
    others, of_others = scored(with_targets(scene, "vru"))
    count, of_all = scored(scene)
    assert (cars, others, count) == (3, 2, 5)
    for name in ("simulated_collision_rate", "simulated_offroad_rate", "average_displacement_error"):
        assert of_all[name] == pytest.approx((cars * of_cars[name] + others * of_others[name]) / count)
    assert of_cars["metametric"] != of_others["metametric"]


def _far(proto: scenario_pb2.Scenario) -> None:
    for track in proto.tracks:
        for state in track.states:
            state.center_x *= 1e22


# What is done to a scenario, and why it has no score; None where it has one.
SPOILT = {
    **UNSCORABLE,
    **{name: MENDED[name] for name in ("six steps", "invalid size", "no lane")},
    "far": (_far, "average_displacement_error is inf"),
}


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("spoilt")
    protos = [scenario_proto("good")]
    for name, (spoil, _) in SPOILT.items():
        protos.append(scenario_proto(name))
        spoil(protos[-1])
    write_records(folder / "validation.tfrecord-00000-of-00001", [proto.SerializeToString() for proto in protos])
    config = SampleConfig(agent="constant_velocity", rollouts=2, shard_scenarios=100, workers=1)
    run_sample(config, scenarios=str(folder), out=folder / "rollouts")
    return folder


def test_one_scene_costs_the_others_no_score(
    spoilt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every scenario without a score is listed with its reason; the exit status of the command says so."""
    given = ["evaluate", "--scenarios", str(spoilt), "--rollouts", str(spoilt / "rollouts"), "--workers", "1"]
    command = [*given, "--out", str(tmp_path / "o"), "--mended", "--diagnose"]
    assert main(command) == 3
    said = capsys.readouterr()
    report = json.loads((tmp_path / "o" / "metrics.json").read_text())
    refused = {name: reason for name, (_, reason) in SPOILT.items() if reason is not None}
    assert set(report["unscorable"]) == set(refused)
    for name, reason in refused.items():
        assert reason in report["unscorable"][name]
        assert f"{name}  {report['unscorable'][name]}" in said.out
    with (tmp_path / "o" / "per_scenario.csv").open() as file:
        scored = {row["scenario_id"]: row for row in csv.DictReader(file)}
    assert set(scored) == {"good", *SPOILT} - set(refused)
    assert report["scenarios"] == len(scored) == 4
    for part in (report["metrics"], report["mended"], *scored.values()):
        assert all(math.isfinite(float(part[name])) for name in METRIC_FIELDS)
    last = said.err.splitlines()[-1]
    assert last.startswith(f"error: {len(refused)} scenarios cannot be scored (")
    assert last.endswith("metrics.json holds the rest; mend them, or accept that with --allow-unscorable")
    assert main([*command, "--allow-unscorable"]) == 0
    assert json.loads((tmp_path / "o" / "metrics.json").read_text()) == report
    assert result_table({"policy": report})[1][-2] == f"4 + {len(refused)} unscorable"


def test_nothing_scored_is_an_error_and_leaves_no_older_scores(spoilt: Path, tmp_path: Path) -> None:
    """Pedestrians are no targets of most scenes, and one that ends now has no likelihood."""
    proto = scenario_proto("one")
    UNSCORABLE["only now"][0](proto)
    write_records(tmp_path / "validation.tfrecord-00000-of-00001", [proto.SerializeToString()])
    sampled = SampleConfig(agent="constant_velocity", rollouts=2, workers=1)
    run_sample(sampled, scenarios=str(tmp_path), out=tmp_path / "rollouts")
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "metrics.json").write_text("{}")
    for allow in (False, True):
        config = EvaluateConfig(workers=1, allow_unscorable=allow)
        with pytest.raises(UserError, match=r"no scenario can be scored \(one: no evaluated agent") as caught:
            run_evaluate(config, scenarios=tmp_path, rollouts=tmp_path / "rollouts", out=tmp_path / "o")
        assert caught.value.exit_status == 1
    assert not (tmp_path / "o" / "metrics.json").exists()


def test_scenes_without_targets_are_listed_and_expected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    protos = [scenario_proto(name, agents=4) for name in ("cars", "both", "ends")]
    for proto in protos[1:]:
        proto.tracks_to_predict.add(track_index=2)
    for state in protos[2].tracks[2].states[11:]:
        state.Clear()
    write_records(tmp_path / "validation.tfrecord-00000-of-00001", [proto.SerializeToString() for proto in protos])
    sampled = SampleConfig(agent="constant_velocity", rollouts=2, workers=1)
    run_sample(sampled, scenarios=str(tmp_path), out=tmp_path / "rollouts")
    with pytest.raises(
        IncompleteError, match=r"1 scenarios cannot be scored \(ends: no evaluated agent is recorded"
    ):
        run_evaluate(
            EvaluateConfig(workers=1, targets="vru"),
            scenarios=tmp_path,
            rollouts=tmp_path / "rollouts",
            out=tmp_path / "o",
        )
    report = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert (report["scenarios"], report["without_targets"], list(report["unscorable"])) == (1, ["cars"], ["ends"])
    assert "1 scenarios have none of the targets and do not count (cars: no target" in capsys.readouterr().err


def test_rollouts_that_are_not_finite_are_named(made: Path, tmp_path: Path) -> None:
    (first,) = [one for one in read_rollouts(made / "rollouts") if one.scenario_id == "0" * 16]
    message = to_proto(first)
    message.joint_scenes[1].simulated_trajectories[0].center_y[7] = math.nan
    (tmp_path / "x.binproto").write_bytes(message.SerializeToString())
    (tmp_path / "y.binproto-00000-of-00001").write_bytes(
        (made / "rollouts" / "rollouts.binproto-00001-of-00002").read_bytes()
    )
    with pytest.raises(
        IncompleteError,
        match=r"x\.binproto: scenario 0{16}: joint scene 1: object 100: center_y is NaN .* at step 7",
    ):
        run_evaluate(
            EvaluateConfig(workers=1, allow_unscorable=True), scenarios=made, rollouts=tmp_path, out=tmp_path / "o"
        )


def test_what_is_no_good_is_counted_by_scenario(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submission = pb.SimAgentsChallengeSubmission()
    for read in read_rollouts(made / "rollouts"):
        submission.scenario_rollouts.add().CopyFrom(to_proto(read))
    del submission.scenario_rollouts[3]
    for message in submission.scenario_rollouts[:2]:
        message.joint_scenes[2].simulated_trajectories[0].center_x[40] = math.nan
    rollouts = tmp_path / "x.binproto"
    rollouts.write_bytes(submission.SerializeToString())
    names = [message.scenario_id for message in submission.scenario_rollouts]

    def run() -> None:
        run_evaluate(CONFIG, scenarios=made, rollouts=rollouts, out=tmp_path / "o")

    with pytest.raises(IncompleteError, match=rf"2 rollouts cannot be scored \(scenarios {names[0]}, {names[1]}; "):
        run()
    report = json.loads((tmp_path / "o" / "metrics.json").read_text())
    assert (report["scenarios"], report["broken_scenarios"], report["without_rollouts"]) == (1, names[:2], 1)
    # Rollouts that are no good are there all the same.
    assert "warning: 1 of 4 scenarios have no rollouts" in capsys.readouterr().err
    submission.scenario_rollouts[2].joint_scenes[0].simulated_trajectories[0].heading[0] = math.inf
    rollouts.write_bytes(submission.SerializeToString())
    with pytest.raises(UserError, match=r"no scenario can be scored \(.*center_x is NaN .*; and 2 more\)"):
        run()


def test_names_tell_which_rollouts_are_missing_or_not_finished(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, config = tmp_path / "rollouts", dataclasses.replace(CONFIG, allow_unscorable=True)
    folder.mkdir()
    first = (made / "rollouts" / "rollouts.binproto-00000-of-00002").read_bytes()
    (folder / "rollouts.binproto-00000-of-00002").write_bytes(first)
    run_evaluate(config, scenarios=made, rollouts=folder, out=tmp_path / "o")
    said = "2 of 4 scenarios have no rollouts and do not count (0000000000000002 for one); 1 of 2 shards of "
    assert f"{said}rollouts.binproto are missing (rollouts.binproto-00001-of-00002)" in capsys.readouterr().err
    for name, text in (
        ("rollouts.binproto-00001-of-00002_.gstmp", "not the name of a complete shard"),
        ("rollouts.binproto.part", "not the name of a complete shard"),
        ("rollouts.binproto-00002-of-00003", "one of 3 shards, but rollouts.binproto-00000-of-00002 is one of 2"),
    ):
        (folder / name).write_bytes(b"")
        with pytest.raises(UserError, match=f"{re.escape(name)}: {text}"):
            run_evaluate(config, scenarios=made, rollouts=folder, out=tmp_path / "o")
        (folder / name).unlink()


def test_rates_are_told_by_kind_of_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As if each kind alone had been the targets, over all scenarios; who is not a target does not count."""
    protos = [scenario_proto(f"{index}", agents=3 + index) for index in range(3)]
    for proto in protos:
        proto.tracks_to_predict.add(track_index=2)
        # Who walks along the lane runs its light.
        for state in proto.tracks[2].states:
            state.velocity_x = 12.0
    write_records(tmp_path / "validation.tfrecord-00000-of-00001", [proto.SerializeToString() for proto in protos])
    sampled = SampleConfig(agent="constant_velocity", rollouts=2, workers=1)
    run_sample(sampled, scenarios=str(tmp_path), out=tmp_path / "rollouts")

    def report(targets: str) -> dict[str, Any]:
        config = EvaluateConfig(workers=1, targets=targets)
        run_evaluate(config, scenarios=tmp_path, rollouts=tmp_path / "rollouts", out=tmp_path / targets)
        return dict(json.loads((tmp_path / targets / "metrics.json").read_text()))

    found = report("all")["rates_by_kind"]
    said = capsys.readouterr().out
    assert {kind: rates["agents"] for kind, rates in found.items()} == {"pedestrian": 3, "vehicle": 6}
    for kind, targets in (("vehicle", "vehicle"), ("pedestrian", "vru")):
        alone = report(targets)
        assert alone["rates_by_kind"] == {kind: found[kind]}
        # Every scenario has as many targets of the kind, so that the means of means are those of all.
        for name in set(found[kind]) - {"agents"}:
            assert alone["metrics"][name] == pytest.approx(found[kind][name])
        assert f"evaluated: {kind:11} collision {found[kind]['simulated_collision_rate']:.4f}" in said
    red = "simulated_traffic_light_violation_rate"
    assert found["pedestrian"][red] != found["vehicle"][red]


def test_a_mean_of_something_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1: metametric is nan"):
        mean_metrics([{"metametric": 0.5}, {"metametric": math.nan}])


def test_files_of_the_same_name_in_two_folders_are_two_files(made: Path, tmp_path: Path) -> None:
    for number, shard in enumerate(sorted((made / "rollouts").glob("*.binproto-*"))):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x.binproto").write_bytes(shard.read_bytes())
    found = run_evaluate(
        EvaluateConfig(workers=1, allow_unscorable=True),
        scenarios=made,
        rollouts=f"{tmp_path}/*/x.binproto",
        out=tmp_path / "o",
    )
    assert found == evaluate(made, tmp_path / "p")
