"""A process that dies at its n-th write, for every n: the same command then ends with the bytes of a quiet run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.tfrecord import write_records
from data.vocabulary import VocabularyConfig
from pipeline.stages.evaluate import EvaluateConfig, run_evaluate
from pipeline.stages.package import PackageConfig, run_package
from pipeline.stages.sample import SampleConfig, run_sample
from pipeline.stages.tokenize import TokenizeConfig, run_tokenize
from tests.builders import scenario_proto

EXAMPLE = Path(__file__).parents[2] / "submission" / "metadata.example.yaml"
KILLED = 99
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for shard in range(2):
        records = [scenario_proto(f"{2 * shard + index:016x}", agents=2).SerializeToString() for index in range(2)]
        write_records(folder / f"training.tfrecord-{shard:05d}-of-00002", records)
    run_sample(
        SampleConfig(agent="constant_velocity", shard_scenarios=2, workers=1),
        scenarios=folder,
        out=folder / "rollouts",
    )
    return folder


def tokenize(data: Path, out: Path) -> None:
    config = TokenizeConfig(workers=1, vocabulary=VocabularyConfig(size=16, max_segments=500))
    run_tokenize(config, data=str(data), split="training", out=out)


def sample(data: Path, out: Path) -> None:
    config = SampleConfig(agent="constant_velocity", shard_scenarios=2, workers=1)
    run_sample(config, scenarios=data, out=out)


def evaluate(data: Path, out: Path) -> None:
    run_evaluate(EvaluateConfig(workers=1), scenarios=data, rollouts=data / "rollouts", out=out, show=False)


def package(data: Path, out: Path) -> None:
    run_package(
        PackageConfig(workers=1, shard_mb=1, split_mb=1),
        rollouts=data / "rollouts",
        scenarios=data,
        metadata=EXAMPLE,
        out=out / "x.tar.gz",
    )


STAGES: dict[str, Callable[[Path, Path], None]] = {
    "tokenize": tokenize,
    "sample": sample,
    "evaluate": evaluate,
    "package": package,
}


def content(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def count_writes(folder: Path, act: Callable[[int], Any]) -> None:
    """Call ``act`` with the number of every event by which this process changes something below a folder."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        changes = event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod") or (
            event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
        )
        if changes and str(arguments[0]).startswith(str(folder)):
            seen += 1
            act(seen)

    sys.addaudithook(hook)


def in_child(work: Callable[[], None]) -> int:
    """Fork, since a hook cannot be taken away again, and return the exit status."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def writes_of(stage: Callable[[Path, Path], None], data: Path, out: Path) -> int:
    read_end, write_end = os.pipe()

    def work() -> None:
        count_writes(out, lambda number: os.write(write_end, b"."))
        stage(data, out)

    assert in_child(work) == 0
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        return len(pipe.read())


@pytest.mark.parametrize("name", STAGES)
def test_resumes_from_everywhere(name: str, data: Path, tmp_path: Path) -> None:
    stage = STAGES[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    total = writes_of(stage, data, whole)
    wanted = content(whole)
    assert total > 10
    for number in range(1, total + 1):
        out = tmp_path / str(number)
        out.mkdir()

        def killed(out: Path = out, number: int = number) -> None:
            count_writes(out, lambda seen: os._exit(KILLED) if seen == number else None)
            stage(data, out)

        assert in_child(killed) == KILLED
        assert in_child(lambda out=out: stage(data, out)) == 0  # type: ignore[misc]
        assert content(out) == wanted, f"killed at write {number} of {total}"
