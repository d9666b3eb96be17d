"""Wrong conventions of exporters, found where the first simulated steps do not follow from the current state.

The server accepts a heading with another zero, a rollout that begins a step late or another frame, and only the
score falls. Single agents may do odd things (reverse, turn on the spot, be detected anew), but a convention is
wrong for many at once. So a kind of oddity is reported if a fraction of the trajectories has it, with the cause if
one cause fits most of these.

Shape legend: R joint scenes, A objects, P odd pairs of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from data.scene import FUTURE_STEPS, STEP_SECONDS, AgentType
from submission.suspicion import EXAMPLES, JUMP, Recorded, Suspicion

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
_RATE = "the time step is not 0.1 s"
# Kinds and the trajectories [R, A] that fit each, the simplest kind first.
Causes = Iterator[tuple[str, Bools]]

# docs/submission.md lists the largest fractions of trajectories beyond these limits, in log replays of 316 real
# scenes and in rollouts of agents that were trained for a minute.
# Smallest speed of a mover, m/s, and largest deviation of its last recorded step from its velocity, as a fraction
# of the step. The next position of other objects is too uncertain.
_MOVING, _STEADY = 1.0, 0.3
# Below this speed, m/s, an object stands.
_STANDING = 0.5
# A first state is odd at this distance from the expected position: a fraction of a mover's step, or metres for
# standing objects.
_OFF, _OFF_STANDING = 0.7, 0.3
# Tolerance around half the expected distance, after a step and after half a second: steps of 0.03 to 0.07 s.
_AROUND_HALF = 0.2
# A speed is odd if it differs by this fraction of the current one and by 2.5 m/s within half a second.
_JUMP = 0.7
# A heading is odd if it changes by this much in a step, radians.
_TURN = 0.35
# A height is odd if it changes by this much in the first step, metres.
_RISE = 0.3
# Motion is sideways beyond this angle from the axis of the object, radians, above this speed, m/s.
_SLIP, _SLIP_SPEED = 0.6, 2.0
# Stride of the steps that are tested for that.
_STRIDE = 5
# States are repeated if this fraction of the moving steps, and this number, are single ones between equal states. A
# policy at the start of training also stops and goes, but for two steps at once.
_ALONE, _MOVES = 0.9, 5
# Fractions of the tested trajectories: a quarter for what no object does by itself, half otherwise.
_HALF, _QUARTER = 0.5, 0.25
# Closer to the origin, metres, the AV's frame is not told from a start some steps early.
_FAR_FROM_ORIGIN = 10.0
# A suspicion needs this many odd objects.
_FEW = 2
# Fraction of the odd trajectories that a cause must explain.
_EXPLAINED = 0.8


def convention_suspicions(ids: list[int], states: npt.NDArray[np.float32], recorded: Recorded) -> list[Suspicion]:
    """Suspicions of wrong conventions in the futures of a scenario.

    Args:
        ids: [A] of the objects. states: [R, A, 80, 4] x, y, z, heading, finite. recorded: of the same objects.
    """
    view = _View(ids, states, recorded)
    placed = _first_place(view)
    headings = _first_heading(view)
    # A wrong first state makes the following ones wrong for the same reason.
    later = ([] if placed else _speed(view)) + ([] if placed or headings else _course(view))
    return placed + headings + later + _height(view) + _repeated(view) + _unwrapped(view)


class _View:
    """Futures of a scenario and its current state.

    Attributes:
        position: [R, A, 80, 2], height: [R, A, 80] metres. heading: [R, A, 80] radians.
        now: [A, 2] metres. facing: [A] radians. step: [A, 2] displacement of one step at the current velocity.
        length: [A] of that step. expected: [A, 2] position after the first step.
        movers, standing, steered, wheeled, everyone: [A] bool.
    """

    def __init__(self, ids: list[int], states: npt.NDArray[np.float32], recorded: Recorded) -> None:
        self.ids, self.recorded = ids, recorded
        self.position, self.height, self.heading = states[..., :2], states[..., 2], states[..., 3]
        self.now, self.facing = recorded.now[:, :2], _wrapped(recorded.heading)
        self.step = recorded.velocity * STEP_SECONDS
        self.length = _length(self.step)
        before, seen = recorded.past[:, -1], recorded.past_valid[:, -1]
        steady = seen & (_length(self.now - before - self.step) <= _STEADY * self.length)
        self.movers = steady & (self.length >= _MOVING * STEP_SECONDS)
        self.standing = self.length < _STANDING * STEP_SECONDS
        wheeled = np.isin(recorded.kind, (int(AgentType.VEHICLE), int(AgentType.CYCLIST)))
        # Standing pedestrians may turn, in recordings even by half a turn in a step.
        self.steered = wheeled | self.movers
        self.wheeled = wheeled
        self.everyone = np.ones(len(ids), bool)
        self.expected = self.now + self.step

    def first_at(self, position: Floats, tolerance: Floats | float = 0.0) -> Bools:
        """Whether the first states [R, A] are at positions [..., 2], within a tolerance in metres."""
        near = np.where(self.standing, 0.1, 0.3 * self.length)
        return _length(self.position[:, :, 0] - position) <= near + tolerance

    def at(self, scene: int, row: int) -> str:
        actual, due = self.position[scene, row, 0], self.expected[row]
        return f"at ({actual[0]:.2f}, {actual[1]:.2f}) after a step, expected ({due[0]:.2f}, {due[1]:.2f})"

    def suspicion(
        self,
        kind: str,
        odd: Bools,
        tested: Bools,
        fraction: float,
        text: Callable[[int, int], str],
        causes: Callable[[_View, Bools], Causes] | None = None,
    ) -> list[Suspicion]:
        """A suspicion if more than a fraction of the trajectories of tested objects [A] is odd [R, A].

        Its kind is the first cause that explains most of these, if there is one.
        """
        odd = odd & tested
        total = int(tested.sum()) * len(odd)
        objects = np.flatnonzero(odd.any(0))
        if len(objects) < min(_FEW, len(self.ids)) or odd.sum() <= fraction * total:
            return []
        if causes is not None:
            kind = next((name for name, fits in causes(self, odd) if fits[odd].mean() >= _EXPLAINED), kind)
        examples = []
        for row in objects[:EXAMPLES].tolist():
            scene = int(odd[:, row].argmax())
            examples.append(f"joint scene {scene}: object {self.ids[row]}: {text(scene, row)}")
        return [Suspicion(kind, tuple(examples), int(odd.sum()), total)]


def _length(vector: Floats) -> Floats:
    x, y = vector[..., 0], vector[..., 1]
    return np.sqrt(x * x + y * y)


def _wrapped(angle: Floats) -> Floats:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def _rotated(vector: Floats, angle: Floats | float) -> Floats:
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = vector[..., 0], vector[..., 1]
    return np.stack((x * cos - y * sin, x * sin + y * cos), axis=-1)


def _frozen(view: _View) -> list[Suspicion]:
    odd = view.first_at(view.now, 2 * view.length) & view.movers
    odd[odd] = (_length(view.position[odd, 1:] - view.position[odd, 1:2]) < 0.01).all(-1)

    def text(scene: int, row: int) -> str:
        return f"0.0 m/s for 8 s, expected {view.length[row] / STEP_SECONDS:.1f} m/s at first"

    return view.suspicion("objects that move are frozen", odd, view.movers, _QUARTER, text)


def _first_place(view: _View) -> list[Suspicion]:
    """Objects whose first state is not at the position that follows from their velocity."""
    miss = _length(view.position[:, :, 0] - view.expected)
    odd = np.where(view.standing, miss > _OFF_STANDING, miss > _OFF * view.length)
    steps = [_along(view.position[:, :, count - 1] - view.now, view) / count for count in (1, 5)]
    slow = np.all([np.abs(step - 0.5) < _AROUND_HALF for step in steps], axis=0)
    unknown, exchanged = "objects are not where their velocity leads them", "positions are those of other objects"
    # Standing objects distinguish a wrong frame from a wrong time, since a late start does not change them.
    return (
        view.suspicion(unknown, odd, view.standing, _HALF, view.at, _causes_of_frame)
        or _frozen(view)
        or view.suspicion(unknown, odd, view.movers, _HALF, view.at, _causes_of_place)
        or view.suspicion(_RATE, slow, view.movers, _HALF, view.at)
        or view.suspicion(exchanged, _elsewhere(view), view.everyone, 0, view.at)
    )


def _causes_of_place(view: _View, odd: Bools) -> Causes:
    first, step, length = view.position[:, :, 0], view.step, view.length
    pace = _along(view.position[:, :, 1] - first, view)
    yield "rollouts begin one step late, with the current state", view.first_at(view.now)
    reversed_in_time = _length(view.position[:, :, -1] - view.expected) <= 0.1 + 0.3 * length
    yield "trajectories are reversed in time", reversed_in_time
    yield "objects move backwards", view.first_at(view.now - step) & (pace < 0)
    past = _length(first[:, :, None] - view.recorded.past)  # [R, A, 10]
    history = np.where(view.recorded.past_valid, past, np.inf).min(-1) <= 0.3 * length
    yield "rollouts begin with the history", history
    # Where all drive one way, an offset along it is also a later time, with a wider tolerance than a frame's.
    if any(_length(view.now[row]) > _FAR_FROM_ORIGIN for row in np.flatnonzero(view.recorded.is_sdc)):
        yield from _causes_of_the_av(view)
    ratio = float(np.median(_along(first - view.now, view)[odd]))
    if 0 < ratio < FUTURE_STEPS:
        early = ratio > 1.5 and float(np.median(pace[odd])) < (1 + ratio) / 2
        kind = "rollouts begin early, with a later state" if early else _RATE
        yield kind, view.first_at(view.now + ratio * step, 0.3 * max(ratio - 1, 0) * length)
    for angle, name in ((math.pi / 2, "90"), (-math.pi / 2, "-90"), (math.pi, "180")):
        yield f"motion is turned by {name} degrees", view.first_at(view.now + _rotated(step, angle))
    yield "motion is in each object's own frame", view.first_at(view.now + _rotated(step, -view.facing))
    yield from _causes_of_frame(view, odd)


def _along(displacement: Floats, view: _View) -> Floats:
    """Displacement along the current velocity [R, A], in steps at that velocity."""
    return (displacement * view.step).sum(-1) / np.maximum(view.length, 1e-9) ** 2


def _causes_of_frame(view: _View, odd: Bools) -> Causes:
    expected, first, at = view.expected, view.position[:, :, 0], view.first_at
    yield "positions are those of other objects", _elsewhere(view)
    flip: Floats = np.array([-1, 1], np.float32)
    yield "x and y are exchanged", at(expected[:, ::-1])
    yield "x has the opposite sign", at(expected * flip)
    yield "y has the opposite sign", at(expected * -flip)
    yield "positions are in each object's own frame", at(np.zeros(2, np.float32), view.length + 0.5)
    yield from _causes_of_the_av(view)
    for angle in (math.pi / 2, math.pi, -math.pi / 2):
        yield "positions are turned about the origin", at(_rotated(expected, angle))
    gap = first - expected
    yield "positions are shifted, all alike: another origin", at(expected + np.median(gap[odd], axis=0), 0.2)
    own = np.median(_rotated(gap, -view.facing)[odd], axis=0)
    kind = "positions are shifted in each object's own frame: not its centre"
    yield kind, at(expected + _rotated(own[None], view.facing), 0.2)
    scale = np.median((_length(first) / np.maximum(_length(expected), 1e-9))[odd])
    yield "positions are scaled", at(expected * scale, 0.5)


def _causes_of_the_av(view: _View) -> Causes:
    for row in np.flatnonzero(view.recorded.is_sdc):
        offset, facing = view.expected - view.now[row], view.facing[row]
        # The origin may have moved with the AV.
        tolerance = view.length[row] + 0.5
        yield "positions are relative to the AV", view.first_at(offset, tolerance)
        for angle in (0.0, math.pi / 2, -math.pi / 2):
            yield "positions are in the AV's frame", view.first_at(_rotated(offset, angle - facing), tolerance)


def _elsewhere(view: _View) -> Bools:
    """Whether objects [R, A] are at the expected position of another one, and not at their own."""
    tolerance = 0.2 + 0.3 * view.length
    first = view.position[:, :, 0]
    away = _length(first - view.expected) > 1 + tolerance
    gap = _length(first[away][:, None] - view.expected)  # [P, A]
    away[away] = (gap <= tolerance).any(-1)
    return away


def _first_heading(view: _View) -> list[Suspicion]:
    first, facing = view.heading[:, :, 0], view.facing
    odd = (np.abs(_wrapped(first - facing)) > _TURN) & view.steered

    def text(scene: int, row: int) -> str:
        return f"heading {first[scene, row]:.2f} after a step, expected {facing[row]:.2f}"

    kind = "headings do not follow from the current ones"
    return view.suspicion(kind, odd, view.steered, _QUARTER, text, _causes_of_heading)


def _causes_of_heading(view: _View, odd: Bools) -> Causes:
    first, facing = view.heading[:, :, 0], view.facing

    def near(angle: Floats, tolerance: float = 0.1) -> Bools:
        return np.abs(_wrapped(first - angle)) < tolerance

    yield "headings are all 0", first == 0
    for degrees in (90, -90, 180):
        yield f"headings are turned by {degrees} degrees", near(facing + math.radians(degrees))
    yield "headings have the opposite sign", near(-facing)
    yield "headings are clockwise from north", near(math.pi / 2 - facing)
    # Not all recorded headings are wrapped.
    known = np.stack((facing, view.recorded.heading))[:, None]
    large = np.degrees(known)
    close = (np.abs(first - large) < 0.05 + 0.2 * np.abs(large)) | near(large, 0.5)
    yield "headings are in degrees", close.any(0)
    yield "headings are converted to radians twice", near(np.radians(known), 0.01).any(0)
    yield "headings are relative to the current ones", near(np.zeros_like(facing))
    common = np.angle(np.exp(1j * (first - facing))[odd].mean())
    yield "headings are turned, all alike: another zero", near(facing + common)


def _height(view: _View) -> list[Suspicion]:
    first, now = view.height[:, :, 0], view.recorded.now[:, 2]
    odd = np.abs(first - now) > _RISE

    def text(scene: int, row: int) -> str:
        return f"z is {first[scene, row]:.2f} after a step, expected {now[row]:.2f}"

    kind = "heights do not follow from the current ones"
    return view.suspicion(kind, odd, view.everyone, _HALF, text, _causes_of_height)


def _causes_of_height(view: _View, odd: Bools) -> Causes:
    rise, half = view.height[:, :, 0] - view.recorded.now[:, 2], view.recorded.height / 2
    yield "heights are all 0", view.height[:, :, 0] == 0
    yield "heights are those of the ground, not of the centre", np.abs(rise + half) < 0.1
    yield "heights are those of the roof, not of the centre", np.abs(rise - half) < 0.1
    yield "heights are shifted, all alike: another datum", np.abs(rise - np.median(rise[odd])) < 0.1


def _speed(view: _View) -> list[Suspicion]:
    """Speeds after the first step that do not follow from the current ones."""
    length = _length(view.position[:, :, 4] - view.position[:, :, 0]) / 4
    change = np.abs(length - view.length)
    odd = (change > _JUMP * view.length) & (4 * change > 1)

    def text(scene: int, row: int) -> str:
        actual, due = length[scene, row] / STEP_SECONDS, view.length[row] / STEP_SECONDS
        return f"{actual:.1f} m/s after the first step, expected {due:.1f}"

    return view.suspicion("speeds jump after the first step", odd, view.movers, _HALF, text)


def _course(view: _View) -> list[Suspicion]:
    """Vehicles and cyclists that do not move along their heading."""
    last = np.arange(_STRIDE, FUTURE_STEPS, _STRIDE)
    step = view.position[:, :, last] - view.position[:, :, last - 1]  # [R, A, S, 2]
    heading, length = view.heading[:, :, last], _length(step)
    moving = (length > _SLIP_SPEED * STEP_SECONDS) & (length < JUMP)
    ahead = step[..., 0] * np.cos(heading) + step[..., 1] * np.sin(heading)
    count = moving.sum(-1)
    enough = count >= 3
    tested = enough.any(0) & view.wheeled
    result = []
    for kind, off in (
        ("objects move sideways", np.abs(ahead) < math.cos(_SLIP) * length),
        ("objects move against their heading", ahead <= -math.cos(_SLIP) * length),
    ):
        odd = enough & (2 * (off & moving).sum(-1) > count)

        def text(scene: int, row: int, off: Bools = off) -> str:
            at = int((off & moving)[scene, row].argmax())
            course = math.atan2(step[scene, row, at, 1], step[scene, row, at, 0])
            actual = f"heading {heading[scene, row, at]:.2f} at step {last[at]}"
            return f"{actual}, expected {course:.2f}, the direction of motion"

        result += view.suspicion(kind, odd, tested, _HALF, text)
    return result


def _repeated(view: _View) -> list[Suspicion]:
    """States that are constant for some steps and then jump: another rate."""
    tested = (_length(view.position[:, :, -1] - view.position[:, :, 0]) > 1).any(0)
    position = view.position[:, tested]
    held = _length(position[:, :, 1:] - position[:, :, :-1]) < 1e-3  # [R, M, 79]
    moved = ~held[:, :, 1:-1]
    alone = moved & held[:, :, :-2] & held[:, :, 2:]
    moves = np.zeros(view.position.shape[:2], int)
    moves[:, tested] = np.where(alone.sum(-1) >= _ALONE * moved.sum(-1), moved.sum(-1), 0)

    def text(scene: int, row: int) -> str:
        steps = moved.shape[-1]
        return (
            f"moves in {moves[scene, row]} of {steps} steps and is held between them, expected to move in {steps}"
        )

    return view.suspicion("states are repeated: another rate than 10 Hz", moves >= _MOVES, tested, _QUARTER, text)


def _unwrapped(view: _View) -> list[Suspicion]:
    """Headings beyond [-pi, pi) of objects whose current heading is within it (not all recordings are wrapped)."""
    first, limit = view.heading[:, :, 0], math.pi + 1e-6
    odd = (np.abs(first) > limit) & (np.abs(view.recorded.heading) <= limit)

    def text(scene: int, row: int) -> str:
        return f"heading {first[scene, row]:.2f} after a step, expected {view.facing[row]:.2f}"

    return view.suspicion("headings are not wrapped", odd, view.everyone, _QUARTER, text)
