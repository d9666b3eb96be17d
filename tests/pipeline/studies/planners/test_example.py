"""The example planner: its controls are closed forms of the situation."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from pipeline.studies.planners.example import ExamplePlanner
from pipeline.studies.planners.interface import Control
from tests.pipeline.studies.planners.driving import mission_of, straight_road
from tests.pipeline.studies.planners.test_ahead import ROAD, situation
from tests.scenes import Mover, hand_made

State = tuple[float, float, float, float, float]
Line = tuple[float, float, float]


def control(
    *others: State, speed: float, lines: list[Line] | None = None, red: bool = True, start: Line = (10.0, 0.0, 0.0)
) -> Control:
    """Of an AV of 4 m that is at ``start``, on a road along the x axis."""
    mission = mission_of(hand_made([Mover(speed=8.0)], [straight_road()]))
    planner = ExamplePlanner(dataclasses.replace(mission, route=ROAD, ego=0))
    now = situation(*others, speed=speed, lines=lines, red=[red] * len(lines or []))
    now.pose[0] = start
    return planner.plan(now)


@pytest.mark.parametrize(("speed", "ahead"), [(8.0, 12.0), (4.0, 6.0), (2.0, 5.0), (0.0, 5.0)])
@pytest.mark.parametrize(("y", "heading"), [(0.8, 0.2), (-1.1, -0.1), (0.0, 0.0), (0.0, 0.5)])
def test_it_steers_onto_a_circle_through_a_point_of_the_road(
    speed: float, ahead: float, y: float, heading: float
) -> None:
    bend = 2 * math.sin(math.atan2(-y, ahead) - heading) / ahead
    assert control(speed=speed, start=(10.0, y, heading)).steering == pytest.approx(math.atan(2.8 * bend), abs=1e-6)


CAR: State = (30.0, 0.0, 0.0, 0.0, 0.0)  # Three metres behind it are 13 m away.


@pytest.mark.parametrize(
    ("others", "speed", "acceleration"),
    [
        ([], 9.9, 1.0),
        ([], 10.0, 0.0),
        # 1.5 m/s^2 are enough.
        ([CAR], 6.24, 1.0),
        ([CAR], 6.26, -(6.26**2) / 26),
        ([(60.0, *CAR[1:]), CAR], 8.0, -64 / 26),
        # In the lane, ahead.
        ([(30.0, 1.4, *CAR[2:])], 8.0, -64 / 26),
        ([(30.0, -1.4, *CAR[2:])], 8.0, -64 / 26),
        ([(30.0, 1.6, *CAR[2:])], 8.0, 1.0),
        ([(30.0, -1.6, *CAR[2:])], 8.0, 1.0),
        ([(10.05, *CAR[1:])], 8.0, 1.0),
        ([(10.2, *CAR[1:])], 8.0, -8.0),
        # Too near: 5 cm count as 10.
        ([(17.05, *CAR[1:])], 1.0, -5.0),
        ([(17.05, *CAR[1:])], 2.0, -8.0),
    ],
)
def test_it_brakes_for_the_nearest_in_its_lane(others: list[State], speed: float, acceleration: float) -> None:
    assert control(*others, speed=speed).acceleration == pytest.approx(acceleration, abs=1e-6)


@pytest.mark.parametrize(
    ("lines", "red", "acceleration"),
    [
        ([(30.0, 1.9, 0.0)], True, -64 / 30),
        ([(30.0, -1.9, 0.0)], True, -64 / 30),
        ([(30.0, 2.1, 0.0)], True, 1.0),
        ([(30.0, -2.1, 0.0)], True, 1.0),
        ([(30.0, 0.0, 0.0)], False, 1.0),
        ([(60.0, 0.0, 0.0), (30.0, 0.0, 0.0)], True, -64 / 30),
        ([(9.5, 0.0, 0.0)], True, 1.0),
        # Between its centre and its bumper.
        ([(10.5, 0.0, 0.0)], True, -8.0),
    ],
)
def test_it_brakes_before_a_red_light(lines: list[Line], red: bool, acceleration: float) -> None:
    assert control(speed=8.0, lines=lines, red=red).acceleration == pytest.approx(acceleration, abs=1e-6)
    both = control(CAR, speed=8.0, lines=lines, red=red).acceleration
    assert both == pytest.approx(min(acceleration, -64 / 26), abs=1e-6)


def test_who_is_gone_does_not_count() -> None:
    planner = ExamplePlanner(
        dataclasses.replace(mission_of(hand_made([Mover(speed=8.0)], [straight_road()])), route=ROAD, ego=0)
    )
    now = situation(CAR, speed=8.0)
    assert planner.plan(dataclasses.replace(now, present=np.array([True, False]))).acceleration == 1.0
    assert planner.plan(now).acceleration < 0
