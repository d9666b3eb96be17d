"""The script that says how fast vehicles go on: constant velocity keeps its speed, on scenes of a small run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.studies.measure_speeds import main
from tests.pipeline.viewing.conftest import made_run

__all__ = ["made_run"]


def test_constant_velocity_keeps_its_speed(made_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenarios = str(made_run / "tokenize" / "validation")
    folders = {agent: str(made_run / "sample" / "validation" / agent) for agent in ("constant_velocity", "log")}
    assert main(["--scenarios", scenarios, *(f"--rollouts={folder}" for folder in folders.values())]) == 0
    text = capsys.readouterr().out
    start = float(re.search(r"now ([\d.]+)", text)[1])  # type: ignore[index]
    rows = {
        name.strip(): [float(value) for value in values.split(",")]
        for name, _, values in (line.rpartition(":") for line in text.splitlines()[1:])
    }
    assert rows[folders["constant_velocity"]] == pytest.approx([start] * 4, abs=0.011)
    # The log as rollouts is the log.
    assert rows[folders["log"]] == rows["log"]
