"""Driving some scenes in one simulator with all planners, and scoring it: the unit of work of ``planners``."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.scene import Scene
from data.scenes_source import SceneSource, open_scenes
from data.tokenizer import scene_origin
from pipeline.agents.agent import Agent
from pipeline.agents.baselines import LogReplay
from pipeline.agents.catalogue import open_agent
from pipeline.execution.result_cache import code_version, digest_of
from pipeline.studies.planners.catalogue import load_planner
from pipeline.studies.planners.drive import drive_scene, mission_of
from pipeline.studies.planners.drive_record import Drive
from pipeline.studies.planners.interface import MakePlanner, Mission
from pipeline.studies.planners.manoeuvres import MANOEUVRES, find_cut_in, find_follower
from pipeline.studies.planners.reactivity import Reaction, measure
from pipeline.studies.planners.scores import SCORE_NAMES, DriveScores, score_drives


@dataclass(frozen=True)
class Entrant:
    """A planner or a simulator that takes part.

    Attributes:
        name: in tables. source: of a planner what ``load_planner`` takes, of a simulator ``log`` or a checkpoint.
        digest: of its file, if it is one.
        device: of a simulator, as torch takes it.
    """

    name: str
    source: str
    digest: str | None = None
    device: str = "cpu"

    @property
    def placeless(self) -> Entrant:
        """A file is what it holds, wherever it lies and wherever it is computed."""
        return dataclasses.replace(self, source=self.source if self.digest is None else "", device="")


@dataclass(frozen=True)
class DriveTask:
    """Scenes to drive in one simulator with all planners.

    Attributes:
        scenarios: records or store with futures. content: tells changed ones apart. ids: of the scenes.
        simulator: of the others. planners: of the AV. seed: of planners and traffic.
    """

    scenarios: str
    content: str
    ids: tuple[str, ...]
    simulator: Entrant
    planners: tuple[Entrant, ...]
    seed: int

    @property
    def size(self) -> int:
        return len(self.ids)

    @property
    def name(self) -> str:
        placeless = dataclasses.replace(
            self,
            scenarios="",
            simulator=self.simulator.placeless,
            planners=tuple(one.placeless for one in self.planners),
        )
        return digest_of(placeless, code=code_version(__name__))


@lru_cache(maxsize=1)
def _source(scenarios: str, content: str) -> SceneSource:
    return open_scenes(scenarios)


@lru_cache(maxsize=4)
def _traffic(simulator: Entrant) -> Agent:
    """Opened once in a process."""
    if simulator.source == "log":
        return LogReplay()
    return open_agent(Path(simulator.source), device=simulator.device)


@lru_cache(maxsize=2)
def _planners(planners: tuple[Entrant, ...]) -> Mapping[str, MakePlanner]:
    """By name, opened once in a process."""
    return {planner.name: load_planner(planner.source) for planner in planners}


@dataclass(frozen=True)
class Driven:
    """A scene driven by all planners, and behind them the manoeuvres that fit it.

    Attributes:
        followers: row of the agent that has to react, by manoeuvre, in the order of the drives.
    """

    mission: Mission
    drive: Drive
    followers: Mapping[str, int]


def driven(scene: Scene, planners: tuple[Entrant, ...], simulator: Entrant, seed: int) -> Driven:
    """Drive a scene; the same arguments give the same drives.

    Raises:
        UserError: the scene cannot be driven.
    """
    mission = mission_of(scene, seed)
    followers = _followers(scene, mission)
    # One drive of all, so that traffic is simulated once.
    everybody = {**_planners(planners), **{name: MANOEUVRES[name] for name in followers}}
    return Driven(mission, drive_scene(scene, everybody, _traffic(simulator), mission), followers)


def _followers(scene: Scene, mission: Mission) -> dict[str, int]:
    """The agent that has to react, by manoeuvre; without manoeuvres that concern no agent."""
    origin = scene_origin(scene)
    behind, beside = find_follower(scene, origin), find_cut_in(scene, origin, mission.route)
    rows = {"hard_brake": behind, "gentle_stop": behind, "cut_in": None if beside is None else beside.follower}
    return {name: row for name, row in rows.items() if row is not None}


def drive_task(task: DriveTask) -> list[dict[str, Any]]:
    """Drive and score; a row for every scene, with the reason where one cannot be driven."""
    source = _source(task.scenarios, task.content)
    rows = []
    for name in task.ids:
        try:
            rows.append(_row(source.get(name), task))
        except UserError as error:
            rows.append({"scenario_id": name, "reason": str(error)})
    return rows


def _row(scene: Scene, task: DriveTask) -> dict[str, Any]:
    """What every planner came to in a scene, and what the others did around an AV that brakes or cuts in."""
    result = driven(scene, task.planners, task.simulator, task.seed)
    scores = score_drives(result.drive, scene, scene_origin(scene), result.mission.route)
    first = len(task.planners)
    return {
        "scenario_id": str(scene.scenario_id),
        "planners": {one.name: _scored(scores, row) for row, one in enumerate(task.planners)},
        "manoeuvres": {
            name: _reacted(measure(result.drive, scores.collisions, follower), first + row)
            for row, (name, follower) in enumerate(result.followers.items())
        },
    }


def _reacted(reaction: Reaction, row: int) -> dict[str, float | None]:
    values = {field.name: float(getattr(reaction, field.name)[row]) for field in dataclasses.fields(reaction)}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _scored(scores: DriveScores, row: int) -> dict[str, Any]:
    values: dict[str, Any] = {name: float(scores.values[name][row]) for name in SCORE_NAMES}
    least = float(scores.least_ttc[row])
    values["least_ttc"] = least if math.isfinite(least) else None
    values["collisions"] = [
        {"agent": one.agent, "seconds": one.seconds, "at_fault": one.at_fault, "rear_hit": one.rear_hit}
        for one in scores.collisions.listed()
        if one.drive == row
    ]
    return values
