"""Runs the steps in a worker process, and writes the table and the JSON file after every step.

The worker is killed when a step exceeds its time limit, and replaced after a failure.
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
from pipeline.execution.processes import die_with_parent
from pipeline.execution.tables import render_table

# Packages that the checks must not import: they are large and have no wheels for every Python.
_HEAVY = frozenset({"tensorflow", "waymo_open_dataset.protos", "libsumo"})
# Time limit for the imports of a worker, seconds.
_START_LIMIT = 120.0


@dataclass(frozen=True)
class Task:
    """Settings of a worker.

    Attributes:
        data: prepared folder. device: of torch. tiny: use the smallest sizes. log: file for its output.
    """

    data: Path
    device: str
    tiny: bool
    log: Path


def _serve(task: Task, pipe: Connection, parent: int) -> None:
    """Worker: run the checks that the pipe names; send rows and notes, and at the end of each check its error."""
    os.setsid()
    die_with_parent(parent)
    log = os.open(task.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import torch

    from pipeline.bench.gpu.inputs import FULL, TINY, Inputs

    device = torch.device(task.device)
    if device.type == "cpu":
        # CPU seconds are measured with one thread.
        torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        inputs = Inputs(task.data, Path(scratch), task.log.parent, device, TINY if task.tiny else FULL)
        pipe.send(("ready", None))
        while (check := pipe.recv()) is not None:
            module, function = check.split(":")
            print(f"---- {check}", flush=True)
            error, started = None, time.process_time()
            try:
                for item in getattr(importlib.import_module(f"pipeline.bench.gpu.{module}"), function)(inputs):
                    pipe.send(("item", item))
                if device.type == "cuda":
                    torch.cuda.synchronize()
            except Exception as raised:
                traceback.print_exc()
                error = traceback.format_exception_only(raised)[-1].strip().splitlines()[0]
                error += f" ({_place(raised)})"
            print(f"---- {check}: {time.process_time() - started:.1f} CPU s", flush=True)
            if heavy := sorted(_HEAVY & sys.modules.keys()):
                pipe.send(("item", f"{check} imported {', '.join(heavy)}, which not every machine has"))
            pipe.send(("ended", error))


def _place(raised: BaseException) -> str:
    """``FILE:LINE`` of the innermost frame in the project."""
    root = str(Path(__file__).resolve().parents[3])
    frames = [f for f in traceback.extract_tb(raised.__traceback__) if f.filename.startswith(root)]
    return f"{Path(frames[-1].filename).relative_to(root)}:{frames[-1].lineno}" if frames else "elsewhere"


class _Worker:
    """A worker process."""

    def __init__(self, task: Task) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self._process = context.Process(target=_serve, args=(task, other, os.getpid()))
        self._process.start()
        other.close()
        kind, _ = self.wait(_START_LIMIT)
        if kind != "ready":
            self.close()
            raise RuntimeError(f"the worker process could not start; see {task.log}")

    def wait(self, seconds: float) -> tuple[str, Any]:
        """The next message; ``late`` if none comes in time, ``gone`` if the process has ended."""
        try:
            if not self.pipe.poll(max(0.0, seconds)):
                return "late", None
            message: tuple[str, Any] = self.pipe.recv()
            return message
        except (EOFError, OSError):
            return "gone", None

    def close(self) -> None:
        """Kill the process and its children."""
        if self._process.is_alive() and self._process.pid is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                self._process.kill()
        self._process.join()
        self.pipe.close()


def run_steps(
    steps: Sequence[Step], task: Task, budget: float, report: Callable[[list[StepResult]], None]
) -> list[StepResult]:
    """Run steps one after the other.

    Args:
        steps: in order. task: settings of the worker. budget: seconds for all steps. report: called with all
            results
            after every step.
    """
    until = time.monotonic() + budget
    results: list[StepResult] = []
    worker: _Worker | None = None
    try:
        for step in steps:
            result, started = StepResult(step.name), time.monotonic()
            results.append(result)
            if until - started < step.needs:
                left = max(0.0, until - started)
                result.state = f"not started, {left:.0f} s of the budget are left and it needs {step.needs:.0f}"
            else:
                # The smallest sizes have no limit per step, since a busy machine may be slow.
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
            report(results)
    finally:
        if worker is not None:
            worker.close()
    return results


def _do(worker: _Worker, check: str, until: float, result: StepResult, tiny: bool) -> bool:
    """Run a check; returns whether the worker can be used again."""
    if time.monotonic() >= until:
        result.state, result.failures[check] = "out of time", "not started"
        return True
    worker.pipe.send(check)
    while True:
        kind, item = worker.wait(until - time.monotonic())
        if kind == "item" and isinstance(item, Row):
            result.rows.append(_compared(item, tiny))
        elif kind == "item":
            result.notes.append(str(item))
        elif kind == "ended" and item is None:
            return True
        else:
            late = kind == "late"
            result.state = "out of time" if late else "failed"
            result.failures[check] = (
                item or f"{'out of time' if late else 'the process ended unexpectedly'}, see the log"
            )
            # After a CUDA error the process cannot use the GPU again.
            return kind == "ended" and "CUDA" not in str(item) and "Accelerator" not in str(item)


def _compared(row: Row, tiny: bool) -> Row:
    """The row with its ratio to the estimate; there are no estimates for the smallest sizes."""
    if tiny:
        return replace(row, baseline=None)
    return replace(row, ratio=row.value / row.baseline) if row.baseline else row


JSON_FILE, TABLE_FILE = "gpu_check.json", "gpu_check.txt"


@dataclass
class StepResult:
    """Result of one step.

    Attributes:
        state: done, failed (at least one check), out of time, or not started.
        rows: figures, whose ``baseline`` is an estimate. notes: lines. failures: error by check.
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


def table(header: str, results: list[StepResult]) -> str:
    """Table of all results so far: what was measured, value, unit, estimate, and ratio."""
    cells = [["what", "value", "unit", "expected", "ratio"]]
    for step in results:
        cells.append([f"== {step.step}: {step.state}, {step.seconds:.0f} s", "", "", "", ""])
        for row in step.rows:
            cells.append(["  " + row.name, _number(row.value), row.unit, _number(row.baseline), _number(row.ratio)])
    lines = [header, "", render_table(cells)]
    for step in results:
        lines += [f"FAILED {step.step}, {check}: {error}" for check, error in step.failures.items()]
        lines += [f"{step.step}: {note}" for note in step.notes]
    return "\n".join(lines) + "\n"


def write(out: Path, about: dict[str, Any], results: list[StepResult]) -> str:
    """Write both files, and return the table."""
    header = ", ".join(f"{name} {value}" for name, value in about.items())
    text = table(header, results)
    write_text(out / TABLE_FILE, text)
    write_json(out / JSON_FILE, {**about, "steps": [_plain(step) for step in results]})
    return text


def _plain(step: StepResult) -> dict[str, Any]:
    content = dataclasses.asdict(step)
    for row in content["rows"]:
        # JSON has no NaN or infinity.
        row.update({k: None for k, v in row.items() if isinstance(v, float) and not math.isfinite(v)})
    return content
