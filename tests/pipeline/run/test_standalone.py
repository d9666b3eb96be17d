"""Commands that are run alone, into folders where something is already."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import pytest

from data.errors import UserError
from data.tfrecord import write_records
from pipeline.command.cli import CHOICES, COMMANDS, main
from pipeline.execution.processes import locked
from pipeline.run.stage_table import STAGES
from pipeline.run.standalone import identity, run_command
from tests.builders import scenario_proto

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "submission" / "metadata.example.yaml"


@dataclasses.dataclass(frozen=True)
class Config:
    """Of a training that writes what it was told."""

    steps: int = 1
    workers: int = 0


def train(config: Config, *, scenes: Path, out: Path, seed: int = 0, keep: bool = False) -> dict[str, float]:
    if config.steps < 0:
        raise UserError("diverged")
    if not scenes.exists():
        raise UserError(f"{scenes}: no such file")
    text = f"{scenes.read_text()} {config.steps} {seed}"
    before = out / "training.ckpt"
    if before.exists() and before.read_text() != text and not keep:
        raise UserError("other settings")
    before.write_text(text)
    if config.steps > 100:
        raise KeyboardInterrupt
    before.rename(out / "reference.ckpt")
    return {"steps": config.steps}


@dataclasses.dataclass
class Trainer:
    scenes: Path
    out: Path

    def __call__(self, steps: int, *, fresh: bool = False, keep: bool = False, **own: object) -> dict[str, object]:
        options = {"scenes": self.scenes, "out": self.out, "seed": 0, "keep": False, **own}
        config = Config(steps, int(str(own.pop("workers", 0))))
        options.pop("workers", None)
        command = dataclasses.replace(COMMANDS["pretrain"], module="data.errors")
        return run_command(command, train, config, options, fresh=fresh, keep=keep)

    @property
    def result(self) -> str:
        return (self.out / "reference.ckpt").read_text()

    def replaced(self, name: str = "pretrain") -> Path:
        return self.out / "replaced" / name


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    (tmp_path / "scenes").write_text("scenes")
    return Trainer(tmp_path / "scenes", tmp_path / "out")


def test_a_second_training_keeps_the_first(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    trainer(1)
    (trainer.out / "notes.txt").write_text("mine")
    assert capsys.readouterr().err == ""
    trainer(2)
    assert trainer.result == "scenes 2 0"
    assert (trainer.replaced() / "reference.ckpt").read_text() == "scenes 1 0"
    assert capsys.readouterr().err == (
        f"{trainer.out}: changed: steps 1 -> 2; the finished result is kept in {trainer.replaced()}\n"
    )
    trainer(2, seed=4)
    assert (trainer.replaced("pretrain.2") / "reference.ckpt").read_text() == "scenes 2 0"
    trainer.scenes.write_text("others")
    trainer(2, seed=4)
    assert (trainer.replaced("pretrain.3") / "reference.ckpt").read_text() == "scenes 2 4"
    assert (trainer.out / "notes.txt").read_text() == "mine"


def test_the_same_training_is_not_done_again(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    assert trainer(1) == {"steps": 1}
    before = (trainer.out / "reference.ckpt").stat().st_ino
    os.utime(trainer.scenes, (1, 1))
    assert trainer(1, workers=8) == {"steps": 1}
    assert (trainer.out / "reference.ckpt").stat().st_ino == before
    assert "nothing to do, the result is there already (--fresh makes it again)" in capsys.readouterr().err
    trainer(1, fresh=True)
    assert (trainer.replaced() / "reference.ckpt").stat().st_ino == before


@pytest.mark.parametrize("given", [Path, str])
def test_the_folder_of_an_export_is_the_checkpoint_in_it(
    trainer: Trainer, tmp_path: Path, given: Callable[[Path], object]
) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    trainer.scenes.rename(folder / "model.safetensors")
    trainer(1, scenes=given(folder))
    assert trainer.result.endswith(" 1 0")


def test_a_failed_training_leaves_no_older_result_in_its_place(trainer: Trainer) -> None:
    trainer(1)
    with pytest.raises(UserError, match="diverged"):
        trainer(-1)
    assert not (trainer.out / "reference.ckpt").exists()
    assert (trainer.replaced() / "reference.ckpt").exists()
    assert sorted(path.name for path in trainer.out.iterdir()) == ["replaced"]


def test_results_that_nothing_tells_of_are_kept(trainer: Trainer) -> None:
    trainer.out.mkdir()
    (trainer.out / "reference.ckpt").write_text("precious")
    trainer(1)
    assert (trainer.replaced() / "reference.ckpt").read_text() == "precious"


def test_an_input_that_is_not_there_moves_nothing(trainer: Trainer, tmp_path: Path) -> None:
    trainer(1)
    with pytest.raises(UserError, match="no such file"):
        trainer(1, scenes=tmp_path / "none")
    assert trainer.result == "scenes 1 0"


def test_a_run_that_is_not_there_is_not_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("claims", "planners", "robustness", "report"):
        assert main([name, "--run", str(tmp_path / "none")]) == 1
        assert str(tmp_path / "none") in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_manifests_is_known_by_its_files(tmp_path: Path) -> None:
    (tmp_path / "run" / "finetune").mkdir(parents=True)
    assert identity(tmp_path / "run") is None
    file = tmp_path / "run" / "finetune" / "reference.ckpt"
    file.write_text("one")
    one = identity(tmp_path / "run")
    os.utime(file, (1, 1))
    assert identity(tmp_path / "run") == one
    file.write_text("two")
    assert identity(tmp_path / "run") not in (one, None)


def test_an_input_is_never_moved_away(trainer: Trainer) -> None:
    trainer(1)
    with pytest.raises(UserError, match=r"--scenes .*reference\.ckpt: the result would take its place"):
        trainer(1, scenes=trainer.out / "reference.ckpt")
    assert trainer.result == "scenes 1 0"


def test_an_interrupted_training(trainer: Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 0, 1):
        with pytest.raises(KeyboardInterrupt):
            trainer(101, seed=seed)
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"{trainer.out}: interrupted, going on",
        f"{trainer.out}: interrupted, and changed since: seed 0 -> 1; "
        f"what was done is kept in {trainer.replaced()}",
    ]
    trainer(1, seed=2, keep=True)
    assert trainer.result == "scenes 1 2"
    assert not trainer.replaced("pretrain.2").exists()
    manifest = json.loads((trainer.out / ".pretrain.manifest.json").read_text())
    assert manifest["despite"] == ["seed 1 -> 2", "steps 101 -> 1"]
    assert trainer(5, keep=True) == {"steps": 1}


def test_the_other_processes_of_a_launch_wait_for_the_first(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer(1)
    monkeypatch.setenv("RANK", "1")
    assert trainer(1) == {}
    monkeypatch.setattr("pipeline.run.standalone._WAIT_SECONDS", 0.0)
    with pytest.raises(UserError, match="the first process of the launch has not begun there"):
        trainer(2)
    assert trainer.result == "scenes 1 0"


def test_every_command_that_writes_is_listed() -> None:
    assert {name for name, command in COMMANDS.items() if command.outputs is None} == {
        "stages",
        "validate",
        "view",
        "plan",
    }


@pytest.fixture
def scenarios(tmp_path: Path) -> Path:
    records = [scenario_proto(f"s{index}", agents=2).SerializeToString() for index in range(2)]
    write_records(tmp_path / "in" / "validation.tfrecord-00000-of-00001", records)
    return tmp_path / "in"


def sample(scenarios: Path, out: Path, *more: str) -> int:
    options = ("--agent", "constant_velocity", "--workers", "1", "--scenarios", str(scenarios), "--out", str(out))
    return main(["sample", *options, *more])


def listed(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_sample_evaluate_and_package_into_folders_with_results(
    scenarios: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, archive = tmp_path / "out", tmp_path / "x.tar.gz"
    assert sample(scenarios, out) == 0
    first = (out / "rollouts.binproto-00000-of-00001").read_bytes()
    capsys.readouterr()
    # Again, and with files that were touched: recognised.
    before = (out / "rollouts.binproto-00000-of-00001").stat().st_mtime_ns
    os.utime(scenarios / "validation.tfrecord-00000-of-00001", (1, 1))
    assert sample(scenarios, out) == 0
    assert (out / "rollouts.binproto-00000-of-00001").stat().st_mtime_ns == before
    assert "kept in" not in capsys.readouterr().err

    def score() -> int:
        given = ("--scenarios", str(scenarios), "--rollouts", str(out), "--workers", "1")
        # Into the folder of the rollouts, which are not its to move.
        return main(["evaluate", *given, "--out", str(out)])

    def pack() -> int:
        given = ("--scenarios", str(scenarios), "--rollouts", str(out), "--metadata", str(EXAMPLE))
        return main(["package", *given, "--workers", "1", "--out", str(archive)])

    assert (score(), pack()) == (0, 0)
    packed = archive.read_bytes()
    metrics = (out / "metrics.json").read_bytes()
    assert (score(), pack()) == (0, 0)
    assert not (tmp_path / "replaced").exists()
    assert archive.read_bytes() == packed
    assert sample(scenarios, out, "--shard_scenarios", "1") == 0
    told = capsys.readouterr().err
    assert (
        f"{out}: changed: shard_scenarios 4 -> 1; the finished result is kept in {out / 'replaced/sample'}" in told
    )
    assert (out / "replaced" / "sample" / "rollouts.binproto-00000-of-00001").read_bytes() == first
    assert (out / "metrics.json").read_bytes() == metrics
    assert (score(), pack()) == (0, 0)
    told = capsys.readouterr().err
    assert (
        f"{out}: changed: new input: rollouts; the finished result is kept in {out / 'replaced/evaluate'}" in told
    )
    assert f"{archive}: changed: new input: rollouts; the finished result is kept in" in told
    assert (tmp_path / "replaced" / "x.tar.gz" / "x.tar.gz").read_bytes() == packed
    assert (out / "replaced" / "evaluate" / "metrics.json").read_bytes() == metrics
    assert not [name for name in listed(out) if "lock" in name or name.endswith(".part")]


def test_rollouts_of_two_settings_are_not_mixed_by_keep(
    scenarios: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.stages.sample.write_sums", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
        assert sample(scenarios, out) == 130
    assert sample(scenarios, out, "--rollouts", "3", "--keep") == 1
    told = capsys.readouterr().err
    assert "error: --keep:" in told
    assert "(rollouts 32 -> 3): results of two settings are never mixed" in told
    assert sample(scenarios, out, "--keep", "--fresh") == 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sample", ["--agent", "log", "--scenarios", "{in}", "--out", "{out}"]),
        ("evaluate", ["--scenarios", "{in}", "--rollouts", "{in}", "--out", "{out}"]),
        ("tokenize", ["--data", "{in}", "--split", "validation", "--out", "{out}"]),
        ("pretrain", ["--scenes", "{in}", "--vocabulary", "{in}", "--out", "{out}"]),
        ("selfplay", ["--scenes", "{in}", "--reference", "{in}", "--out", "{out}"]),
        ("export", ["--checkpoint", "{in}", "--out", "{out}"]),
        ("traffic", ["--out", "{out}", "--seed", "0"]),
        ("claims", ["--run", "{in}", "--out", "{out}"]),
        ("robustness", ["--scenarios", "{in}", "--out", "{out}"]),
    ],
)
def test_a_second_command_in_a_folder_is_refused(
    name: str, options: list[str], scenarios: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"in": str(scenarios), "out": str(tmp_path / "out")}
    with locked(tmp_path / "out", "sample"):
        assert main([name, *(option.format(**places) for option in options)]) == 1
    told = capsys.readouterr().err
    assert told.startswith(
        f"error: {tmp_path / 'out'}: another process is working here (sample, process {os.getpid()}"
    )
    assert told.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_second_archive_of_the_same_name_is_refused_and_another_is_not(
    scenarios: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert sample(scenarios, out) == 0
    given = ["package", "--scenarios", str(scenarios), "--rollouts", str(out), "--metadata", str(EXAMPLE)]
    with locked(tmp_path, "package", ".x.tar.gz.lock"):
        assert main([*given, "--out", str(tmp_path / "x.tar.gz")]) == 1
        assert "another process is working here (package" in capsys.readouterr().err
        assert main([*given, "--out", str(tmp_path / "y.tar.gz")]) == 0


@pytest.mark.parametrize("name", ["package", "report"])
def test_a_folder_in_the_place_of_a_file_is_left_alone(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mine.tar.gz"
    folder.mkdir()
    (folder / "mine").touch()
    inputs = {
        "package": ["--rollouts", str(folder), "--scenarios", str(folder), "--metadata", str(EXAMPLE)],
        "report": ["--run", str(tmp_path)],
    }
    assert main([name, *inputs[name], "--out", str(folder)]) == 1
    assert f"--out {folder}: a folder; give the name of the file" in capsys.readouterr().err
    assert (folder / "mine").exists()
    assert not (tmp_path / "replaced").exists()


@pytest.mark.parametrize("what", ["file", "link"])
def test_a_file_in_the_place_of_a_folder_is_left_alone(
    what: str, scenarios: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mine"
    if what == "file":
        out.write_text("mine")
    else:
        out.symlink_to(tmp_path / "nowhere")
    assert sample(scenarios, out) == 1
    told = {"file": "a file", "link": "a broken link"}[what]
    assert capsys.readouterr().err == f"error: --out {out}: {told}; give the name of a folder\n"
    assert out.is_symlink() or out.read_text() == "mine"


def test_rollouts_and_stores_do_not_share_a_folder(
    scenarios: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, rollouts = tmp_path / "store", tmp_path / "rollouts"

    def ingest(out: Path) -> int:
        return main(["tokenize", "--data", str(scenarios), "--split", "validation", "--out", str(out)])

    assert (ingest(store), sample(store, rollouts)) == (0, 0)
    before = listed(store), listed(rollouts)
    capsys.readouterr()
    assert (sample(store, store), ingest(rollouts)) == (1, 1)
    told = capsys.readouterr().err
    assert f"--out {store}: holds validation-00000-of-00001.scenes.parquet of another command" in told
    assert f"--out {rollouts}: holds rollouts.binproto-00000-of-00001 of another command" in told
    assert (listed(store), listed(rollouts)) == before


def test_two_at_the_same_moment(scenarios: Path, tmp_path: Path) -> None:
    """One is refused in a line, or finds the other's result; nothing is broken."""
    command = [sys.executable, "-m", "pipeline", "sample", "--agent", "constant_velocity", "--workers", "1"]
    command += ["--scenarios", str(scenarios), "--out", str(tmp_path / "out")]
    both = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    ends = sorted((process.communicate()[1], process.returncode) for process in both)
    assert 0 in {status for _, status in ends}
    for told, status in ends:
        assert "Traceback" not in told
        assert status == 0 or "another process is working here" in told
    assert sample(scenarios, tmp_path / "out") == 0


def test_flags_are_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["sample", "--help"])
    told = capsys.readouterr().out
    assert "--fresh" in told
    assert "--keep" in told
    assert CHOICES["keep"].split(";")[0] in " ".join(told.split())


def test_every_file_that_a_finished_training_was_made_from_decides() -> None:
    """A policy that self-play starts from, too."""
    for stage in STAGES:
        function, _ = stage.load()
        kinds = get_type_hints(function)
        files = {name for name, kind in kinds.items() if kind is Path or Path in get_args(kind)}
        if stage.once:
            assert files - {"out"} <= set(stage.inputs), stage.name
