"""Chaining: what runs, what is skipped, what goes on; on stages that only write files."""

from __future__ import annotations

import dataclasses
import inspect
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from data.files import write_json
from data.tfrecord import write_records
from data.vocabulary import VocabularyConfig
from pipeline.command.cli import COMMANDS, preset_section, whole_run
from pipeline.command.options import command_parser, split_config
from pipeline.execution.manifest import Recipe, Work, finish, read_manifest
from pipeline.execution.processes import locked
from pipeline.run import runner
from pipeline.run.presets import PRESETS, leaves, load_preset, override
from pipeline.run.run_config import RunConfig
from pipeline.run.run_folder import Run
from pipeline.run.runner import run_stages
from pipeline.run.stage_table import STAGES, Stage, load, stages_of
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.stages.tokenize import TokenizeConfig
from tests.builders import scenario_proto


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[], list[str]]:
    """Three stages a -> b -> c beside d; returns what ran since the last call."""
    record = tmp_path / "calls"

    class Copying(Stage):
        def run(self, run: Run) -> dict[str, Any]:
            name, out = self.name, run.path(self.name)
            with record.open("a") as file:
                file.write(f"{name}\n")
            if (tmp_path / f"fail-{name}").exists():
                (out / "half").write_text("partial")
                raise UserError(f"{name} failed")
            text = "".join((run.path(need) / "output").read_text() for need in self.needs)
            (out / "output").write_text(f"{text}{name}{run.config.seed}")
            return {}

        def options(self, config: Any) -> dict[str, Any]:
            return {"seed": config.seed * (self.name != "d")}

    def make(name: str, needs: tuple[str, ...]) -> Stage:
        none = dataclasses.replace(STAGES[0], name=name, module="data.errors", needs=needs, goes_on=name == "b")
        return Copying(**{field.name: getattr(none, field.name) for field in dataclasses.fields(none)})

    stages = (make("a", ()), make("b", ("a",)), make("c", ("b",)), make("d", ("a",)))
    monkeypatch.setattr(runner, "stages_of", lambda data, agents: stages)

    def since() -> list[str]:
        found = record.read_text().split() if record.exists() else []
        record.unlink(missing_ok=True)
        return found

    return since


def go(
    folder: Path, seed: int = 0, target: str | None = None, *, fresh: bool = False, keep: bool = False
) -> dict[str, Any]:
    return run_stages(RunConfig(seed=seed), run="r", target=target, folder=folder, fresh=fresh, keep=keep)


def test_second_run_has_nothing_to_do(calls: Callable[[], list[str]], tmp_path: Path) -> None:
    go(tmp_path)
    assert calls() == ["a", "b", "c", "d"]
    assert (tmp_path / "r" / "c" / "output").read_text() == "a0b0c0"
    assert go(tmp_path)["stages_run"] == 0
    assert calls() == []


def test_a_deleted_stage_runs_again_and_those_behind_it_if_it_came_out_differently(
    calls: Callable[[], list[str]], tmp_path: Path
) -> None:
    go(tmp_path)
    calls()
    for path in (tmp_path / "r" / "b").iterdir():
        path.unlink()
    (tmp_path / "r" / "b").rmdir()
    go(tmp_path)
    assert calls() == ["b"]
    (tmp_path / "r" / "b" / "output").write_text("another")
    work = Work(tmp_path / "r" / "b", "b", tmp_path / "r" / "replaced" / "b")
    manifest = read_manifest(work.folder)
    assert manifest is not None
    finish(unfinished(work, manifest.recipe), manifest.recipe, {}, 1.0, 1.0)
    go(tmp_path)
    assert calls() == ["c"]


def unfinished(work: Work, recipe: Recipe) -> Work:
    write_json(work.started, dataclasses.asdict(recipe))
    return work


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


