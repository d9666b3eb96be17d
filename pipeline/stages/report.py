"""Command and stage ``report``: a run as one HTML file."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import write_text
from data.store import SceneStore
from pipeline.execution.console import bar
from pipeline.execution.engine import EngineConfig, run_on
from pipeline.run.run_folder import REPORT
from pipeline.viewing.report_facts import RunFacts, gather
from pipeline.viewing.report_scenes import SceneTask, ShownScene, choose_scenes, find_rollouts, pack_task
from pipeline.viewing.scene_pack import unpack

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


def _tasks(config: ReportConfig, facts: RunFacts, folder: Path) -> tuple[str, list[SceneTask]]:
    """The agent by which scenes are chosen, and what to pack into a folder."""
    scored = {result.agent: result for result in facts.results}
    agents = _shown_agents(config, facts)
    chooser = next((agent for agent in (config.worst_of, *agents) if agent in scored), "")
    if not chooser or not agents:
        return chooser, []
    values = {name: row["metametric"] for name, row in scored[chooser].scenarios.items()}
    chosen = choose_scenes(values, config.scenes)
    names = [name for name, _ in chosen]
    found = {agent: find_rollouts(facts.rollouts(agent), names) for agent in agents}
    policy, reference = facts.checkpoint("policy"), facts.checkpoint("reference")
    tasks = [
        SceneTask(
            scenarios=str(facts.store("validation").absolute()),
            scenario_id=name,
            title=title,
            rollouts={agent: entries[name] for agent, entries in found.items() if name in entries},
            metric=str(scored[chooser].report["metric"]),
            policy=policy and policy.absolute(),
            reference=reference and reference.absolute(),
            explained=config.explained,
            target=(folder / f"{number:03d}.spk").absolute(),
        )
        for number, (name, title) in enumerate(chosen)
    ]
    return chooser, tasks


def _shown_agents(config: ReportConfig, facts: RunFacts) -> list[str]:
    """Those of the configuration that were sampled, or else all that were."""
    wanted = [agent for agent in config.agents if facts.rollouts(agent).is_dir()]
    return wanted or [result.agent for result in facts.results if facts.rollouts(result.agent).is_dir()]


def _shown(task: SceneTask, chooser: str) -> ShownScene:
    content = task.target.read_bytes()
    header, _ = unpack(content)
    agent = chooser if chooser in header["reasons"] else next(iter(header["reasons"]), "")
    lost = ", ".join(
        f"object {item['agent']} {item['feature'].replace('_', ' ')} {item['loss']:.3f}"
        for item in header["reasons"].get(agent, [])
    )
    scores = {found["name"]: found["values"]["metametric"] for found in header["sets"] if "values" in found}
    reason = f"{agent} {scores[agent]:.4f}; lost most: {lost}" if agent in scores else ""
    return ShownScene(task.scenario_id, task.title, reason, content)


def _that_fit(scenes: Iterable[ShownScene], max_mb: float) -> tuple[list[ShownScene], int]:
    """Scenes that go into a file of so many MB, and how many do not."""
    kept, used, left_out = [], _REST_MB, 0
    for scene in scenes:
        size = len(scene.content) * _GROWTH / 1e6
        if used + size > max_mb:
            left_out += 1
        else:
            used += size
            kept.append(scene)
    return kept, left_out


def _write_page(config: ReportConfig, facts: RunFacts, out: Path, engine: EngineConfig) -> int:
    """Returns the number of scenes."""
    # Charts take seconds to import, which every command would pay for.
    from pipeline.viewing.report_page import render_page

    folder = out.parent / f".{out.name}.scenes"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        chooser, tasks = _tasks(config, facts, folder)
        if tasks:
            with bar("report", len(tasks), " scene") as progress:
                for _ in run_on(engine, pack_task, tasks, config.workers, folder=out.parent):
                    progress.update()
        scenes, left_out = _that_fit((_shown(task, chooser) for task in tasks), config.max_mb)
        notes = []
        if left_out:
            notes.append(
                f"{left_out} of {len(tasks)} scenes are left out: the file stays below {config.max_mb:g} MB."
            )
        write_text(out, render_page(facts, scenes, chooser, notes))
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return len(scenes)


def run_report(
    config: ReportConfig,
    *,
    run: Path,
    out: Path | None = None,
    scenario: str | None = None,
    video: Path | None = None,
    sheet: Path | None = None,
    figures: Path | None = None,
    engine: EngineConfig = EngineConfig(),
) -> dict[str, Any]:
    """Write a run as one HTML file that opens without a network, and pictures of it on request.

    Args:
        config: what is shown.
        run: folder of the run, finished or not; what is missing is said.
        out: the file; RUN/report/report.html by default.
        scenario: id of the scene in pictures; the worst one by default.
        video: MP4 file to write: the log and the first rollout of every agent, side by side.
        sheet: PNG file to write: the same every two seconds.
        figures: folder for figures of a paper, as PDF and PNG.
        engine: who prepares the scenes.

    Raises:
        UserError: no run there, files in it that its stages did not write, or no such scenario.
    """
    facts = gather(run)
    out = out or run / REPORT
    if out.is_dir():
        raise UserError(f"--out {out}: is a folder, expected a file such as {out / 'report.html'}")
    if scenario is not None:
        _check_scenario(scenario, facts, bool(video or sheet or figures))
    out.parent.mkdir(parents=True, exist_ok=True)
    scenes = _write_page(config, facts, out, engine)
    written: dict[str, Any] = {
        "report": str(out),
        "megabytes": round(out.stat().st_size / 1e6, 2),
        "scenes": scenes,
    }
    if video or sheet or figures:
        from pipeline.viewing.figures import write_figures, write_film, write_sheet

        agents = _shown_agents(config, facts)
        name = scenario or _worst(config, facts)
        if (video or sheet) and not (name and agents):
            raise UserError(f"{run}: no rollouts that are scored; name a scene with --scenario")
        if video:
            write_film(video, facts, name, agents)
            written["video"] = str(video)
        if sheet:
            write_sheet(sheet, facts, name, agents)
            written["sheet"] = str(sheet)
        if figures:
            written["figures"] = [str(path) for path in write_figures(figures, facts, name, agents)]
    return written


def _check_scenario(scenario: str, facts: RunFacts, pictures: bool) -> None:
    """Before minutes are spent on the page.

    Raises:
        UserError: nothing is drawn of it, or there is none of this id.
    """
    if not pictures:
        raise UserError("--scenario: names the scene of --video, --sheet and --figures; give one of them")
    store = facts.store("validation")
    if scenario not in SceneStore(store).ids:
        raise UserError(f"--scenario {scenario}: not in {store}")


def _worst(config: ReportConfig, facts: RunFacts) -> str:
    """Id of the scene that was simulated worst, empty if nothing is scored."""
    _, tasks = _tasks(dataclasses.replace(config, scenes=1), facts, facts.folder)
    return tasks[0].scenario_id if tasks else ""
