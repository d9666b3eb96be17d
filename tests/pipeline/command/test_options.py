"""The command line: precedence, either spelling, one-line errors that name the right option."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from pipeline.command.cli import COMMANDS, main
from pipeline.command.options import (
    CommandParser,
    command_parser,
    expand_flags,
    normalise,
    pop_flag,
    pop_option,
)
from pipeline.run.presets import load_preset

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Net:
    """Size of a net.

    Args:
        width: units in a layer.
    """

    width: int = 8


@dataclass(frozen=True)
class Config:
    """Of a stage.

    Args:
        steps: of training.
        allow_rejected: go on.
        net: the model.
    """

    steps: int = 3
    allow_rejected: bool = False
    net: Net = field(default_factory=Net)


def stage(config: Config, *, out: Path, seed: int = 0) -> dict[str, Any]:
    """A stage for tests.

    Args:
        config: of the stage.
        out: where it writes.
        seed: of randomness.
    """
    return {}


def parser(preset: dict[str, Any] | None = None) -> CommandParser:
    return command_parser("stage", stage, Config, preset or {}, "example: none")


def parse(*arguments: str, preset: dict[str, Any] | None = None) -> Any:
    made = parser(preset)
    return made.instantiate(made.parse_args(expand_flags(made, normalise(["--out", "x", *arguments]))))


def test_precedence(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("steps: 20\nnet:\n  width: 20\n")
    preset = {"steps": 10, "net": {"width": 10}}
    assert parse().steps == 3
    assert parse(preset=preset).net.width == 10
    assert parse("--config", str(file), preset=preset).steps == 20
    found = parse("--config", str(file), "--net.width", "30", preset=preset)
    assert (found.steps, found.net.width) == (20, 30)


def test_either_spelling_and_bare_flags() -> None:
    assert parse("--allow-rejected").allow_rejected
    assert parse("--allow_rejected", "--steps", "4").allow_rejected
    assert not parse("--allow-rejected=false").allow_rejected


def test_the_value_of_an_option_that_needs_no_name_may_follow_a_bare_flag() -> None:
    for arguments, expected in (
        ("--allow_rejected a.tar.gz", "--allow_rejected=true --out=a.tar.gz"),
        ("--allow_rejected true --out b", "--allow_rejected true --out b"),
        ("--allow_rejected No", "--allow_rejected No"),
        ("--allow_rejected --steps 4", "--allow_rejected=true --steps 4"),
        ("--out a --allow_rejected", "--out a --allow_rejected=true"),
    ):
        assert expand_flags(parser(), arguments.split(), "out") == expected.split()
    assert expand_flags(parser(), ["--allow_rejected", "a.tar.gz"]) == ["--allow_rejected", "a.tar.gz"]
    # The value of an option is none of a positional, wherever that stands.
    for given in (["--steps", "3", "a.tar.gz"], ["a.tar.gz", "--steps", "3"], ["--steps=3", "a.tar.gz"]):
        assert "--out=a.tar.gz" in expand_flags(parser(), given, "out")
        assert "--out=3" not in expand_flags(parser(), given, "out")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--step", "4"], "did you mean --steps?"),
        (["--net.widht", "4"], "did you mean --net.width?"),
        (["--allow-rejectd"], "did you mean --allow_rejected?"),
        (["--steps", "many"], "steps"),
    ],
)
def test_errors_are_one_line(arguments: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert text in lines[0]


def test_misspelt_key_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("net:\n  widht: 20\n")
    with pytest.raises(SystemExit):
        parse("--config", str(file))
    assert "did you mean --net.width?" in capsys.readouterr().err


def test_misspelt_key_in_a_preset() -> None:
    with pytest.raises(UserError, match=r"preset key net.widht is unknown \(did you mean --net.width\?\)"):
        parser({"net": {"widht": 3}})
    with pytest.raises(UserError, match="did you mean smoke"):
        load_preset("smoek")


def test_pop_option() -> None:
    arguments = ["--preset", "smoke", "--x", "1", "--preset=paper"]
    assert pop_option(arguments, "preset", "demo") == "paper"
    assert arguments == ["--x", "1"]
    with pytest.raises(UserError, match="expected a value"):
        pop_option(["--preset"], "preset", "demo")


def test_pop_flag() -> None:
    arguments = ["--partial", "true", "--x", "--partial=false", "--partial"]
    assert pop_flag(arguments, "partial")
    assert arguments == ["--x"]
    assert not pop_flag(["--partial", "false"], "partial")
    assert not pop_flag(["--partially"], "partial")
    with pytest.raises(UserError, match="--partial maybe: expected true or false"):
        pop_flag(["--partial=maybe"], "partial")


def test_home_folders_in_every_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    def function(config: Config, *, out: Path, data: str, given: list[str] | str | None = None) -> None:
        """For tests.

        Args:
            out: a path. data: a string. given: several.
        """

    (tmp_path / "own.yaml").write_text("data: ~/of file\n")
    made = command_parser("stage", function, Config, {}, "example: none")
    arguments = ["--config", "~/own.yaml", "--out=~/a b", "--given", '["~/x", "y"]']
    parsed = made.instantiate(made.parse_args(normalise(arguments)))
    assert (parsed.out, parsed.data, parsed.given) == (
        tmp_path / "a b",
        f"{tmp_path}/of file",
        [f"{tmp_path}/x", "y"],
    )
    assert made.parse_args(normalise(["--out", "-x[1]", "--data", "~no-such-user/x"])).data == "~no-such-user/x"


@pytest.mark.parametrize("arguments", [["--out", ""], ["--out="], ["--steps", "3", "--out", "", "--steps=2"]])
def test_an_empty_value_is_not_the_current_folder(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=r"^--out: its value is empty"):
        normalise(arguments)
    assert normalise(["--data=x=", "--out", "y="]) == ["--data=x=", "--out", "y="]


def test_values_with_a_dash() -> None:
    assert normalise(["--out", "-x y", "--allow-rejected", "--steps", "-1", "-"]) == [
        "--out=-x y",
        "--allow_rejected",
        "--steps=-1",
        "-",
    ]
    assert normalise(["stages", "--out", "-h"])[-1] == "-h"


@pytest.mark.parametrize("target", ["stages", "tokenize", "planners", "claims"])
def test_make_quotes_what_it_is_given(target: str) -> None:
    names = {"RUN": "my 'run'", "DATA": '~/my "data" [1] * ü', "ONLY": "a b"}
    done = subprocess.run(
        # A word a line, instead of the pipeline; nothing is installed.
        ["make", "-s", target, "RUNTIME=", "PY=printf '%s\\n'", "ARGS=--partial --seed 3"]
        + [f"{name}={value}" for name, value in names.items()],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    words = done.stdout.splitlines()
    assert words[-3:] == ["--partial", "--seed", "3"]
    folder = "" if target in ("stages", "tokenize") else "runs/"
    assert f"--run={folder}{names['RUN']}" in words
    assert (f"--data={names['DATA']}" in words) == (target in ("stages", "tokenize"))
    assert ("--only=a b" in words) == (target == "claims")


@pytest.mark.parametrize(
    ("runs", "given", "told"),
    [
        (("python3.11", "python3.12"), [], "python3.11 -m venv"),
        (("python3.12",), [], "python3.12 -m venv"),
        ((), [], "neither python3.11 nor python3.12 found"),
        (("python3.11",), ["PYTHON=/opt/python3.12"], "/opt/python3.12 -m venv"),
    ],
)
def test_make_takes_the_python_that_runs(
    tmp_path: Path, runs: tuple[str, ...], given: list[str], told: str
) -> None:
    for name in ("python3.11", "python3.12"):
        command = tmp_path / name
        # As pyenv has them, whether they run or not.
        command.write_text(f"#!/bin/sh\nexit {0 if name in runs else 127}\n")
        command.chmod(0o755)
    done = subprocess.run(
        ["make", "-n", *given, f"VENV={tmp_path}/v", f"{tmp_path}/v/bin/python"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"},
    )
    assert told in done.stdout
    assert ('test -n ""' in done.stdout) == (not runs)


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_command_line_without_tracebacks(tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    cases = {
        ("tokenise",): (2, "did you mean tokenize?"),
        ("tokenize", "--data", "nowhere", "--split", "training", "--out", out): (
            1,
            "nowhere: no such file or folder",
        ),
        ("tokenize", "--data", "x", "--split", "training"): (2, "out"),
        ("tokenize", "--preset", "smoek"): (1, "did you mean smoke?"),
    }
    for arguments, (status, text) in cases.items():
        done = call(*arguments)
        assert done.returncode == status, done.stderr
        assert text in done.stderr
        assert "Traceback" not in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command, capsys) -> None:
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert not end.value.code
    assert "example" in capsys.readouterr().out.lower()


def test_help_names_defaults_units_and_an_example() -> None:
    assert "tokenize" in call("--help").stdout
    text = call("tokenize", "--help").stdout
    assert "example: python -m pipeline tokenize" in text
    assert "default: 2" in text
    assert "simulator steps of 0.1 s" in " ".join(text.split())


_SPINS = """
import os, runpy, sys
sys.argv = ["pipeline", "--help"]
try:
    runpy.run_module("pipeline", run_name="__main__")
except SystemExit:
    print(os.environ.get("GOMP_SPINCOUNT"))
"""


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "5000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")],
)
def test_threads_that_wait_leave_their_cores_to_others(given: dict[str, str], found: str) -> None:
    free = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    ended = subprocess.run(
        [sys.executable, "-c", _SPINS], cwd=ROOT, env=free | given, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == found
