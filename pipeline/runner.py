"""Chain the stages of a run: skip what is done, go on with what was interrupted, stop at the first error."""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.errors import UserError
from pipeline.code_version import code_version
from pipeline.console import logged, say
from pipeline.engine import EngineConfig
from pipeline.graph import Run, Stage, data_fingerprint, stages_of
from pipeline.isolation import run_isolated
from pipeline.manifest import Manifest, Recipe, begin, finish, read_manifest, stale_reason
from pipeline.run_config import RunConfig
from pipeline.summary import print_summary

__all__ = ["run_stages"]

_LOG = "stages.log"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process out of the same run; the lock ends with the process, however it ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"{folder}: another process is working on this run; wait for it or stop it") from error
        yield


def _recipe(stage: Stage, run: Run, manifests: dict[str, Manifest], outside: str | None) -> Recipe:
    inputs = {name: manifests[name].id for name in stage.needs}
    if stage.name == "tokenize" and outside is not None:
        inputs["data"] = outside
    # Through JSON, so that paths and tuples compare equal to what a manifest holds.
    config = json.loads(json.dumps(stage.config(run.config), default=str))
    return Recipe(config=config, seed=run.config.seed, code=code_version(stage.module), inputs=inputs)


def _needed(stages: tuple[Stage, ...], target: str | None) -> set[str]:
    """Names of the stages that ``target`` depends on, itself included."""
    by_name = {stage.name: stage for stage in stages}
    if target is None:
        return set(by_name)
    if target not in by_name:
        raise UserError(f"--target {target}: no such stage, expected one of {', '.join(by_name)}")
    wanted, pending = set[str](), [target]
    while pending:
        name = pending.pop()
        wanted.add(name)
        pending.extend(by_name[name].needs)
    return wanted


def _run_stage(stage: Stage, run: Run, recipe: Recipe) -> Manifest:
    folder = run.path(stage.name)
    begin(folder, recipe, run.folder / "replaced" / stage.name)
    outcome = run_isolated(lambda: stage.run(run, folder))
    return finish(folder, stage.name, recipe, outcome.value, outcome.seconds, outcome.peak_memory_mb)


def run_stages(
    config: RunConfig,
    *,
    run: str = "demo",
    data: str | None = None,
    target: str | None = None,
    folder: Path = Path("runs"),
    engine: EngineConfig = EngineConfig(),
) -> dict[str, Any]:
    """Run all stages from data to a validated submission archive, or up to one of them.

    Args:
        config: of all stages.
        run: name of the run; its outputs are in FOLDER/RUN/STAGE.
        data: folder laid out as Waymo's bucket, a glob or a URL; generated traffic where none is given.
        target: the stage to end with; all stages where none is given.
        folder: where runs are kept.
        engine: who ingests, samples, scores and packs. Changing it makes no stage run again.

    Raises:
        UserError: of a stage, or of the arguments.
    """
    if not _NAME.fullmatch(run):
        raise UserError(f"--run {run!r}: expected letters, digits, '.', '_' and '-'")
    place = Run(folder / run, config, data, engine)
    stages = stages_of(data)
    wanted = _needed(stages, target)
    outside = None if data is None else data_fingerprint(data)
    started, ran = time.perf_counter(), 0
    manifests: dict[str, Manifest] = {}
    with _locked(place.folder), logged(place.folder / _LOG):
        for stage in stages:
            if stage.name not in wanted:
                continue
            recipe = _recipe(stage, place, manifests, outside)
            reason = stale_reason(place.path(stage.name), recipe)
            if reason is not None:
                say(f"[{stage.name}] {reason}")
                _run_stage(stage, place, recipe)
                ran += 1
            manifest = read_manifest(place.path(stage.name))
            assert manifest is not None
            manifests[stage.name] = manifest
            if reason is not None:
                memory = f"peak memory {manifest.peak_memory_mb:.0f} MB"
                say(f"[{stage.name}] done in {manifest.seconds:.0f} s, {memory}")
    if not ran:
        say(f"nothing to do: {place.folder} is up to date")
    print_summary(place, manifests)
    return {"stages_run": ran, "seconds": round(time.perf_counter() - started, 1)}
