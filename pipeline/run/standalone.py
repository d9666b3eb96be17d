"""Commands that are run alone: no earlier result is lost, and none is taken for that of other options or inputs."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import at_once, checksum
from data.formats.catalogue import AUTO
from data.places import is_remote, open_path
from data.receipts import RECEIPTS
from data.scenes_source import content_digest
from data.sources import find_shards
from data.store import is_store
from pipeline.execution.console import say
from pipeline.execution.devices import check_devices, is_first_process
from pipeline.execution.manifest import Recipe, State, Work, look, perform, plain, set_aside
from pipeline.execution.processes import locked, measured
from pipeline.execution.result_cache import code_version
from pipeline.run.stage_table import Command
from submission.protos import rollout_files

# How long the other processes of a launch wait for the first one to make the folder ready.
_WAIT_SECONDS = 600.0


def _read(given: str | Path) -> str | Path:
    """What an option names: a folder with an export stands for the checkpoint in it."""
    path = open_path(given)
    if is_remote(path) or not path.is_dir():
        return given
    # Imported here, since torch takes seconds and most commands name no such folder.
    from models.portable import weights_file

    inside = weights_file(path)
    return given if inside == path else inside


def _out(command: Command, own: Mapping[str, Any]) -> Path | None:
    """The folder or file of results; None where there is none, none is named, or it is not on this machine."""
    if command.outputs is None:
        return None
    if own.get("out") is not None:
        out = open_path(own["out"])
        return None if is_remote(out) else out
    return open_path(own["run"]) / command.out if command.out and own.get("run") is not None else None


def _work(command: Command, out: Path) -> Work:
    name, owns = command.name, command.outputs or ("*",)
    if not command.writes_file:
        return Work(out, name, out / "replaced" / name, owns, f".{name}.", command.goes_on)
    owns = tuple(glob.escape(out.name) + ending for ending in owns)
    return Work(out.parent, name, out.parent / "replaced" / out.name, owns, f".{out.name}.", command.goes_on)


def _recipe(module: str, config: Any, own: Mapping[str, Any], inputs: Mapping[str, str]) -> Recipe:
    """What decides the result: the configuration, options that are no paths of what is read or written, inputs."""
    besides = {"out", "engine", "seed", "show", *inputs}
    options = {name: value for name, value in own.items() if name not in besides}
    values = plain({**dataclasses.asdict(config), **options})
    return Recipe(config=values, seed=own.get("seed") or 0, code=code_version(module), inputs=dict(inputs))


def identity(value: Any) -> str | None:
    """What identifies the content of an input: a file, a store, records, rollouts, a run, or a list of them.

    None where there is nothing of that kind; the command itself then reports it.
    """
    if isinstance(value, list):
        parts = [identity(one) for one in value]
        return None if None in parts else str(parts)
    path = open_path(value)
    try:
        if is_remote(path):
            return "\n".join(shard.fingerprint for shard in find_shards(str(value), format=AUTO))
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
        # Anything else, known only to its reader.
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return _digests(files) if files else None
    except (UserError, OSError):
        return None


def _digests(files: Sequence[Path]) -> str:
    return "\n".join(f"{file.name}:{digest}" for file, digest in zip(files, at_once(checksum, files), strict=True))


def _identity(option: str, value: Any, own: Mapping[str, Any]) -> str | None:
    if option != "data":
        return identity(value)
    try:
        # Hundreds of gigabytes: their content is compared file by file, by the store's receipts.
        return "\n".join(shard.fingerprint for shard in find_shards(value, own["split"], AUTO))
    except UserError:
        return None


def _refuse_own_inputs(work: Work, inputs: Mapping[str, Any]) -> None:
    """Raise ``UserError`` where the work would move or overwrite one of its inputs."""
    own = [path.resolve() for path in work.entries()]
    for name, value in inputs.items():
        for one in value if isinstance(value, list) else [value]:
            path = open_path(one)
            if not is_remote(path) and any(path.resolve().is_relative_to(entry) for entry in own):
                raise UserError(f"--{name} {one}: the result would take its place; choose another --out")


def _refuse_others(work: Work) -> None:
    """Raise ``UserError`` where the receipts in the folder are of files of another command, as in a store."""
    if RECEIPTS not in work.owns:
        return
    for receipt in sorted((work.folder / RECEIPTS).glob("*.json")):
        if not any(fnmatchcase(receipt.stem, pattern) for pattern in work.owns):
            raise UserError(f"--out {work.folder}: holds {receipt.stem} of another command; choose another folder")


def _wait_for_first(work: Work, recipe: Recipe) -> State:
    """In the other processes: wait until the first one has made the folder ready."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while not (state := look(work, recipe)).fits or not (work.started.exists() or work.manifest.exists()):
        if time.monotonic() > deadline:
            raise UserError(f"{work.folder}: the first process of the launch has not begun there")
        time.sleep(0.1)
    return state


