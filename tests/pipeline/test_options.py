"""The command line: precedence, either spelling, one-line errors that name the right option."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from pipeline.cli import COMMANDS, main
from pipeline.options import CommandParser, command_parser, expand_flags, load_preset, normalise, pop_option

ROOT = Path(__file__).parents[2]


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
            "no TFRecord",
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
