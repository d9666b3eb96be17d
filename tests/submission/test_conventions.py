"""Conventions of exporters: each is named where it is wrong, and nothing is said of what agents may do."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from data.scene import CURRENT_INDEX, AgentType, Scene
from data.scenes_source import open_scenes
from pipeline.agents.catalogue import make_agent
from submission.checks import suspicions_of
from submission.protos import Rollouts, from_proto, read_rollouts, to_proto
from submission.suspicion import Suspicion
from tests.scenes import Mover, hand_made

States = npt.NDArray[np.float64]
WALKER = AgentType.PEDESTRIAN

# Roads that run nowhere near the axes or the diagonals; most vehicles stand, as in real scenes.
MOVERS = [
    Mover(3010.0, -1500.0, 12.0, 0.5, 8.0),
    Mover(3040.0, -1480.0, 12.4, 0.5, 11.0),
    Mover(3002.0, -1530.0, 11.0, 0.5 - math.pi, 6.0),
    Mover(2970.0, -1510.0, 11.6, 2.2, 4.0),
    Mover(3020.0, -1545.0, 11.2, -1.1, 9.0),
    Mover(2985.0, -1468.0, 12.6, 2.9, 3.0, AgentType.CYCLIST),
    Mover(3028.0, -1512.0, 12.0, 1.9, 1.3, WALKER, (0.8, 0.8, 1.8)),
    *(
        Mover(2990.0 + 6.5 * row, -1495.0 - 2.5 * row, 11.8, math.remainder(0.5 + 0.9 * row, 2 * math.pi))
        for row in range(6)
    ),
]
SCENE = hand_made(MOVERS, steps=CURRENT_INDEX + 1)
COUNT = 4


def rollouts(scene: Scene = SCENE) -> States:
    """[R, A, 80, 4] joint scenes that go on from the current state, each at another speed and on another bend."""
    agents = scene.agents
    now, facing = agents.position[:, CURRENT_INDEX].numpy(), agents.heading[:, CURRENT_INDEX].numpy()
    speed = np.hypot(*agents.velocity[:, CURRENT_INDEX].numpy().T)
    time = 0.1 * np.arange(1, 81)
    found = []
    for number in range(COUNT):
        bend = 0.02 * (number - 1.5) * time
        heading = facing[:, None] + bend * (speed > 0)[:, None]
        way = 0.1 * speed[:, None] * (1 + 0.02 * number * np.minimum(time, 2))
        x = now[:, :1] + np.cumsum(way * np.cos(heading), axis=1)
        y = now[:, 1:2] + np.cumsum(way * np.sin(heading), axis=1)
        z = np.broadcast_to(now[:, 2:], x.shape)
        found.append(np.stack((x, y, z, wrapped(heading)), axis=-1))
    return np.stack(found)


def wrapped(angle: States) -> States:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def suspected(states: States, scene: Scene = SCENE) -> list[Suspicion]:
    agent_id = scene.agents.id[scene.simulated]
    return suspicions_of(agent_id, torch.tensor(np.ascontiguousarray(states), dtype=torch.float32), scene)


def kinds(states: States, scene: Scene = SCENE) -> set[str]:
    return {suspicion.kind for suspicion in suspected(states, scene)}


def current() -> States:
    agents = SCENE.agents
    state = np.concatenate((agents.position.numpy(), agents.heading.numpy()[..., None]), axis=-1)  # [A, 11, 4]
    return np.broadcast_to(state, (COUNT, *state.shape)).astype(float)


def rotated(place: States, angle: States | float) -> States:
    cos, sin = np.cos(angle), np.sin(angle)
    x, y = place[..., 0], place[..., 1]
    return np.stack((x * cos - y * sin, x * sin + y * cos), axis=-1)


def heading(change: Callable[[States], States]) -> Callable[[States], States]:
    return lambda states: np.concatenate((states[..., :3], change(states[..., 3:])), axis=-1)


def place(change: Callable[[States], States]) -> Callable[[States], States]:
    return lambda states: np.concatenate((change(states[..., :2]), states[..., 2:]), axis=-1)


def height(change: Callable[[States], States]) -> Callable[[States], States]:
    return lambda states: np.concatenate(
        (states[..., :2], change(states[..., 2:3]) + 0 * states[..., 2:3], states[..., 3:]), axis=-1
    )


NOW = current()[:, :, -1:]
HERE, AHEAD = NOW[..., :2], NOW[..., 3]
AV = HERE[:, :1]
SIZE = SCENE.agents.size[:, CURRENT_INDEX, 2].numpy()[None, :, None, None]


def before(states: States, count: int) -> States:
    return np.concatenate((np.repeat(NOW, count, axis=2), states[:, :, :-count]), axis=2)


def after(states: States, count: int) -> States:
    return np.concatenate((states[:, :, count:], np.repeat(states[:, :, -1:], count, axis=2)), axis=2)


def held(states: States, count: int) -> States:
    return states[:, :, np.arange(80) // count * count]


def evaluated_alone(states: States) -> States:
    """Only the first two objects move."""
    return np.concatenate((states[:, :2], np.repeat(NOW[:, 2:], 80, axis=2)), axis=1)


def second_swapped(states: States) -> States:
    order = np.arange(states.shape[1])
    order[[1, 4]] = order[[4, 1]]
    return states[:, order]


def later_headings(states: States, turn: float) -> States:
    changed = states.copy()
    changed[:, :, 1:, 3] = wrapped(changed[:, :, 1:, 3] + turn)
    return changed


LATE, EARLY = "rollouts begin one step late, with the current state", "rollouts begin early, with a later state"
RATE, REPEATED = "the time step is not 0.1 s", "states are repeated: another rate than 10 Hz"
SHIFTED = "positions are shifted, all alike: another origin"
CASES: dict[str, tuple[Callable[[States], States], str]] = {
    "turned by 90": (heading(lambda h: wrapped(h + math.pi / 2)), "headings are turned by 90 degrees"),
    "turned by -90": (heading(lambda h: wrapped(h - math.pi / 2)), "headings are turned by -90 degrees"),
    "turned by 180": (heading(lambda h: wrapped(h + math.pi)), "headings are turned by 180 degrees"),
    "another zero": (heading(lambda h: wrapped(h + 0.7)), "headings are turned, all alike: another zero"),
    "clockwise": (heading(lambda h: wrapped(-h)), "headings have the opposite sign"),
    "compass": (heading(lambda h: wrapped(math.pi / 2 - h)), "headings are clockwise from north"),
    "degrees": (heading(np.degrees), "headings are in degrees"),
    "degrees, wrapped": (heading(lambda h: wrapped(np.degrees(h))), "headings are in degrees"),
    "radians twice": (heading(np.radians), "headings are converted to radians twice"),
    "no headings": (heading(lambda h: 0 * h), "headings are all 0"),
    "headings in 0 .. 2 pi": (heading(lambda h: h % (2 * math.pi)), "headings are not wrapped"),
    "headings modulo pi": (heading(lambda h: (h + 1.57) % math.pi - 1.57), "headings are turned by 180 degrees"),
    "headings relative": (
        heading(lambda h: wrapped(h - AHEAD[..., None])),
        "headings are relative to the current ones",
    ),
    "headings of y, x": (heading(lambda h: np.arctan2(np.cos(h), np.sin(h))), "headings are clockwise from north"),
    "turned after the first": (lambda s: later_headings(s, math.pi / 2), "objects move sideways"),
    "backwards after the first": (lambda s: later_headings(s, math.pi), "objects move against their heading"),
    "late": (lambda s: before(s, 1), LATE),
    "three steps late": (lambda s: before(s, 3), LATE),
    "early": (lambda s: after(s, 1), EARLY),
    "a second early": (lambda s: after(s, 10), EARLY),
    "history included": (
        lambda s: np.concatenate((current(), s), axis=2)[:, :, :80],
        "rollouts begin with the history",
    ),
    "reversed": (lambda s: s[:, :, ::-1], "trajectories are reversed in time"),
    "backwards": (place(lambda p: 2 * HERE - p), "objects move backwards"),
    "frozen": (lambda s: np.repeat(NOW, 80, axis=2), "objects that move are frozen"),
    "frozen but for two": (evaluated_alone, "objects that move are frozen"),
    "frozen after a step": (lambda s: s[:, :, [0] + [1] * 79], "objects that move are frozen"),
    "x and y": (place(lambda p: p[..., ::-1]), "x and y are exchanged"),
    "x mirrored": (place(lambda p: p * (-1, 1)), "x has the opposite sign"),
    "y mirrored": (place(lambda p: p * (1, -1)), "y has the opposite sign"),
    "relative to the AV": (place(lambda p: p - AV), "positions are relative to the AV"),
    "the AV's frame": (place(lambda p: rotated(p - AV, -AHEAD[:, :1])), "positions are in the AV's frame"),
    "the AV ahead is y": (
        place(lambda p: rotated(p - AV, 1.5708 - AHEAD[:, :1])),
        "positions are in the AV's frame",
    ),
    "own frames": (place(lambda p: rotated(p - HERE, -AHEAD)), "positions are in each object's own frame"),
    "own origins": (place(lambda p: p - HERE), "positions are in each object's own frame"),
    "own motion": (place(lambda p: HERE + rotated(p - HERE, -AHEAD)), "motion is in each object's own frame"),
    "motion turned": (place(lambda p: HERE + rotated(p - HERE, math.pi / 2)), "motion is turned by 90 degrees"),
    "motion turned back": (
        place(lambda p: HERE + rotated(p - HERE, -math.pi / 2)),
        "motion is turned by -90 degrees",
    ),
    "centred": (place(lambda p: p - HERE.mean(axis=1, keepdims=True)), SHIFTED),
    "shifted by a metre": (place(lambda p: p + np.array((1.0, 0.0))), SHIFTED),
    "world turned": (place(lambda p: rotated(p, math.pi / 2)), "positions are turned about the origin"),
    "rear axle": (
        lambda s: place(lambda p: p - 1.4 * rotated(np.array((1.0, 0.0)) + 0 * p, s[..., 3]))(s),
        "positions are shifted in each object's own frame: not its centre",
    ),
    "feet": (place(lambda p: p * 3.281), "positions are scaled"),
    "normalised": (place(lambda p: p / 100), "positions are scaled"),
    "objects permuted": (lambda s: np.roll(s, 1, axis=1), "positions are those of other objects"),
    "two objects exchanged": (second_swapped, "positions are those of other objects"),
    "another datum": (height(lambda z: z + 20.0), "heights are shifted, all alike: another datum"),
    "half a metre": (height(lambda z: z - 0.5), "heights are shifted, all alike: another datum"),
    "on the ground": (height(lambda z: z - SIZE / 2), "heights are those of the ground, not of the centre"),
    "roofs": (height(lambda z: z + SIZE / 2), "heights are those of the roof, not of the centre"),
    "no heights": (height(lambda z: 0 * z), "heights are all 0"),
    "steps of 0.2 s": (lambda s: s[:, :, np.minimum(2 * np.arange(80) + 1, 79)], RATE),
    "steps of 0.5 s": (lambda s: s[:, :, np.minimum(5 * np.arange(80) + 4, 79)], RATE),
    "steps of 0.05 s": (place(lambda p: HERE + (p - HERE) / 2), RATE),
    "5 Hz": (lambda s: held(s, 2), REPEATED),
    "2 Hz": (lambda s: held(s, 5), REPEATED),
    "1 Hz": (lambda s: held(s, 10), REPEATED),
    "faster after a step": (
        lambda s: s[:, :, np.minimum(3 * np.arange(80), 79)],
        "speeds jump after the first step",
    ),
    "few futures": (lambda s: s[[0, 0, 1, 1]], "joint scenes are repeated"),
}


@pytest.mark.parametrize("name", CASES)
def test_each_is_named_with_two_examples(name: str) -> None:
    change, kind = CASES[name]
    states = change(rollouts())
    (found,) = [suspicion for suspicion in suspected(states) if suspicion.kind.startswith(kind)]
    if kind != "joint scenes are repeated":
        assert len(found.examples) == 2
        assert 2 <= found.count <= found.of <= COUNT * len(MOVERS)
        assert all("object" in text and "expected" in text for text in found.examples)


def test_what_goes_on_from_the_current_state_is_not_suspicious() -> None:
    assert kinds(rollouts()) == set()


def test_found_and_expected_are_those_of_the_scene() -> None:
    (late,) = [found for found in suspected(before(rollouts(), 1)) if found.kind == LATE]
    # The first object is at (3010, -1500) and goes 0.8 m along 0.5 rad.
    assert (
        late.examples[0]
        == "joint scene 0: object 1: at (3010.00, -1500.00) after a step, expected (3010.70, -1499.62)"
    )
    assert (late.count, late.of) == (COUNT * 7, COUNT * 7), "those that stand are not late"
    turned = heading(lambda h: wrapped(h + math.pi / 2))(rollouts())
    (found,) = suspected(turned)
    assert found.examples[1] == "joint scene 0: object 2: heading 2.07 after a step, expected 0.50"
    assert (found.count, found.of) == (COUNT * 13, COUNT * 13)
    (found,) = [found for found in suspected(held(rollouts(), 2)) if found.kind == REPEATED]
    # Of 79 steps, without the first and the last.
    assert found.examples[0] == (
        "joint scene 0: object 1: moves in 39 of 77 steps and is held between them, expected to move in 77"
    )


def test_wrapping_is_told_from_the_first_step() -> None:
    first, later = rollouts(), rollouts()
    first[:, :, 0, 3] += 2 * math.pi
    later[:, :, 1:, 3] += 2 * math.pi
    [found] = [found for found in suspected(first) if found.kind == "headings are not wrapped"]
    assert found.examples[0] == "joint scene 0: object 1: heading 6.78 after a step, expected 0.50"
    assert "headings are not wrapped" not in kinds(later)


def test_a_frame_is_no_later_time_where_all_drive_one_way() -> None:
    """In the AV's frame the cars are 24 m ahead along the road, which is 20 to 40 steps of each."""
    movers = [Mover(-24.0 + 14 * k, 1.75 - 3.5 * (k % 2), speed=6.0 + 1.2 * k) for k in range(5)]
    scene = hand_made(movers, steps=CURRENT_INDEX + 1)
    start = np.array([[m.x, m.y, 0.0, 0.0] for m in movers])
    speed = np.array([m.speed for m in movers])
    way = np.zeros((COUNT, 5, 120, 4))
    way[..., 0] = 0.1 * speed[:, None] * np.arange(1, 121) * (1 + 0.01 * np.arange(COUNT))[:, None, None]
    states = start[:, None] + way
    assert kinds(states[:, :, :80], scene) == set()
    assert "positions are relative to the AV" in kinds(states[:, :, :80] - start[0], scene)
    assert EARLY in kinds(states[:, :, 30:110], scene)


