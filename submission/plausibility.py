"""What the server accepts and is almost surely a mistake: agents that jump, sink or fly, futures that were known.

Limits leave room to what was recorded: over 319 scenarios of WOMD no vehicle moves more than 6.6 m in a step, no
pedestrian or cyclist more than 1.5 m, and no height changes by more than 0.7 m
(``scripts/studies/measure.py motion``).

Shape legend: R joint scenes, A objects, 80 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from submission.suspicion import EXAMPLES, Suspicion

__all__ = ["CLIMB", "JUMP", "RISE", "Recorded", "suspicions"]

# Metres in the plane, and of height, in one step of 0.1 s.
JUMP, RISE = 8.0, 1.0
# Change of height, metres: so much, and so much for every metre travelled (no street is that steep).
CLIMB = (1.0, 0.35)
# A future follows the log if the objects that move at all, metres, all stay within this distance of it, metres.
_SAME, _MOVING = 0.05, 2.0

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Recorded:
    """What is known of the objects.

    Attributes:
        now: [A, 3] position at the current step. future: [A, T, 3] positions after it; T is 0 where it is unknown.
        valid: [A, T] bool.
        heading: [A] radians, velocity: [A, 2] m/s, height: [A] metres of the box, at the current step.
        past: [A, 10, 2] positions before it. past_valid: [A, 10] bool.
        kind: [A] ``AgentType``. is_sdc: [A] bool, the AV.
    """

    now: Array
    future: Array
    valid: npt.NDArray[np.bool_]
    heading: Array
    velocity: Array
    height: Array
    past: Array
    past_valid: npt.NDArray[np.bool_]
    kind: npt.NDArray[np.int64]
    is_sdc: npt.NDArray[np.bool_]


def suspicions(ids: list[int], states: Array, recorded: Recorded) -> list[Suspicion]:
    """What is odd about the futures of a scenario, of every kind the count and two examples.

    Args:
        ids: [A] of the objects. states: [R, A, 80, 4] x, y, z, heading, finite. recorded: of the same objects.
    """
    start = np.broadcast_to(recorded.now[None, :, None], (*states.shape[:2], 1, 3))
    position = np.concatenate((start, states[..., :3]), axis=2)  # [R, A, 81, 3]
    step = np.diff(position, axis=2)
    planar = np.hypot(step[..., 0], step[..., 1])  # [R, A, 80]
    found = _listed("objects jump", ids, planar > JUMP, planar, "jumps {:.1f} m")
    rise = np.abs(step[..., 2])
    found += _listed("heights jump", ids, rise > RISE, rise, "changes its height by {:.1f} m")
    climbed = np.abs(position[:, :, 1:, 2] - recorded.now[:, None, 2])
    odd = climbed > CLIMB[0] + CLIMB[1] * np.cumsum(planar, axis=2)
    found += _listed("objects sink or fly", ids, odd, climbed, "is {:.1f} m above or below where it started")
    return found + _repeated_futures(states) + _known_future(states, recorded)


def _listed(kind: str, ids: list[int], odd: npt.NDArray[np.bool_], size: Array, text: str) -> list[Suspicion]:
    """What is odd [R, A, 80], with the figure of the first odd step of the first trajectories."""
    trajectories = odd.any(-1)
    if not trajectories.any():
        return []
    examples = []
    for scene, row in np.argwhere(trajectories)[:EXAMPLES]:
        moment = int(odd[scene, row].argmax())
        figure = text.format(size[scene, row, moment])
        examples.append(f"joint scene {scene}: object {ids[row]}: {figure} at step {moment}")
    return [Suspicion(kind, tuple(examples), int(trajectories.sum()), trajectories.size)]


def _repeated_futures(states: Array) -> list[Suspicion]:
    """Joint scenes that repeat others, so that fewer futures than joint scenes count."""
    count = len({scene.tobytes() for scene in states})
    if count > len(states) // 2:
        return []
    text = f"all {len(states)} joint scenes are the same"
    if count > 1:
        text = f"only {count} of {len(states)} joint scenes differ"
    return [Suspicion("joint scenes are repeated", (text,))]


def _known_future(states: Array, recorded: Recorded) -> list[Suspicion]:
    """Joint scenes that follow the log, which nobody can without knowing it."""
    length = recorded.future.shape[1]
    if not length:
        return []
    away = np.hypot(*np.moveaxis(recorded.future[..., :2] - recorded.now[:, None, :2], -1, 0))  # [A, T]
    moving = (np.where(recorded.valid, away, 0.0).max(-1) > _MOVING) & (recorded.valid.sum(-1) > length // 2)
    if not moving.any():
        return []
    gap = np.hypot(*np.moveaxis(states[:, moving, :length, :2] - recorded.future[None, moving, :, :2], -1, 0))
    same = (np.where(recorded.valid[moving], gap, 0.0).max(-1) < _SAME).all(-1)  # [R]
    if not same.any():
        return []
    text = (
        f"{int(same.sum())} joint scenes follow the recorded future of all {int(moving.sum())} moving objects to "
        f"{_SAME * 100:.0f} cm: that future must not be known"
    )
    return [Suspicion("the recorded future is followed", (text,))]