def test_unfinished_work_of_other_options_is_kept(
    calls: Callable[[], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fail-b").touch()
    for seed in range(3):
        with pytest.raises(UserError, match="b failed"):
            go(tmp_path, seed=seed)
    replaced = tmp_path / "r" / "replaced"
    assert sorted(path.name for path in replaced.iterdir()) == ["a", "a.2", "b", "b.2"]
    assert (replaced / "b.2" / "half").read_text() == "partial"
    told = capsys.readouterr().err
    assert (
        f"[b] interrupted, and changed since: seed 1 -> 2; what was done is kept in {replaced / 'b.2'}"
        in told.replace("seed 1 -> 2, seed 1 -> 2, new input: a", "seed 1 -> 2")
    )
    (tmp_path / "fail-b").unlink()
    go(tmp_path, seed=2)
    assert "[b] interrupted, going on\n" in capsys.readouterr().err


def test_fresh(calls: Callable[[], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fail-b").touch()
    with pytest.raises(UserError, match="b failed"):
        go(tmp_path)
    (tmp_path / "fail-b").unlink()
    calls()
    go(tmp_path, fresh=True)
    assert calls() == ["b", "c", "d"]
    assert (tmp_path / "r" / "replaced" / "b" / "half").exists()
    assert not (tmp_path / "r" / "b" / "half").exists()
    capsys.readouterr()
    go(tmp_path, fresh=True)
    assert calls() == []
    assert "--target STAGE --fresh does a stage again" in capsys.readouterr().err
    go(tmp_path, target="b", fresh=True)
    assert calls() == ["b"]
    assert "[b] starting over (--fresh); the finished result is kept in" in capsys.readouterr().err
    with pytest.raises(UserError, match="give one of them"):
        go(tmp_path, fresh=True, keep=True)


def test_keep(calls: Callable[[], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fail-b").touch()
    with pytest.raises(UserError, match="b failed"):
        go(tmp_path)
    (tmp_path / "fail-b").unlink()
    calls()
    go(tmp_path, seed=1, keep=True)
    # What is finished stays; b can go on, and what was not begun is done with the options of now.
    assert calls() == ["b", "c", "d"]
    assert (tmp_path / "r" / "b" / "half").exists()
    told = capsys.readouterr().err
    assert "[a] kept as it is (--keep), although changed: seed 0 -> 1" in told
    assert "[b] interrupted, and changed since: seed 0 -> 1" in told
    assert "going on all the same (--keep)" in told
    assert not (tmp_path / "r" / "replaced").exists()
    (tmp_path / "fail-c").touch()
    with pytest.raises(UserError, match="c failed"):
        go(tmp_path, seed=2)
    with pytest.raises(UserError, match="results of two settings are never mixed"):
        go(tmp_path, seed=3, keep=True)


def test_a_stage_that_gives_the_same_again_leaves_the_others_alone(
    calls: Callable[[], list[str]], tmp_path: Path
) -> None:
    go(tmp_path)
    calls()
    go(tmp_path, target="a", fresh=True)
    assert calls() == ["a"]
    assert go(tmp_path)["stages_run"] == 0


DATA = "training", "validation", "testing"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number, split in enumerate(DATA):
        steps = 11 if split == "testing" else 91
        records = [scenario_proto(f"{number:015x}{i}", agents=2, steps=steps).SerializeToString() for i in range(2)]
        write_records(tmp_path / "womd" / split / f"{split}.tfrecord-00000-of-00001", records)
    return tmp_path / "womd"


def tokenized(folder: Path, data: Path) -> int:
    vocabulary = VocabularyConfig(size=16, max_segments=500)
    config = RunConfig(tokenize=TokenizeConfig(workers=1, vocabulary=vocabulary))
    done = run_stages(config, run="r", data=str(data), target="tokenize", folder=folder)
    return int(done["stages_run"])


def test_data_are_known_by_what_they_hold(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tokenized(tmp_path, data) == 1
    shard = data / "validation" / "validation.tfrecord-00000-of-00001"
    for file in data.rglob("*tfrecord*"):
        os.utime(file, (1, 1))
    assert tokenized(tmp_path, data) == 0
    copied, moved = tmp_path / "copied", tmp_path / "moved"
    shutil.copytree(data, copied, copy_function=shutil.copyfile)
    assert tokenized(tmp_path, copied) == 0
    copied.rename(moved)
    assert tokenized(tmp_path, moved) == 0
    # Another record of the same length, at the same time.
    status, content = shard.stat(), shard.read_bytes()
    records = [scenario_proto(f"{1:015x}{i}", agents=2).SerializeToString() for i in (0, 3)]
    write_records(shard, records)
    assert len(shard.read_bytes()) == len(content)
    os.utime(shard, ns=(status.st_atime_ns, status.st_mtime_ns))
    capsys.readouterr()
    assert tokenized(tmp_path, data) == 1
    assert "[tokenize] new input: " in (told := capsys.readouterr().err)
    assert "validation.tfrecord-00000-of-00001 has changed" in told


def test_the_content_of_the_metadata_makes_the_archive_stale(tmp_path: Path) -> None:
    """Not the path of the file, which may move, and not its name alone, for its content may change."""
    package = next(stage for stage in stages_of("data", ["policy"]) if stage.name == "package")
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("account_name: a")
    two.write_text("account_name: a")
    before = package.options(RunConfig(metadata=one))
    assert package.options(RunConfig(metadata=two)) == before
    one.write_text("account_name: b")
    assert package.options(RunConfig(metadata=one)) != before
    assert package.options(RunConfig(metadata=tmp_path / "none.yaml")) != before


def test_a_device_that_is_not_there_is_named_before_anything_runs(tmp_path: Path) -> None:
    config = RunConfig(selfplay=SelfPlayConfig(device="nonsense"))
    with pytest.raises(UserError, match=r"--selfplay\.device nonsense: expected cpu, cuda"):
        run_stages(config, run="r", folder=tmp_path)
    assert not (tmp_path / "r").exists()


def test_names_and_locks(calls: Callable[[], list[str]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected letters"):
        run_stages(RunConfig(), run="../x", folder=tmp_path)
    busy = r"another process is working here \(run r, process \d+ on "
    with locked(tmp_path / "r", "run r"), pytest.raises(UserError, match=busy):
        go(tmp_path)
    with locked(tmp_path / "q", "run q"):
        go(tmp_path)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("command", COMMANDS)
def test_presets_fit_every_command(command: str, name: str) -> None:
    """An unknown key is an error of the preset."""
    function, config_class = COMMANDS[command].load()
    section = preset_section(COMMANDS[command], load_preset(name), config_class)
    command_parser(command, function, config_class, section, "example")


@pytest.mark.parametrize("name", PRESETS)
def test_presets_fit_the_configuration(name: str) -> None:
    parser = command_parser("stages", run_stages, RunConfig, whole_run(load_preset(name), RunConfig), "example")
    parsed = parser.instantiate(parser.parse_args([]))
    _, fields = split_config(parsed, [*inspect.signature(run_stages).parameters])
    config = RunConfig(**fields)
    assert config.sample.rollouts == 32
    assert config.tokenize.vocabulary.token_steps == (5 if name == "leaderboard" else 2)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("command", ["claims", "planners"])
def test_trainings_of_studies_are_the_papers(command: str, name: str) -> None:
    """Also where the stage trains by the recipe."""
    preset = load_preset(name)
    own = preset_section(COMMANDS[command], preset, RunConfig)["selfplay"]
    config = override(SelfPlayConfig(), leaves(own))
    assert not config.reward.per_event
    assert not config.policy.own_critic
    assert config.distill.agent_steps == 0
    assert config.ppo.beta == 0.1


def test_the_table_is_all_there_is_to_know_of_a_stage() -> None:
    """What a run gives a stage are options of its function, inputs are what the stages it needs write, and make
    knows the same stages."""
    for number, stage in enumerate(STAGES):
        function, config_class = stage.load()
        assert set(stage.needs) <= {earlier.name for earlier in STAGES[:number]}
        assert RunConfig.__annotations__[stage.name] is config_class
        assert set(stage.paths) <= set(inspect.signature(function).parameters)
        folders = {path.partition("/")[0] for option, path in stage.paths.items() if path}
        assert folders <= {*stage.needs, stage.name}
        for name in filter(None, (stage.whole, stage.changed)):
            assert callable(load(f"{stage.module}:{name}"))
    makefile = (Path(__file__).parents[3] / "Makefile").read_text()
    assert f"STAGES := {' '.join(stage.name for stage in STAGES)}\n" in makefile
