"""The end of a run: what is there, and what an upload still needs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import yaml

from data.files import write_json
from pipeline.evaluation.motion import motion_figures, motion_intervals, motion_sums
from pipeline.execution.manifest import Manifest, Recipe
from pipeline.run.run_config import RunConfig
from pipeline.run.run_folder import Run
from pipeline.run.runner import print_summary
from tests.models.scenes import random_scene
from tests.submission.spoilt_archives import FILLED


def summary(folder: Path, config: RunConfig) -> None:
    (folder / "package").mkdir(exist_ok=True)
    (folder / "package" / "submission.tar.gz").write_bytes(b"archive")
    manifest = Manifest("validate", "id", Recipe({}, 0, "", {}), {"accepted": 3}, 1.0, 1.0, {})
    print_summary(Run(folder, config, None), {"validate": manifest})


def test_the_example_is_to_be_filled_in(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary(tmp_path, RunConfig())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "before an upload" in line]
    assert "fill in account_name, unique_method_name, authors, affiliation in a copy" in line
    assert '--metadata FILE (make stages ARGS="--metadata FILE")' in line


def test_motion_stands_under_the_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, rows = RunConfig(), [motion_sums(random_scene(0), torch.arange(5, 23, 3), torch.zeros(2, 6, 80, 4))]
    run = Run(tmp_path, config, None)
    report = {
        "scenarios": 3,
        "metrics": {"metametric": 0.5},
        "buckets": {},
        "motion": motion_figures(rows),
        "intervals": {"metametric": [0.4, 0.6], **motion_intervals(rows)},
    }
    for agent in config.agents:
        write_json(run.scores(agent) / "metrics.json", report)
    print_summary(run, {"evaluate": Manifest("evaluate", "id", Recipe({}, 0, "", {}), {}, 1.0, 1.0, {})})
    lines = capsys.readouterr().out.splitlines()
    (row,) = [number for number, line in enumerate(lines) if line.startswith("agents that move")]
    assert lines[row].split()[3:10] == ["speed", "ratio", "2", "s", "4", "s", "6"]
    assert len(lines[row + 2 :]) == len(config.agents)
    assert all("0.000 [0.000, 0.000]" in line for line in lines[row + 2 :])


def test_metadata_that_are_filled_in_need_no_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(dataclasses.asdict(FILLED)))
    summary(tmp_path, RunConfig(metadata=path))
    said = capsys.readouterr().out
    assert "3 scenarios accepted by Waymo" in said
    assert "upload" not in said
    path.write_text(path.read_text().replace("University of Somewhere", "TODO"))
    summary(tmp_path, RunConfig(metadata=path))
    assert "fill in affiliation in a copy" in capsys.readouterr().out
