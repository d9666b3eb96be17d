"""Signals to the main process alone, to all of them, and twice: ended within seconds, nobody left, gone on with."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from data.tfrecord import write_records
from pipeline.command.cli import main
from pipeline.execution.processes import Interrupted, interruptible, run_isolated
from tests.builders import scenario_proto

ROOT = Path(__file__).parents[3]
# Seconds that a busy machine may take for what a quiet one does in less than one.
PATIENCE = 300.0
# What each kind of work does while it is interrupted: ``beat`` says that it is under way, and sleeps.
_PRELUDE = """
import os, signal, sys, time
from pathlib import Path
from pipeline.command import cli
from pipeline.command.cli import main
from pipeline.execution.processes import run_isolated
from pipeline.execution.engine import run_tasks
from tests.pipeline.execution.test_interruption import stubborn, beat

FOLDER = Path(sys.argv[1])
def run(work):
    cli._call = lambda name, arguments: work()
    sys.exit(main(["plan"]))
"""
WORKS = {
    "alone": "run(lambda: beat(FOLDER / '0'))",
    "stage": "run(lambda: run_isolated(lambda: beat(FOLDER / '0')))",
    "pool": "if __name__ == '__main__': run(lambda: list(run_tasks(beat, [FOLDER / '0', FOLDER / '1'], 2)))",
    "pool of a stage": (
        "if __name__ == '__main__': "
        "run(lambda: run_isolated(lambda: list(run_tasks(beat, [FOLDER / '0', FOLDER / '1'], 2))))"
    ),
}


def beat(marker: Path) -> None:
    """Leave the process's id, and a temporary file that only unwinding takes away; then go on for a minute."""
    temporary = marker.with_suffix(".part")
    temporary.touch()
    try:
        marker.write_text(str(os.getpid()))
        for _ in range(600):
            time.sleep(0.1)
    finally:
        temporary.unlink()


def stubborn(marker: Path) -> None:
    """Swallow every interruption, as a destructor does."""
    marker.write_text(str(os.getpid()))
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            time.sleep(60)


def start(work: str, folder: Path, markers: int) -> subprocess.Popen[str]:
    script = folder / "work.py"
    script.write_text(f"{_PRELUDE}\n{work}\n")
    process = subprocess.Popen(
        [sys.executable, str(script), str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Under nohup the tests themselves ignore it, and so would what they start.
        preexec_fn=partial(signal.signal, signal.SIGHUP, signal.SIG_DFL),
    )
    wait_for(lambda: len([p for p in folder.iterdir() if p.name.isdigit() and p.read_text()]) == markers)
    return process


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(session: int) -> list[str]:
    """Processes of a session, those that have ended and wait to be noticed not among them."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = status.read_text().rpartition(")")
        except OSError:
            continue
        state, _, _, its_session = rest.split()[:4]
        if int(its_session) == session and state != "Z":
            found.append(name)
    return found


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status and what was said, once nobody of the session is left."""
    said = process.communicate(timeout=PATIENCE)[1]
    wait_for(lambda: not alive(process.pid))
    return process.returncode, said


@pytest.mark.parametrize(
    ("work", "number"),
    [
        ("alone", signal.SIGINT),
        ("stage", signal.SIGINT),
        ("stage", signal.SIGTERM),
        ("pool", signal.SIGINT),
        ("pool of a stage", signal.SIGINT),
        ("pool of a stage", signal.SIGHUP),
    ],
)
def test_the_main_process_alone(work: str, number: signal.Signals, tmp_path: Path) -> None:
    process = start(WORKS[work], tmp_path, 2 if "pool" in work else 1)
    os.kill(process.pid, number)
    began = time.monotonic()
    assert ended(process) == (128 + number, "\ninterrupted: run the same command again to go on\n")
    assert time.monotonic() - began < 20
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_whole_group(number: signal.Signals, tmp_path: Path) -> None:
    process = start(WORKS["pool of a stage"], tmp_path, 2)
    os.killpg(process.pid, number)
    assert ended(process) == (128 + number, "\ninterrupted: run the same command again to go on\n")
    assert list(tmp_path.glob("*.part")) == []


@pytest.mark.parametrize("work", ["alone", "pool of a stage"])
def test_twice_in_a_row(work: str, tmp_path: Path) -> None:
    process = start(WORKS[work], tmp_path, 2 if "pool" in work else 1)
    os.kill(process.pid, signal.SIGINT)
    os.kill(process.pid, signal.SIGINT)
    status, said = ended(process)
    assert status == 130
    # Processes that were killed may have left semaphores, which Python mentions when it takes them away.
    assert "interrupted: run the same command again to go on\n" in said
    assert "Traceback" not in said


def test_who_does_not_listen_is_ended_all_the_same(tmp_path: Path) -> None:
    process = start("run(lambda: run_isolated(lambda: stubborn(FOLDER / '0')))", tmp_path, 1)
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process)[0] == 143


