"""One process at a time in a folder, whatever ends the first one."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.errors import UserError
from pipeline.execution.processes import locked

ROOT = Path(__file__).parents[3]
_HOLDER = """
import sys, time
from pathlib import Path
from pipeline.execution.processes import locked
with locked(Path(sys.argv[1]), "sample"):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_is_there_until_that_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=rf"working here \(sample, process {holder.pid} on ") as info:
            locked(folder, "evaluate").__enter__()
        assert "\n" not in str(info.value)
        with locked(tmp_path / "other", "sample"):
            pass
        holder.kill()
        holder.wait()
    for _ in range(100):
        try:
            with locked(folder, "evaluate"):
                return
        except UserError:
            time.sleep(0.05)
    pytest.fail("the lock outlived its process")


def test_nothing_is_left(tmp_path: Path) -> None:
    with locked(tmp_path / "a" / "out", "sample"):
        assert (tmp_path / "a" / "out" / ".lock").exists()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "out", "sample"):
        raise ZeroDivisionError
    assert list((tmp_path / "out").iterdir()) == []


def test_a_lock_that_was_taken_away_meanwhile_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process ends between the second one's opening and its locking of the file."""
    plain, path = fcntl.flock, tmp_path / ".lock"
    calls: list[int] = []

    def flock(file: object, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            path.unlink()
        plain(file, how)  # type: ignore[arg-type]

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path, "sample"):
        assert len(calls) == 2
        with pytest.raises(UserError, match="another process"), locked(tmp_path, "sample"):
            pass


def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(file: object, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path, "sample"):
        pass
    assert capsys.readouterr().err == (
        f"{tmp_path}: its file system knows no locks: do not start a second command there meanwhile\n"
    )
