"""``manifest.json``: what a finished stage was made from, what it wrote, and whether that still holds."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.files import read_json, sha256_of, write_json

__all__ = ["Manifest", "Recipe", "begin", "differences", "finish", "read_manifest", "stale_reason"]

_MANIFEST, _STARTED = "manifest.json", "started.json"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a stage's outputs. Two equal recipes give equal outputs.

    Attributes:
        config: the stage's configuration as plain values.
        seed: of the run.
        code: version of the stage's code.
        inputs: for each earlier stage its manifest's id, and for outside data a fingerprint of the files.
    """

    config: dict[str, Any]
    seed: int
    code: str
    inputs: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """A finished stage."""

    stage: str
    id: str
    recipe: Recipe
    figures: dict[str, Any]
    seconds: float
    peak_memory_mb: float
    outputs: dict[str, dict[str, Any]]


def _plain(recipe: Recipe) -> dict[str, Any]:
    """A recipe as JSON gives it back (tuples become lists)."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(recipe)))
    return plain


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished stage; None if the stage is not finished or the file is unreadable."""
    try:
        values = read_json(folder / _MANIFEST)
        return Manifest(**{**values, "recipe": Recipe(**values["recipe"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What of plain values changed, as ``name.of.value old -> new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            text
            for key in sorted({*old, *new})
            for text in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name} {old} -> {new}"]


def stale_reason(folder: Path, recipe: Recipe) -> str | None:
    """Why a stage has to run, in a few words, or None if its outputs are there and made from ``recipe``."""
    manifest = read_manifest(folder)
    if manifest is None:
        return "interrupted, going on" if (folder / _STARTED).exists() else "not done yet"
    old, new = asdict(manifest.recipe), _plain(recipe)
    if old["code"] != new["code"]:
        return "the code changed"
    if changes := differences({**old["config"], "seed": old["seed"]}, {**new["config"], "seed": new["seed"]}):
        return "changed: " + ", ".join(changes[:3])
    if changes := differences(old["inputs"], new["inputs"]):
        return f"new input: {changes[0].split(' ')[0]}"
    for name, output in manifest.outputs.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != output["bytes"]:
            return f"{name} is missing or incomplete"
    return None


def begin(folder: Path, recipe: Recipe, replaced: Path) -> None:
    """Make a stage's folder ready: keep what an interrupted run of the same recipe left, clear anything else.

    A finished result of another recipe is moved to ``replaced`` (one generation is kept), because training may
    have cost days.
    """
    started = folder / _STARTED
    if folder.exists():
        if read_manifest(folder) is not None:
            shutil.rmtree(replaced, ignore_errors=True)
            replaced.parent.mkdir(parents=True, exist_ok=True)
            folder.rename(replaced)
        elif not started.exists() or read_json(started) != _plain(recipe):
            shutil.rmtree(folder)
        else:
            # What a killed process was writing (see ``atomic_path``) is of no use to anybody.
            for leftover in folder.rglob(".*.part"):
                leftover.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(started, _plain(recipe))


def finish(
    folder: Path, stage: str, recipe: Recipe, figures: Mapping[str, Any], seconds: float, peak_memory_mb: float
) -> Manifest:
    """Write the manifest, which makes the stage count as done."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in (_MANIFEST, _STARTED))
    manifest = Manifest(
        stage=stage,
        id=uuid.uuid4().hex,
        recipe=Recipe(**_plain(recipe)),
        figures=dict(figures),
        seconds=round(seconds, 2),
        peak_memory_mb=round(peak_memory_mb, 1),
        outputs={
            path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
            for path in files
        },
    )
    write_json(folder / _MANIFEST, asdict(manifest))
    (folder / _STARTED).unlink()
    return manifest
