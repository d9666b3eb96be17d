"""Driving a scene: planners in the AV, one copy of the scene for each, and traffic around them.

The AV and the world are conditionally independent, as the challenge demands: at every step both decide from
what has happened by then, and neither knows what the other is about to do. Shape legend: P planners, A agents, S
signals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.errors import UserError
from data.geometry import wrap_angle
from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, Scene, generator_for, until_now
from data.tokenizer import scene_origin
from data.vocabulary import type_index
from pipeline.agents.agent import Agent
from pipeline.simulator.world import signals_of
from pipeline.studies.planners.drive_record import Drive
from pipeline.studies.planners.interface import (
    Control,
    Floats,
    MakePlanner,
    Mission,
    Planner,
    Situation,
    Trajectory,
    execute,
)
from pipeline.studies.planners.route import find_route


def mission_of(scene: Scene, seed: int = 0) -> Mission:
    """What planners know of a scene with a future before they start.

    Raises:
        UserError: the AV is not there at the current step, or the scene has no future.
    """
    if not scene.has_future:
        raise UserError(
            f"scenario {scene.scenario_id}: {scene.num_steps} steps; planners are judged by what the AV did, so "
            "the future is needed (training or validation split)"
        )
    chosen = scene.agents.is_sdc[scene.simulated]
    if not bool(chosen.any()):
        raise UserError(f"scenario {scene.scenario_id}: the AV is not there at the current step")
    origin = scene_origin(scene).double().numpy()
    agents = scene.agents
    row = int((agents.is_sdc & scene.simulated).int().argmax())
    pose = torch.cat((agents.position[row, :, :2], agents.heading[row].unsqueeze(-1)), dim=-1).double().numpy()
    pose[:, :2] -= origin
    valid = agents.valid[row].numpy()
    recorded = _without_gaps(pose, valid)[CURRENT_INDEX + 1 :]
    return Mission(
        scene=until_now(scene),
        origin=origin,
        ego=int(chosen.int().argmax()),
        route=find_route(scene, origin, recorded),
        recorded=recorded,
        seed=seed,
    )


def _without_gaps(pose: Floats, valid: np.ndarray) -> Floats:
    """Poses [T, 3] with straight lines over what was not recorded, and standing still beyond its ends."""
    steps, known = np.arange(len(pose)), np.flatnonzero(valid)
    heading = np.unwrap(pose[known, 2])
    return np.stack([np.interp(steps, known, column) for column in (*pose[known, :2].T, heading)], axis=-1)


@dataclass(frozen=True)
class _Stage:
    """What does not change while a scene is driven."""

    size: Floats  # [A, 2]
    type: np.ndarray  # [A]
    stop_line: Floats  # [S, 3]
    red: np.ndarray  # [S, 81]
    velocity: Floats  # [A, 2] at the current step
    acceleration: float  # of the AV at the current step
    yaw_rate: float


def _stage(scene: Scene, origin: Tensor) -> _Stage:
    agents, chosen = scene.agents, scene.simulated
    line, red, placed = signals_of(scene, origin)
    row = int((agents.is_sdc & chosen).int().argmax())
    before, now = CURRENT_INDEX - 1, CURRENT_INDEX
    acceleration = yaw_rate = 0.0
    if bool(agents.valid[row, before]):
        heading = agents.heading[row, now]
        forward = torch.stack((torch.cos(heading), torch.sin(heading)))
        change = agents.velocity[row, now] - agents.velocity[row, before]
        acceleration = float(change @ forward) / STEP_SECONDS
        yaw_rate = float(wrap_angle(heading - agents.heading[row, before])) / STEP_SECONDS
    return _Stage(
        size=agents.size[chosen, now, :2].double().numpy(),
        type=type_index(agents.type[chosen]).numpy(),
        stop_line=line[placed].double().numpy(),
        red=red[placed, now:].numpy(),
        velocity=agents.velocity[chosen, now].double().numpy(),
        acceleration=acceleration,
        yaw_rate=yaw_rate,
    )


def drive_scene(scene: Scene, planners: Mapping[str, MakePlanner], traffic: Agent, mission: Mission) -> Drive:
    """Drive a scene for 8 s with every planner, each in a copy of its own.

    Args:
        scene: single, with a future. planners: made anew here.
        traffic: drives everybody but the AV; it draws the same numbers for all planners.
        mission: of ``mission_of``, whose seed is that of planners and traffic.

    Returns:
        The drives in the order of ``planners``.

    Raises:
        UserError: a planner answers nonsense.
    """
    agents = int(scene.simulated.sum())
    made = [(name, make(mission)) for name, make in planners.items()]
    size = max(1, traffic.max_rows // agents)
    parts = [
        _drive_together(scene, made[first : first + size], traffic, mission) for first in range(0, len(made), size)
    ]
    return Drive(
        pose=torch.cat([pose for pose, _ in parts]),
        present=torch.cat([present for _, present in parts]),
        ego=mission.ego,
        sizes=scene.agents.size[scene.simulated, CURRENT_INDEX],
        heights=scene.agents.position[scene.simulated, CURRENT_INDEX, 2],
    )


def _drive_together(
    scene: Scene, planners: Sequence[tuple[str, Planner]], agent: Agent, mission: Mission
) -> tuple[Tensor, Tensor]:
    """Poses [P, A, 81, 3] and presence [P, A, 81]."""
    origin, count, ego = scene_origin(scene), len(planners), mission.ego
    stage = _stage(scene, origin)
    now = scene.agents.position[scene.simulated, CURRENT_INDEX, :2] - origin
    start = torch.cat((now, scene.agents.heading[scene.simulated, CURRENT_INDEX].unsqueeze(-1)), dim=-1)
    pose = start[None, :, None].repeat(count, 1, FUTURE_STEPS + 1, 1)
    present = torch.ones(pose.shape[:3], dtype=torch.bool)
    traffic = Traffic(agent, scene, count, mission.seed)
    drivers = [_Driver(name, planner, ego) for name, planner in planners]
    steps = agent.token_steps
    for step in range(FUTURE_STEPS):
        if step % steps == 0:
            moved, there = traffic.decide()
            pose[:, :, step + 1 : step + 1 + steps], present[:, :, step + 1 : step + 1 + steps] = moved, there
            present[:, ego] = True
        for index, driver in enumerate(drivers):
            if driver.asks:
                driver.ask(_situation(stage, pose[index], present[index], ego, step))
            pose[index, ego, step + 1] = torch.from_numpy(driver.next()).float()
        if (step + 1) % steps == 0:
            traffic.happened(pose[:, ego, step + 2 - steps : step + 2])
    return pose, present


def _situation(stage: _Stage, pose: Tensor, present: Tensor, ego: int, step: int) -> Situation:
    """As it is at a step, from poses [A, 81, 3] of which those up to the step are read."""
    now = pose[:, step].double().numpy()
    velocity, acceleration, yaw_rate = stage.velocity, stage.acceleration, stage.yaw_rate
    if step:
        known = pose[:, max(0, step - 2) : step + 1].double().numpy()
        moved = np.diff(known, axis=1)
        # Who was away a step ago has no velocity yet.
        seen = present[:, step - 1].numpy()[:, None]
        velocity = np.where(seen, moved[:, -1, :2] / STEP_SECONDS, 0.0)
        forward = np.array([np.cos(now[ego, 2]), np.sin(now[ego, 2])])
        before = moved[ego, -2, :2] / STEP_SECONDS if step > 1 else stage.velocity[ego]
        acceleration = float((velocity[ego] - before) @ forward) / STEP_SECONDS
        turn = moved[ego, -1, 2]
        yaw_rate = float(np.arctan2(np.sin(turn), np.cos(turn))) / STEP_SECONDS
    return Situation(
        step=step,
        pose=now,
        velocity=velocity,
        size=stage.size,
        type=stage.type,
        present=present[:, step].numpy(),
        acceleration=acceleration,
        yaw_rate=yaw_rate,
        stop_line=stage.stop_line,
        red=stage.red[:, step],
    )


class Traffic:
    """An agent drives everybody but the AV in P copies of a scene; what it draws depends on (seed, scene) alone.

    Within a decision it decides from what has happened by then, and is told afterwards where the planner drove. All
    copies draw the same numbers, so that planners meet the same people.

    Args:
        agent: of the traffic. scene: a single one. copies: P. seed: of the draws.

    Raises:
        UserError: log replay in a scene without a future.
    """

    def __init__(self, agent: Agent, scene: Scene, copies: int, seed: int) -> None:
        self._ego = int(scene.agents.is_sdc[scene.simulated].int().argmax())
        driven = torch.ones(int(scene.simulated.sum()), dtype=torch.bool)
        driven[self._ego] = False
        self._drive = agent.start(agent.prepare(scene), copies, driven)
        shape = (FUTURE_STEPS // agent.token_steps, 1, len(driven))
        uniform = torch.rand(shape, generator=generator_for(seed, str(scene.scenario_id)))
        self._uniform = iter(uniform.to(agent.device).expand(-1, copies, -1))
        self._pose = torch.zeros(0)

    def decide(self) -> tuple[Tensor, Tensor]:
        """Where everybody is at the next steps: poses [P, A, s, 3] from the scene's origin on the CPU, and who is
        there [P, A, s], s steps of 0.1 s in a decision; the AV's row means nothing."""
        self._pose, present = self._drive.step(next(self._uniform).contiguous())
        return self._pose.cpu(), present.cpu()

    def happened(self, ego: Tensor) -> None:
        """Where the AV went meanwhile: [P, s, 3] on the CPU."""
        pose = self._pose.clone()
        pose[:, self._ego] = ego.to(pose.device)
        self._drive.observe(pose)


