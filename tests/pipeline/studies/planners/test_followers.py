"""Who is behind the AV, on hand-made roads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from data.scene import AgentType, MapKind, Scene, until_now
from pipeline.studies.planners.lanes import Lane, read_lanes
from pipeline.studies.planners.manoeuvres import CutIn, corridors_behind, find_cut_in, find_follower
from pipeline.studies.planners.road_scores import LANE_HALF_WIDTH
from tests.pipeline.studies.planners.drives import ORIGIN, route_of
from tests.scenes import Mover, Point, hand_made

AV = Mover(speed=10.0)
BEHIND = Mover(x=-24.0, speed=9.0)
LONG = [(-200.0, 0.0), (300.0, 0.0)]


def lanes(*movers: Mover, lines: Sequence[Sequence[Point]] = (LONG,)) -> Scene:
    return hand_made(movers, [(MapKind.LANE, line) for line in lines])


def test_the_vehicle_behind_is_the_follower_and_the_future_is_not_looked_at() -> None:
    farther = dataclasses.replace(BEHIND, x=-35.0)
    scene = lanes(farther, AV, BEHIND)
    agents = dataclasses.replace(scene.agents, is_sdc=torch.tensor([False, True, False]))
    scene = dataclasses.replace(scene, agents=agents)
    assert find_follower(scene, ORIGIN) == 2
    assert find_follower(until_now(scene), ORIGIN) == 2
    assert find_follower(scene, torch.tensor([300.0, -70.0])) == 2


@pytest.mark.parametrize(
    "other",
    [
        Mover(x=24.0, speed=9.0),
        Mover(x=-24.0, y=3.7, speed=9.0),
        Mover(x=-24.0, speed=0.5),
        Mover(x=-24.0, speed=9.0, heading=math.pi),
        Mover(x=-24.0, speed=9.0, kind=AgentType.PEDESTRIAN),
        Mover(x=-44.5, speed=9.0),
    ],
)
def test_who_is_no_follower(other: Mover) -> None:
    """Ahead, in another lane, standing, going the other way, a pedestrian, more than 40 m between bumpers."""
    assert find_follower(lanes(AV, other), ORIGIN) is None
    assert find_follower(lanes(AV, dataclasses.replace(other, x=-43.5, y=0, heading=0, speed=2)), ORIGIN) == (
        None if other.kind == AgentType.PEDESTRIAN else 1
    )


def test_a_slow_av_and_one_that_stands_between_concern_nobody() -> None:
    assert find_follower(lanes(Mover(speed=2.9), BEHIND), ORIGIN) is None
    assert find_follower(lanes(AV, BEHIND, Mover(x=-12.0)), ORIGIN) is None
    assert find_follower(hand_made([AV, BEHIND]), ORIGIN) is None  # no lane
    assert find_follower(lanes(AV, BEHIND, lines=([(-20.0, 0.0), (99.0, 0.0)],)), ORIGIN) is None  # not in the lane


def test_followers_are_found_around_bends_and_before_merges() -> None:
    """Two lanes lead to the AV's, one around a bend; a third ends there, too, but crosses it."""
    own, merge = [(-10.0, 0.0), (100.0, 0.0)], [(-70.0, 0.0), (-10.0, 0.0)]
    bend = [(-20.0, -60.0), (-20.0, -10.0), (-17.0, -3.0), (-10.0, 0.0)]
    crossing = [(-10.0, 50.0), (-10.0, 0.0)]
    around = Mover(x=-20.0, y=-15.0, heading=math.pi / 2, speed=8.0)
    assert find_follower(lanes(AV, around, lines=(own, merge)), ORIGIN) is None
    scene = lanes(AV, around, lines=(own, bend, crossing, merge))
    assert find_follower(scene, ORIGIN) == 1
    lines = corridors_behind(read_lanes(scene, ORIGIN.numpy()), torch.tensor([0.0, 0.5, 0.0]))
    assert sorted(line[0].tolist() for line in lines) == [[-70.0, 0.0], [-20.0, -60.0]]
    assert all(line[-1].tolist() == [0.0, 0.0] for line in lines)
    nearer = lanes(AV, around, Mover(x=-12.0, speed=8.0), lines=(own, bend, crossing, merge))
    assert find_follower(nearer, ORIGIN) == 2


