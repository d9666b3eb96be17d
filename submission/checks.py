"""What is wrong with the rollouts of one scenario, every defect with its place."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from waymo_open_dataset.protos import scenario_pb2
from waymo_open_dataset.utils.sim_agents import submission_specs

from data.scene import CURRENT_INDEX, FUTURE_STEPS, Scene

__all__ = ["ROLLOUTS", "official_defect", "required_ids", "rollout_defects"]

ROLLOUTS = 32
_COORDINATES = ("center_x", "center_y", "center_z", "heading")
# float32(pi) is a little more than pi.
_HEADING_LIMIT = math.pi + 1e-6


def required_ids(scene: Scene) -> list[int]:
    """Ids of the objects that must be simulated, no more and no fewer."""
    ids: list[int] = scene.agents.id[scene.simulated].tolist()
    return ids


def rollout_defects(message: Any, required: Sequence[int]) -> list[str]:
    """Defects of a ``ScenarioRollouts`` message.

    Args:
        message: the proto. required: ids that every joint scene must hold exactly once.
    """
    defects = []
    if len(message.joint_scenes) != ROLLOUTS:
        defects.append(f"{len(message.joint_scenes)} joint scenes, expected {ROLLOUTS}")
    wanted = set(required)
    for number, scene in enumerate(message.joint_scenes):
        place = f"joint scene {number}"
        counts = Counter(trajectory.object_id for trajectory in scene.simulated_trajectories)
        defects += [f"{place}: object {i} is missing" for i in sorted(wanted - counts.keys())]
        defects += [f"{place}: object {i} is not to be simulated" for i in sorted(counts.keys() - wanted)]
        defects += [f"{place}: object {i} occurs {n} times" for i, n in sorted(counts.items()) if n > 1]
        for trajectory in scene.simulated_trajectories:
            defects += [f"{place}: object {trajectory.object_id}: {text}" for text in _trajectory(trajectory)]
    return defects


def _trajectory(trajectory: Any) -> list[str]:
    defects = []
    for name in _COORDINATES:
        values = np.array(getattr(trajectory, name), dtype=np.float32)
        if len(values) != FUTURE_STEPS:
            defects.append(f"{name} has {len(values)} values, expected {FUTURE_STEPS}")
        elif not np.isfinite(values).all():
            defects.append(f"{name} is NaN or infinite at step {int(np.argmin(np.isfinite(values)))}")
        elif name == "heading" and np.abs(values).max() > _HEADING_LIMIT:
            worst = int(np.abs(values).argmax())
            defects.append(f"heading is {values[worst]:.3f} at step {worst}, expected a value in [-pi, pi)")
    return defects


def official_defect(message: Any, scene: Scene) -> str | None:
    """What Waymo's ``validate_scenario_rollouts`` says against a message, or None if it accepts it.

    It reads of the scenario nothing but track ids and their validity at the current step; a proto with just these
    is rebuilt from the scene.
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
