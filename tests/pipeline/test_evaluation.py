"""Stage ``evaluate``: files, warnings, resume and one-line errors."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from data.errors import UserError
from data.scene import AgentType, Scene
from data.tfrecord import write_records
from pipeline.sampling.baselines import ConstantVelocity
from pipeline.scoring import with_targets
from pipeline.stages.evaluation import EvaluateConfig, run_evaluate
from pipeline.stages.sampling import SampleConfig, run_sample
from submission.realism import METRIC_FIELDS, load_config, prepare_scene, score
from submission.realism.config import config_path
from tests.builders import scenario_proto
from tests.models.scenes import random_scene

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
    return run_evaluate(config, scenarios=str(made), rollouts=str(made / "rollouts"), out=out)


def test_files_and_warnings(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = evaluate(made, tmp_path)
    assert figures["scenarios"] == 3
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
    with pytest.raises(UserError, match=r"no target of --targets vru"):
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
