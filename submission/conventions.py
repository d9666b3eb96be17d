"""Conventions that exporters get wrong, seen where the first simulated steps do not follow from the current state.

The server takes a heading of another zero, a rollout that begins a step late or a frame that is not the
scenario's, and the score falls without a word. Single agents do odd things (they reverse, turn on the spot, or are
detected anew); a convention is wrong for many at once. So a kind of oddity counts where a share of the trajectories
shows it, and the cause is named where most of these fit one.

Shape legend: R joint scenes, A objects, P pairs of both that are odd.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from data.scene import FUTURE_STEPS, STEP_SECONDS, AgentType
from submission.plausibility import JUMP, Recorded
from submission.suspicion import EXAMPLES, Suspicion

__all__ = ["convention_suspicions"]

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
_RATE = "the time step is not 0.1 s"
# Kinds, each with the trajectories [R, A] that fit it, the simplest first; of a view and what is odd [R, A].
Causes = Iterator[tuple[str, Bools]]

# What shares of a scenario's trajectories lie beyond these limits, at most, in log replays of 316 real scenes and
# in rollouts of agents that learnt for a minute, is in docs/submission.md.
# A mover's speed, m/s, and how far its last recorded step may differ from its velocity, as a share of the step: of
# others it is too uncertain where they will be.
_MOVING, _STEADY = 1.0, 0.3
# Below this speed, m/s, an object stands.
_STANDING = 0.5
# A first state is odd that is so far from where it is due: a share of a mover's step, metres for those that stand.
_OFF, _OFF_STANDING = 0.7, 0.3
# Half the due way, give or take this share of it, at first and after half a second: steps of 0.03 to 0.07 s.
_AROUND_HALF = 0.2
# A speed is odd that differs by so much of the current one and by 2.5 m/s within half a second.
_JUMP = 0.7
# A heading is odd that changes so much in a step, radians.
_TURN = 0.35
# A height is odd that changes so much in the first step, metres.
_RISE = 0.3
# Motion is sideways beyond this angle from the axis of the object, radians, of objects at this speed, m/s.
_SLIP, _SLIP_SPEED = 0.6, 2.0
# Every so many steps are looked at for that.
_STRIDE = 5
# States are repeated where this share of the steps of motion, and so many, stand alone between held ones. A policy
# that hardly learnt also stops and goes, but decides for two steps at once.
_ALONE, _MOVES = 0.9, 5
# Shares of trajectories: half of those looked at, a quarter where no object ever does such a thing by itself.
_HALF, _QUARTER = 0.5, 0.25
# One odd object says nothing where there are more.
_FEW = 2
# Share of the odd trajectories that a cause must explain.
_EXPLAINED = 0.8


def convention_suspicions(ids: list[int], states: npt.NDArray[np.float32], recorded: Recorded) -> list[Suspicion]:
    """What looks like another convention in the futures of a scenario, of every kind the count and two examples.

    Args:
        ids: [A] of the objects. states: [R, A, 80, 4] x, y, z, heading, finite. recorded: of the same objects.
    """
    view = _View(ids, states, recorded)
    placed = _first_place(view)
    headings = _first_heading(view)
    # What is wrong with the first state is wrong with those that follow, for the same reason.
    later = ([] if placed else _speed(view)) + ([] if placed or headings else _course(view))
    return placed + headings + later + _height(view) + _repeated(view) + _unwrapped(view)


class _View:
    """A scenario's futures beside its current state.

    Attributes:
        place: [R, A, 80, 2], height: [R, A, 80] metres. heading: [R, A, 80] radians.
        now: [A, 2] metres. facing: [A] radians. due: [A, 2] way of one step at the current velocity.
        way: [A] its length.
        expected: [A, 2] where they are due after the first step.
        movers, standing, steered, wheeled, everyone: [A] bool.
    """

    def __init__(self, ids: list[int], states: npt.NDArray[np.float32], recorded: Recorded) -> None:
        self.ids, self.recorded = ids, recorded
        self.place, self.height, self.heading = states[..., :2], states[..., 2], states[..., 3]
        self.now, self.facing = recorded.now[:, :2], _wrapped(recorded.heading)
        self.due = recorded.velocity * STEP_SECONDS
        self.way = _length(self.due)
        before, seen = recorded.past[:, -1], recorded.past_valid[:, -1]
        steady = seen & (_length(self.now - before - self.due) <= _STEADY * self.way)
        self.movers = steady & (self.way >= _MOVING * STEP_SECONDS)
        self.standing = self.way < _STANDING * STEP_SECONDS
        wheeled = np.isin(recorded.kind, (int(AgentType.VEHICLE), int(AgentType.CYCLIST)))
        # Pedestrians that stand turn as they like, in recordings even by half a turn in a step.
        self.steered = wheeled | self.movers
        self.wheeled = wheeled
        self.everyone = np.ones(len(ids), bool)

        self.expected = self.now + self.due

    def first_at(self, place: Floats, room: Floats | float = 0.0) -> Bools:
        """[R, A] whether the first states are at places [..., 2], give or take some room, metres."""
        near = np.where(self.standing, 0.1, 0.3 * self.way)
        return _length(self.place[:, :, 0] - place) <= near + room

    def at(self, scene: int, row: int) -> str:
        found, due = self.place[scene, row, 0], self.expected[row]
        return f"at ({found[0]:.2f}, {found[1]:.2f}) after a step, expected ({due[0]:.2f}, {due[1]:.2f})"

    def found(
        self,
        kind: str,
        odd: Bools,
        looked: Bools,
        share: float,
        text: Callable[[int, int], str],
        causes: Callable[[_View, Bools], Causes] | None = None,
    ) -> list[Suspicion]:
        """A suspicion if a share of the trajectories that are looked at [A] is odd [R, A]; its kind is the first
        cause that explains most of them, if there is one."""
        odd = odd & looked
        total = int(looked.sum()) * len(odd)
        objects = np.flatnonzero(odd.any(0))
        if len(objects) < min(_FEW, len(self.ids)) or odd.sum() <= share * total:
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
    odd = view.first_at(view.now, 2 * view.way) & view.movers
    odd[odd] = (_length(view.place[odd, 1:] - view.place[odd, 1:2]) < 0.01).all(-1)

    def text(scene: int, row: int) -> str:
        return f"0.0 m/s for 8 s, expected {view.way[row] / STEP_SECONDS:.1f} m/s at first"

    return view.found("objects that move are frozen", odd, view.movers, _QUARTER, text)


def _first_place(view: _View) -> list[Suspicion]:
    """Objects that are not where their position and velocity lead them in the first step."""
    miss = _length(view.place[:, :, 0] - view.expected)
    odd = np.where(view.standing, miss > _OFF_STANDING, miss > _OFF * view.way)
    steps = [_along(view.place[:, :, count - 1] - view.now, view) / count for count in (1, 5)]
    slow = np.all([np.abs(step - 0.5) < _AROUND_HALF for step in steps], axis=0)
    unknown, exchanged = "objects are not where their velocity leads them", "positions are those of other objects"
    # Those that stand tell a wrong frame from a wrong time, and look right in a rollout that begins too late.
    return (
        view.found(unknown, odd, view.standing, _HALF, view.at, _causes_of_frame)
        or _frozen(view)
        or view.found(unknown, odd, view.movers, _HALF, view.at, _causes_of_place)
        or view.found(_RATE, slow, view.movers, _HALF, view.at)
        or view.found(exchanged, _elsewhere(view), view.everyone, 0, view.at)
    )


def _causes_of_place(view: _View, odd: Bools) -> Causes:
    first, due, way = view.place[:, :, 0], view.due, view.way
    pace = _along(view.place[:, :, 1] - first, view)
    yield "rollouts begin one step late, with the current state", view.first_at(view.now)
    yield "trajectories are reversed in time", _length(view.place[:, :, -1] - view.expected) <= 0.1 + 0.3 * way
    yield "objects move backwards", view.first_at(view.now - due) & (pace < 0)
    past = _length(first[:, :, None] - view.recorded.past)  # [R, A, 10]
    yield "rollouts begin with the history", np.where(view.recorded.past_valid, past, np.inf).min(-1) <= 0.3 * way
    ratio = float(np.median(_along(first - view.now, view)[odd]))
    if 0 < ratio < FUTURE_STEPS:
        early = ratio > 1.5 and float(np.median(pace[odd])) < (1 + ratio) / 2
        kind = "rollouts begin early, with a later state" if early else _RATE
        yield kind, view.first_at(view.now + ratio * due, 0.3 * max(ratio - 1, 0) * way)
    for angle, name in ((math.pi / 2, "90"), (-math.pi / 2, "-90"), (math.pi, "180")):
        yield f"motion is turned by {name} degrees", view.first_at(view.now + _rotated(due, angle))
    yield "motion is in each object's own frame", view.first_at(view.now + _rotated(due, -view.facing))
    yield from _causes_of_frame(view, odd)


def _along(way: Floats, view: _View) -> Floats:
    """[R, A] a way in steps at the current velocity."""
    return (way * view.due).sum(-1) / np.maximum(view.way, 1e-9) ** 2


def _causes_of_frame(view: _View, odd: Bools) -> Causes:
    expected, first, at = view.expected, view.place[:, :, 0], view.first_at
    yield "positions are those of other objects", _elsewhere(view)
    flip: Floats = np.array([-1, 1], np.float32)
    yield "x and y are exchanged", at(expected[:, ::-1])
    yield "x has the opposite sign", at(expected * flip)
    yield "y has the opposite sign", at(expected * -flip)
    yield "positions are in each object's own frame", at(np.zeros(2, np.float32), view.way + 0.5)
    for row in np.flatnonzero(view.recorded.is_sdc):
        offset, facing = expected - view.now[row], view.facing[row]
        # The origin may have moved with the AV.
        room = view.way[row] + 0.5
        yield "positions are relative to the AV", at(offset, room)
        for angle in (0.0, math.pi / 2, -math.pi / 2):
            yield "positions are in the AV's frame", at(_rotated(offset, angle - facing), room)
    for angle in (math.pi / 2, math.pi, -math.pi / 2):
        yield "positions are turned about the origin", at(_rotated(expected, angle))
    gap = first - expected
    yield "positions are shifted, all alike: another origin", at(expected + np.median(gap[odd], axis=0), 0.2)
    own = np.median(_rotated(gap, -view.facing)[odd], axis=0)
    kind = "positions are shifted in each object's own frame: not its centre"
    yield kind, at(expected + _rotated(own[None], view.facing), 0.2)
    scale = np.median((_length(first) / np.maximum(_length(expected), 1e-9))[odd])
    yield "positions are scaled", at(expected * scale, 0.5)


def _elsewhere(view: _View) -> Bools:
    """[R, A] whether an object is where another one is due, and not where it is due itself."""
    room = 0.2 + 0.3 * view.way
    first = view.place[:, :, 0]
    away = _length(first - view.expected) > 1 + room
    gap = _length(first[away][:, None] - view.expected)  # [P, A]
    away[away] = (gap <= room).any(-1)
    return away


def _first_heading(view: _View) -> list[Suspicion]:
    first, facing = view.heading[:, :, 0], view.facing
    odd = (np.abs(_wrapped(first - facing)) > _TURN) & view.steered

    def text(scene: int, row: int) -> str:
        return f"heading {first[scene, row]:.2f} after a step, expected {facing[row]:.2f}"

    kind = "headings do not follow from the current ones"
    return view.found(kind, odd, view.steered, _QUARTER, text, _causes_of_heading)


def _causes_of_heading(view: _View, odd: Bools) -> Causes:
    first, facing = view.heading[:, :, 0], view.facing

    def near(angle: Floats, room: float = 0.1) -> Bools:
        return np.abs(_wrapped(first - angle)) < room

    yield "headings are all 0", first == 0
    for degrees in (90, -90, 180):
        yield f"headings are turned by {degrees} degrees", near(facing + math.radians(degrees))
    yield "headings have the opposite sign", near(-facing)
    yield "headings are clockwise from north", near(math.pi / 2 - facing)
    # Recorded headings are not all wrapped.
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
    return view.found(kind, odd, view.everyone, _HALF, text, _causes_of_height)


def _causes_of_height(view: _View, odd: Bools) -> Causes:
    rise, half = view.height[:, :, 0] - view.recorded.now[:, 2], view.recorded.height / 2
    yield "heights are all 0", view.height[:, :, 0] == 0
    yield "heights are those of the ground, not of the centre", np.abs(rise + half) < 0.1
    yield "heights are those of the roof, not of the centre", np.abs(rise - half) < 0.1
    yield "heights are shifted, all alike: another datum", np.abs(rise - np.median(rise[odd])) < 0.1


def _speed(view: _View) -> list[Suspicion]:
    """Speeds after the first step that the current ones cannot lead to."""
    way = _length(view.place[:, :, 4] - view.place[:, :, 0]) / 4
    odd = (np.abs(way - view.way) > _JUMP * view.way) & (4 * np.abs(way - view.way) > 1)

    def text(scene: int, row: int) -> str:
        found, due = way[scene, row] / STEP_SECONDS, view.way[row] / STEP_SECONDS
        return f"{found:.1f} m/s after the first step, expected {due:.1f}"

    return view.found("speeds jump after the first step", odd, view.movers, _HALF, text)


def _course(view: _View) -> list[Suspicion]:
    """Vehicles and cyclists that do not move where they head."""
    # Some of the steps tell as much as all.
    last = np.arange(_STRIDE, FUTURE_STEPS, _STRIDE)
    step = view.place[:, :, last] - view.place[:, :, last - 1]  # [R, A, S, 2]
    heading, way = view.heading[:, :, last], _length(step)
    moving = (way > _SLIP_SPEED * STEP_SECONDS) & (way < JUMP)
    ahead = step[..., 0] * np.cos(heading) + step[..., 1] * np.sin(heading)
    count = moving.sum(-1)
    enough = count >= 3
    looked = enough.any(0) & view.wheeled
    found = []
    for kind, off in (
        ("objects move sideways", np.abs(ahead) < math.cos(_SLIP) * way),
        ("objects move against their heading", ahead <= -math.cos(_SLIP) * way),
    ):
        odd = enough & (2 * (off & moving).sum(-1) > count)

        def text(scene: int, row: int, off: Bools = off) -> str:
            at = int((off & moving)[scene, row].argmax())
            course = math.atan2(step[scene, row, at, 1], step[scene, row, at, 0])
            found = f"heading {heading[scene, row, at]:.2f} at step {last[at]}"
            return f"{found}, expected {course:.2f}, the direction of motion"

        found += view.found(kind, odd, looked, _HALF, text)
    return found


def _repeated(view: _View) -> list[Suspicion]:
    """States that are held for some steps and then jump on: another rate."""
    looked = (_length(view.place[:, :, -1] - view.place[:, :, 0]) > 1).any(0)
    place = view.place[:, looked]
    held = _length(place[:, :, 1:] - place[:, :, :-1]) < 1e-3  # [R, M, 79]
    moved = ~held[:, :, 1:-1]
    alone = moved & held[:, :, :-2] & held[:, :, 2:]
    moves = np.zeros(view.place.shape[:2], int)
    moves[:, looked] = np.where(alone.sum(-1) >= _ALONE * moved.sum(-1), moved.sum(-1), 0)

    def text(scene: int, row: int) -> str:
        steps = moved.shape[-1]
        return (
            f"moves in {moves[scene, row]} of {steps} steps and is held between them, expected to move in {steps}"
        )

    return view.found("states are repeated: another rate than 10 Hz", moves >= _MOVES, looked, _QUARTER, text)


def _unwrapped(view: _View) -> list[Suspicion]:
    """Headings beyond [-pi, pi) of objects that head within it now (recordings are not all wrapped)."""
    first, limit = view.heading[:, :, 0], math.pi + 1e-6
    odd = (np.abs(first) > limit) & (np.abs(view.recorded.heading) <= limit)

    def text(scene: int, row: int) -> str:
        return f"heading {first[scene, row]:.2f} after a step, expected {view.facing[row]:.2f}"

    return view.found("headings are not wrapped", odd, view.everyone, _QUARTER, text)
