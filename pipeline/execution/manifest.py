"""A piece of work is done once. ``manifest.json`` says what finished work was made from and what it wrote; from it
follows whether the work still holds, has to be done again, or can go on."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data.completeness import some
from data.errors import UserError
from data.files import at_once, checksum, read_json, write_json
from pipeline.execution.console import say
from pipeline.execution.processes import Outcome

_MANIFEST, _STARTED, _REPLACED, _LOCK = "manifest.json", "started.json", "replaced", ".lock"
# Options that say how something is computed, and never what.
_FREE = frozenset(
    {
        "workers",
        "tensorboard",
        "checkpoint_every",
        "cache",
        "cache_scenes",
        "cache_worlds",
        "verbose",
        "shown",
        "json",
    }
)
# Outputs that no stage reads and that hold times, or notes of a stage for itself.
_ASIDE = ("tensorboard/*", "*/tensorboard/*", ".*", "*/.*", "sampling.json", "*/sampling.json")
NOTHING = "not done yet"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides outputs: equal recipes give equal outputs.

    Attributes:
        config: the configuration as plain values. seed: of the run. code: its version.
        inputs: what identifies the content of each earlier stage, or path that was given.
    """

    config: dict[str, Any]
    seed: int
    code: str
    inputs: dict[str, str]