def test_a_signal_that_was_ignored_when_the_shell_started_it(tmp_path: Path) -> None:
    """As of everything that a script starts in the background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start(WORKS["stage"], tmp_path, 1)
    finally:
        signal.signal(signal.SIGINT, before)
    os.kill(process.pid, signal.SIGINT)
    assert ended(process)[0] == 130


def test_handlers_are_put_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def work() -> None:
        with interruptible():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    with pytest.raises(Interrupted) as info:
        work()
    assert info.value.number == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before


def test_nohup_is_heeded() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interruptible():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_ctrl_c_during_imports_ends_silently(tmp_path: Path) -> None:
    # The first import of those that take long.
    (tmp_path / "numpy.py").write_text("import os, signal; os.kill(os.getpid(), signal.SIGINT)")
    found = subprocess.run(
        [sys.executable, "-m", "pipeline", "plan"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (found.returncode, found.stderr) == (-signal.SIGINT, "")


def test_a_worker_that_is_ended_before_it_is_ready_ends_silently(tmp_path: Path) -> None:
    # What takes long while a worker starts is this import.
    (tmp_path / "torch.py").write_text(
        "import os, signal, time; os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)"
    )
    script = """
import multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
from pipeline.execution.engine import prepare_worker
if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, prepare_worker, (os.getpid(),)) as pool:
        print(type(pool.submit(os.getpid).exception()).__name__)
"""
    (tmp_path / "work.py").write_text(script)
    found = subprocess.run(
        [sys.executable, str(tmp_path / "work.py")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert found.stdout == "BrokenProcessPool\n"
    assert found.stderr == ""


def test_a_child_that_is_interrupted_alone() -> None:
    def end_itself() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        run_isolated(end_itself)


def test_a_command_with_workers_goes_on_with_the_same_bytes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for shard in range(6):
        records = [scenario_proto(f"{shard:08x}{i:08x}", agents=2).SerializeToString() for i in range(30)]
        write_records(data / f"training.tfrecord-{shard:05d}-of-00006", records)
    given = ["tokenize", "--preset", "smoke", "--split", "training", "--data", str(data), "--out"]
    quiet, other = tmp_path / "quiet", tmp_path / "interrupted"
    assert main([*given, str(quiet), "--workers", "1"]) == 0
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *given, str(other), "--workers", "2"],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: bool(list(other.glob("*.parquet"))))
    os.kill(process.pid, signal.SIGINT)
    status, said = ended(process)
    assert status == 130
    assert said.endswith("\ninterrupted: run the same command again to go on\n")
    assert "Traceback" not in said
    assert len(list(other.glob("*.parquet"))) < 6
    assert main([*given, str(other), "--workers", "1"]) == 0
    one, two = (
        {path.name: path.read_bytes() for path in out.iterdir() if path.is_file()} for out in (quiet, other)
    )
    for content in (one, two):
        del content[".tokenize.manifest.json"]
    assert one == two