def test_the_step_of_an_example_is_one_of_every_half_second() -> None:
    """The first object goes along 0.5 rad less 0.03 rad/s of bend, and heads a right angle to port of it."""
    (found,) = suspected(later_headings(rollouts(), math.pi / 2))
    assert found.kind == "objects move sideways"
    assert found.examples[0] == (
        "joint scene 0: object 1: heading 2.05 at step 5, expected 0.48, the direction of motion"
    )
    assert (found.count, found.of) == (COUNT * 6, COUNT * 6), "of vehicles and cyclists that move"


def test_a_turned_motion_is_no_other_time_step() -> None:
    """At 45 degrees objects come 0.7 of the way that is due, but not to where 0.07 s would lead them."""
    for angle in (math.pi / 4, -math.pi / 4):

        def turn(p: States, angle: float = angle) -> States:
            return HERE + rotated(p - HERE, angle)

        turned = place(turn)(rollouts())
        assert kinds(turned)
        assert RATE not in kinds(turned)


def single(row: int, change: Callable[[States], States]) -> States:
    states = rollouts()
    states[:, row] = change(states)[:, row]
    return states


@pytest.mark.parametrize(
    "states",
    [
        single(3, heading(lambda h: wrapped(h + math.pi))),
        single(9, heading(lambda h: wrapped(h + math.pi / 2))),
        single(1, lambda s: np.repeat(NOW, 80, axis=2)),
        single(0, lambda s: before(s, 1)),
        single(5, place(lambda p: 2 * HERE - p)),
        single(4, height(lambda z: z + 0.6)),
    ],
    ids=["reverses", "parked and turned", "stops at once", "late", "backwards", "higher"],
)
def test_a_single_odd_object_is_no_convention(states: States) -> None:
    assert kinds(states) == set()