@dataclass(frozen=True)
class Manifest:
    """A finished piece of work; ``despite`` says what changed on the way, where --keep went on all the same."""

    stage: str
    id: str
    recipe: Recipe
    figures: dict[str, Any]
    seconds: float
    peak_memory_mb: float
    outputs: dict[str, dict[str, Any]]
    despite: list[str] = field(default_factory=list)

    @property
    def content(self) -> str:
        """Of the outputs that others read: equal for equal outputs, whoever made them and when."""
        lines = [f"{name}:{digest}" for name, digest in sorted(self.digests.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]

    @property
    def digests(self) -> dict[str, str]:
        """Checksums of the outputs that others read."""
        return {
            name: output["sha256"]
            for name, output in self.outputs.items()
            if not any(fnmatchcase(name, pattern) for pattern in _ASIDE)
        }


@dataclass(frozen=True)
class Work:
    """Where a piece of work is.

    Attributes:
        folder: where it writes. name: of the stage or command.
        replaced: older outputs are moved there, or to that name followed by .2, .3 and so on.
        owns: patterns of names in the folder that it writes; all of a stage's folder.
        notes: prefix of its notes where the folder may hold other things as well.
        goes_on: unfinished work can go on under other options (``--keep``).
    """

    folder: Path
    name: str
    replaced: Path
    owns: tuple[str, ...] = ("*",)
    notes: str = ""
    goes_on: bool = False

    @property
    def manifest(self) -> Path:
        return self.folder / f"{self.notes}{_MANIFEST}"

    @property
    def started(self) -> Path:
        return self.folder / f"{self.notes}{_STARTED}"

    def entries(self) -> list[Path]:
        """Files and folders directly in the folder that belong to it, its notes not among them."""
        if not self.folder.is_dir():
            return []
        others = {self.manifest.name, self.started.name, _LOCK, _REPLACED}
        return [
            path
            for path in sorted(self.folder.iterdir())
            if path.name not in others and any(fnmatchcase(path.name, pattern) for pattern in self.owns)
        ]


@dataclass(frozen=True)
class State:
    """What is there of a piece of work.

    Attributes:
        reason: why it has to be done; None where its outputs are there and made from the recipe.
        finished: it was once. fits: what is there belongs to the recipe, so that work can go on from it.
        changes: what is different now.
    """

    reason: str | None
    finished: bool = False
    fits: bool = True
    changes: tuple[str, ...] = ()


def deciding(config: Any) -> Any:
    """Plain values of a configuration without those that say how something is computed, and never what."""
    if not isinstance(config, Mapping):
        return config
    return {name: deciding(value) for name, value in config.items() if name not in _FREE}


def plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values of settings as JSON gives them back: tuples become lists, paths text."""
    found: dict[str, Any] = json.loads(json.dumps(values, default=str))
    return found


def _read(path: Path) -> Manifest | None:
    try:
        values = read_json(path)
        return Manifest(**{**values, "recipe": Recipe(**values["recipe"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a finished stage; None if the stage is not finished or the file is unreadable."""
    return _read(folder / _MANIFEST)


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What of plain values changed, as ``name.of.value old -> new``."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        return [
            text
            for key in sorted({*old, *new})
            for text in differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        ]
    return [] if old == new else [f"{name} {old} -> {new}"]


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What changed between two recipes, options first."""
    found = differences({"seed": old["seed"]}, {"seed": new["seed"]})
    found += differences(deciding(old["config"]), deciding(new["config"]))
    # Digests say nothing to anybody.
    found += [f"new input: {text.split(' ')[0]}" for text in differences(old["inputs"], new["inputs"])]
    return found + (["the code changed"] if old["code"] != new["code"] else [])


def look(work: Work, recipe: Recipe) -> State:
    """What is there, and why the work has to be done."""
    wanted, manifest = plain(asdict(recipe)), _read(work.manifest)
    if manifest is not None:
        changes = _changes(asdict(manifest.recipe), wanted)
        if changes:
            return State(f"changed: {some(changes)}", finished=True, fits=False, changes=tuple(changes))
        for name, output in manifest.outputs.items():
            path = work.folder / name
            if not path.is_file() or path.stat().st_size != output["bytes"]:
                # The rest of it is of use to a stage that knows what its files are.
                return State(f"{name} is missing or incomplete", finished=True, fits=False)
        found = at_once(lambda name: checksum(work.folder / name), manifest.digests)
        for (name, digest), now in zip(manifest.digests.items(), found, strict=True):
            if now != digest:
                return State(f"{name} was changed since it was written", finished=True, fits=False)
        return State(None, finished=True)
    if work.manifest.exists():
        return State(f"{work.manifest} is damaged", fits=False, changes=("its manifest cannot be read",))
    if work.started.exists():
        try:
            changes = _changes(read_json(work.started), wanted)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            changes = [f"{work.started.name} is damaged, so that nobody knows what the work was made from"]
        if changes:
            return State(f"interrupted, and changed since: {some(changes)}", fits=False, changes=tuple(changes))
        return State("interrupted, going on")
    if work.entries():
        return State(NOTHING, fits=False, changes=("nothing says what the files there were made from",))
    return State(NOTHING)


def set_aside(work: Work) -> Path | None:
    """Move the outputs to the first free name in ``replaced``; returns where, or None where there were none.

    The notes are moved last: if this process is killed, the remaining outputs are still known.
    """
    entries = [path for path in work.entries() if not path.name.endswith(".part")]
    notes = [path for path in (work.started, work.manifest) if path.exists()]
    if not entries:
        for path in notes:
            path.unlink()
        return None
    target, number = work.replaced, 1
    while target.exists():
        number += 1
        target = work.replaced.with_name(f"{work.replaced.name}.{number}")
    target.mkdir(parents=True)
    for path in entries:
        _move(path, target / path.name)
    for path in notes:
        _move(path, target / path.name.removeprefix(work.notes))
    return target


def _move(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError as error:
        # A link to another disk, or a folder that is mounted.
        if error.errno not in (errno.EXDEV, errno.EBUSY):
            raise
        shutil.move(source, target)


def is_settled(work: Work, state: State, *, fresh: bool, keep: bool) -> bool:
    """Whether nothing has to be done: the outputs are there, and are wanted as they are.

    Args:
        work, state: see ``look``. fresh: start over all the same. keep: the outputs are wanted whatever changed.

    Raises:
        UserError: what is there cannot be kept.
    """
    if not keep or state.fits:
        return state.reason is None and not fresh
    if state.finished and not state.changes:
        raise UserError(f"--keep: {work.folder}: {state.reason}, so that it cannot be kept; leave --keep out")
    if work.manifest.exists() and not state.finished:
        raise UserError(
            f"--keep: {state.reason}, so that nothing tells whether the result is whole; leave --keep out"
        )
    if not state.finished and not work.goes_on:
        raise UserError(
            f"--keep: {work.folder}: what is unfinished there cannot be gone on with ({some(state.changes)}): "
            "results of two settings are never mixed; leave --keep out, or give the options of before"
        )
    return state.finished


def begin(work: Work, recipe: Recipe, state: State, *, fresh: bool = False, keep: bool = False) -> str:
    """Make the folder ready: keep what fits the recipe, move the rest to ``replaced``.

    Args:
        work, recipe: what is to be done. state: of it, see ``look``.
        fresh: use nothing of what is there. keep: unfinished work goes on although something changed.

    Returns:
        What became of older outputs, in words that follow the reason; empty where there is nothing to say.
    """
    text, despite = "", list[str]()
    if keep and not state.finished and not state.fits:
        text, despite = "going on all the same (--keep)", list(state.changes)
    elif fresh or not state.fits:
        aside = set_aside(work)
        what = "the finished result" if state.finished else "what was done"
        text = f"{what} is kept in {aside}" if aside else ""
    elif state.finished:
        with contextlib.suppress(FileNotFoundError):
            work.manifest.unlink()
    # A killed process may have left half-written files (see ``atomic_path``).
    for leftover in [*work.folder.rglob(".*.part")] if work.owns == ("*",) else []:
        leftover.unlink()
    work.folder.mkdir(parents=True, exist_ok=True)
    before = _despite(work)
    write_json(
        work.started, {**plain(asdict(recipe)), "despite": [*before, *(c for c in despite if c not in before)]}
    )
    return text


def _despite(work: Work) -> list[str]:
    """What --keep went on in spite of before."""
    try:
        return [str(change) for change in read_json(work.started).get("despite", [])]
    except (OSError, ValueError, AttributeError, TypeError):
        return []


def finish(
    work: Work, recipe: Recipe, figures: Mapping[str, Any], seconds: float, peak_memory_mb: float
) -> Manifest:
    """Write the manifest, which makes the work count as done."""
    files = [
        path
        for entry in work.entries()
        for path in ([entry] if entry.is_file() else sorted(entry.rglob("*")))
        if path.is_file() and path.name != _LOCK
    ]
    manifest = Manifest(
        stage=work.name,
        id=uuid.uuid4().hex,
        recipe=Recipe(**plain(asdict(recipe))),
        # NaN is no JSON, and paths are none either.
        figures=json.loads(json.dumps(figures, default=str), parse_constant=lambda name: None),
        seconds=round(seconds, 2),
        peak_memory_mb=round(peak_memory_mb, 1),
        outputs={
            path.relative_to(work.folder).as_posix(): {"bytes": path.stat().st_size, "sha256": checksum(path)}
            for path in files
        },
        despite=_despite(work),
    )
    write_json(work.manifest, asdict(manifest))
    work.started.unlink()
    return manifest


def perform(
    work: Work,
    recipe: Recipe,
    act: Callable[[], Outcome],
    *,
    title: str,
    fresh: bool = False,
    keep: bool = False,
    again: bool = False,
    state: State | None = None,
    check: Callable[[], None] = lambda: None,
) -> Manifest | None:
    """Do a piece of work unless it is done, and say what becomes of older outputs.

    Args:
        work, recipe: what is to be done. act: does it; figures are a flat dict.
        title: prefix of all lines. fresh, keep: see ``begin``.
        again: call ``act`` even if the work is done: it recognises its outputs, or writes the same again.
        state: of the work, if the caller knows more than ``look``. check: called before anything is moved.

    Returns:
        The new manifest, or None where there was nothing to do.
    """
    state = state or look(work, recipe)
    settled = is_settled(work, state, fresh=fresh, keep=keep)
    if settled and (state.reason is not None or not again):
        if state.reason is not None:
            say(f"{title} kept as it is (--keep), although {state.reason}")
        return None
    check()
    told = begin(work, recipe, state, fresh=fresh, keep=keep)
    # Of a command's own folder only what is out of the ordinary is said.
    if not settled and (told or not work.notes or state.reason != NOTHING):
        say(f"{title} " + "; ".join(filter(None, (state.reason or "starting over (--fresh)", told))))
    try:
        outcome = act()
    except BaseException:
        # An option that is wrong leaves nothing behind.
        if not work.entries():
            work.started.unlink(missing_ok=True)
        raise
    return finish(work, recipe, outcome.value, outcome.seconds, outcome.peak_memory_mb)
