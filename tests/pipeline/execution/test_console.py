"""What is said, kept and not said."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import UserError
from data.tfrecord import write_records
from pipeline.command.options import pop_flag
from pipeline.execution.console import logged, say
from tests.builders import scenario_proto

_ROOT = Path(__file__).parents[3]
_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d .+")


def sampled(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    path = tmp_path / "validation.tfrecord-00000-of-00001"
    write_records(path, [scenario_proto(f"{index:016x}").SerializeToString() for index in range(3)])
    command = [sys.executable, "-m", "pipeline", "sample", "--agent", "constant_velocity", "--rollouts", "2"]
    command += ["--scenarios", str(path), "--out", str(tmp_path / "out"), "--workers", "1", *options]
    return subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)


def test_a_pipe_gets_lines_and_a_log_the_same(tmp_path: Path) -> None:
    done = sampled(tmp_path, "--log", str(tmp_path / "logs" / "a.log"))
    assert done.returncode == 0
    assert "\r" not in done.stderr
    assert "3/3" in done.stderr
    lines = (tmp_path / "logs" / "a.log").read_text().splitlines()
    assert all(_LINE.fullmatch(line) for line in lines)
    assert any("3/3" in line for line in lines)


def test_quiet_says_nothing_but_errors(tmp_path: Path) -> None:
    done = sampled(tmp_path, "--quiet")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"scenarios": 3' in done.stdout
    failed = sampled(tmp_path, "--quiet", "--agent", "nobody")
    assert failed.returncode != 0
    assert failed.stderr.startswith("error: ")


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = sampled(tmp_path, "--log", str(tmp_path / "file" / "a.log"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: --log ")
    assert done.stderr.count("\n") == 1
    with pytest.raises(UserError, match="--log"), logged(tmp_path):
        pass


def test_of_a_moving_bar_the_log_has_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    with logged(tmp_path / "a.log"):
        for share in range(5):
            sys.stderr.write(f"\rbar {share}")
        sys.stderr.write("\n")
        say("done")
    assert terminal.getvalue() == "\rbar 0\rbar 1\rbar 2\rbar 3\rbar 4\ndone\n"
    assert [line[20:] for line in (tmp_path / "a.log").read_text().splitlines()] == ["bar 4", "done"]
    assert sys.stderr is terminal


def test_flags_are_taken_out() -> None:
    arguments = ["--a", "--quiet", "1"]
    assert pop_flag(arguments, "quiet")
    assert arguments == ["--a", "1"]
    assert not pop_flag(arguments, "quiet")
