"""Command and stage ``report``: a run as one HTML file."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import write_text
from pipeline.engine import EngineConfig, run_on
from pipeline.progress import bar
from pipeline.viewing.packing import unpack
from pipeline.viewing.report.facts import RunFacts, gather
from pipeline.viewing.report.page import ShownScene, render_page
from pipeline.viewing.report.scenes import SceneTask, choose_scenes, find_rollouts, pack_task

__all__ = ["REPORT", "ReportConfig", "run_report"]

REPORT = "report.html"
_PARTS = "scenes"
# Base64 makes three bytes four, and the rest of a page is some two megabytes.
_GROWTH, _REST_MB = 4 / 3, 2.5


@dataclass(frozen=True)
class ReportConfig:
    """What is shown.

    Args:
        scenes: worst and best scenes to play, half of each; 0 for none.
        agents: whose rollouts are shown in them, of those that were sampled.
        worst_of: the agent by whose realism scenes are chosen; the first of ``agents`` that was scored otherwise.
        explained: rollouts of each learnt agent for which the tokens of policy and reference are shown.
        max_mb: size of the file; scenes that do not fit any more are left out, and the report says so.
        workers: processes; 0 for one per core.
    """

    scenes: int = 8
    agents: list[str] = dataclasses.field(default_factory=lambda: ["policy", "reference"])
    worst_of: str = "policy"
    explained: int = 1
    max_mb: float = 25.0
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("scenes", "explained", "workers"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name} {getattr(self, name)}: expected 0 or more")
        if self.max_mb <= _REST_MB:
            raise UserError(f"--max_mb {self.max_mb:g}: a report without scenes has {_REST_MB:g} MB already")


def _tasks(config: ReportConfig, facts: RunFacts, out: Path) -> tuple[str, list[SceneTask]]:
    """The agent by which scenes are chosen, and what to pack."""
    scored = {result.agent: result for result in facts.results}
    agents = [agent for agent in config.agents if facts.rollouts(agent).is_dir()] or [
        agent for agent in scored if facts.rollouts(agent).is_dir()
    ]
    wanted = [config.worst_of, *agents]
    chooser = next((agent for agent in wanted if agent in scored), None)
    if chooser is None or not agents or not config.scenes:
        return chooser or "", []
    values = {name: row["metametric"] for name, row in scored[chooser].scenarios.items() if "metametric" in row}
    chosen = choose_scenes(values, config.scenes)
    names = [name for name, _ in chosen]
    found = {agent: find_rollouts(facts.rollouts(agent), names) for agent in agents}
    tasks = [
        SceneTask(
            scenarios=str(facts.store("validation").absolute()),
            scenario_id=name,
            title=title,
            rollouts={agent: entries[name] for agent, entries in found.items() if name in entries},
            metric=str(scored[chooser].report["metric"]),
            policy=None if facts.policy is None else facts.policy.absolute(),
            reference=None if facts.reference is None else facts.reference.absolute(),
            explained=config.explained,
            target=(out / _PARTS / f"{number:03d}.spk").absolute(),
        )
        for number, (name, title) in enumerate(chosen)
    ]
    return chooser, tasks


def _shown(task: SceneTask, chooser: str) -> ShownScene:
    content = task.target.read_bytes()
    header, _ = unpack(content)
    agent = chooser if chooser in header["reasons"] else next(iter(header["reasons"]), "")
    lost = ", ".join(
        f"object {item['agent']} {item['feature'].replace('_', ' ')} {item['loss']:.3f}"
        for item in header["reasons"].get(agent, [])
    )
    realism = next(
        (found["values"]["metametric"] for found in header["sets"] if found["name"] == agent and "values" in found),
        None,
    )
    reason = "" if realism is None else f"{agent} {realism:.4f}; lost most: {lost}"
    return ShownScene(task.scenario_id, task.title, reason, content)


def run_report(
    config: ReportConfig, *, run: Path, out: Path | None = None, engine: EngineConfig = EngineConfig()
) -> dict[str, Any]:
    """Write a run as one HTML file that opens without a network.

    Args:
        config: what is shown.
        run: folder of the run, finished or not; what is missing is said.
        out: the file; RUN/report/report.html by default.
        engine: who prepares the scenes.

    Raises:
        UserError: no run there, or files in it that its stages did not write.
    """
    facts = gather(run)
    out = out or run / "report" / REPORT
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder, expected a file such as {out / REPORT}")
    out.parent.mkdir(parents=True, exist_ok=True)
    chooser, tasks = _tasks(config, facts, out.parent)
    try:
        with bar("report", len(tasks), " scene") as progress:
            for _ in run_on(engine, pack_task, tasks, config.workers, folder=out.parent):
                progress.update()
        scenes, used, left_out = [], _REST_MB, 0
        for task in tasks:
            shown = _shown(task, chooser)
            size = len(shown.content) * _GROWTH / 1e6
            if used + size > config.max_mb:
                left_out += 1
                continue
            used += size
            scenes.append(shown)
        notes = []
        if left_out:
            notes.append(
                f"{left_out} of {len(tasks)} scenes are left out to keep the file below {config.max_mb:g} MB."
            )
        text = render_page(facts, scenes, chooser, notes)
        write_text(out, text)
    finally:
        for task in tasks:
            task.target.unlink(missing_ok=True)
        if tasks and (out.parent / _PARTS).is_dir():
            (out.parent / _PARTS).rmdir()
    return {"report": str(out), "megabytes": round(out.stat().st_size / 1e6, 2), "scenes": len(scenes)}
