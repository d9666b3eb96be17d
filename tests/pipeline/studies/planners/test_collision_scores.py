"""Whose fault a collision is, on hand-made cases with known answers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from pipeline.simulator.events import LEVEL_GAP
from pipeline.studies.planners.collision_scores import Collision, least_ttc, off_axis, ttc_within_bound
from pipeline.studies.planners.drive_record import Drive
from pipeline.studies.planners.scores import score_drives
from tests.pipeline.studies.planners.drives import ORIGIN, TIME, Floats, drive_of, road, route_of, straight

ROAD = road((0.0, 1), (3.7, 1))
WALKER = (0.6, 0.6, 1.7)
BIKE = (1.8, 0.7, 1.7)


def collisions(drive: Drive) -> tuple[list[float], list[Collision]]:
    result = score_drives(drive, ROAD, ORIGIN, route_of())
    return result.values["no_at_fault_collision"].tolist(), result.collisions.listed()


def beside(x: float, y0: float, y1: float, speed: float, side_speed: float) -> Floats:
    """Along the road, sliding from y0 to y1 without turning."""
    y = y0 + np.sign(y1 - y0) * np.minimum(side_speed * TIME, abs(y1 - y0))
    return np.stack((x + speed * TIME, y, np.zeros(81)), axis=1)


def test_hit_from_behind_is_not_at_fault_and_reported_as_such() -> None:
    """The other closes 10 m between bumpers at 4 m/s: they touch after 2.5 s, and overlap at the next step."""
    score, found = collisions(drive_of([straight(speed=6.0)], straight(x=-14.0, speed=10.0)))
    assert score == [1.0]
    assert [round(hit.seconds, 6) for hit in found] == [2.6]
    assert [dataclasses.replace(hit, seconds=0.0) for hit in found] == [Collision(0, 1, 0.0, False, True)]


def test_hit_from_behind_between_lanes_is_not_at_fault_either() -> None:
    score, found = collisions(drive_of([straight(y=1.4, speed=6.0)], straight(x=-14.0, y=0.7, speed=10.0)))
    assert score == [1.0]
    assert [(hit.at_fault, hit.rear_hit) for hit in found] == [(False, True)]


def test_running_into_who_is_slower_is_at_fault() -> None:
    score, found = collisions(drive_of([straight(speed=10.0)], straight(x=14.0, speed=6.0)))
    assert score == [0.0]
    assert [round(hit.seconds, 6) for hit in found] == [2.6]
    assert [dataclasses.replace(hit, seconds=0.0) for hit in found] == [Collision(0, 1, 0.0, True, False)]


@pytest.mark.parametrize("angle", [0.0, 90.0, 180.0, 250.0])
def test_who_stands_is_never_at_fault(angle: float) -> None:
    """Whatever drives into a standing AV, from wherever; from behind it is a rear hit."""
    way = math.radians(angle)
    other = straight(-12 * math.cos(way), -12 * math.sin(way), way, speed=6.0)
    score, found = collisions(drive_of([straight()], other))
    assert score == [1.0]
    assert [(hit.at_fault, hit.rear_hit) for hit in found] == [(False, angle == 0.0)]


def test_reversing_into_who_stands_is_at_fault_though_it_is_behind() -> None:
    back = straight(speed=2.0) * np.array([-1.0, 1.0, 1.0])
    score, found = collisions(drive_of([back], straight(x=-8.0)))
    assert score == [0.0]
    assert [(hit.at_fault, hit.rear_hit) for hit in found] == [(True, False)]


def test_side_hit_is_at_fault_only_between_lanes() -> None:
    """The AV moves over onto one beside it; or stays in its lane while the other moves over onto it. The other is a
    little behind, so that the AV's bumper does not touch it."""
    changing, keeping = beside(0.0, 0.0, 3.7, 8.0, 1.2), straight(speed=8.0)
    drifting, staying = beside(-2.5, 3.7, 0.0, 8.0, 1.2), straight(x=-2.5, y=3.7, speed=8.0)
    score, found = collisions(drive_of([changing, keeping], [staying, drifting]))
    assert score == [0.0, 1.0]
    # 1.7 m between them at 1.2 m/s.
    assert [hit.seconds for hit in found] == pytest.approx([1.5, 1.5])
    assert not any(hit.rear_hit for hit in found)


def test_side_hit_off_the_road_is_at_fault() -> None:
    """Wide enough a road, and the same hit is nobody's business: the lane holds the AV in both."""
    narrow, wide = (road((0.0, 1), half_width=width) for width in (0.9, 8.0))
    drive = drive_of([straight(speed=8.0)], beside(-2.5, 3.7, 0.0, 8.0, 1.2))
    scores = [
        float(score_drives(drive, scene, ORIGIN, route_of()).values["no_at_fault_collision"])
        for scene in (narrow, wide)
    ]
    assert scores == [0.0, 1.0]


@pytest.mark.parametrize("size", [WALKER, BIKE])
@pytest.mark.parametrize("speed", [3.0, 8.0, 25.0])
def test_pedestrians_and_cyclists_count_like_vehicles(size: tuple[float, float, float], speed: float) -> None:
    """At 25 m/s a pedestrian is wholly inside the box at the first step of overlap: the contact before counts."""
    at = 2.03 * speed + 2.0
    crossing = straight(x=at, y=-2.03, heading=math.pi / 2, speed=1.0)
    score, found = collisions(drive_of([straight(speed=speed)], crossing, sizes=[(4.0, 2.0, 1.5), size]))
    assert score == [0.0]
    assert [(hit.agent, hit.at_fault) for hit in found] == [(1, True)]


