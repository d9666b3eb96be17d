"""Tables for people and programs: as aligned text, Markdown or CSV."""

from __future__ import annotations

import contextlib
import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError


def render_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned, numbers to the right, a rule below the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    lines.insert(1, "-" * len(lines[0]))
    return "\n".join(lines)


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, header first."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def csv_table(rows: Iterable[Sequence[Any]]) -> str:
    """The content of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Columns and rows of a CSV file.

    Raises:
        UserError: it cannot be read as one.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
            return list(reader.fieldnames or []), rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a table ({error}); run its stage again") from error


def numbers(row: Mapping[str, str]) -> dict[str, float]:
    """Those cells of a row that are numbers."""
    found = {}
    for name, text in row.items():
        with contextlib.suppress(TypeError, ValueError):
            found[name] = float(text)
    return found


def interval_cell(
    value: float | None, bounds: Sequence[float] | None = None, digits: int = 3, signed: bool = False
) -> str:
    """``0.668 [0.634, 0.696]``; the figure alone if it has no interval, and a dash if it is not defined."""
    form = f"{'+' if signed else ''}.{digits}f"
    if value is None or not math.isfinite(value):
        return "-"
    if bounds is None or not all(map(math.isfinite, bounds)):
        return f"{value:{form}}"
    low, high = bounds
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
