"""Chaining: what runs, what is skipped, what goes on; on stages that only write files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from pipeline import runner
from pipeline.cli import COMMANDS, load_command, preset_section, whole_run
from pipeline.graph import Run, Stage
from pipeline.options import PRESETS, command_parser, load_preset, split_config
from pipeline.run_config import RunConfig
from pipeline.runner import run_stages


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[str]]:
    """Three stages a -> b -> c beside d; returns what ran since the last call."""
    record = tmp_path / "calls"

    def make(name: str, needs: tuple[str, ...]) -> Stage:
        def run(run: Run, out: Path) -> dict[str, Any]:
            with record.open("a") as file:
                file.write(f"{name}\n")
            if (tmp_path / f"fail-{name}").exists():
                (out / "half").write_text("partial")
                raise UserError(f"{name} failed")
            text = "".join((run.path(need) / "output").read_text() for need in needs)
            (out / "output").write_text(f"{text}{name}{run.config.seed}")
            return {}

        return Stage(name, needs, "data.errors", lambda config: {"seed": config.seed}, run)

    stages = (make("a", ()), make("b", ("a",)), make("c", ("b",)), make("d", ("a",)))
    monkeypatch.setattr(runner, "stages_of", lambda data: stages)

    def since() -> list[str]:
        found = record.read_text().split() if record.exists() else []
        record.unlink(missing_ok=True)
        return found

    return since


def go(folder: Path, seed: int = 0, target: str | None = None) -> dict[str, Any]:
    return run_stages(RunConfig(seed=seed), run="r", target=target, folder=folder)


def test_second_run_has_nothing_to_do(calls: Callable[[], list[str]], tmp_path: Path) -> None:
    go(tmp_path)
    assert calls() == ["a", "b", "c", "d"]
    assert (tmp_path / "r" / "c" / "output").read_text() == "a0b0c0"
    assert go(tmp_path)["stages_run"] == 0
    assert calls() == []


def test_deleted_stage_and_its_dependants_run_again(calls: Callable[[], list[str]], tmp_path: Path) -> None:
    go(tmp_path)
    calls()
    for path in (tmp_path / "r" / "b").iterdir():
        path.unlink()
    (tmp_path / "r" / "b").rmdir()
    go(tmp_path)
    assert calls() == ["b", "c"]


def test_target_runs_what_it_needs(calls: Callable[[], list[str]], tmp_path: Path) -> None:
    go(tmp_path, target="d")
    assert calls() == ["a", "d"]
    go(tmp_path)
    assert calls() == ["b", "c"]
    with pytest.raises(UserError, match="no such stage"):
        go(tmp_path, target="e")


def test_changed_settings_run_everything(calls: Callable[[], list[str]], tmp_path: Path) -> None:
    go(tmp_path)
    calls()
    go(tmp_path, seed=1)
    assert calls() == ["a", "b", "c", "d"]
    assert (tmp_path / "r" / "replaced" / "c" / "output").read_text() == "a0b0c0"


def test_failed_stage_goes_on(calls: Callable[[], list[str]], tmp_path: Path) -> None:
    (tmp_path / "fail-b").touch()
    with pytest.raises(UserError, match="b failed"):
        go(tmp_path)
    assert calls() == ["a", "b"]
    assert (tmp_path / "r" / "b" / "half").exists()
    (tmp_path / "fail-b").unlink()
    go(tmp_path)
    assert calls() == ["b", "c", "d"]


def test_names_and_locks(calls: Callable[[], list[str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected letters"):
        run_stages(RunConfig(), run="../x", folder=tmp_path)
    with runner._locked(tmp_path / "r"), pytest.raises(UserError, match="another process is working on this run"):
        go(tmp_path)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("command", COMMANDS)
def test_presets_fit_every_command(command: str, name: str) -> None:
    """An unknown key is an error of the preset."""
    function, config_class = load_command(COMMANDS[command])
    section = preset_section(COMMANDS[command], load_preset(name), config_class)
    command_parser(command, function, config_class, section, "example")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_the_configuration(name: str) -> None:
    parser = command_parser("stages", run_stages, RunConfig, whole_run(load_preset(name), RunConfig), "example")
    parsed = parser.instantiate(parser.parse_args([]))
    _, fields = split_config(parsed, ["config", "run", "data", "target", "folder", "engine"])
    config = RunConfig(**fields)
    assert config.sample.rollouts == 32
    assert config.tokenize.vocabulary.token_steps == 2