@pytest.mark.parametrize("size", [1e30, 1e38])
def test_coordinates_beyond_any_road_are_said_without_warnings_of_arithmetic(size: float) -> None:
    states = rollouts()
    states[1, 2, 10:, :2] = size
    states[:, :, :, 1] += size
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "objects jump" in kinds(states)


def test_steps_beyond_float32_are_said_without_warnings_of_arithmetic() -> None:
    """To and fro across the heading: the way along it is infinity less infinity."""
    states = rollouts()
    states[1, 2, 10::2, :2], states[1, 2, 11::2, :2] = (3e38, -3e38), (-3e38, 3e38)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "objects jump" in kinds(states)


def test_what_agents_may_do() -> None:
    states = rollouts()
    time = 0.1 * np.arange(1, 81)[:, None]
    # All brake as hard as they can, to a stand.
    speed = np.hypot(*SCENE.agents.velocity[:, CURRENT_INDEX].numpy().T)[None, :, None, None]
    until = np.minimum(time, speed / 8)
    way = (speed * until - 4 * until**2) * np.stack((np.cos(AHEAD), np.sin(AHEAD)), axis=-1)
    wobble = 0.002 * np.arange(COUNT)[:, None, None, None]
    braked = np.concatenate((HERE + way + wobble, np.repeat(NOW[..., 2:], 80, axis=2)), axis=-1)
    assert kinds(braked) == set()
    # All turn about within eight seconds.
    turning = states.copy()
    turning[..., 3] = wrapped(AHEAD + (0.4 * time)[:, 0])
    step = 0.1 * speed * np.stack((np.cos(turning[..., 3]), np.sin(turning[..., 3])), axis=-1)
    turning[..., :2] = HERE + np.cumsum(step, axis=2) + wobble
    assert kinds(turning) == set()
    # All stop and go, two steps at a time, at random.
    go = np.random.default_rng(0).random((*states.shape[:2], 40)).repeat(2, axis=2) > 0.5
    go[:, :, 0] = True
    step = 0.1 * speed * go[..., None] * np.stack((np.cos(AHEAD), np.sin(AHEAD)), axis=-1)
    jerky = np.concatenate((HERE + np.cumsum(step, axis=2), np.repeat(NOW[..., 2:], 80, axis=2)), axis=-1)
    assert kinds(jerky) == set()
    # Those that stand turn on the spot: pedestrians.
    walkers = dataclasses.replace(
        SCENE, agents=dataclasses.replace(SCENE.agents, type=torch.full((len(MOVERS),), int(WALKER)))
    )
    standing = states.copy()
    standing[:, 7:, :, 3] = wrapped(standing[:, 7:, :, 3] + 1.5)
    assert kinds(standing, walkers) == set()


