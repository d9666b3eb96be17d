"""Command ``robustness``: realism of agents against how wrong their inputs are."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import write_json, write_text
from data.places import open_path
from pipeline.agents.leaks import check_unseen
from pipeline.execution.console import say
from pipeline.execution.devices import Devices, find_devices
from pipeline.execution.engine import EngineConfig
from pipeline.execution.tables import markdown_table, render_table
from pipeline.run.run_folder import RunFolder
from pipeline.studies.robustness.spoiling import CLEAN, KINDS, Condition, Levels, conditions
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
from pipeline.viewing.figures import Band, bands_figure, save_figure
from submission.realism import MetricConfig, load_config

# By agent and condition: scores by scenario id, and how many scenes the condition changed.
Outcome = tuple[dict[str, dict[str, float]], int]


@dataclass(frozen=True)
class RobustnessConfig(ComparisonConfig):
    """What is tried.

    Args:
        scenes: how many, drawn at random among those that can be scored; 0 for all.
        rollouts: of every scene, condition and agent. Fewer than 32 give lower scores: compare within the table.
        kinds: names of the kinds that are tried, as '["latency", "dropped_map"]'; all where none is given.
        levels: of each kind.
    """

    scenes: int = 16
    rollouts: int = 8
    kinds: list[str] = field(default_factory=list)
    levels: Levels = field(default_factory=Levels)


def _contestants(
    config: RobustnessConfig, run: Path | None, reference: Path | None, policy: Path | None
) -> list[Contestant]:
    found = {"reference": reference, "policy": policy}
    if run is not None and not (reference and policy):
        folder = RunFolder.opened(run)
        found = {agent: path or folder.checkpoint(agent) for agent, path in found.items()}
    for agent in config.agents:
        if agent in found and found[agent] is None:
            where = f"{run} has none that is finished" if run else f"give --{agent} FILE"
            raise UserError(f"--agents: {agent} needs a checkpoint and {where}; or leave it out of --agents")
    return [contestant(agent, found.get(agent)) for agent in config.agents]


def run_robustness(
    config: RobustnessConfig,
    *,
    run: Path | None = None,
    scenarios: str | None = None,
    reference: Path | None = None,
    policy: Path | None = None,
    out: Path | None = None,
    seed: int = 0,
    engine: EngineConfig = EngineConfig(),
) -> dict[str, Any]:
    """Let agents simulate scenes that they see wrongly, and score them against the scenes as they were.

    Writes metrics.json, table.csv and table.md: realism by kind, level and agent, and its paired difference to the
    clean scene, with bootstrap intervals over scenes, in brief first; and degradation.pdf and .png, these
    differences as curves.

    Args:
        config: what is tried.
        run: folder of a run, whose validation scenes, reference and policy are taken where none are given.
        scenarios: WOMD TFRecords or an ingested store, with futures.
        reference: reference.ckpt. policy: policy.ckpt.
        out: folder of the results; RUN/robustness by default.
        seed: of scenes, rollouts, of what is spoilt, and of the bootstrap.
        engine: who does the work.

    Raises:
        UserError: no scenes, no checkpoint, one that was trained on the scenes, or options that make no sense.
    """
    if run is None and (scenarios is None or out is None):
        raise UserError("give --run FOLDER, or --scenarios and --out")
    devices = find_devices(config.device, count=config.devices)
    config = dataclasses.replace(config, device=devices.name)
    tried = conditions(config.levels, config.kinds)
    metric = load_config(config.metric)
    contestants = _contestants(config, run, reference, policy)
    if run is not None:
        scenarios = scenarios or str(RunFolder(run).store("validation"))
        out = out or run / "robustness"
    assert scenarios is not None
    assert out is not None
    scenes = choose_scenes(str(open_path(scenarios)), config.scenes, seed)
    for who in contestants:
        check_unseen(who.checkpoint, scenarios, scenes.ids)
    outcomes = _outcomes(config, scenes, contestants, tried, out, seed, engine, devices)
    summaries = _summaries(outcomes, metric, seed)
    changed = {key: changed for key, (_, changed) in outcomes.items()}
    _write(config, out, scenes, summaries, changed, seed)
    return {
        "scenes": len(scenes.ids),
        "unscorable": len(scenes.unscorable),
        "conditions": len(tried),
        "table": str(out / "table.md"),
    }


def _outcomes(
    config: RobustnessConfig,
    scenes: Scenes,
    contestants: list[Contestant],
    tried: list[Condition],
    out: Path,
    seed: int,
    engine: EngineConfig,
    devices: Devices,
) -> dict[tuple[str, Condition], Outcome]:
    """Scores by agent and condition, the clean one first."""
    # Chunk by chunk, so that a process prepares a scene once.
    trials = [
        Trial(chunk, who, condition, config.rollouts, seed, config.sampling, config.device, config.metric)
        for chunk in split(scenes, config.chunk)
        for condition in tried
        for who in contestants
    ]
    found = run_trials(trials, out, "robustness", config.workers, engine, devices)
    outcomes: dict[tuple[str, Condition], Outcome] = {}
    for who in contestants:
        clean: dict[str, dict[str, float]] = {}
        for condition in tried:
            rows = [
                row
                for trial in trials
                if (trial.contestant, trial.condition) == (who, condition)
                for row in found[trial]
            ]
            # A rollout is a function of what is seen: what was left as it is has the same scores.
            scores = {row["scenario_id"]: row.get("values") or clean[row["scenario_id"]] for row in rows}
            clean = scores if condition.kind == CLEAN else clean
            outcomes[who.agent, condition] = scores, sum(row["spoilt"] for row in rows)
    return outcomes


def _summaries(
    outcomes: Mapping[tuple[str, Condition], Outcome], metric: MetricConfig, seed: int
) -> dict[tuple[str, Condition], Summary]:
    clean = {agent: scores for (agent, condition), (scores, _) in outcomes.items() if condition.kind == CLEAN}
    return {
        (agent, condition): summarise(scores, None if condition.kind == CLEAN else clean[agent], metric, seed)
        for (agent, condition), (scores, _) in outcomes.items()
    }


def _write(
    config: RobustnessConfig,
    out: Path,
    scenes: Scenes,
    summaries: Mapping[tuple[str, Condition], Summary],
    changed: Mapping[tuple[str, Condition], int],
    seed: int,
) -> None:
    ordered = sorted(summaries, key=lambda key: ([CLEAN, *KINDS].index(key[1].kind), key[1].level))
    report = {
        "scenes": len(scenes.ids),
        "unscorable": dict(scenes.unscorable),
        "scenarios_digest": scenes.digest,
        "config": dataclasses.asdict(config),
        "seed": seed,
        "results": [
            {
                "kind": condition.kind,
                "level": condition.level,
                "unit": KINDS[condition.kind].unit if condition.kind in KINDS else "",
                "agent": agent,
                "changed_scenes": changed[agent, condition],
                **dataclasses.asdict(summaries[agent, condition]),
            }
            for agent, condition in ordered
        ],
    }
    write_json(out / "metrics.json", report)
    labels = ("kind", "level", "agent", "changed_scenes")
    rows = [((c.kind, c.level, agent, changed[agent, c]), summaries[agent, c]) for agent, c in ordered]
    write_text(out / "table.csv", csv_text(labels, rows))
    table = [["inputs", "agent", "changed", *SCORE_TITLES]]
    table += [
        [_title(c), agent.replace("_", " "), str(changed[agent, c]), *scores_row(summaries[agent, c])]
        for agent, c in ordered
    ]
    brief = _brief(summaries, changed)
    write_text(out / "table.md", f"{markdown_table(brief)}\n\n{markdown_table(table)}\n")
    if panels := _panels(summaries):
        save_figure(bands_figure(panels, "change of realism"), out, "degradation")
    say(render_table(brief))


def _brief(
    summaries: Mapping[tuple[str, Condition], Summary], changed: Mapping[tuple[str, Condition], int]
) -> list[list[str]]:
    """Realism of every agent with inputs as recorded, and its change under every condition, a condition a row."""
    agents = list(dict.fromkeys(agent for agent, _ in summaries))
    rows = [["inputs", "changed scenes", *(agent.replace("_", " ") for agent in agents)]]
    for condition in dict.fromkeys(condition for _, condition in summaries):
        cells = (scores_row(summaries[agent, condition]) for agent in agents)
        found = [cell[0] if condition.kind == CLEAN else cell[1] for cell in cells]
        rows.append([_title(condition), str(changed[agents[0], condition]), *found])
    return rows


def _title(condition: Condition) -> str:
    if condition.kind == CLEAN:
        return "as recorded"
    kind = KINDS[condition.kind]
    if kind.unit == "share":
        return f"{kind.title} {condition.level:.0%}"
    return f"{kind.title} {condition.level:g} {kind.unit}"


def _panels(summaries: Mapping[tuple[str, Condition], Summary]) -> dict[str, list[Band]]:
    """What every level of every kind costs each agent in realism, from nothing at level 0."""
    agents = list(dict.fromkeys(agent for agent, _ in summaries))
    panels = {}
    for kind in KINDS:
        levels = sorted({condition.level for _, condition in summaries if condition.kind == kind})
        if not levels:
            continue
        bands = []
        for agent in agents:
            curve = [summaries[agent, Condition(kind, level)] for level in levels]
            change = [summary.differences["metametric"] for summary in curve]
            low, high = zip(*(summary.difference_intervals["metametric"] for summary in curve), strict=True)
            bands.append(Band(agent, [0.0, *levels], [0.0, *change], [0.0, *low], [0.0, *high]))
        panels[f"{KINDS[kind].title}, {KINDS[kind].unit}"] = bands
    return panels
