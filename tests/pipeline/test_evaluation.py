"""Stage ``evaluate``: files, warnings, resume and one-line errors."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from data.errors import UserError
from data.tfrecord import write_records
from pipeline.stages.evaluation import EvaluateConfig, run_evaluate
from pipeline.stages.sampling import SampleConfig, run_sample
from submission.realism import METRIC_FIELDS
from tests.builders import scenario_proto

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
    scores = {
        name: evaluate(made, tmp_path / name, config)["metametric"]
        for name, config in {
            "2025": CONFIG,
            "2024": EvaluateConfig(workers=1, metric="2024"),
            "mended": EvaluateConfig(workers=1, mended=True),
        }.items()
    }
    assert len(set(scores.values())) == 3


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
    (twice / "b.binproto").write_bytes(shard[:-50])
    with pytest.raises(UserError, match=r"b\.binproto: truncated"):
        run_evaluate(CONFIG, scenarios=str(made), rollouts=str(twice), out=tmp_path / "o")
    with pytest.raises(UserError, match="metric configuration 2031"):
        evaluate(made, tmp_path / "o", EvaluateConfig(metric="2031"))


def test_agrees_with_waymos_code(made: Path, tmp_path: Path) -> None:
    evaluate(made, tmp_path, EvaluateConfig(workers=1, official=True, official_scenarios=2))
    official = json.loads((tmp_path / "metrics.json").read_text())["official"]
    assert len(official["scenarios"]) == 2
    assert max(official["differences"].values()) <= 1e-6
