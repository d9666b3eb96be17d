"""Figures for papers, one column wide, vector graphics, small serif type; and the pictures of a report."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection, PolyCollection
from torch import Tensor

from data.errors import UserError
from data.files import atomic_path
from data.geometry import box_corners
from data.scene import CURRENT_INDEX, AgentType, Scene
from data.store import SceneStore
from pipeline.drawing.drawn_map import Line, drawn_map
from pipeline.drawing.films import scene_frames, write_contact_sheet, write_video
from pipeline.drawing.palette import COLOURS, LINES, MARKS, TYPES, agent_colour
from pipeline.drawing.raster import Panel
from pipeline.execution.console import track
from pipeline.viewing.report_facts import AgentResult, Curve, RunFacts
from pipeline.viewing.report_scenes import find_rollouts, read_entry
from submission.realism.config import COMPONENTS

matplotlib.use("Agg")


COLUMN_INCHES = 3.4
STYLE: Any = {
    "font.family": "serif",
    "font.size": 7,
    "axes.titlesize": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.5,
    "legend.frameon": False,
    "lines.linewidth": 0.9,
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
}
# Widths in points of what is drawn of a map.
_WIDTHS = {
    Line.LANE: 0.4,
    Line.WHITE: 0.3,
    Line.WHITE_BROKEN: 0.3,
    Line.YELLOW: 0.3,
    Line.YELLOW_BROKEN: 0.3,
    Line.CROSSWALK: 0.4,
    Line.EDGE: 0.6,
}
_SHOWN = 8
# From the AV to the side of a picture, metres.
_RADIUS = 60.0


@contextlib.contextmanager
def paper_figure(rows: int, columns: int, width: float, height: float) -> Iterator[tuple[Any, Any]]:
    """A figure and its axes [rows, columns] in the style of this module, which holds while they are drawn on.

    Args:
        rows, columns: of panels. width, height: of the whole, inches.
    """
    with plt.rc_context(STYLE):
        yield plt.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")


def save_figure(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write PDF and PNG, and close the figure."""
    paths = [folder / f"{name}.{kind}" for kind in ("pdf", "png")]
    for path in paths:
        with atomic_path(path) as temporary:
            # Without a date in it: the same figure gives the same bytes.
            metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
            figure.savefig(temporary, format=path.suffix[1:], dpi=300, bbox_inches="tight", metadata=metadata)
    plt.close(figure)
    return paths


def likelihood_figure(results: Sequence[AgentResult]) -> Any:
    """Meta-metric and likelihoods of all features, with intervals, an agent a mark."""
    names = ["metametric", *(f"{name}_likelihood" for name in COMPONENTS)]
    labels = ["realism", *(name.removesuffix("_indication").replace("_", " ") for name in COMPONENTS)]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_INCHES, 0.24 * len(names) + 0.4))
        offsets = np.linspace(-0.28, 0.28, max(2, len(results)))
        for result, offset in zip(results, offsets, strict=False):
            values = [result.report["metrics"][name] for name in names]
            low, high = np.array([result.report["intervals"][name] for name in names]).T
            axes.errorbar(
                values,
                np.arange(len(names)) + offset,
                xerr=(np.maximum(0, values - low), np.maximum(0, high - values)),
                fmt=MARKS.get(result.agent, "x"),
                color=agent_colour(result.agent),
                markersize=2.6,
                elinewidth=0.6,
                label=result.agent.replace("_", " "),
            )
        axes.set_yticks(range(len(names)), labels)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.02)
        axes.set_xlabel("likelihood")
        axes.legend(loc="upper center", bbox_to_anchor=(0.4, 1.1), ncol=len(results), columnspacing=0.8)
    return figure


def curve_figure(curve: Curve, names: Sequence[str], title: str) -> Any:
    """Columns of a training over its steps."""
    axis = "agent_steps" if "agent_steps" in curve.columns else "step"
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(COLUMN_INCHES, 1.7))
        for name, style in zip(names, ("-", "--", ":", "-."), strict=False):
            points = [(row[axis], row[name]) for row in curve.rows if axis in row and name in row]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=name.replace("_", " "))
        axes.set_xlabel(axis.replace("_", " "))
        axes.set_title(title, loc="left")
        axes.legend()
    return figure


