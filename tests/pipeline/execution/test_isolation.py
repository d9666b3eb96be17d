"""Stages in a child process, and tasks in many: values, errors, death."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from pipeline.execution.engine import run_tasks
from pipeline.execution.processes import run_isolated

ROOT = Path(__file__).parents[3]


def fail(error: BaseException) -> None:
    raise error


def test_value_time_and_memory() -> None:
    outcome = run_isolated(lambda: bytes(bytearray(80_000_000))[:3])
    assert outcome.value == b"\0\0\0"
    assert outcome.peak_memory_mb > 80
    assert outcome.seconds > 0


def test_state_stays_in_the_child() -> None:
    values: list[int] = []
    run_isolated(lambda: values.append(1))
    assert values == []


@pytest.mark.parametrize(
    ("error", "caught"),
    [
        (UserError("mend this"), UserError),
        (OSError(28, "No space left on device", "x"), OSError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (ZeroDivisionError("oops"), RuntimeError),
    ],
)
def test_errors_arrive(error: BaseException, caught: type[BaseException]) -> None:
    with pytest.raises(caught) as info:
        run_isolated(lambda: fail(error))
    if isinstance(error, OSError):
        assert info.value.errno == 28  # type: ignore[attr-defined]
    if isinstance(error, ZeroDivisionError):
        assert "ZeroDivisionError: oops" in str(info.value)


@pytest.mark.parametrize("greedy", [lambda: bytearray(10**15), lambda: torch.empty(10**15)])
def test_want_of_memory_is_named(greedy: Callable[[], object]) -> None:
    with pytest.raises(UserError, match="not enough memory: run the same command again"):
        run_isolated(greedy)


def test_death_by_signal_is_named() -> None:
    with pytest.raises(UserError, match="SIGKILL often means too little memory"):
        run_isolated(lambda: os.kill(os.getpid(), signal.SIGKILL))


def test_child_dies_with_a_killed_parent(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    code = (
        "import os, time, pathlib\n"
        "from pipeline.execution.processes import run_isolated\n"
        f"run_isolated(lambda: (pathlib.Path({str(marker)!r}).write_text(str(os.getpid())), time.sleep(60)))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    while not marker.exists() or not marker.read_text():
        time.sleep(0.02)
    child = int(marker.read_text())
    parent.kill()
    parent.wait()
    for _ in range(100):
        if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
            return
        time.sleep(0.05)
    pytest.fail("the child outlived its parent")


def square(value: int) -> int:
    if value < 0:
        raise UserError(f"{value} is negative")
    if value > 1000:
        os.kill(os.getpid(), signal.SIGKILL)
    return value * value


@pytest.mark.parametrize("workers", [1, 2])
def test_tasks(workers: int) -> None:
    assert dict(run_tasks(square, [3, 1, 2], workers)) == {0: 9, 1: 1, 2: 4}
    with pytest.raises(UserError, match="-1 is negative"):
        list(run_tasks(square, [1, -1, 2], workers))


def test_a_killed_worker_is_named() -> None:
    with pytest.raises(UserError, match="worker process was killed"):
        list(run_tasks(square, [1, 2000, 3], 2))


def die_once(marker: Path) -> str:
    try:
        marker.touch(exist_ok=False)
    except FileExistsError:
        return marker.name
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def test_the_tasks_of_a_killed_worker_are_done_again(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    markers = [tmp_path / str(index) for index in range(4)]
    (tmp_path / "0").touch()
    (tmp_path / "2").touch()
    with pytest.raises(UserError, match="worker process was killed"):
        list(run_tasks(die_once, [tmp_path / "other", tmp_path / "0"], 2))
    assert dict(run_tasks(die_once, markers, 2, retries=2)) == {0: "0", 1: "1", 2: "2", 3: "3"}
    assert "a worker process was killed; going on with 1" in capfd.readouterr().err


def test_who_starts_after_its_parent_died_ends_at_once() -> None:
    code = "from pipeline.execution.processes import die_with_parent; die_with_parent(2**22 + 1); print('alive')"
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stdout == ""


def test_workers_that_are_still_starting_die_with_a_killed_parent() -> None:
    code = (
        "from pipeline.execution.engine import run_tasks\n"
        "from tests.pipeline.execution.test_isolation import square\n"
        "if __name__ == '__main__': list(run_tasks(square, [1, 2, 3], 2))\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    workers: list[int] = []
    while len(workers) < 3:  # two workers, and the process that keeps account of shared memory
        workers = [int(pid) for pid in children.read_text().split()]
        time.sleep(0.005)
    parent.kill()
    parent.wait()
    for _ in range(600):
        alive = [pid for pid in workers if Path(f"/proc/{pid}").exists()]
        if not alive:
            return
        time.sleep(0.05)
    pytest.fail(f"{len(alive)} workers outlived their parent")
