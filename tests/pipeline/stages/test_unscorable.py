"""One scene without a score, wherever scores are made besides ``evaluate``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.errors import UserError
from data.tfrecord import write_records
from data.womd import parse_scenario
from pipeline.agents.baselines import LogReplay
from pipeline.agents.closed_loop import closed_loop_figures
from pipeline.run.run_config import RunConfig
from pipeline.run.run_folder import Run
from pipeline.run.stage_table import stages_of
from pipeline.stages.evaluate import EvaluateConfig
from pipeline.stages.sample import SampleConfig, run_sample
from pipeline.stages.tokenize import TokenizeConfig, ingest
from pipeline.studies.robustness.trials import choose_scenes
from pipeline.viewing.view import SceneMaker
from submission.realism import load_config
from tests.builders import scenario_proto
from tests.submission.realism.odd import UNSCORABLE


def records(folder: Path, *names: str) -> Path:
    protos = [scenario_proto("good")]
    for name in names:
        protos.append(scenario_proto(name))
        UNSCORABLE[name][0](protos[-1])
    write_records(folder / "validation.tfrecord-00000-of-00001", [proto.SerializeToString() for proto in protos])
    return folder


def test_scenes_to_test_agents_in_are_those_with_a_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of planners' robustness and of transfer between runs."""
    folder = records(tmp_path, *UNSCORABLE)
    scenes = choose_scenes(str(folder), 0, seed=0)
    assert scenes.ids == ("good",)
    assert set(dict(scenes.unscorable)) == set(UNSCORABLE)
    assert f"{len(UNSCORABLE)} scenarios cannot be scored and do not count" in capsys.readouterr().err
    write_records(tmp_path / "validation.tfrecord-00000-of-00001", [_only_now()])
    with pytest.raises(UserError, match=r"no scenario can be scored .*only: no evaluated agent"):
        choose_scenes(str(tmp_path), 0, seed=0)


def _only_now() -> bytes:
    proto = scenario_proto("only")
    UNSCORABLE["only now"][0](proto)
    return proto.SerializeToString()


def test_validation_while_training_says_what_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    good, odd = parse_scenario(scenario_proto("good").SerializeToString()), parse_scenario(_only_now())
    alone = closed_loop_figures(LogReplay(), [good], rollouts=2, seed=0)
    for _ in range(2):
        both = closed_loop_figures(LogReplay(), [good, odd], rollouts=2, seed=0)
        names = ("realism", "collision_rate", "off_road_rate")
        assert [both[name] for name in names] == [alone[name] for name in names]
    assert "realism" not in closed_loop_figures(LogReplay(), [odd], rollouts=2, seed=0)
    said = capsys.readouterr().err
    assert said.count("scenario only: cannot be scored, its realism does not count (no evaluated agent") == 1


def test_a_run_keeps_its_evaluation(tmp_path: Path) -> None:
    data = records(tmp_path / "data" / "validation", "only now", "AV absent").parent
    config = RunConfig(agents=["log"], evaluate=EvaluateConfig(workers=1))
    run = Run(tmp_path / "run", config, str(data))
    ingest(TokenizeConfig(workers=1), data=str(data), split="validation", out=run.store("validation"))
    rollouts = run.path("sample") / "validation" / "log"
    run_sample(
        SampleConfig(rollouts=2, workers=1, agent="log"), scenarios=str(run.store("validation")), out=rollouts
    )
    (stage,) = [stage for stage in stages_of(str(data), ["policy"]) if stage.name == "evaluate"]
    figures = stage.run(run)
    assert (figures["log_scenarios"], figures["log_unscorable"]) == (1, 2)
    report = json.loads((run.path("evaluate") / "log" / "metrics.json").read_text())
    assert set(report["unscorable"]) == {"only now", "AV absent"}


def test_the_viewer_shows_it_without_a_score() -> None:
    scene = parse_scenario(_only_now())

    class Catalogue:
        def scene(self, name: str) -> object:
            return scene

        def rollouts(self, name: str) -> dict[str, object]:
            return {}

    maker = SceneMaker(Catalogue(), load_config("2025"))  # type: ignore[arg-type]
    assert maker.packed("only")
