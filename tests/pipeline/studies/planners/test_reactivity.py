"""Scripted AVs against closed forms; followers that replay a log against ones that brake."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from data.scene import MapKind
from pipeline.studies.planners.drive_record import Drive
from pipeline.studies.planners.interface import Mission, Situation
from pipeline.studies.planners.manoeuvres import MANOEUVRES, Manoeuvre
from pipeline.studies.planners.reactivity import Reaction, measure
from pipeline.studies.planners.route import Route
from pipeline.studies.planners.scores import score_drives
from tests.pipeline.studies.planners.drives import ORIGIN, TIME, Floats, drive_of, road, route_of, straight
from tests.scenes import Mover, hand_made

ROAD = road((0.0, 1), (3.7, 1))
SCENE = hand_made(
    [Mover(speed=10.0), Mover(x=-15.0, y=3.7, speed=14.0)],
    [(MapKind.LANE, [(-200.0, y), (300.0, y)]) for y in (0.0, 3.7)],
)


def situation(x: float = 0.0, y: float = 0.0, heading: float = 0.0, speed: float = 10.0) -> Situation:
    nothing = np.zeros(0)
    return Situation(
        step=0,
        pose=np.array([[x, y, heading]]),
        velocity=speed * np.array([[math.cos(heading), math.sin(heading)]]),
        size=np.array([[4.0, 2.0]]),
        type=np.zeros(1, dtype=np.int64),
        present=np.ones(1, dtype=np.bool_),
        acceleration=0.0,
        yaw_rate=0.0,
        stop_line=nothing.reshape(0, 3),
        red=nothing.astype(np.bool_),
    )


def driven(name: str, **start: float) -> Floats:
    """Poses [81, 3] of a manoeuvre, the start included."""
    now = situation(**start)
    route = route_of()
    mission = Mission(SCENE, np.zeros(2), 0, route, np.zeros((80, 3)))
    planner = MANOEUVRES[name](mission)
    assert planner.period == 80
    plan = planner.plan(now)
    assert hasattr(plan, "pose")
    assert plan.pose.shape == (80, 3)
    return np.concatenate((now.pose, plan.pose))


@pytest.mark.parametrize(("name", "braking"), [("hard_brake", 6.0), ("gentle_stop", 3.0)])
@pytest.mark.parametrize("speed", [3.5, 10.0, 16.0])
def test_stops_by_closed_form(name: str, braking: float, speed: float) -> None:
    path = driven(name, speed=speed)
    time = np.clip(TIME - 1.0, 0.0, speed / braking)
    expected = speed * np.minimum(TIME, 1.0) + speed * time - braking / 2 * time**2
    np.testing.assert_allclose(path[:, 0], expected, atol=1e-6)
    np.testing.assert_allclose(path[:, 1:], 0.0, atol=1e-9)
    assert path[-1, 0] == pytest.approx(speed + speed**2 / (2 * braking))


def test_the_cut_in_is_a_quintic_over_two_and_a_half_seconds() -> None:
    path = driven("cut_in")
    share = np.clip((TIME - 1.0) / 2.5, 0.0, 1.0)
    np.testing.assert_allclose(path[:, 0], 10 * TIME, atol=1e-6)
    np.testing.assert_allclose(path[:, 1], 3.7 * (10 * share**3 - 15 * share**4 + 6 * share**5), atol=1e-4)
    slope = 3.7 * (30 * share**2 - 60 * share**3 + 30 * share**4) / 25.0
    np.testing.assert_allclose(path[:, 2], np.arctan(slope), atol=1e-4)


def test_who_begins_beside_the_route_comes_to_it_without_a_jump() -> None:
    for name in ("hard_brake", "gentle_stop"):
        path = driven(name, y=1.2, heading=0.1, speed=12.0)
        step = np.diff(path[:, :2], axis=0)
        moving = np.linalg.norm(step, axis=1) > 0.05
        course = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
        middle = (path[1:, 2] + path[:-1, 2]) / 2
        assert np.abs(course - middle)[moving].max() < 0.01
        assert abs(step[0, 0] - 1.2 * math.cos(0.1)) < 0.01
        assert np.abs(np.diff(path[:, 2])).max() < 0.05
        assert path[-1, 1] < 0.6
        still = ~moving
        assert np.abs(np.diff(path[:, 2])[still]).max() < 1e-3


def test_on_a_bend_the_path_is_beside_the_bend() -> None:
    """A circle of 50 m; three metres to port of it the circle is smaller."""
    angle = np.arange(0.0, 3.0, 0.02)
    route = Route(
        point=50 * np.stack((np.sin(angle), 1 - np.cos(angle)), axis=1),
        heading=angle,
        distance=50 * angle,
        speed_limit=np.zeros_like(angle),
    )
    plan = Manoeuvre(route, 0, offset=3.0).plan(situation()).pose
    radius = np.hypot(plan[:, 0], plan[:, 1] - 50)
    np.testing.assert_allclose(radius[:9], 50.0, atol=0.01)
    np.testing.assert_allclose(radius[36:], 47.0, atol=0.02)
    tangent = np.arctan2(plan[36:, 1] - 50, plan[36:, 0]) + math.pi / 2
    turned = np.angle(np.exp(1j * (plan[36:, 2] - tangent)))
    np.testing.assert_allclose(turned, 0.0, atol=0.01)


def test_the_route_goes_straight_on_beyond_its_end() -> None:
    plan = Manoeuvre(route_of(length=20), 0).plan(situation()).pose
    np.testing.assert_allclose(plan[:, 0], 10 * TIME[1:], atol=1e-6)


def test_a_cut_in_needs_somebody() -> None:
    mission = Mission(hand_made([Mover(speed=9.0)]), np.zeros(2), 0, route_of(), np.zeros((80, 3)))
    with pytest.raises(ValueError, match="no agent to cut in on"):
        MANOEUVRES["cut_in"](mission)


# --- measures


def reaction_of(drive: Drive, follower: int = 1) -> Reaction:
    return measure(drive, score_drives(drive, ROAD, ORIGIN, route_of()).collisions, follower)


def braking_from(x: float, speed: float, begin: float, deceleration: float) -> Floats:
    """Constant speed until ``begin``, then constant deceleration until it stands."""
    path = straight(x=x)
    braked = np.clip(TIME - begin, 0.0, speed / deceleration)
    path[:, 0] += speed * (np.minimum(TIME, begin) + braked) - deceleration / 2 * braked**2
    return path


def follow(leader: Floats, gap: float, delay: float) -> tuple[Floats, float]:
    """An IDM driver (a = 1.5, b = 2, s0 = 2, T = 1, v0 = 10) at ``gap`` behind, who sees what was ``delay`` seconds
    ago, braking at most by 8 m/s^2; and its strongest deceleration. Steps of 0.01 s, written for this test."""
    fine = np.arange(0.0, 8.0 + 1e-9, 0.01)
    ahead = np.interp(fine, TIME, leader[:, 0])
    speed_ahead = np.gradient(ahead, 0.01)
    x, v, lag, strongest = np.empty_like(fine), np.empty_like(fine), round(delay / 0.01), 0.0
    x[0], v[0] = leader[0, 0] - 4.0 - gap, speed_ahead[0]
    for k in range(len(fine) - 1):
        past = max(0, k - lag)
        room = max(ahead[past] - x[past] - 4.0, 0.1)
        wanted = 2.0 + max(0.0, v[past] + v[past] * (v[past] - speed_ahead[past]) / (2 * math.sqrt(1.5 * 2.0)))
        a = max(-8.0, 1.5 * (1 - (v[past] / 10.0) ** 4 - (wanted / room) ** 2))
        a = max(a, -v[k] / 0.01)
        strongest = max(strongest, -a)
        v[k + 1] = v[k] + 0.01 * a
        x[k + 1] = x[k] + 0.01 * v[k]
    path = straight()
    path[:, 0] = np.interp(TIME, fine, x)
    return path, strongest


def test_a_log_runs_into_a_braking_av_where_a_driver_brakes() -> None:
    """The same scene twice: behind an AV that brakes, one replays its log, the other is an IDM driver."""
    ego = braking_from(0.0, 10.0, 1.0, 6.0)
    log = straight(x=-20.0, speed=10.0)
    driver, strongest = follow(ego, 16.0, delay=0.0)
    reaction = reaction_of(drive_of([ego, ego], [log, driver]))
    assert reaction.false_rear_end.tolist() == [1.0, 0.0]
    assert reaction.min_gap[0] == 0.0
    assert float(reaction.min_gap[1]) == pytest.approx(float((ego[10:, 0] - driver[10:, 0] - 4).min()), abs=1e-3)
    assert float(reaction.min_gap[1]) > 1.0
    assert float(reaction.min_ttc[1]) > 4 * float(reaction.min_ttc[0])
    assert float(reaction.strongest_deceleration[0]) == pytest.approx(0.0, abs=1e-3)
    assert float(reaction.strongest_deceleration[1]) == pytest.approx(strongest, rel=0.1)
    assert math.isnan(float(reaction.reaction_time[0]))
    assert 0.0 <= float(reaction.reaction_time[1]) < 1.0


def test_least_time_to_collision_of_a_log_by_closed_form() -> None:
    """The AV stands from 2.667 s on, at 18.33 m; the other comes on at 10 m/s: until they touch the time left falls
    to what remains at the last step before."""
    ego = braking_from(0.0, 10.0, 1.0, 6.0)
    reaction = reaction_of(drive_of([ego], straight(x=-20.0, speed=10.0)))
    contact = (ego[-1, 0] - 4.0 + 20.0) / 10.0
    last = math.floor(contact * 10) / 10
    assert float(reaction.min_ttc) == pytest.approx(contact - last, abs=1e-4)


@pytest.mark.parametrize("delay", [0.3, 0.8, 1.5])
@pytest.mark.parametrize("deceleration", [4.0, 7.0])
def test_reaction_time_deceleration_and_gap_by_closed_form(delay: float, deceleration: float) -> None:
    """Who brakes at d from the delay on. The slope over half a second tells hard braking up to 0.25 s early."""
    ego = braking_from(0.0, 10.0, 1.0, 6.0)
    other = braking_from(-34.0, 10.0, 1.0 + delay, deceleration)
    reaction = reaction_of(drive_of([ego], other))
    assert delay - 0.25 <= float(reaction.reaction_time) <= delay + 0.1
    assert float(reaction.strongest_deceleration) == pytest.approx(deceleration, abs=0.02)
    stopped = 10 * delay + 100 / (2 * deceleration) - 100 / 12
    assert float(reaction.min_gap) == pytest.approx(30.0 - max(stopped, 0.0), abs=0.05)
    assert reaction.false_rear_end.tolist() == [0.0]


def test_who_brakes_already_reacts_when_it_brakes_harder() -> None:
    """At 0.8 m/s^2 from the start; from 2 s on at 1.7, which is not enough, or at 2.2, of which the slope over half
    a second knows when most of it has passed."""
    ego = straight(x=60.0, speed=12.0)
    times = []
    for harder in (1.7, 2.2):
        other = straight()
        braked = np.clip(TIME - 2.0, 0.0, 2.0)
        after = np.clip(TIME - 4.0, 0.0, None)
        speed = 12.0 - 1.6 - 2 * harder
        other[:, 0] = 12 * np.minimum(TIME, 2) - 0.4 * np.minimum(TIME, 2) ** 2
        other[:, 0] += (12.0 - 1.6) * braked - harder / 2 * braked**2 + speed * after
        times.append(float(reaction_of(drive_of([ego], other)).reaction_time))
    assert math.isnan(times[0])
    assert times[1] == pytest.approx(1.0, abs=0.25)


def test_what_is_undefined_is_nan() -> None:
    """A follower that leaves before the AV brakes; one that is ahead and faster."""
    drive = drive_of(
        [braking_from(0.0, 10.0, 1.0, 6.0)], straight(x=-20.0, speed=10.0), straight(x=20.0, speed=12.0)
    )
    present = drive.present.clone()
    present[:, 1, 8:] = False
    drive = dataclasses.replace(drive, present=present)
    gone = reaction_of(drive, 1)
    assert gone.false_rear_end.tolist() == [0.0]
    for name in ("min_gap", "min_ttc", "strongest_deceleration", "reaction_time"):
        assert math.isnan(float(getattr(gone, name)))
    ahead = reaction_of(drive, 2)
    assert math.isnan(float(ahead.min_gap))
    assert float(ahead.strongest_deceleration) == pytest.approx(0.0, abs=1e-3)


def test_a_hit_by_somebody_else_than_the_follower_counts_as_a_false_collision() -> None:
    ego = braking_from(0.0, 10.0, 1.0, 6.0)
    drive = drive_of([ego], braking_from(-60.0, 10.0, 1.2, 6.0), straight(x=-20.0, speed=10.0))
    reaction = reaction_of(drive, 1)
    assert reaction.false_rear_end.tolist() == [1.0]
    assert float(reaction.min_gap) > 20.0


def test_a_log_runs_into_an_av_that_cuts_in() -> None:
    """Who replays a log at 14 m/s in the lane beside, 11 m behind, does not mind that the AV comes over."""
    path = driven("cut_in")
    drive = drive_of([path], straight(x=-15.0, y=3.7, speed=14.0))
    result = score_drives(drive, ROAD, ORIGIN, route_of())
    # 11 m at 4 m/s: after 2.75 s, when the AV is mostly in the lane.
    assert [(hit.rear_hit, hit.at_fault) for hit in result.collisions.listed()] == [(True, False)]
    assert result.collisions.listed()[0].seconds == pytest.approx(2.8)
    assert measure(drive, result.collisions, 1).false_rear_end.tolist() == [1.0]