@pytest.mark.parametrize("heading", [0.0, 1.0, 2.5, 3.0, -1.5, -3.0])
@pytest.mark.parametrize(
    ("turn", "aside", "inside"),
    [
        (44.0, 0.0, True), (-44.0, 0.0, True), (46.0, 0.0, False), (-46.0, 0.0, False), (180.0, 0.0, False),
        (0.0, 0.95, True), (0.0, -0.95, True), (0.0, 1.05, False), (0.0, -1.05, False),
    ],
)  # fmt: skip
def test_a_lane_holds_who_is_in_it_and_turned_by_less_than_45_degrees(
    heading: float, turn: float, aside: float, inside: bool
) -> None:
    """A lane that bends before and behind, so that its direction where the AV is counts alone."""
    along = np.array([math.cos(heading), math.sin(heading)])
    port = np.array([-along[1], along[0]])
    line = [-90.0 * port - 20.0 * along, -20.0 * along, 20.0 * along, 20.0 * along + 60.0 * port]
    travelled = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1)))
    lane = Lane(np.array(line), travelled, np.zeros(3), 0.0, ())
    place = 5.0 * along + LANE_HALF_WIDTH * aside * port
    pose = torch.tensor([*place, math.remainder(heading + math.radians(turn), math.tau)], dtype=torch.float32)
    found = corridors_behind([lane], pose)
    assert len(found) == inside
    if inside:
        np.testing.assert_allclose(found[0], [line[0], line[1], 5.0 * along], atol=1e-4)


def test_lanes_in_a_ring_end() -> None:
    angle = torch.linspace(0, 2 * math.pi, 33).tolist()
    ring = [(5 * math.sin(a), 5 - 5 * math.cos(a)) for a in angle]
    lines = corridors_behind(
        read_lanes(lanes(AV, lines=(ring[:17], ring[16:])), ORIGIN.numpy()), torch.tensor([0.5, 0.1, 0.1])
    )
    assert len(lines) == 1
    assert 50 < float((lines[0][1:] - lines[0][:-1]).norm(dim=-1).sum()) < 100


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_cutting_in_on_who_is_behind_in_the_lane_beside(side: float) -> None:
    beside = [(-200.0, 3.7 * side), (300.0, 3.7 * side)]
    target = Mover(x=-15.0, y=3.7 * side, speed=11.0)
    found = find_cut_in(lanes(AV, BEHIND, target, lines=(LONG, beside)), ORIGIN, route_of())
    assert found is not None
    assert found == CutIn(pytest.approx(3.7 * side), 2)  # type: ignore[arg-type]


def test_of_two_lanes_the_one_with_the_nearer_follower_is_taken() -> None:
    lines = tuple([(-200.0, y), (300.0, y)] for y in (0.0, 3.7, -3.5))
    movers = AV, Mover(x=-22.0, y=3.7, speed=11.0), Mover(x=-16.0, y=-3.5, speed=11.0)
    found = find_cut_in(lanes(*movers, lines=lines), ORIGIN, route_of())
    assert found == CutIn(pytest.approx(-3.5), 2)  # type: ignore[arg-type]


TARGET = Mover(x=-15.0, y=3.7, speed=11.0)


@pytest.mark.parametrize(
    ("line", "others"),
    [
        ([(300.0, 3.7), (-200.0, 3.7)], [TARGET]),
        ([(-200.0, 3.7), (30.0, 3.7)], [TARGET]),
        ([(-200.0, 7.4), (300.0, 7.4)], [dataclasses.replace(TARGET, y=7.4)]),
        ([(-200.0, 3.7), (300.0, 3.7)], [TARGET, Mover(x=2.0, y=3.7, speed=10.0)]),
        ([(-200.0, 3.7), (300.0, 3.7)], [TARGET, Mover(x=16.0, y=3.7, speed=10.0)]),
        ([(-200.0, 3.7), (300.0, 3.7)], [dataclasses.replace(TARGET, x=-5.0)]),
        ([(-200.0, 3.7), (300.0, 3.7)], [dataclasses.replace(TARGET, x=-32.0)]),
        ([(-200.0, 3.7), (300.0, 3.7)], [dataclasses.replace(TARGET, speed=0.0)]),
        ([(-200.0, 3.7), (300.0, 3.7)], []),
    ],
)
def test_when_there_is_nobody_to_cut_in_on(line: list[Point], others: list[Mover]) -> None:
    """The lane runs the other way, ends too soon, or is not the next one; somebody is beside or ahead; the target
    is beside, far away, or stands; there is none."""
    assert find_cut_in(lanes(AV, *others, lines=(LONG, line)), ORIGIN, route_of()) is None