class _Driver:
    """A planner at the wheel: asks it when its last plan is used up, and follows what it says."""

    def __init__(self, name: str, planner: Planner, ego: int) -> None:
        self._name, self._planner, self._ego = name, planner, ego
        self._plan: list[Floats] = []
        # At the end of the last step, known while a control is held: poses tell the mean speed of a step alone.
        self._speed: float | None = None

    @property
    def asks(self) -> bool:
        return not self._plan

    def next(self) -> Floats:
        """Pose [3] at the next step."""
        return self._plan.pop(0)

    def ask(self, situation: Situation) -> None:
        """Fetch poses until the planner is asked again.

        Raises:
            UserError: they are too few, or not numbers.
        """
        period, where = self._planner.period, f"planner {self._name}"
        if period < 1:
            raise UserError(f"{where}: period is {period}, expected at least one step of 0.1 s")
        plan = self._planner.plan(situation)
        if isinstance(plan, Trajectory):
            pose = np.asarray(plan.pose, dtype=np.float64)
            if pose.ndim != 2 or pose.shape[1] != 3 or len(pose) < period:
                raise UserError(
                    f"{where}: trajectory of shape {pose.shape} at step {situation.step}, expected [n, 3] with n "
                    f"at least its period, {period}"
                )
            self._plan, self._speed = list(pose[:period]), None
        else:
            self._plan = self._held(plan, situation, period)
        if not np.isfinite(self._plan).all():
            raise UserError(f"{where}: not a number in its plan at step {situation.step}")

    def _held(self, control: Control, situation: Situation, period: int) -> list[Floats]:
        """Poses while a control is held."""
        pose, poses = situation.pose[self._ego], []
        if self._speed is None:
            self._speed = float(np.hypot(*situation.velocity[self._ego]))
        for _ in range(period):
            pose, self._speed = execute(pose, self._speed, control)
            poses.append(pose)
        return poses
