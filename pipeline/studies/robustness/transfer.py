"""Command ``transfer``: agents trained in one run, tested on the scenes of others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.completeness import some
from data.errors import UserError
from data.files import write_json, write_text
from data.store import SceneStore, is_store
from pipeline.agents.catalogue import LEARNT
from pipeline.agents.leaks import check_unseen
from pipeline.execution.console import say
from pipeline.execution.devices import find_devices
from pipeline.execution.engine import EngineConfig
from pipeline.execution.tables import markdown_table, render_table
from pipeline.run.run_folder import RunFolder
from pipeline.studies.robustness.spoiling import CLEAN, Condition
from pipeline.studies.robustness.trials import (
    SCORE_TITLES,
    ComparisonConfig,
    Contestant,
    Scenes,
    Summary,
    Trial,
    choose_scenes,
    contestant,
    csv_text,
    run_trials,
    scores_row,
    split,
    summarise,
)
from submission.realism import load_config


@dataclass(frozen=True)
class TransferConfig(ComparisonConfig):
    """What is compared."""


@dataclass(frozen=True)
class _Cell:
    """An agent, the run it was trained in (empty where there is nothing to train), and the run of the scenes."""

    tested: str
    agent: str
    trained: str


def _opened(config: TransferConfig, folder: Path, seed: int) -> tuple[Scenes, dict[str, Contestant]]:
    """A run's validation scenes and its agents.

    Raises:
        UserError: no run there, or one that has not trained an agent that is wanted.
    """
    run = RunFolder.opened(folder)
    found = {agent: run.checkpoint(agent) for agent in config.agents}
    for agent in config.agents:
        if agent in LEARNT and found[agent] is None:
            raise UserError(f"{folder}: no finished {agent}; run its stages, or leave {agent} out of --agents")
    scenes = choose_scenes(str(run.store("validation")), config.scenes, seed)
    return scenes, {agent: contestant(agent, found.get(agent)) for agent in config.agents}


def run_transfer(
    config: TransferConfig,
    *,
    runs: list[Path],
    out: Path,
    seed: int = 0,
    engine: EngineConfig = EngineConfig(),
) -> dict[str, Any]:
    """Test the agents of every run on the validation scenes of every run.

    Writes metrics.json, table.csv and table.md: realism by scenes, agent and the run that trained it, and the
    paired difference to the agent that was trained in the scenes' own run, with bootstrap intervals over scenes.

    Args:
        config: what is compared.
        runs: folders of two or more finished runs, as '["runs/demo", "runs/womd"]'.
        out: folder of the results.
        seed: of scenes, rollouts and the bootstrap.
        engine: who does the work.

    Raises:
        UserError: runs that are not finished, fewer than two different ones, or scenes that agents of another run
            were trained on.
    """
    names = [folder.resolve().name for folder in runs]
    if len(names) < 2 or len(set(names)) != len(names):
        raise UserError(f"--runs {[str(folder) for folder in runs]}: expected two or more with different names")
    devices = find_devices(config.device, count=config.devices)
    config = dataclasses.replace(config, device=devices.name)
    metric = load_config(config.metric)
    opened = {name: _opened(config, folder, seed) for name, folder in zip(names, runs, strict=True)}
    _check_unseen(dict(zip(names, runs, strict=True)), opened)
    how = config.rollouts, seed, config.sampling, config.device, config.metric
    cells: dict[_Cell, list[Trial]] = {}
    for tested, (scenes, _) in opened.items():
        for agent in config.agents:
            for trained in names if agent in LEARNT else [""]:
                who = opened[trained or tested][1][agent]
                cells[_Cell(tested, agent, trained)] = [
                    Trial(chunk, who, Condition(CLEAN, 0.0), *how) for chunk in split(scenes, config.chunk)
                ]
    trials = [trial for some in cells.values() for trial in some]
    found = run_trials(trials, out, "transfer", config.workers, engine, devices)
    scores = {
        cell: {row["scenario_id"]: row["values"] for trial in some for row in found[trial]}
        for cell, some in cells.items()
    }
    summaries = {}
    for cell, values in scores.items():
        foreign = bool(cell.trained) and cell.trained != cell.tested
        native = scores[dataclasses.replace(cell, trained=cell.tested)] if foreign else None
        summaries[cell] = summarise(values, native, metric, seed)
    unscorable = {tested: dict(scenes.unscorable) for tested, (scenes, _) in opened.items()}
    _write(config, out, runs, summaries, unscorable, seed)
    return {
        "runs": len(names),
        "scenes": sum(len(scenes.ids) for scenes, _ in opened.values()),
        "unscorable": sum(map(len, unscorable.values())),
        "table": str(out / "table.md"),
    }


def _check_unseen(runs: Mapping[str, Path], opened: Mapping[str, tuple[Scenes, dict[str, Contestant]]]) -> None:
    """Compare the scenes of every run with what the agents of every run were trained on.

    Raises:
        UserError: an agent would be tested on scenes that it was trained on.
    """
    for trained, (_, agents) in opened.items():
        store = RunFolder(runs[trained]).store("training")
        # Checkpoints of earlier versions do not say what they were trained on; the store of their run does.
        known = set(SceneStore(store).ids) if is_store(store) else set[str]()
        for tested, (scenes, _) in opened.items():
            if shared := sorted(known.intersection(scenes.ids)):
                raise UserError(
                    f"{store}: {len(shared)} of its scenarios are among those that {runs[tested]} is tested on "
                    f"({some(shared)}); compare runs whose data share none"
                )
            for who in agents.values():
                check_unseen(who.checkpoint, scenes.path, scenes.ids)


def _write(
    config: TransferConfig,
    out: Path,
    runs: list[Path],
    summaries: Mapping[_Cell, Summary],
    unscorable: Mapping[str, Mapping[str, str]],
    seed: int,
) -> None:
    report = {
        "runs": [str(folder) for folder in runs],
        "config": dataclasses.asdict(config),
        "seed": seed,
        "unscorable": unscorable,
        "results": [
            {**dataclasses.asdict(cell), **dataclasses.asdict(summary)} for cell, summary in summaries.items()
        ],
    }
    write_json(out / "metrics.json", report)
    rows = [((cell.tested, cell.agent, cell.trained), summary) for cell, summary in summaries.items()]
    write_text(out / "table.csv", csv_text(("tested_on", "agent", "trained_on"), rows))
    table = [["tested on", "scenes", "agent", "trained on", *SCORE_TITLES]]
    table += [
        [cell.tested, str(summary.scenes), cell.agent.replace("_", " "), cell.trained or "-", *scores_row(summary)]
        for cell, summary in summaries.items()
    ]
    write_text(out / "table.md", markdown_table(table) + "\n")
    say(render_table(table))
