"""Suspicions: rollouts that the server accepts and that are almost certainly a mistake, such as agents that jump.

The limits leave room above recorded motion: over 319 scenarios of WOMD no vehicle moves more than 6.6 m in a step,
no pedestrian or cyclist more than 1.5 m, and no height changes by more than 0.7 m
(``scripts/studies/measure.py motion``). For conventions of exporters see ``submission.conventions``.

Shape legend: R joint scenes, A objects, 80 steps.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

# Number of examples per kind.
EXAMPLES = 2
# Largest motion in a step of 0.1 s, in the plane and vertically, metres.
JUMP, RISE = 8.0, 1.0
# Largest change of height, metres: a constant plus a slope times the distance travelled.
CLIMB = (1.0, 0.35)
# A future follows the log if all objects that move by more than _MOVING stay within _SAME of it, metres.
_SAME, _MOVING = 0.05, 2.0

Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Suspicion:
    """One kind of oddity in one scenario.

    Attributes:
        kind: the same text in every scenario.
        examples: the first ``EXAMPLES`` cases, each with object, joint scene, value, and the expected value if any.
        count, of: number of odd and of tested trajectories; 0 if the scenario as a whole is odd.
    """

    kind: str
    examples: Sequence[str]
    count: int = 0
    of: int = 0

    def __str__(self) -> str:
        extent = f" ({self.count} of {self.of} trajectories)" if self.of else ""
        return f"{self.kind}{extent}: {'; '.join(self.examples)}"


@dataclass
class _Total:
    scenarios: int = 0
    count: int = 0
    of: int = 0
    examples: list[str] = field(default_factory=list)


def _extent(total: _Total) -> str:
    scenarios = f"{total.scenarios} scenario{'s' if total.scenarios > 1 else ''}"
    if total.of:
        return f" ({total.count} of {total.of} trajectories in {scenarios})"
    return f" ({scenarios})" if total.scenarios > 1 else ""


class Tally:
    """Counts the suspicions of many scenarios by kind."""

    def __init__(self) -> None:
        self._totals: dict[str, _Total] = {}

    def add(self, where: str, suspicion: Suspicion) -> None:
        """Count a suspicion; ``where`` names the scenario."""
        total = self._totals.setdefault(suspicion.kind, _Total())
        total.scenarios += 1
        total.count += suspicion.count
        total.of += suspicion.of
        # Two examples of one scenario only if it is the only one.
        room = EXAMPLES if total.scenarios == 1 else 1
        if total.scenarios <= EXAMPLES:
            kept = total.examples[: EXAMPLES - room]
            total.examples = kept + [f"{where}: {text}" for text in suspicion.examples[:room]]

    def lines(self) -> list[str]:
        """One line per kind: number of trajectories and scenarios, and two examples."""
        return [f"{kind}{_extent(total)}: {'; '.join(total.examples)}" for kind, total in self._totals.items()]

    def show(self) -> None:
        """Print the lines on stderr."""
        for line in self.lines():
            print(f"suspicious: {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Recorded:
    """Recorded motion of the objects.

    Attributes:
        now: [A, 3] position at the current step. future: [A, T, 3] positions after it; T is 0 if unknown.
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
    """Suspicions about the futures of a scenario.

    Args:
        ids: [A] of the objects. states: [R, A, 80, 4] x, y, z, heading, finite. recorded: of the same objects.
    """
    start = np.broadcast_to(recorded.now[None, :, None], (*states.shape[:2], 1, 3))
    position = np.concatenate((start, states[..., :3]), axis=2)  # [R, A, 81, 3]
    step = np.diff(position, axis=2)
    planar = np.hypot(step[..., 0], step[..., 1])  # [R, A, 80]
    result = _suspicion("objects jump", ids, planar > JUMP, planar, "jumps {:.1f} m")
    rise = np.abs(step[..., 2])
    result += _suspicion("heights jump", ids, rise > RISE, rise, "changes its height by {:.1f} m")
    climbed = np.abs(position[:, :, 1:, 2] - recorded.now[:, None, 2])
    odd = climbed > CLIMB[0] + CLIMB[1] * np.cumsum(planar, axis=2)
    result += _suspicion("objects sink or fly", ids, odd, climbed, "is {:.1f} m above or below where it started")
    return result + _repeated_futures(states) + _known_future(states, recorded)


def _suspicion(kind: str, ids: list[int], odd: npt.NDArray[np.bool_], size: Array, text: str) -> list[Suspicion]:
    """A suspicion of odd steps [R, A, 80], with the value ``size`` of the first odd step in the examples."""
    trajectories = odd.any(-1)
    if not trajectories.any():
        return []
    examples = []
    for scene, row in np.argwhere(trajectories)[:EXAMPLES]:
        step = int(odd[scene, row].argmax())
        value = text.format(size[scene, row, step])
        examples.append(f"joint scene {scene}: object {ids[row]}: {value} at step {step}")
    return [Suspicion(kind, tuple(examples), int(trajectories.sum()), trajectories.size)]


def _repeated_futures(states: Array) -> list[Suspicion]:
    """Joint scenes that repeat others."""
    count = len({scene.tobytes() for scene in states})
    if count > len(states) // 2:
        return []
    text = f"all {len(states)} joint scenes are the same"
    if count > 1:
        text = f"only {count} of {len(states)} joint scenes differ"
    return [Suspicion("joint scenes are repeated", (text,))]


def _known_future(states: Array, recorded: Recorded) -> list[Suspicion]:
    """Joint scenes that follow the log, which is impossible without knowing the future."""
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
        f"{_SAME * 100:.0f} cm: a submission must not know that future"
    )
    return [Suspicion("the recorded future is followed", (text,))]
