"""Drive the AV of a scene with a planner while all others replay the log; and scenes with roads for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.scene import MapKind, Scene
from data.tokenizer import scene_origin
from data.vocabulary import type_index
from pipeline.simulator.world import signals_of
from pipeline.studies.planners.drive import mission_of
from pipeline.studies.planners.interface import (
    Control,
    Floats,
    MakePlanner,
    Mission,
    Situation,
    Trajectory,
    execute,
)
from pipeline.studies.planners.lanes import wrapped

__all__ = ["Drive", "drive", "mission_of", "straight_road"]


@dataclass(frozen=True)
class Drive:
    """What happened: poses [T + 1, 3] of the AV in the scene's coordinates, the first one recorded, and what the
    planner was told."""

    mission: Mission
    pose: Floats
    situations: list[Situation]

    @property
    def speed(self) -> Floats:
        """[T] m/s."""
        return np.linalg.norm(np.diff(self.pose[:, :2], axis=0), axis=1) / 0.1


def straight_road(length: float = 400.0, y: float = 0.0) -> tuple[MapKind, list[tuple[float, ...]]]:
    """A lane along +x from -50 m on."""
    return MapKind.LANE, [(float(x), y) for x in np.arange(-50.0, length, 2.0)]


def _recorded(scene: Scene, origin: Floats) -> Floats:
    """[A, T, 3] poses of the simulated agents."""
    agents = scene.agents
    position = agents.position[..., :2].numpy().astype(np.float64) - origin
    return np.concatenate((position, agents.heading.numpy()[..., None]), axis=-1)[scene.simulated.numpy()]


def drive(scene: Scene, make: MakePlanner, steps: int = 80) -> Drive:
    """All others replay the log, and go straight on at its end."""
    mission = mission_of(scene)
    planner = make(mission)
    ego, agents, chosen = mission.ego, scene.agents, scene.simulated
    tracks = _recorded(scene, mission.origin)
    valid = agents.valid[chosen].numpy()
    size = agents.size[chosen, 10, :2].double().numpy()
    types = type_index(agents.type[chosen]).numpy()
    velocity = agents.velocity[chosen, 10].double().numpy()
    lines, red = _lights(scene)
    pose = tracks[:, 10].copy()
    acceleration, yaw = float(np.linalg.norm(velocity[ego]) - agents.velocity[chosen, 9][ego].norm()) / 0.1, 0.0
    poses, situations = [pose[ego].copy()], []
    answer: Trajectory | Control = Control(0.0, 0.0)
    asked, rolling = -planner.period, 0.0
    for step in range(steps):
        speed = float(np.linalg.norm(velocity[ego]))
        rolling = speed if step == 0 else rolling
        if step - asked >= planner.period:
            there = valid[:, min(10 + step, valid.shape[1] - 1)].copy()
            there[ego] = True
            now = red[:, min(10 + step, red.shape[1] - 1)]
            situations.append(Situation(step, pose, velocity, size, types, there, acceleration, yaw, lines, now))
            answer, asked = planner.plan(situations[-1]), step
        if 11 + step < tracks.shape[1]:
            after = tracks[:, 11 + step].copy()
        else:
            after = pose + 0.1 * np.concatenate((velocity, np.zeros((len(pose), 1))), axis=1)
        if isinstance(answer, Trajectory):
            after[ego] = answer.pose[step - asked]
        else:
            # The model's own speed: that of the last step's way is half a step old.
            after[ego], rolling = execute(pose[ego], rolling, answer)
        velocity = (after[:, :2] - pose[:, :2]) / 0.1
        acceleration = (float(np.linalg.norm(velocity[ego])) - speed) / 0.1
        yaw = float(wrapped(after[ego, 2] - pose[ego, 2])) / 0.1
        pose = after
        poses.append(pose[ego].copy())
    return Drive(mission, np.array(poses) + np.append(mission.origin, 0.0), situations)


def _lights(scene: Scene) -> tuple[Floats, NDArray[np.bool_]]:
    """Stop lines [S, 3] and whether they are red [S, T]."""
    line, red, placed = signals_of(scene, scene_origin(scene))
    lines = line.double().numpy()
    return lines[placed.numpy()], red.numpy()[placed.numpy()]