def test_velocities_that_do_not_fit_the_track_foretell_nothing() -> None:
    velocity = SCENE.agents.velocity.clone()
    velocity[:7, CURRENT_INDEX] *= -2
    odd = dataclasses.replace(SCENE, agents=dataclasses.replace(SCENE.agents, velocity=velocity))
    assert kinds(rollouts(), odd) == set()


def test_no_object_and_no_joint_scene() -> None:
    assert suspected(rollouts()[:0]) == []
    unseen = torch.zeros_like(SCENE.agents.valid)
    empty = dataclasses.replace(SCENE, agents=dataclasses.replace(SCENE.agents, valid=unseen))
    assert suspected(np.zeros((COUNT, 0, 80, 4)), empty) == []


# True of these agents: the log goes to zero where an agent was not seen, is one future, and is known.
TRUE = {
    "objects jump",
    "heights jump",
    "objects sink or fly",
    "joint scenes are repeated",
    "the recorded future is followed",
}


@pytest.mark.womd
@pytest.mark.parametrize("name", ["log", "constant_velocity"])
def test_nothing_is_said_of_real_scenes(womd: Path, name: str) -> None:
    agent = make_agent(name, None)
    said = {}
    for scene in open_scenes(womd / "validation"):
        made = Rollouts(str(scene.scenario_id), scene.agents.id[scene.simulated], agent.rollouts(scene, 2, 0))
        read = from_proto(to_proto(made), "memory")
        said[scene.scenario_id] = {s.kind for s in suspicions_of(read.agent_id, read.states, scene)} - TRUE
    assert len(said) >= 44
    assert {name: kinds for name, kinds in said.items() if kinds} == {}


