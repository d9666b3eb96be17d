"""Cases in which log replay gives a collision that nobody is to blame for, and agents that answer give none.

In a replay the agents behind an AV that drives other than it did in the log cannot see it, and run into it. Found
by the program: for every planner and scene, a collision in log replay that is not the AV's fault, and none at all
among agents driven by the policy. Being struck from behind comes first, then drives that are good among agents that
answer, then what the score gains.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.ground import joint_states
from data.scene import NUM_STEPS, STEP_SECONDS
from data.scenes_source import open_scenes
from data.tokenizer import scene_origin
from pipeline.drawing.films import write_sheet, write_video
from pipeline.drawing.raster import Panel, SceneRaster, panel_frame
from pipeline.studies.planners.tasks import Entrant, driven

__all__ = ["Case", "choose_cases", "write_cases"]

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
    chosen: dict[str, Case] = {}
    for case in found:
        chosen.setdefault(case.scenario_id, case)
    return list(chosen.values())[:count]


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