@dataclass(frozen=True)
class Band:
    """A curve with its interval: values of one agent at ascending places, each with low and high."""

    agent: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def bands_figure(panels: Mapping[str, Sequence[Band]], label: str) -> Any:
    """Small panels side by side on one scale: what depends on what, by agent, with intervals as bands.

    Args:
        panels: curves by what stands below their axis. label: of what is drawn.
    """
    columns = min(4, len(panels))
    rows = -(-len(panels) // columns)
    with plt.rc_context(STYLE):
        size = (COLUMN_INCHES / 2 * columns, 1.45 * rows + 0.3)
        figure, grid = plt.subplots(rows, columns, figsize=size, sharey=True, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (title, bands) in zip(grid.flat, panels.items(), strict=False):
            for band in bands:
                colour = agent_colour(band.agent)
                axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.15, linewidth=0)
                mark, name = MARKS.get(band.agent, "x"), band.agent.replace("_", " ")
                axes.plot(band.x, band.y, mark + "-", color=colour, markersize=2.4, label=name)
            axes.set_xlabel(title)
        for row in grid:
            row[0].set_ylabel(label)
        handles, names = grid[0, 0].get_legend_handles_labels()
        figure.tight_layout(pad=0.4, rect=(0, 0, 1, 1 - 0.2 / size[1]))
        figure.legend(handles, names, loc="upper center", ncol=len(names))
    return figure


def scene_figure(scene: Scene, futures: Mapping[str, Tensor]) -> Any:
    """The log and some futures [R, S, 80, 4] of each agent, from above, side by side."""
    rows = scene.simulated
    log = torch.cat((scene.agents.position[..., :2], scene.agents.heading.unsqueeze(-1)), dim=-1)
    recorded = log[rows, CURRENT_INDEX + 1 :].unsqueeze(0)
    panels = {"log": (recorded, scene.agents.valid[rows, CURRENT_INDEX + 1 :])} if scene.has_future else {}
    for name, states in futures.items():
        panels[name] = (states[:_SHOWN], torch.ones(states.shape[1:3], dtype=torch.bool))
    with plt.rc_context(STYLE):
        width = COLUMN_INCHES * max(1, len(panels)) / 1.5
        figure, all_axes = plt.subplots(1, len(panels), figsize=(width, COLUMN_INCHES / 1.5), squeeze=False)
        for axes, (name, (states, valid)) in zip(all_axes[0], panels.items(), strict=True):
            _draw_map(axes, scene)
            _draw_agents(axes, scene, states, valid)
            x, y = scene.agents.position[scene.agents.is_sdc][0, CURRENT_INDEX, :2].tolist()
            axes.set(xlim=(x - _RADIUS, x + _RADIUS), ylim=(y - _RADIUS, y + _RADIUS))
            axes.set_aspect("equal")
            axes.set_axis_off()
            axes.set_title(name.replace("_", " "))
        figure.tight_layout(pad=0.2)
    return figure


def _draw_map(axes: Any, scene: Scene) -> None:
    road = drawn_map(scene)
    for kind, width in _WIDTHS.items():
        lines = [line for line in road.lines(kind) if len(line) > 1]
        axes.add_collection(LineCollection(lines, colors=LINES[kind], linewidths=width, zorder=1))


def _draw_agents(axes: Any, scene: Scene, futures: Tensor, valid: Tensor) -> None:
    """Boxes at the current step, and where agents go: futures [R, S, T, 2+], valid [S, T]."""
    agents = scene.agents
    rows = scene.simulated.nonzero().flatten()
    now, size = agents.position[rows, CURRENT_INDEX, :2], agents.size[rows, CURRENT_INDEX]
    corners = box_corners(now, agents.heading[rows, CURRENT_INDEX], size[:, 0], size[:, 1]).numpy()
    colours = [TYPES.get(AgentType(int(kind)), COLOURS["other"]) for kind in agents.type[rows]]
    alpha = max(0.3, 1.0 / len(futures) ** 0.5)
    for future in futures:
        lines = [
            np.concatenate((now[row : row + 1].numpy(), path[seen, :2].numpy()))
            for row, (path, seen) in enumerate(zip(future, valid, strict=True))
        ]
        axes.add_collection(LineCollection(lines, colors=colours, linewidths=0.7, alpha=alpha, zorder=3))
    axes.add_collection(
        PolyCollection(list(corners), facecolors=colours, edgecolors="white", linewidths=0.2, zorder=4)
    )


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
        if (states := read_entry(entries[scenario_id]).of(ids)) is None:
            raise UserError(f"{facts.rollouts(agent)}: scenario {scenario_id}: not the objects to be simulated")
        futures[agent] = states
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
