"""Figures of a planner evaluation, and films of false collisions of log replay.

In a replay the agents behind an AV that drives other than it did in the log cannot see it, and run into it. A case
is a planner and scene with a collision in log replay that is not the AV's fault, and none at all among agents
driven by the policy. Being struck from behind comes first, then drives that are good among agents that answer, then
what the score gains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.ground import joint_states
from data.scene import NUM_STEPS, STEP_SECONDS
from data.scenes_source import open_scenes
from data.tokenizer import scene_origin
from pipeline.drawing.films import write_sheet, write_video
from pipeline.drawing.raster import Panel, SceneRaster, panel_frame
from pipeline.studies.planners.scores import SCORE_NAMES
from pipeline.studies.planners.summary import Summary
from pipeline.studies.planners.tables import title_of
from pipeline.studies.planners.tasks import Entrant, driven
from pipeline.viewing.figures import paper_figure, save_figure

_LOG = "log"
# Whose traffic answers, the first that was simulated.
_ANSWERING = ("policy", "reference")
# Pictures: pixels of a side, metres from the middle to it, and seconds of the contact sheet about the collision.
_PIXELS, _RADIUS = 480, 35.0
_MOMENTS = (-3.0, -1.5, 0.0, 1.5)
_TITLES = {"log": "the log", "policy": "the policy's agents", "reference": "the reference's agents"}


@dataclass(frozen=True)
class Case:
    """A false collision.

    Attributes:
        scenario_id: where. planner: who drove. simulator: whose traffic answered.
        seconds: when a replayed agent struck the AV. rear_hit: from behind.
        log_score, score: ``pdm_mean`` in log replay and among agents that answer.
    """

    scenario_id: str
    planner: str
    simulator: str
    seconds: float
    rear_hit: bool
    log_score: float
    score: float


def choose_cases(rows: Mapping[str, Mapping[str, Mapping[str, Any]]], count: int) -> list[Case]:
    """The clearest cases, one a scene.

    Args:
        rows: of ``drive_task``, by simulator and scenario id.
        count: how many at most.
    """
    simulator = next((name for name in _ANSWERING if name in rows), None)
    if simulator is None or _LOG not in rows:
        return []
    found: list[Case] = []
    for scenario_id, replayed in rows[_LOG].items():
        answered = rows[simulator][scenario_id]["planners"]
        for planner, scores in replayed["planners"].items():
            false = [one for one in scores["collisions"] if not one["at_fault"]]
            # The log planner drives what was recorded: who strikes it was in its way in the recording.
            if planner == _LOG or not false or len(false) != len(scores["collisions"]):
                continue
            if answered[planner]["collisions"]:
                continue
            found.append(
                Case(
                    scenario_id,
                    planner,
                    simulator,
                    seconds=false[0]["seconds"],
                    rear_hit=any(one["rear_hit"] for one in false),
                    log_score=scores["pdm_mean"],
                    score=answered[planner]["pdm_mean"],
                )
            )
    # Of planners that drive well where agents answer, the one that the replay wrongs most.
    found.sort(key=lambda case: (not case.rear_hit, -round(case.score, 1), case.log_score - case.score))
    best_cases: dict[str, Case] = {}
    for case in found:
        best_cases.setdefault(case.scenario_id, case)
    return list(best_cases.values())[:count]


def write_cases(
    cases: Sequence[Case],
    scenarios: str,
    simulators: Sequence[Entrant],
    planners: tuple[Entrant, ...],
    folder: Path,
    seed: int,
) -> list[dict[str, Any]]:
    """Films and contact sheets of cases, log replay beside traffic that answers; returns them with their files.

    Args:
        cases: of ``choose_cases``. scenarios: where the scenes are. simulators, planners: as they were driven.
        folder: of the pictures. seed: as it was.
    """
    by_name = {one.name: one for one in simulators}
    written: list[dict[str, Any]] = []
    source = open_scenes(scenarios) if cases else None
    for number, case in enumerate(cases, 1):
        assert source is not None
        scene = source.get(case.scenario_id)
        row = [one.name for one in planners].index(case.planner)
        panels, struck = [], None
        for name in (_LOG, case.simulator):
            drive = driven(scene, planners, by_name[name], seed).drive
            (states,) = joint_states(scene, drive.pose[row : row + 1, :, 1:], scene_origin(scene))
            at = f", struck at {case.seconds:.1f} s" if name == _LOG else ""
            panels.append(Panel(f"among {_TITLES[name]}{at}", states))
            # Where the AV is when it is struck is the middle of both pictures.
            struck = states[drive.ego, round(case.seconds / STEP_SECONDS) - 1, :2] if struck is None else struck
        assert struck is not None
        raster = SceneRaster(scene, _PIXELS, _RADIUS, struck.double().numpy())
        rasters = [raster] * len(panels)
        film, sheet = folder / f"case_{number}.mp4", folder / f"case_{number}.png"
        folder.mkdir(parents=True, exist_ok=True)
        write_video(film, (panel_frame(rasters, panels, step) for step in range(NUM_STEPS)))
        moments = [min(8.0, max(0.0, case.seconds + offset)) for offset in _MOMENTS]
        write_sheet(sheet, rasters, panels, moments)
        written.append({**asdict(case), "film": film.name, "sheet": sheet.name})
    return written


Floats = NDArray[np.float64]


def agreement_figure(summary: Summary) -> Any:
    """A matrix of simulators for each score: Pearson's coefficient of the planners' means."""
    names = [title_of(name) for name in summary.simulators]
    columns = 3
    rows = -(-len(SCORE_NAMES) // columns)
    with paper_figure(rows, columns, 6.9, 2.1 * rows) as (figure, axes):
        for axis, score in zip(axes.flat, SCORE_NAMES):
            matrix = _matrix(summary, score)
            image = axis.imshow(matrix, vmin=-1, vmax=1, cmap="RdBu")
            for (row, column), value in np.ndenumerate(matrix):
                known = bool(np.isfinite(value))
                colour = "white" if known and abs(value) > 0.6 else "black"
                text = f"{value:.2f}" if known else "-"
                axis.text(column, row, text, ha="center", va="center", color=colour)
            axis.set_title(title_of(score))
            axis.set_xticks(range(len(names)), names, rotation=30, ha="right")
            axis.set_yticks(range(len(names)), names)
        for axis in axes.flat[len(SCORE_NAMES) :]:
            axis.axis("off")
        figure.colorbar(image, ax=axes, shrink=0.5, label="Pearson, planners' means over scenes")
    return figure


def _matrix(summary: Summary, score: str) -> Floats:
    """[S, S] coefficients, NaN where undefined."""
    place = {name: index for index, name in enumerate(summary.simulators)}
    matrix = np.eye(len(place))
    for one in summary.agreement[score]:
        if one.over == "planners" and one.method == "pearson":
            a, b = place[one.first], place[one.second]
            matrix[a, b] = matrix[b, a] = one.value
    return matrix


def score_figure(summary: Summary) -> Any:
    """A planner a row, its mean PDM and interval in every simulator."""
    count = len(summary.simulators)
    with paper_figure(1, 1, 5.0, 0.26 * len(summary.planners) + 0.8) as (figure, axes):
        axis = axes[0, 0]
        for index, simulator in enumerate(summary.simulators):
            found = [summary.means[simulator][planner]["pdm"] for planner in summary.planners]
            value = np.array([one.value for one in found])
            ends = np.abs(np.array([[one.low, one.high] for one in found]).T - value)
            place = np.arange(len(found)) + (index - (count - 1) / 2) * 0.7 / count
            mark, label = "osD^v"[index % 5], title_of(simulator)
            axis.errorbar(value, place, xerr=np.nan_to_num(ends), fmt=mark, markersize=3, label=label)
        axis.set_yticks(range(len(summary.planners)), [name.replace("_", " ") for name in summary.planners])
        axis.invert_yaxis()
        axis.set_xlabel(f"{title_of('pdm')}, mean over {len(summary.scenes)} scenes")
        axis.set_xlim(-0.02, 1.02)
        figure.legend(loc="outside upper center", ncol=count)
    return figure


def write_planner_figures(folder: Path, summary: Summary) -> list[Path]:
    """PDF and PNG of both figures."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"scores": score_figure(summary)}
    if len(summary.simulators) > 1:
        figures["agreement"] = agreement_figure(summary)
    return [path for name, figure in figures.items() for path in save_figure(figure, folder, name)]