def test_overlap_at_the_start_and_on_another_level_and_absence_do_not_count() -> None:
    drive = drive_of([straight(speed=5.0)], straight(x=1.0, speed=4.0), straight(x=20.0), straight(x=30.0))
    drive = dataclasses.replace(drive, heights=torch.tensor([0.75, 0.75, 8.0, 0.75]))
    gone = drive.present.clone()
    gone[:, 3, 20:] = False
    score, found = collisions(dataclasses.replace(drive, present=gone))
    assert score == [1.0]
    assert found == []


@pytest.mark.parametrize("height", [0.4, 1.5, 3.8])
@pytest.mark.parametrize(
    ("bottom", "collides"), [(0.0, True), (0.9, True), (-0.9, True), (1.1, False), (-1.1, False)]
)
def test_boxes_collide_whose_undersides_are_less_than_a_level_apart(
    height: float, bottom: float, collides: bool
) -> None:
    bottom *= LEVEL_GAP
    drive = drive_of([straight(speed=10.0)], straight(x=14.0), sizes=[(4.0, 2.0, 1.5), (4.0, 2.0, height)])
    _, found = collisions(dataclasses.replace(drive, heights=torch.tensor([0.75, bottom + height / 2])))
    assert bool(found) == collides


def test_all_agents_and_drives_are_told_apart() -> None:
    """The AV's row is in the middle; the second drive passes without contact."""
    drive = drive_of(
        [straight(speed=10.0), straight(speed=3.0)],
        straight(x=14.0, speed=6.0),
        straight(x=-30.0, speed=3.0),
        straight(x=40.0, speed=6.0),
        ego=1,
    )
    score, found = collisions(drive)
    assert score == [0.0, 1.0]
    assert [(hit.drive, hit.agent) for hit in found] == [(0, 0)]


@pytest.mark.parametrize(("speed", "stands"), [(0.04, True), (0.06, False)])
def test_who_is_slower_than_a_twentieth_of_a_metre_a_second_stands(speed: float, stands: bool) -> None:
    """The AV is met head-on; or it reverses into somebody behind it, who drives away or stands."""
    score, _ = collisions(drive_of([straight(speed=speed)], straight(x=14.0, heading=math.pi, speed=6.0)))
    assert score == [1.0 if stands else 0.0]
    back = straight(speed=2.0) * np.array([-1.0, 1.0, 1.0])
    score, _ = collisions(drive_of([back], straight(x=-8.0, speed=-speed)))
    assert score == [0.0 if stands else 1.0]


@pytest.mark.parametrize(("behind", "fault"), [(0.0, True), (0.01, True), (0.04, False), (0.9, False)])
def test_the_bumper_touches_what_is_two_centimetres_away(behind: float, fault: bool) -> None:
    """Somebody drifts into the side of the AV, whose own bumper is so far behind the AV's."""
    score, found = collisions(drive_of([straight(speed=8.0)], beside(-behind, 3.7, 0.0, 8.0, 1.2)))
    assert score == [0.0 if fault else 1.0]
    assert len(found) == 1


def test_angles_are_seen_from_the_rear_axle() -> None:
    ego = torch.tensor([3.0, -2.0, 0.5])
    for degrees in (0.0, 20.0, -90.0, 149.0, 180.0):
        way = 0.5 + math.radians(degrees)
        axle = ego[:2] - 1.4 * torch.tensor([math.cos(0.5), math.sin(0.5)])
        point = axle + 5.0 * torch.tensor([math.cos(way), math.sin(way)])
        assert math.degrees(off_axis(ego, point)) == pytest.approx(abs(degrees), abs=0.1)


@pytest.mark.parametrize(
    ("size", "y", "motion", "degrees", "counts"),
    [
        # Against the AV, whose front is 8 m wide: beside its way, and more so from step to step.
        ((2.0, 8.0, 1.5), 3.5, (-5.0, 0.0), 29.5, True),
        ((2.0, 8.0, 1.5), 3.5, (-5.0, 0.0), 30.5, False),
        # Across towards the rear of an AV of 12 m, as fast as it ahead: more behind it from step to step.
        ((12.0, 2.0, 1.5), 2.5, (1.0, -3.0), 149.5, True),
        ((12.0, 2.0, 1.5), 2.5, (1.0, -3.0), 150.5, False),
        # Not across: at less than 30 degrees to the AV's heading.
        ((12.0, 2.0, 1.5), 2.5, (1.0, -0.57), 90.0, False),
        ((12.0, 2.0, 1.5), 2.5, (1.0, -0.59), 90.0, True),
    ],
)
def test_ahead_is_within_30_degrees_and_behind_beyond_150(
    size: tuple[float, float, float], y: float, motion: tuple[float, float], degrees: float, counts: bool
) -> None:
    other = np.zeros((81, 3))
    other[:, 0] = y / math.tan(math.radians(degrees)) - 1.4 + motion[0] * TIME
    other[:, 1] = y + motion[1] * TIME
    drive = drive_of([straight(speed=1.0)], other, sizes=[size, (0.2, 0.2, 1.5)])
    least = least_ttc(drive, drive.velocity, torch.zeros(1, 81, dtype=torch.bool))
    assert bool(least.isfinite()) == counts


def test_less_than_0_95_seconds_to_a_contact_are_too_few() -> None:
    assert ttc_within_bound(torch.tensor([0.0, 0.94, 0.95, 0.96, math.inf])).tolist() == [0.0, 0.0, 1.0, 1.0, 1.0]
