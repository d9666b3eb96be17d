"""What the server accepts and is almost surely a mistake: agents that jump, sink or fly, futures that were known.

Limits leave room to what was recorded: over 319 scenarios of WOMD no vehicle moves more than 6.6 m in a step, no
pedestrian or cyclist more than 1.5 m, and no height changes by more than 0.7 m (``scripts/measure_motion.py``).

Shape legend: R joint scenes, A objects, 80 steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

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
    """

    now: Array
    future: Array
    valid: npt.NDArray[np.bool_]


def suspicions(ids: list[int], states: Array, recorded: Recorded) -> list[str]:
    """What is odd about the futures of a scenario, a line each; of every kind the first and how many more.

    Args:
        ids: [A] of the objects. states: [R, A, 80, 4] x, y, z, heading, finite. recorded: of the same objects.
    """
    start = np.broadcast_to(recorded.now[None, :, None], (*states.shape[:2], 1, 3))
    position = np.concatenate((start, states[..., :3]), axis=2)  # [R, A, 81, 3]
    step = np.diff(position, axis=2)
    planar = np.hypot(step[..., 0], step[..., 1])  # [R, A, 80]
    found = _listed(ids, planar > JUMP, planar, "jumps {:.1f} m")
    found += _listed(ids, np.abs(step[..., 2]) > RISE, np.abs(step[..., 2]), "changes its height by {:.1f} m")
    climbed = np.abs(position[:, :, 1:, 2] - recorded.now[:, None, 2])
    odd = climbed > CLIMB[0] + CLIMB[1] * np.cumsum(planar, axis=2)
    found += _listed(ids, odd, climbed, "is {:.1f} m above or below where it started")
    if len(states) > 1 and (states == states[:1]).all():
        found.append(f"all {len(states)} joint scenes are the same")
    return found + _known_future(states, recorded)


def _listed(ids: list[int], odd: npt.NDArray[np.bool_], size: Array, text: str) -> list[str]:
    """A line for what is odd [R, A, 80], with the largest figure of the first object it is true of."""
    objects = odd.any(-1)
    if not objects.any():
        return []
    scene, row = np.argwhere(objects)[0]
    moment = int(odd[scene, row].argmax())
    more = int(objects.sum()) - 1
    rest = f" ({more} more objects in this and other joint scenes)" if more else ""
    return [
        f"joint scene {scene}: object {ids[row]}: {text.format(size[scene, row, moment])} at step {moment}{rest}"
    ]


def _known_future(states: Array, recorded: Recorded) -> list[str]:
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
    return [
        f"{int(same.sum())} joint scenes follow the recorded future of all {int(moving.sum())} moving objects to "
        f"{_SAME * 100:.0f} cm: that future must not be known"
    ]