@pytest.mark.womd
def test_nothing_is_said_of_rollouts_that_waymos_code_scored(womd: Path) -> None:
    source = open_scenes(womd / "validation")
    files = sorted((womd.parent / "oracle").glob("*/*.rollouts.binproto"))
    if not files:
        pytest.skip("no rollouts with official scores beside the scenarios")
    for file in files:
        for read in read_rollouts(file):
            found = suspicions_of(read.agent_id, read.states, source.get(read.scenario_id))
            assert {suspicion.kind for suspicion in found} <= TRUE, file.name


def test_frozen_objects_are_those_that_stay_where_they_are() -> None:
    """Frozen a second later, or somewhere else, is another mistake."""
    states = rollouts()
    frozen = states.copy()
    frozen[..., :] = states[:, :, :1]
    frozen[..., :3] = SCENE.agents.position[None, :, None, CURRENT_INDEX].numpy()
    assert "objects that move are frozen" in kinds(frozen)
    elsewhere = frozen.copy()
    moving = SCENE.agents.velocity[:, CURRENT_INDEX].norm(dim=-1).numpy() > 0
    elsewhere[:, moving, :, 1] += 50.0
    assert "objects that move are frozen" not in kinds(elsewhere)
    late = frozen.copy()
    late[:, :, 10:] = states[:, :, :70]
    assert "objects that move are frozen" not in kinds(late)


def test_one_joint_scene_in_which_an_object_moves_tells_how_it_moves() -> None:
    """States repeated twice in two of four joint scenes, while the same objects stand in the others."""
    states = held(rollouts(), 2)
    standing = states.copy()
    standing[2:, :, :, :3] = states[2:, :, :1, :3]
    assert REPEATED in kinds(standing)