def run_command(
    command: Command,
    function: Callable[..., dict[str, Any]],
    config: Any,
    own: dict[str, Any],
    *,
    fresh: bool,
    keep: bool,
) -> dict[str, Any]:
    """Call a command's function, one process at a time in its folder; older results there are kept.

    Args:
        command: of the table. function, config, own: what to call, with which options.
        fresh: start over. keep: what is finished stays, unfinished work goes on.

    Returns:
        Its figures, or those of the finished result that is there already.

    Raises:
        UserError: of the function; a device that is not there; another process at work; what cannot be kept.
    """
    if fresh and keep:
        raise UserError("--fresh --keep: one starts over, the other goes on; give one of them")
    engine = own.get("engine")
    if engine is None or engine.kind == "local":
        check_devices(config)
    name, out = command.name, _out(command, own)
    own |= {option: _read(own[option]) for option in command.inputs if isinstance(own.get(option), str | Path)}
    if out is None:
        return function(config, **own)
    if command.writes_file and out.is_dir():
        raise UserError(f"--out {out}: a folder; give the name of the file to write")
    if not command.writes_file and not out.is_dir() and os.path.lexists(out):
        raise UserError(f"--out {out}: {'a file' if out.exists() else 'a broken link'}; give the name of a folder")
    given = {option: own[option] for option in command.inputs if own.get(option) is not None}
    inputs = {option: _identity(option, value, own) for option, value in given.items()}
    run = own.get("run")
    if None in inputs.values() or (isinstance(run, Path) and not run.is_dir()):
        # The function names what is missing; nothing is moved for that.
        return function(config, **own)
    work, title = _work(command, out), f"{out}:"
    if "keep" in own:
        own["keep"] = keep
    _refuse_own_inputs(work, given)
    _refuse_others(work)
    recipe = _recipe(
        command.module, config, {**own, "keep": None}, {option: str(value) for option, value in inputs.items()}
    )
    if not is_first_process():
        state = _wait_for_first(work, recipe)
        return {} if state.reason is None else function(config, **own)
    with locked(work.folder, name, ".lock" if work.folder == out else f".{out.name}.lock"):
        if not command.outputs:
            if keep:
                raise UserError(f"--keep: {name} goes on with what was made with the same options in any case")
            aside = set_aside(work) if fresh else None
            if aside:
                say(f"{title} starting over (--fresh); what was there is kept in {aside}")
            return function(config, **own)
        figures: dict[str, Any] = {}

        def act() -> dict[str, Any]:
            figures.update(function(config, **own))
            return figures

        made = perform(
            work,
            recipe,
            lambda: measured(act),
            title=title,
            fresh=fresh,
            keep=keep,
            again=not command.once,
        )
        if made is not None:
            return figures
        state = look(work, recipe)
        say(f"{title} nothing to do, the result is there already (--fresh makes it again)")
    return dict(_figures(work))


def _figures(work: Work) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(work.manifest.read_text())["figures"]
    return values
