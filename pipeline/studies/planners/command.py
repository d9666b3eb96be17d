"""Command ``planners``: planners in the AV against several kinds of traffic, and what the kinds of traffic say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from data.completeness import some
from data.errors import UserError
from data.files import sha256_of, write_json, write_text
from data.places import open_path
from data.scenes_source import content_digest, open_scenes
from data.store import is_store
from pipeline.agents.leaks import check_unseen
from pipeline.execution.console import say
from pipeline.execution.devices import Count, find_devices
from pipeline.execution.engine import EngineConfig, worker_count
from pipeline.execution.result_cache import run_kept
from pipeline.run.run_folder import RunFolder
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.studies.planners.catalogue import builtin_planners, load_planner, own_digest
from pipeline.studies.planners.pictures import choose_cases, write_cases, write_planner_figures
from pipeline.studies.planners.rewards import PLAIN, Character, characters, train_character
from pipeline.studies.planners.summary import rows_by_simulator, summarise
from pipeline.studies.planners.tables import csv_tables, markdown_report, text_report
from pipeline.studies.planners.tasks import DriveTask, Entrant, drive_task

_SIMULATORS = ("log", "reference", "policy", "plain")


@dataclass(frozen=True)
class PlannersConfig:
    """Which planners drive among which agents.

    Args:
        scenes: how many, spread evenly over those given; 0 for all.
        simulators: of log, reference, policy (anchored self-play) and plain (self-play without an anchor).
        planners: names of built-in planners, as '["idm_baseline", "frenet_smooth"]'; all where none is given.
        trained: self-play planners of different rewards that are trained first; the paper has 22.
        trained_steps: agent-steps of each of them, and of plain self-play.
        cases: scenes to show in which log replay runs into the AV and the policy does not.
        chunk: scenes of a task; a run that is interrupted repeats at most the tasks that were under way.
        workers: processes; 0 for one per core; they share the GPUs.
        device: of the other agents: cpu, cuda, cuda:N, mps, or auto for a GPU where there is one.
        devices: GPUs among whose processes the scenes are dealt out; auto for all of this machine.
        selfplay: of these trainings, besides length, reward and anchor.
    """

    scenes: int = 0
    simulators: list[str] = field(default_factory=lambda: list(_SIMULATORS))
    planners: list[str] = field(default_factory=list)
    trained: int = 4
    trained_steps: int = 150_000
    cases: int = 2
    chunk: int = 4
    workers: int = 0
    device: str = "auto"
    devices: Count = "auto"
    selfplay: SelfPlayConfig = field(default_factory=SelfPlayConfig)

    def __post_init__(self) -> None:
        for name, least in (("scenes", 0), ("trained", 0), ("trained_steps", 1), ("cases", 0), ("chunk", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)}: expected {least} or more")
        most = len(characters(self.trained))
        if self.trained > most:
            raise UserError(f"--trained {self.trained}: there are {most} rewards to train")
        for name, given, known in (
            ("simulators", self.simulators, _SIMULATORS),
            ("planners", self.planners, tuple(builtin_planners())),
        ):
            wrong = [one for one in given if one not in known]
            if wrong or len(set(given)) != len(given):
                raise UserError(f"--{name} {given}: expected some of {', '.join(known)}, each once")
        if not self.simulators:
            raise UserError("--simulators []: expected at least one")


@dataclass(frozen=True)
class _Inputs:
    """Where things are; None where a run has none."""

    scenarios: str
    out: Path
    store: Path | None
    files: dict[str, Path | None]


def _inputs(run: Path | None, scenarios: str | None, out: Path | None, given: dict[str, Path | None]) -> _Inputs:
    """What was given, and what the run has where nothing was.

    Raises:
        UserError: neither names scenarios and an output folder, or there is no such run.
    """
    if run is None:
        if scenarios is None or out is None:
            raise UserError("give --run FOLDER, or --scenarios and --out")
        return _Inputs(scenarios, out, None, given)
    folder = RunFolder.opened(run)
    return _Inputs(
        scenarios=scenarios or str(folder.needed("tokenize/validation")),
        out=out or run / "planners",
        store=folder.finished("tokenize/training"),
        files={name: path or folder.checkpoint(name) for name, path in given.items()},
    )


def _check_unseen(config: PlannersConfig, inputs: _Inputs, own: Sequence[str], path: str, ids: list[str]) -> None:
    """Refuse models and planners that were trained on the scenes in which they are tested, or will be.

    Raises:
        UserError: some were, or the store of the run has some of the scenes.
    """
    files = [inputs.files.get(name) for name in config.simulators]
    files += [Path(source) for source in own if source.endswith(".ckpt")]
    for file in files:
        if file is not None and file.is_file():
            check_unseen(file, path, ids)
    trains = config.trained or ("plain" in config.simulators and inputs.files["plain"] is None)
    if trains and inputs.store is not None and is_store(inputs.store):
        shared = sorted(set(open_scenes(str(inputs.store)).ids).intersection(ids))
        if shared:
            raise UserError(
                f"{inputs.store}: {len(shared)} of its scenarios, on which planners are trained, are among those "
                f"of {path} ({some(shared)}); drive in others"
            )


def _trained(config: PlannersConfig, inputs: _Inputs, seed: int) -> tuple[dict[str, Path], Path | None]:
    """Checkpoints of self-play planners by name, and of plain self-play, trained where they are missing."""
    plain = inputs.files["plain"]
    wanted = characters(config.trained)
    train_plain = "plain" in config.simulators and plain is None
    if not wanted and not train_plain:
        return {}, plain
    reference = inputs.files["reference"]
    if inputs.store is None or reference is None:
        raise UserError(
            "self-play planners are trained with the store and reference of a finished run: give --run FOLDER of "
            "one, or --trained 0 and --plain FILE (or leave plain out of --simulators)"
        )
    scenes, base, anchor = inputs.store, config.selfplay, reference

    def train(name: str, character: Character, number: int) -> Path:
        say(f"planners: {name}")
        return train_character(
            base,
            character,
            config.trained_steps,
            scenes=scenes,
            reference=anchor,
            out=inputs.out / "trained" / name,
            seed=seed + number,
        )

    if train_plain:
        plain = train("plain", PLAIN, 0)
    # Other seeds than plain self-play's: the first of them has its reward, and must not be it.
    return {one.name: train(one.name, one, number + 1) for number, one in enumerate(wanted)}, plain


def _simulators(config: PlannersConfig, files: dict[str, Path | None], device: str) -> list[Entrant]:
    entrants = []
    for name in config.simulators:
        path = files.get(name)
        if name == "log":
            entrants.append(Entrant(name, name))
        elif path is None:
            raise UserError(f"--simulators: {name} needs a checkpoint; give --{name} FILE, or leave it out")
        else:
            entrants.append(replace(_entrant(name, path), device=device))
    return entrants


def _entrant(name: str, path: Path) -> Entrant:
    if not path.is_file():
        raise UserError(f"{name}: {path}: no such file")
    return Entrant(name, str(path.absolute()), sha256_of(path))


def _planners(config: PlannersConfig, own: Sequence[str], trained: dict[str, Path]) -> tuple[Entrant, ...]:
    names = config.planners or list(builtin_planners())
    entrants = [Entrant(name, name) for name in names]
    entrants += [_entrant(name, path) for name, path in trained.items()]
    for source in own:
        if source.endswith(".ckpt"):
            path = Path(source)
            entrants.append(_entrant(f"{path.parent.name}/{path.stem}", path))
        else:
            entrants.append(Entrant(source, source, own_digest(source)))
    twice = [one.name for one in entrants if sum(one.name == other.name for other in entrants) > 1]
    if twice:
        raise UserError(f"--planner: {twice[0]} takes part twice")
    for one in entrants:
        # A wrong name is said before anything is driven.
        load_planner(one.source)
    return tuple(entrants)


def run_planners(
    config: PlannersConfig,
    *,
    run: Path | None = None,
    scenarios: str | None = None,
    reference: Path | None = None,
    policy: Path | None = None,
    plain: Path | None = None,
    planner: list[str] | None = None,
    out: Path | None = None,
    seed: int = 0,
    engine: EngineConfig = EngineConfig(),
) -> dict[str, Any]:
    """Let planners drive the AV among agents that replay the log, or answer to it, and score them (PDM).

    Writes planners.json, report.md, CSV tables, figures, and cases that log replay gets wrong.

    Args:
        config: which planners drive among which agents.
        run: folder of a finished run, whose validation scenes and models are taken where none are given.
        scenarios: WOMD TFRecords or an ingested store, with futures.
        reference: reference.ckpt. policy: policy.ckpt of anchored self-play. plain: of plain self-play.
        planner: planners of your own, each MODULE:FACTORY (see pipeline/studies/planners/interface.py) or a
            policy.ckpt.
        out: folder of the results; RUN/planners by default.
        seed: of planners, traffic, trainings and bootstrap.
        engine: of the tasks.

    Raises:
        UserError: something is missing, was trained on the scenes, or no scene can be driven.
    """
    given = {"reference": reference, "policy": policy, "plain": plain}
    inputs = _inputs(run, scenarios, out, given)
    folder = inputs.out
    path = str(open_path(inputs.scenarios))
    chosen_ids = _chosen(path, config.scenes)
    _check_unseen(config, inputs, planner or [], path, chosen_ids)
    trained, plain = _trained(config, inputs, seed)
    devices = find_devices(config.device, count=config.devices)
    simulators = _simulators(config, {**inputs.files, "plain": plain}, devices.name)
    planners = _planners(config, planner or [], trained)
    tasks = _tasks(config, path, chosen_ids, simulators, planners, seed)
    # Planners compute on CPUs.
    workers = worker_count(config.workers) if engine.kind == "local" else config.workers
    rows = run_kept(drive_task, tasks, folder / "parts", "planners", workers, engine, devices)
    found, left_out = rows_by_simulator(
        [(task.simulator.name, row) for task, part in zip(tasks, rows, strict=True) for row in part]
    )
    summary = summarise(found, left_out, [one.name for one in planners], seed)
    cases = write_cases(choose_cases(found, config.cases), path, simulators, planners, folder / "cases", seed)
    write_json(folder / "planners.json", {**summary.plain(), "cases": cases})
    for name, text in csv_tables(summary).items():
        write_text(folder / f"{name}.csv", text)
    write_text(folder / "report.md", markdown_report(summary, cases))
    write_planner_figures(folder / "figures", summary)
    say(text_report(summary, cases))
    return {
        "scenes": len(summary.scenes),
        "planners": len(planners),
        "report": str(folder / "report.md"),
    }


def _chosen(path: str, scenes: int) -> list[str]:
    """Ids of so many scenarios, spread evenly; 0 for all."""
    ids = open_scenes(path).ids
    count = min(scenes or len(ids), len(ids))
    return [ids[index * len(ids) // count] for index in range(count)]


def _tasks(
    config: PlannersConfig,
    path: str,
    ids: list[str],
    simulators: Sequence[Entrant],
    planners: tuple[Entrant, ...],
    seed: int,
) -> list[DriveTask]:
    content = content_digest(path)
    return [
        DriveTask(path, content, tuple(ids[first : first + config.chunk]), simulator, planners, seed)
        for simulator in simulators
        for first in range(0, len(ids), config.chunk)
    ]
