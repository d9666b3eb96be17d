"""Defects and suspicions of the rollouts of one scenario."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from waymo_open_dataset.protos import scenario_pb2
from waymo_open_dataset.utils.sim_agents import submission_specs

from data.scene import CURRENT_INDEX, FUTURE_STEPS, Scene
from submission.conventions import convention_suspicions
from submission.suspicion import Array, Recorded, Suspicion, suspicions

ROLLOUTS = 32
_COORDINATES = ("center_x", "center_y", "center_z", "heading")
# float32(pi) is a little more than pi.
_HEADING_LIMIT = math.pi + 1e-6


@dataclass
class Findings:
    """Findings about a scenario.

    Attributes:
        defects: reasons why the server or the rules refuse it, one line each. suspicions: searched only if there
            are no defects.
    """

    defects: list[str] = field(default_factory=list)
    suspicions: list[Suspicion] = field(default_factory=list)


def required_ids(scene: Scene) -> list[int]:
    """Ids of exactly the objects that must be simulated."""
    ids: list[int] = scene.agents.id[scene.simulated].tolist()
    return ids


def examine(message: Any, scene: Scene) -> Findings:
    """Check a ``ScenarioRollouts`` message against its scenario, which may lack the future."""
    required = required_ids(scene)
    findings = Findings()
    defects = findings.defects
    if len(message.joint_scenes) != ROLLOUTS:
        defects.append(f"{len(message.joint_scenes)} joint scenes, expected {ROLLOUTS}")
    wanted, row_of = set(required), {value: row for row, value in enumerate(required)}
    states: Array = np.zeros((len(message.joint_scenes), len(required), FUTURE_STEPS, 4), np.float32)
    for number, joint in enumerate(message.joint_scenes):
        where = f"joint scene {number}"
        counts = Counter(trajectory.object_id for trajectory in joint.simulated_trajectories)
        defects += [f"{where}: object {i} is missing" for i in sorted(wanted - counts.keys())]
        defects += [f"{where}: object {i} is not to be simulated" for i in sorted(counts.keys() - wanted)]
        defects += [f"{where}: object {i} occurs {n} times" for i, n in sorted(counts.items()) if n > 1]
        for trajectory in joint.simulated_trajectories:
            values, texts = _trajectory(trajectory)
            defects += [f"{where}: object {trajectory.object_id}: {text}" for text in texts]
            row = row_of.get(trajectory.object_id)
            if values is not None and row is not None:
                states[number, row] = values.T
    if not defects:
        findings.suspicions = _suspicions(required, states, scene)
    return findings


def _trajectory(trajectory: Any) -> tuple[Array | None, list[str]]:
    """Values [4, 80], None if the lengths are wrong, and their defects."""
    columns = [np.array(getattr(trajectory, name), dtype=np.float32) for name in _COORDINATES]
    if all(len(column) == FUTURE_STEPS for column in columns):
        values = np.stack(columns)
        # The common case without defects is fast.
        if np.isfinite(values).all() and np.abs(values[3]).max() <= _HEADING_LIMIT:
            return values, []
    else:
        values = None
    defects = []
    for name, column in zip(_COORDINATES, columns, strict=True):
        if len(column) != FUTURE_STEPS:
            defects.append(f"{name} has {len(column)} values, expected {FUTURE_STEPS}")
        elif not np.isfinite(column).all():
            defects.append(f"{name} is NaN or infinite at step {int(np.argmin(np.isfinite(column)))}")
        elif name == "heading" and np.abs(column).max() > _HEADING_LIMIT:
            worst = int(np.abs(column).argmax())
            defects.append(f"heading is {column[worst]:.3f} at step {worst}, expected a value in [-pi, pi)")
    return values, defects


def _suspicions(ids: list[int], states: Array, scene: Scene) -> list[Suspicion]:
    if not states.size:
        return []
    recorded = _recorded(scene)
    # Squares of coordinates that no road has may be beyond float32; infinity is as far off as they are.
    with np.errstate(over="ignore", invalid="ignore"):
        return suspicions(ids, states, recorded) + convention_suspicions(ids, states, recorded)


def suspicions_of(agent_id: Tensor, states: Tensor, scene: Scene) -> list[Suspicion]:
    """Suspicions of any number of rollouts, with objects in any order; empty if objects or values are wrong.

    Args:
        agent_id: [A]. states: [R, A, 80, 4], see ``Rollouts``. scene: its scenario.
    """
    ids = required_ids(scene)
    row_of = {value: row for row, value in enumerate(agent_id.tolist())}
    if row_of.keys() != set(ids) or not bool(torch.isfinite(states).all()):
        return []
    return _suspicions(ids, states[:, [row_of[i] for i in ids]].numpy(), scene)


def _recorded(scene: Scene) -> Recorded:
    agents, simulated = scene.agents, scene.simulated
    past, after = slice(0, CURRENT_INDEX), slice(CURRENT_INDEX + 1, CURRENT_INDEX + 1 + FUTURE_STEPS)
    position, valid = agents.position[simulated].numpy(), agents.valid[simulated].numpy()
    return Recorded(
        now=position[:, CURRENT_INDEX],
        future=position[:, after],
        valid=valid[:, after],
        heading=agents.heading[simulated, CURRENT_INDEX].numpy(),
        velocity=agents.velocity[simulated, CURRENT_INDEX].numpy(),
        height=agents.size[simulated, CURRENT_INDEX, 2].numpy(),
        past=position[:, past, :2],
        past_valid=valid[:, past],
        kind=agents.type[simulated].numpy(),
        is_sdc=agents.is_sdc[simulated].numpy(),
    )


def official_defect(message: Any, scene: Scene) -> str | None:
    """Error of Waymo's ``validate_scenario_rollouts`` for a message, or None if it accepts it.

    It only reads track ids and their validity at the current step, so a proto with these is built from the scene.
    """
    scenario = scenario_pb2.Scenario(scenario_id=str(scene.scenario_id))
    valid = scene.agents.valid[:, CURRENT_INDEX].tolist()
    for agent_id, now in zip(scene.agents.id.tolist(), valid, strict=True):
        track = scenario.tracks.add(id=agent_id)
        for step in range(CURRENT_INDEX + 1):
            track.states.add(valid=now and step == CURRENT_INDEX)
    try:
        submission_specs.validate_scenario_rollouts(message, scenario)
    except ValueError as error:
        return " ".join(str(error).split())
    return None
