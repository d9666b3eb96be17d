"""Storage that fails: full, read-only, unreadable, losing renames, with clocks that go back."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from data import tfrecord
from data.scenes_source import open_scenes
from data.store import SceneStore
from data.tfrecord import write_records
from pipeline.command.cli import main
from pipeline.stages.sample import SampleConfig, run_sample
from pipeline.stages.tokenize import TokenizeConfig, run_tokenize
from tests.builders import scenario_proto

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "submission" / "metadata.example.yaml"
# Less than each of the commands below writes.
SMALL = {"sample": "1m", "package": "32k"}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for shard in range(2):
        records = [
            scenario_proto(f"{2 * shard + i:016x}", steps=11, agents=12).SerializeToString() for i in range(2)
        ]
        write_records(folder / f"testing.tfrecord-{shard:05d}-of-00002", records)
    return folder


def commands(data: Path, disk: Path, made: Path) -> dict[str, list[str]]:
    """Commands that write to ``disk``; ``made`` holds what they read."""
    return {
        "sample": [
            *("sample", "--agent", "constant_velocity", "--scenarios", str(data), "--out", str(disk / "out")),
            *("--shard_scenarios", "2", "--workers", "1"),
        ],
        "package": [
            *("package", "--rollouts", str(made), "--scenarios", str(data), "--metadata", str(EXAMPLE)),
            *("--out", str(disk / "x.tar.gz")),
        ],
    }


def mounted(tmp_path: Path, options: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of the pipeline with a file system in memory at ``tmp_path / "disk"``, then list what is there.

    A name space of its own allows that to everybody, not to root alone, and nothing of it is left.
    """
    disk = tmp_path / "disk"
    disk.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o {options} tmpfs "$1" && shift && "$@"; status=$?; find "$0"; exit $status'
    return subprocess.run(
        [
            *(
                "unshare",
                "--map-root-user",
                "--mount",
                "sh",
                "-c",
                script,
                disk,
                disk,
                sys.executable,
                "-m",
                "pipeline",
            ),
            *command,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["sample", "package"])
def test_a_full_disk_is_said_and_nothing_half_is_left(data: Path, tmp_path: Path, name: str) -> None:
    made = tmp_path / "made"
    run_sample(SampleConfig(agent="constant_velocity", workers=1), scenarios=data, out=made)
    ended = mounted(tmp_path, f"size={SMALL[name]}", commands(data, tmp_path / "disk", made)[name])
    assert ended.returncode == 1, ended.stderr
    last = ended.stderr.splitlines()
    (said,) = [line for line in last if line.startswith("error:")]
    assert "the disk is full; free some space" in said or "GB are free" in said
    assert "Traceback" not in ended.stderr
    assert ".part\n" not in ended.stdout


def test_a_file_that_the_shell_does_not_allow_is_named(data: Path, tmp_path: Path) -> None:
    arguments = commands(data, tmp_path / "disk", tmp_path)["sample"]
    limited = ["sh", "-c", 'ulimit -f 8; exec "$@"', "sh", sys.executable, "-m", "pipeline", *arguments]
    ended = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert f"{tmp_path / 'disk'}/" in said
    assert "larger than files may be (ulimit -f)" in said
    assert not list((tmp_path / "disk").rglob("*.part"))


@pytest.mark.parametrize("name", ["sample", "package"])
def test_a_disk_that_cannot_be_written(data: Path, tmp_path: Path, name: str) -> None:
    made = tmp_path / "made"
    run_sample(SampleConfig(agent="constant_velocity", workers=1), scenarios=data, out=made)
    ended = mounted(tmp_path, "ro", commands(data, tmp_path / "disk", made)[name])
    assert ended.returncode == 1
    (said,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
    assert said.endswith("Read-only file system")
    assert str(tmp_path / "disk") in said


def test_a_shard_that_cannot_be_read(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = data / "testing.tfrecord-00001-of-00002"
    real = tfrecord.fsspec.open

    class Broken:
        def __init__(self, path: str) -> None:
            self._path, self._file = path, real(path, "rb")

        def __enter__(self) -> Any:
            file = self._file.__enter__()
            if self._path.endswith(bad.name):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(bad))
            return file

        def __exit__(self, *error: object) -> None:
            self._file.__exit__(*error)

    monkeypatch.setattr(tfrecord.fsspec, "open", lambda path, mode: Broken(path))
    out = data.parent / "store"
    command = ["tokenize", "--data", str(data), "--split", "testing", "--out", str(out), "--workers", "1"]
    assert main(command) == 1
    assert f"error: {bad}: Input/output error" in capsys.readouterr().err
    kept = sorted(path.name for path in out.glob("*.parquet"))
    assert kept == ["testing-00000-of-00002.scenes.parquet"]
    monkeypatch.undo()
    assert main(command) == 0
    assert len(SceneStore(out)) == 4


def test_a_clock_that_goes_back(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is judged by which of two times is the later one."""
    ticks = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(ticks)))
    monkeypatch.setattr(time, "time_ns", lambda: next(ticks) * 10**9)
    config = TokenizeConfig(workers=1)
    run_tokenize(config, data=str(data), split="testing", out=tmp_path / "store")
    # A shard with other scenarios, of the same size, that seems to be older than what was made of its predecessor.
    changed = data / "testing.tfrecord-00001-of-00002"
    records = [scenario_proto(f"{10 + i:016x}", steps=11, agents=12).SerializeToString() for i in range(2)]
    write_records(changed, records)
    os.utime(changed, (1, 1))
    run_tokenize(config, data=str(data), split="testing", out=tmp_path / "store")
    assert SceneStore(tmp_path / "store").ids == open_scenes(data).ids


@pytest.mark.parametrize("lost", [1, 2, 3, 4, 5])
def test_renames_that_get_lost(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lost: int
) -> None:
    """A network file system that says it moved a file, and has not: an error, or found out by the next run."""
    command = commands(data, tmp_path, tmp_path)["sample"]
    real, seen = Path.replace, 0

    def replace(self: Path, target: Path) -> Path:
        nonlocal seen
        seen += 1
        return Path(target) if seen == lost else real(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", replace)
        status = main(command)
    assert seen >= lost
    said = capsys.readouterr().err
    assert status == 0 or ("error: " in said and "lost by its file system after it was written" in said)
    assert main(command) == 0
    quiet = tmp_path / "quiet"
    run_sample(SampleConfig(agent="constant_velocity", shard_scenarios=2, workers=1), scenarios=data, out=quiet)
    made = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.is_file()}
    # When it was made, and how long that took.
    del made[".sample.manifest.json"]
    assert made == {p.name: p.read_bytes() for p in quiet.iterdir() if p.is_file()}
