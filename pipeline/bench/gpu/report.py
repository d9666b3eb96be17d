"""What was found, as a table for people and as JSON; both are written anew after every step."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.files import write_json, write_text
from pipeline.bench.rows import Row
from pipeline.evaluation.tables import render_table

__all__ = ["JSON_FILE", "TABLE_FILE", "Found", "table", "write"]

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
