"""Pictures of a run for slides and papers: a video and a contact sheet of one scene, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from data.errors import UserError
from data.scene import Scene
from data.store import SceneStore
from pipeline.drawing.films import scene_frames, write_contact_sheet, write_video
from pipeline.drawing.raster import Panel
from pipeline.execution.progress import track
from pipeline.viewing.figures import curve_figure, likelihood_figure, save_figure, scene_figure
from pipeline.viewing.report.facts import RunFacts
from pipeline.viewing.report.scenes import find_rollouts, read_entry

__all__ = ["write_figures", "write_film", "write_sheet"]

_PIXELS = 480
_CURVES = {"selfplay": ("kl", "entropy"), "pretrain": ("loss", "validation_cross_entropy")}


def _shown(facts: RunFacts, scenario_id: str, agents: Sequence[str]) -> tuple[Scene, dict[str, Tensor]]:
    """A validation scene, and rollouts [R, S, 80, 4] by agent, in the order of the scene's simulated agents.

    Raises:
        UserError: no such scene, or no rollouts of it.
    """
    try:
        scene = SceneStore(facts.store("validation")).get(scenario_id)
    except KeyError as error:
        raise UserError(f"--scenario {scenario_id}: not in {facts.store('validation')}") from error
    futures = {}
    ids = scene.agents.id[scene.simulated].tolist()
    for agent in agents:
        entries = find_rollouts(facts.rollouts(agent), [scenario_id])
        if scenario_id not in entries:
            raise UserError(f"{facts.rollouts(agent)}: no rollouts of scenario {scenario_id}")
        rollouts = read_entry(entries[scenario_id])
        rows = {name: row for row, name in enumerate(rollouts.agent_id.tolist())}
        if sorted(rows) != sorted(ids):
            raise UserError(f"{facts.rollouts(agent)}: scenario {scenario_id}: not the objects to be simulated")
        futures[agent] = rollouts.states[:, [rows[name] for name in ids]]
    return scene, futures


def _panels(futures: dict[str, Tensor]) -> list[Panel]:
    """The log, and the first rollout of each agent."""
    return [Panel("log"), *(Panel(agent.replace("_", " "), states[0]) for agent, states in futures.items())]


def write_film(path: Path, facts: RunFacts, scenario_id: str, agents: Sequence[str]) -> None:
    """Write an MP4: the log and the first rollout of each agent, side by side, 9 s at 10 Hz."""
    scene, futures = _shown(facts, scenario_id, agents)
    frames = scene_frames(scene, _panels(futures), _PIXELS)
    write_video(path, track(frames, "video", 91, " frame"))


def write_sheet(path: Path, facts: RunFacts, scenario_id: str, agents: Sequence[str]) -> None:
    """Write a PNG: the log and the first rollout of each agent, every two seconds."""
    scene, futures = _shown(facts, scenario_id, agents)
    write_contact_sheet(path, scene, _panels(futures))


def write_figures(folder: Path, facts: RunFacts, scenario_id: str, agents: Sequence[str]) -> list[Path]:
    """Write what there is to draw as PDF and PNG; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    if facts.results:
        written += save_figure(likelihood_figure(facts.results), folder, "likelihoods")
    for curve in facts.curves:
        names = [name for name in _CURVES.get(curve.stage, ()) if sum(name in row for row in curve.rows) > 1]
        if names:
            written += save_figure(curve_figure(curve, names, curve.stage), folder, curve.stage)
    if scenario_id:
        scene, futures = _shown(facts, scenario_id, agents)
        written += save_figure(scene_figure(scene, futures), folder, f"scene_{scenario_id}")
    return written
