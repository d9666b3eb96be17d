"""Planners by name: built-in ones, policies by path, your own as ``package.module:factory``; and two yardsticks."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path

import numpy as np

from data.errors import UserError, did_you_mean
from data.files import sha256_of
from data.scene import STEP_SECONDS
from pipeline.studies.planners.frenet import FRENET_SETTINGS, FrenetPlanner
from pipeline.studies.planners.idm import IDM_SETTINGS, IDMPlanner
from pipeline.studies.planners.interface import MakePlanner, Mission, Situation, Trajectory

_CHECKPOINT = ".ckpt"


def builtin_planners() -> dict[str, MakePlanner]:
    """Every built-in planner by name: ``constant_velocity``, ``log``, ten ``idm_*`` and ten ``frenet_*``."""
    planners: dict[str, MakePlanner] = {"constant_velocity": ConstantVelocityPlanner, "log": LogPlanner}
    planners |= {f"idm_{name}": partial(IDMPlanner, settings=value) for name, value in IDM_SETTINGS.items()}
    planners |= {
        f"frenet_{name}": partial(FrenetPlanner, settings=value) for name, value in FRENET_SETTINGS.items()
    }
    return planners


def load_planner(name: str) -> MakePlanner:
    """A planner by name.

    Args:
        name: a built-in one; the path of a policy's checkpoint, ending with ``.ckpt``; or
            ``package.module:factory``, a function or class of yours that takes a ``Mission`` and returns a planner.

    Raises:
        UserError: none of these, or nothing there.
    """
    planners = builtin_planners()
    if name in planners:
        return planners[name]
    if name.endswith(_CHECKPOINT):
        # Imported here: the others need no network code.
        from pipeline.agents.policy_agent import PolicyAgent
        from pipeline.studies.planners.policy_planner import PolicyPlanner

        agent = PolicyAgent.from_checkpoint(Path(name))
        return lambda mission: PolicyPlanner(mission, agent)
    if ":" in name:
        return _own(name)
    raise UserError(
        f"planner {name}: no such planner, expected one of {', '.join(planners)}, a policy's path ending with "
        f"{_CHECKPOINT}, or package.module:factory{did_you_mean(name, planners)}"
    )


def own_digest(name: str) -> str | None:
    """SHA-256 of the file that defines ``package.module:factory``, not of what that imports; None of others."""
    file = None
    if ":" in name:
        _own(name)
        file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return None if file is None else sha256_of(Path(file))


def _own(name: str) -> MakePlanner:
    module, _, factory = name.partition(":")
    try:
        found = importlib.import_module(module)
    except Exception as error:
        # Whatever the user's module raises when it is imported.
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"planner {name}: {module} cannot be imported ({reason}); is its folder on PYTHONPATH?"
        ) from error
    make: MakePlanner | None = getattr(found, factory, None)
    if make is None:
        hint = did_you_mean(factory, dir(found))
        raise UserError(f"planner {name}: {module} has no {factory or 'name behind the colon'}{hint}")
    if not callable(make):
        raise UserError(f"planner {name}: {factory} is a {type(make).__name__}, expected a function of a Mission")
    return make


class ConstantVelocityPlanner:
    """Keeps velocity and heading, whatever comes."""

    period = 10

    def __init__(self, mission: Mission) -> None:
        self._ego = mission.ego

    def plan(self, situation: Situation) -> Trajectory:
        """Straight on."""
        pose, velocity = situation.pose[self._ego], situation.velocity[self._ego]
        seconds = STEP_SECONDS * np.arange(1, self.period + 1)[:, None]
        move = np.concatenate((velocity * seconds, np.zeros_like(seconds)), axis=1)
        return Trajectory(pose + move)


class LogPlanner:
    """Drives as recorded: no planner, since it knows what happened."""

    period = 10

    def __init__(self, mission: Mission) -> None:
        self._recorded = mission.recorded

    def plan(self, situation: Situation) -> Trajectory:
        """The next second of the recording; behind its end the AV stands."""
        step = np.minimum(np.arange(situation.step, situation.step + self.period), len(self._recorded) - 1)
        return Trajectory(self._recorded[step])
