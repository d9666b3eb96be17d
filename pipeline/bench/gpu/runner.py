"""Runs the steps in a process of their own, and writes the table and the JSON file.

A process is ended when a step takes too long, and another one is started after a failure.
"""

from __future__ import annotations

import dataclasses
import importlib
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from data.files import write_json, write_text
from pipeline.bench.gpu.steps import Step
from pipeline.bench.rows import Row
from pipeline.evaluation.tables import render_table
from pipeline.execution.processes import die_with_parent

__all__ = ["JSON_FILE", "TABLE_FILE", "Found", "Task", "run_steps", "table", "write"]

# What the checks do without, since it is large and there is no wheel of it for every Python.
_HEAVY = frozenset({"tensorflow", "waymo_open_dataset.protos", "libsumo"})
# Seconds that a process may take to import what it needs.
_BEGIN = 120.0


@dataclass(frozen=True)
class Task:
    """What a worker needs to know.

    Attributes:
        data: prepared folder. device: of torch. tiny: the smallest sizes. log: file that takes all that is printed.
    """

    data: Path
    device: str
    tiny: bool
    log: Path


def _serve(task: Task, pipe: Connection, parent: int) -> None:
    """Do checks as they are asked for; send rows and notes as they are found, and at the end of each its error."""
    os.setsid()
    die_with_parent(parent)
    log = os.open(task.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    from pipeline.bench.gpu.inputs import FULL, TINY, Inputs

    device = torch.device(task.device)
    if device.type == "cpu":
        # As everywhere else where seconds of a core are counted.
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Inputs(task.data, Path(scratch), device, TINY if task.tiny else FULL)
        pipe.send(("ready", None))
        while (check := pipe.recv()) is not None:
            module, function = check.split(":")
            print(f"---- {check}", flush=True)
            error, started = None, time.process_time()
            try:
                for item in getattr(importlib.import_module(f"pipeline.bench.gpu.{module}"), function)(inputs):
                    pipe.send(("found", item))
                if device.type == "cuda":
                    torch.cuda.synchronize()
            except Exception as raised:
                traceback.print_exc()
                error = traceback.format_exception_only(raised)[-1].strip().splitlines()[0]
                error += f" ({_place(raised)})"
            print(f"---- {check}: {time.process_time() - started:.1f} CPU s", flush=True)
            if there := sorted(_HEAVY & sys.modules.keys()):
                pipe.send(("found", f"{check} imported {', '.join(there)}, which not every machine has"))
            pipe.send(("ended", error))


def _place(raised: BaseException) -> str:
    """Where in the project it happened."""
    root = str(Path(__file__).resolve().parents[3])
    frames = [f for f in traceback.extract_tb(raised.__traceback__) if f.filename.startswith(root)]
    return f"{Path(frames[-1].filename).relative_to(root)}:{frames[-1].lineno}" if frames else "elsewhere"


class _Worker:
    """A process that does checks."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(task, other, os.getpid()))
        self._process.start()
        other.close()
        kind, _ = self.wait(_BEGIN)
        if kind != "ready":
            self.close()
            raise RuntimeError(f"the process that does the checks could not begin; see {task.log}")

    def wait(self, seconds: float) -> tuple[str, Any]:
        """The next message; ``late`` when none comes in time, ``gone`` when the process ended."""
        try:
            if not self.pipe.poll(max(0.0, seconds)):
                return "late", None
            message: tuple[str, Any] = self.pipe.recv()
            return message
        except (EOFError, OSError):
            return "gone", None

    def close(self) -> None:
        """End it, and whatever it started."""
        if self._process.is_alive() and self._process.pid is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self._process.kill()
        self._process.join()
        self.pipe.close()


def run_steps(
    steps: Sequence[Step], task: Task, budget: float, report: Callable[[list[Found]], None]
) -> list[Found]:
    """Do steps one after the other.

    Args:
        steps: in this order. task: what on. budget: seconds for all. report: called with all found so far, after
            every step.
    """
    until = time.monotonic() + budget
    found: list[Found] = []
    worker: _Worker | None = None
    try:
        for step in steps:
            result, started = Found(step.name), time.monotonic()
            found.append(result)
            if until - started < step.needs:
                left = max(0.0, until - started)
                result.state = f"not begun, {left:.0f} s of the budget are left and it needs {step.needs:.0f}"
            else:
                # Of the smallest sizes nothing is timed, and a busy machine may take long.
                end = until if task.tiny else min(started + step.limit, until)
                for check in step.checks:
                    try:
                        worker = worker or _Worker(task)
                        again = _do(worker, check, end, result, task.tiny)
                    except (RuntimeError, OSError) as error:
                        result.state, result.failures[check], again = "failed", str(error), False
                    if not again and worker is not None:
                        worker.close()
                        worker = None
                result.seconds = time.monotonic() - started
                if step.spoils and worker is not None:
                    worker.close()
                    worker = None
            report(found)
    finally:
        if worker is not None:
            worker.close()
    return found


def _do(worker: _Worker, check: str, until: float, result: Found, tiny: bool) -> bool:
    """Do a check; whether the worker can be used again."""
    if time.monotonic() >= until:
        result.state, result.failures[check] = "out of time", "not begun"
        return True
    worker.pipe.send(check)
    while True:
        kind, item = worker.wait(until - time.monotonic())
        if kind == "found" and isinstance(item, Row):
            result.rows.append(_compared(item, tiny))
        elif kind == "found":
            result.notes.append(str(item))
        elif kind == "ended" and item is None:
            return True
        else:
            late = kind == "late"
            result.state = "out of time" if late else "failed"
            result.failures[check] = (
                item or f"{'out of time' if late else 'the process ended by itself'}, see the log"
            )
            # Errors of a card stay with the process that met them.
            return kind == "ended" and "CUDA" not in str(item) and "Accelerator" not in str(item)


def _compared(row: Row, tiny: bool) -> Row:
    """With its ratio to what the audit expected; of the smallest sizes nothing was expected."""
    if tiny:
        return replace(row, baseline=None)
    return replace(row, ratio=row.value / row.baseline) if row.baseline else row


JSON_FILE, TABLE_FILE = "gpu_check.json", "gpu_check.txt"


@dataclass
class Found:
    """Of one step.

    Attributes:
        state: done, failed (some of its checks did), out of time, or not begun.
        rows: figures; ``baseline`` is what the audit of the code expected. notes: lines. failures: check to error.
    """

    step: str
    state: str = "done"
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def table(header: str, found: list[Found]) -> str:
    """Everything found so far: what was measured, its value and unit, what the audit expected, and their ratio."""
    cells = [["what", "value", "unit", "expected", "ratio"]]
    for step in found:
        cells.append([f"== {step.step}: {step.state}, {step.seconds:.0f} s", "", "", "", ""])
        for row in step.rows:
            cells.append(["  " + row.name, _number(row.value), row.unit, _number(row.baseline), _number(row.ratio)])
    lines = [header, "", render_table(cells)]
    for step in found:
        lines += [f"FAILED {step.step}, {check}: {error}" for check, error in step.failures.items()]
        lines += [f"{step.step}: {note}" for note in step.notes]
    return "\n".join(lines) + "\n"


def write(out: Path, about: dict[str, Any], found: list[Found]) -> str:
    """Write both files, and return the table."""
    header = ", ".join(f"{name} {value}" for name, value in about.items())
    text = table(header, found)
    write_text(out / TABLE_FILE, text)
    write_json(out / JSON_FILE, {**about, "steps": [_plain(step) for step in found]})
    return text


def _plain(step: Found) -> dict[str, Any]:
    content = dataclasses.asdict(step)
    for row in content["rows"]:
        # JSON has no word for what is not a number.
        row.update({k: None for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)})
    return content
