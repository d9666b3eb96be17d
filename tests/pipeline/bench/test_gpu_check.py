"""The check of a GPU, on a CPU at the smallest sizes: every step runs, what fails is said, nothing else is lost."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from data.store import shard_name, write_shard
from models.policy import save_policy
from models.reference.checkpoint import save_reference
from pipeline.bench.gpu.runner import Task, run_steps
from pipeline.bench.gpu.steps import STEPS, Step
from scripts import gpu_check
from submission.realism.config import CONFIG_FILES
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, finish_stages, make_policy

# These compile for minutes on a CPU.
COMPILED = {"self-play, compiled", "training, compiled", "futures, compiled"}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``--prepare`` makes of a finished run, here of two made-up scenes."""
    run, folder = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("prepared")
    scenes = [random_scene(0), random_scene(1, agents=3)]
    write_shard(run / "tokenize" / "training" / shard_name("training", 0, 1), scenes)
    held_out = run / "tokenize" / "validation" / shard_name("validation", 0, 1)
    write_shard(held_out, [random_scene(2, agents=2)])
    model = make_model(2)
    words, view = model.vocabulary, dataclasses.asdict(VIEW)
    words.save(run / "tokenize" / "vocabulary.pt")
    save_reference(run / "pretrain" / "reference.ckpt", model)
    save_policy(run / "selfplay" / "policy.ckpt", make_policy(words), words, view)
    finish_stages(run, "tokenize", "pretrain", "selfplay")
    assert gpu_check.main(["--prepare", str(folder), "--run", str(run), "--no-wheels"]) == 0
    return folder


def test_what_travels_is_small_and_complete(prepared: Path) -> None:
    kinds = {path.relative_to(prepared).parts[0] for path in prepared.rglob("*") if path.is_file()}
    files = {"vocabulary.pt", "reference.ckpt", "policy.ckpt", "scores.pt", "prepared.json"}
    assert kinds == {"store", "validation", "site", *files}
    assert len(list((prepared / "site" / "waymo_open_dataset").rglob("*.textproto"))) == len(CONFIG_FILES)
    scores = torch.load(prepared / "scores.pt", weights_only=True)
    assert sorted(scores) == ["random0", "random1"]
    assert json.loads((prepared / "prepared.json").read_text())["megabytes"] < 1


def test_a_run_that_lacks_something_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--prepare", str(tmp_path / "out"), "--run", str(tmp_path), "--no-wheels"]) == 1
    assert f"{tmp_path}: no finished stage of a run here" in capsys.readouterr().err


# Rows that compare the device, the CPU itself, with the CPU, or an interrupted training with a whole one.
ALIKE = {
    "agreement": (
        "positions in",
        "decoding with fixed tokens",
        "tokens that differ",
        "metric: largest",
        "training micro: gr",
    ),
    "resume": ("self-play: largest difference", "pretraining: largest difference"),
}


@pytest.mark.parametrize("name", [step.name for step in STEPS if step.name not in COMPILED])
def test_a_step_runs_without_a_card(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    arguments = ["--data", str(prepared), "--out", str(tmp_path), "--device", "cpu", "--budget", "1200"]
    status = gpu_check.main([*arguments, "--only", name])
    (found,) = json.loads((tmp_path / "gpu_check.json").read_text())["steps"]
    assert (found["step"], found["state"], found["failures"]) == (name, "done", {})
    assert status == 0
    rows = {row["name"]: row["value"] for row in found["rows"]}
    table = (tmp_path / "gpu_check.txt").read_text()
    assert table in capsys.readouterr().out
    assert rows or name == "graph", "a CPU has no graphs"
    assert all(row in table for row in rows)
    for beginning in ALIKE.get(name, ()):
        values = [value for row, value in rows.items() if row.startswith(beginning)]
        assert values, beginning
        assert max(values) < 2e-5, beginning
    # Neither TensorFlow nor Waymo's wheel, which a machine with little installed lacks.
    assert not [note for note in found["notes"] if "imported" in note]
    if name == "resume":
        assert rows["self-play: killed on the way (1) or too late (0)"] == 1
    if name == "launches and waits":
        assert any("events.py" in note or "observation.py" in note for note in found["notes"])


def test_what_fails_hangs_or_has_no_time_loses_nothing_else(prepared: Path, tmp_path: Path) -> None:
    steps = (
        Step("broken", ("machine:absent", "machine:versions"), 900, 0),
        Step("slow", ("agreement:teacher_forcing",), 1, 0),
        Step("after it", ("machine:versions",), 900, 0),
        Step("too long", ("machine:versions",), 60, 1e6),
    )
    seen: list[int] = []
    task = Task(prepared, "cpu", False, tmp_path / "log")
    broken, slow, after, left = run_steps(steps, task, 3000, lambda found: seen.append(len(found)))
    assert seen == [1, 2, 3, 4]
    assert broken.state == "failed"
    assert "absent" in broken.failures["machine:absent"]
    assert (slow.state, slow.rows) == ("out of time", [])
    assert after.state == "done"
    for step in (broken, after):
        assert {row.name: row.value for row in step.rows}["scenes of the data"] == 2
    assert left.state.startswith("not started")
    assert "AttributeError" in (tmp_path / "log").read_text()


def test_without_a_card_one_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card here")
    assert gpu_check.main(["--data", "nowhere"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: no usable CUDA device: torch ")
    assert "--device cpu" in error
    assert error.count("\n") == 1


def test_a_folder_that_was_not_prepared_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--data", str(tmp_path / "none"), "--device", "cpu"]) == 1
    assert "none: no prepared.json;" in capsys.readouterr().err
