"""Doing a piece of work once: by the stage runner, and by commands that write into a folder of their own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import at_once, checksum
from data.places import is_remote, place
from data.scenes_source import content_digest
from data.sources import find_shards
from data.store import is_store
from pipeline.execution.console import say
from pipeline.execution.isolation import Outcome
from pipeline.execution.manifest import NOTHING, Manifest, Recipe, State, Work, begin, finish, is_settled, look
from submission.protos import rollout_files

__all__ = ["identity", "measured", "perform", "refuse_own_inputs", "wait_for_first"]

# How long the other processes of a launch wait for the first one to make the folder ready.
_WAIT_SECONDS = 600.0


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
    """Do a piece of work unless it is done; says what becomes of what was there.

    Args:
        work, recipe: what is to be done. act: does it; figures are a flat dict.
        title: what lines begin with. fresh, keep: see ``begin``.
        again: act also where it is done: what is there is recognised, or written again as it was.
        state: of the work, where more is known than ``look`` finds. check: called before anything is moved.

    Returns:
        The manifest of what was done, or None where there was nothing to do.
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


def measured(function: Callable[[], Mapping[str, Any]]) -> Outcome:
    """Call a function in this process."""
    started = time.perf_counter()
    value = function()
    return Outcome(value, time.perf_counter() - started, 0.0)


def identity(value: Any) -> str | None:
    """What identifies the content of an input: a file, a store, records, rollouts, a run, or a list of them.

    None where there is nothing of that kind: whoever reads it will say so.
    """
    if isinstance(value, list):
        parts = [identity(one) for one in value]
        return None if None in parts else str(parts)
    path = place(value)
    try:
        if is_remote(path):
            return "\n".join(shard.fingerprint for shard in find_shards(str(value)))
        if path.is_file():
            return checksum(path)
        if is_store(path):
            return content_digest(str(path))
        if manifests := sorted(path.glob("*/manifest.json")):
            return _digests(manifests)
        with contextlib.suppress(UserError):
            return _digests(rollout_files(path))
        with contextlib.suppress(UserError):
            return content_digest(str(value))
        # A run whose stages left no manifests, or something else that only its reader knows.
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return _digests(files) if files else None
    except (UserError, OSError):
        return None


def _digests(files: Sequence[Path]) -> str:
    return "\n".join(f"{file.name}:{digest}" for file, digest in zip(files, at_once(checksum, files), strict=True))


def refuse_own_inputs(work: Work, inputs: Mapping[str, Any]) -> None:
    """Raise ``UserError`` where an input is among what the work would move away or write over."""
    own = [path.resolve() for path in work.entries()]
    for name, value in inputs.items():
        for one in value if isinstance(value, list) else [value]:
            path = place(one)
            if not is_remote(path) and any(path.resolve().is_relative_to(entry) for entry in own):
                raise UserError(f"--{name} {one}: the result would take its place; choose another --out")


def wait_for_first(work: Work, recipe: Recipe) -> State:
    """In the other processes: wait until the first one has made the folder ready."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not (state := look(work, recipe)).fits or not (work.started.exists() or work.manifest.exists()):
        if time.monotonic() > deadline:
            raise UserError(f"{work.folder}: the first process of the launch has not begun there")
        time.sleep(0.1)
    return state
