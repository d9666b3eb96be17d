"""Figures that ``scripts/gpu_check.py`` measured on GPUs, kept under ``docs/measured``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from data.files import read_json

MEASURED = Path(__file__).resolve().parents[2] / "docs" / "measured"


@dataclass(frozen=True)
class Measured:
    """Checks of one kind of GPU; of each figure the newest one that has it.

    Attributes:
        card: the GPU. commit: of the code, of the checks in use. values: figures by the name of their row.
    """

    card: str
    commit: str
    values: Mapping[str, float]

    @property
    def words(self) -> str:
        return f"{self.card}, commit {self.commit}"

    def matching(self, pattern: str) -> dict[str, float]:
        """Figures of all rows that a pattern matches wholly, by its one group."""
        found = ((re.fullmatch(pattern, name), value) for name, value in self.values.items())
        return {match[1]: value for match, value in found if match is not None}


@dataclass(frozen=True)
class _Check:
    card: str
    commit: str
    date: str
    values: Mapping[str, float]


def _read(path: Path) -> _Check:
    try:
        content = read_json(path)
        values = {row["name"]: float(row["value"]) for step in content["steps"] for row in step["rows"]}
        return _Check(content["card"], content["commit"], content["date"], values)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not what scripts/gpu_check.py writes ({type(error).__name__}: {error})"
        ) from error


def load_measured(folder: Path, card: str = "") -> Measured | None:
    """The newest figures, or None where there are none.

    Args:
        folder: of the JSON files. card: part of the name of the GPU that is wanted.

    Raises:
        UserError: a file that is no check, or none of such a GPU.
    """
    found = sorted(map(_read, sorted(folder.glob("*.json"))), key=lambda one: one.date)
    fitting = [one for one in found if card.lower() in one.card.lower()]
    if card and not fitting:
        known = ", ".join(dict.fromkeys(one.card for one in found)) or "none at all"
        raise UserError(
            f"--card {card}: nothing was measured on such a GPU ({folder} has {known}); see docs/gpu.md"
        )
    if not fitting:
        return None
    newest = {name: check for check in fitting if check.card == fitting[-1].card for name in check.values}
    commits = ", ".join(dict.fromkeys(check.commit for check in newest.values()))
    values = {name: check.values[name] for name, check in newest.items()}
    return Measured(fitting[-1].card, commits, values)
