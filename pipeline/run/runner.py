"""Chain the stages of a run: skip what is done, go on with what was interrupted, stop at the first error."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import read_json
from data.sources import SPLITS, find_shards
from pipeline.evaluation.tables import motion_table, result_table
from pipeline.execution.console import logged, say
from pipeline.execution.devices import check_devices
from pipeline.execution.engine import EngineConfig
from pipeline.execution.manifest import Manifest, Recipe, State, Work, look, perform, plain
from pipeline.execution.processes import locked, run_isolated
from pipeline.execution.result_cache import code_version
from pipeline.execution.tables import render_table
from pipeline.run.run_config import RunConfig
from pipeline.run.run_folder import ARCHIVE, REPORT, Run
from pipeline.run.stage_table import Stage, stages_of
from submission.metadata import load_metadata, metadata_message, placeholders

_LOG = "stages.log"
_EXAMPLE = "submission/metadata.example.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _fingerprint(data: str, format: str) -> str:
    """Digest of names and sizes of all shards of all splits, of remote ones also of their versions.

    What local ones hold is known once they were read, and is compared by ``Stage.new_data``.
    """
    text = ";".join(shard.fingerprint for split in SPLITS for shard in find_shards(data, split, format))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _recipe(stage: Stage, run: Run, manifests: dict[str, Manifest], outside: str | None) -> Recipe:
    inputs = {name: stage.input_of(manifests[name]) for name in stage.needs}
    if stage.name == "tokenize" and outside is not None:
        inputs["data"] = outside
    # Through JSON, so that paths and tuples compare equal to what a manifest holds.
    return Recipe(
        config=plain(stage.options(run.config)),
        seed=run.config.seed,
        code=code_version(stage.module),
        inputs=inputs,
    )


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


def _work(stage: Stage, run: Run) -> Work:
    replaced = run.folder / "replaced" / stage.name
    return Work(run.path(stage.name), stage.name, replaced, goes_on=stage.goes_on)


def _check_devices(stage: Stage, config: RunConfig) -> None:
    if hasattr(config, stage.name):
        check_devices(getattr(config, stage.name), f"--{stage.name}.")


def _run_stage(stage: Stage, run: Run, recipe: Recipe, fresh: bool) -> Manifest | None:
    """Do a stage unless it is done; says why and how long it took. Returns None where it was done."""
    work = _work(stage, run)
    state = look(work, recipe)
    if state.reason is None and (changed := stage.new_data(run)):
        state = State(f"new input: {changed}", finished=True, fits=False, changes=(changed,))
    with locked(work.folder, f"stage {stage.name}"):
        made = perform(
            work,
            recipe,
            lambda: run_isolated(lambda: stage.run(run)),
            title=f"[{stage.name}]",
            fresh=fresh,
            keep=run.keep,
            state=state,
            check=lambda: _check_devices(stage, run.config),
        )
    if made is not None:
        say(f"[{stage.name}] done in {made.seconds:.0f} s, peak memory {made.peak_memory_mb:.0f} MB")
    return made


def run_stages(
    config: RunConfig,
    *,
    run: str = "demo",
    data: str | None = None,
    target: str | None = None,
    folder: Path = Path("runs"),
    fresh: bool = False,
    keep: bool = False,
    engine: EngineConfig = EngineConfig(),
) -> dict[str, Any]:
    """Run all stages from data to a validated submission archive, or up to one of them.

    What has to give way to other options, data or code is moved to FOLDER/RUN/replaced/STAGE, never deleted.

    Args:
        config: of all stages.
        run: name of the run; its outputs are in FOLDER/RUN/STAGE.
        data: folder laid out as Waymo's bucket, a glob or a URL; generated traffic where none is given.
        target: the stage to end with; all stages where none is given.
        folder: where runs are kept.
        fresh: stages that have to run start over, also where unfinished work could be gone on with; the one that
            --target names starts over even if it is finished.
        keep: finished stages stay as they are although options, data or code changed, and unfinished trainings go
            on from their last checkpoint with the options of now.
        engine: who ingests, samples, scores and packs. Changing it makes no stage run again.

    Raises:
        UserError: of a stage, or of the arguments.
    """
    if not _NAME.fullmatch(run):
        raise UserError(f"--run {run!r}: expected letters, digits, '.', '_' and '-'")
    if fresh and keep:
        raise UserError("--fresh --keep: one starts over, the other goes on; give one of them")
    place = Run(folder / run, config, data, engine, keep)
    agents = {*config.agents, config.submission_agent}
    stages = stages_of(data, agents if target != "selfplay" else {*agents, "policy"})
    wanted = _needed(stages, target)
    outside = None if data is None else _fingerprint(data, config.tokenize.format)
    for stage in stages:
        # Said before hours are spent on what comes first; of finished stages only if they have to run again.
        if stage.name in wanted and place.manifest(stage.name) is None:
            _check_devices(stage, config)
            if stage.begins_with:
                config.start_of(stage.begins_with)
    started, ran = time.perf_counter(), 0
    manifests: dict[str, Manifest] = {}
    with locked(place.folder, f"run {run}"), logged(place.folder / _LOG):
        for stage in stages:
            if stage.name not in wanted:
                continue
            recipe = _recipe(stage, place, manifests, outside)
            done = place.manifest(stage.name)
            made = _run_stage(stage, place, recipe, fresh and (stage.name == target or done is None))
            ran += made is not None
            manifest = made or done
            assert manifest is not None
            manifests[stage.name] = manifest
    if not ran:
        hint = "; --target STAGE --fresh does a stage again" if fresh else ""
        say(f"nothing to do: {place.folder} is up to date{hint}")
    print_summary(place, manifests)
    return {"stages_run": ran, "seconds": round(time.perf_counter() - started, 1)}


def _time_table(manifests: Mapping[str, Manifest]) -> list[list[str]]:
    rows = [["stage", "seconds", "peak MB"]]
    rows += [[name, f"{m.seconds:.0f}", f"{m.peak_memory_mb:.0f}"] for name, m in manifests.items()]
    rows.append(["all", f"{sum(m.seconds for m in manifests.values()):.0f}", ""])
    return rows


def print_summary(run: Run, manifests: Mapping[str, Manifest]) -> None:
    """Print times, the result table and the archive's path, as far as the stages have been run."""
    say(render_table(_time_table(manifests)))
    if "evaluate" in manifests:
        reports = {agent: read_json(run.scores(agent) / "metrics.json") for agent in run.config.agents}
        print()
        print(render_table(result_table(reports)))
        print()
        print(render_table(motion_table(reports)))
    if "validate" in manifests:
        archive = run.path(ARCHIVE)
        accepted = manifests["validate"].figures.get("accepted")
        print()
        print(f"{archive}  ({archive.stat().st_size / 1e6:.1f} MB, {accepted} scenarios accepted by Waymo)")
        if left := placeholders(metadata_message(load_metadata(run.config.metadata))):
            print(
                f"before an upload: fill in {', '.join(left)} in a copy of {_EXAMPLE}, "
                'and give it with --metadata FILE (make stages ARGS="--metadata FILE")'
            )
    if "report" in manifests:
        print(f"{run.path(REPORT)}  (open it in a browser)")
