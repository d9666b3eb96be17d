"""Drive the AV of a scene with a planner while all others replay the log; and scenes with roads for it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data.scene import MapKind, Scene, until_now
from data.tokenizer import scene_origin
from data.vocabulary import type_index
from pipeline.planners.execution import execute
from pipeline.planners.interface import Floats, MakePlanner, Mission, Situation, Trajectory
from pipeline.planners.route import find_route

__all__ = ["Drive", "drive", "mission_of", "straight_road"]


@dataclass(frozen=True)
class Drive:
    """What happened: poses [T + 1, 3] of the AV, the first one recorded, and what the planner was told."""

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


def mission_of(scene: Scene, seed: int = 0) -> Mission:
    origin = scene_origin(scene).double().numpy()
    ego = int(scene.agents.is_sdc[scene.simulated].nonzero()[0])
    recorded = _recorded(scene, origin)[ego, 11:]
    route = find_route(scene, origin, recorded if len(recorded) else None)
    return Mission(until_now(scene), origin, ego, route, recorded, seed)


def drive(scene: Scene, make: MakePlanner, steps: int = 80, others: Floats | None = None) -> Drive:
    """Others [A, 11 + steps, 3] replay the log unless told otherwise, at its end they go straight on."""
    mission = mission_of(scene)
    planner = make(mission)
    ego, agents, chosen = mission.ego, scene.agents, scene.simulated.numpy()
    tracks = _recorded(scene, mission.origin) if others is None else others
    valid = agents.valid.numpy()[chosen]
    pose = tracks[:, 10].copy()
    velocity = agents.velocity[scene.simulated, 10].numpy().astype(np.float64)
    before = np.linalg.norm(agents.velocity[scene.simulated, 9][ego].numpy())
    acceleration, yaw = float(np.linalg.norm(velocity[ego]) - before) / 0.1, 0.0
    poses, situations = [pose[ego].copy()], []
    lines, red = _lights(scene, mission.origin)
    answer: object = None
    asked = -planner.period
    for step in range(steps):
        if step - asked >= planner.period:
            there = valid[:, min(10 + step, valid.shape[1] - 1)].copy()
            there[ego] = True
            situation = Situation(
                step, pose.copy(), velocity.copy(), agents.size[scene.simulated, 10, :2].numpy().astype(np.float64),
                type_index(agents.type[scene.simulated]).numpy(), there, acceleration, yaw,
                lines, red[:, min(10 + step, red.shape[1] - 1)],
            )  # fmt: skip
            situations.append(situation)
            answer, asked = planner.plan(situation), step
        last, speed = pose[ego].copy(), float(np.linalg.norm(velocity[ego]))
        following = tracks[:, min(11 + step, tracks.shape[1] - 1)].copy()
        if 11 + step >= tracks.shape[1]:
            following = pose.copy()
            following[:, :2] += velocity * 0.1
        if isinstance(answer, Trajectory):
            following[ego] = answer.pose[step - asked]
        else:
            following[ego], _ = execute(last, speed, answer)  # type: ignore[arg-type]
        velocity = (following[:, :2] - pose[:, :2]) / 0.1
        acceleration = (float(np.linalg.norm(velocity[ego])) - speed) / 0.1
        yaw = float(np.arctan2(*(f(following[ego, 2] - last[2]) for f in (np.sin, np.cos)))) / 0.1
        pose = following
        poses.append(pose[ego].copy())
    return Drive(mission, np.array(poses), situations)


def _lights(scene: Scene, origin: Floats) -> tuple[Floats, np.ndarray]:
    from data.vocabulary import Vocabulary  # noqa: F401
    from pipeline.selfplay.worlds import _signals

    line, red, placed = _signals(scene, scene_origin(scene))
    lines = line.double().numpy()
    return lines[placed.numpy()], red.numpy()[placed.numpy()]


_ = replace
