"""The Frenet lattice: its polynomials against their boundary conditions, and what it drives around or stops for."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.scene import LightState, MapKind, Scene
from pipeline.studies.planners import frenet as frenet_module
from pipeline.studies.planners.frenet import FRENET_SETTINGS, FrenetPlanner
from pipeline.studies.planners.interface import MakePlanner, Situation
from pipeline.studies.planners.lattice import Candidates, Start, candidates, quartic, quintic, road_corridor
from pipeline.studies.planners.prediction import predict
from tests.pipeline.studies.planners.driving import Drive, drive, mission_of, straight_road
from tests.pipeline.studies.planners.test_route import winding
from tests.scenes import Mover, Signal, hand_made

NUMBERS = st.floats(-5.0, 5.0)


def frenet(name: str = "baseline") -> MakePlanner:
    return partial(FrenetPlanner, settings=FRENET_SETTINGS[name])


@settings(max_examples=30)
@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.floats(0.5, 6.0))
def test_quartics_meet_their_conditions(s: float, v: float, a: float, end: float, duration: float) -> None:
    poly = np.polynomial.Polynomial(quartic((s, v, a), np.array(end), np.array(duration)))
    first, second = poly.deriv(), poly.deriv(2)
    got = [poly(0), first(0), second(0), first(duration), second(duration)]
    np.testing.assert_allclose(got, [s, v, a, end, 0.0], atol=1e-6)


@settings(max_examples=30)
@given(NUMBERS, NUMBERS, NUMBERS, NUMBERS, st.floats(2.0, 60.0))
def test_quintics_meet_their_conditions(d: float, slope: float, bend: float, end: float, length: float) -> None:
    poly = np.polynomial.Polynomial(quintic((d, slope, bend), np.array(end), np.array(length)))
    got = [f(x) for x in (0, length) for f in (poly, poly.deriv(), poly.deriv(2))]
    np.testing.assert_allclose(got, [d, slope, bend, end, 0.0, 0.0], atol=1e-5)


def test_candidates_are_what_they_say_in_the_plane() -> None:
    """Speeds, accelerations and curvatures against differences of the positions, on a bend."""
    route = winding([0.02, 0.02, 0.02, 0.02, 0.02])
    start = Start(s=10.0, rate=8.0, acceleration=0.5, d=0.5, slope=0.02, bend=0.0)
    tried = candidates(
        route, start, np.array([5.0, 9.0]), np.array([2.0, 3.0]), np.array([-1.0, 0.0, 2.0]), 300, 0.01
    )
    assert tried.s.shape == (12, 300)
    pose = tried.pose(route)
    velocity = np.gradient(pose[..., :2], 0.01, axis=1)
    inner = slice(5, -5)
    np.testing.assert_allclose(np.linalg.norm(velocity, axis=-1)[:, inner], tried.speed[:, inner], atol=0.03)
    moving = np.unwrap(np.arctan2(velocity[..., 1], velocity[..., 0]), axis=1)
    np.testing.assert_allclose(moving[:, inner], np.unwrap(pose[..., 2], axis=1)[:, inner], atol=0.01)
    bent = np.gradient(np.unwrap(pose[..., 2], axis=1), 0.01, axis=1) / tried.speed
    np.testing.assert_allclose(bent[:, inner], tried.curvature[:, inner], atol=0.012)
    np.testing.assert_allclose(tried.d[:, -1], np.tile([-1.0, 0.0, 2.0], 4), atol=0.02)
    np.testing.assert_allclose(tried.rate[:, -1], [5] * 6 + [9] * 6, atol=0.02)


def edges(half: float) -> list[tuple[MapKind, list[tuple[float, ...]]]]:
    return [(MapKind.ROAD_EDGE, [(float(x), side) for x in range(-60, 400, 4)]) for side in (half, -half)]


def collides(driven: Drive, scene: Scene) -> bool:
    """Whether the AV's box ever meets another's, by polygons; all others stand."""
    agents = scene.agents

    def box(x: float, y: float, heading: float, row: int) -> shapely.Polygon:
        length, width = (float(value) / 2 for value in agents.size[row, 10, :2])
        corner = np.array([(length, width), (-length, width), (-length, -width), (length, -width)])
        turn = np.array([[np.cos(heading), np.sin(heading)], [-np.sin(heading), np.cos(heading)]])
        return shapely.Polygon(corner @ turn + [x, y])

    parked = []
    for row in range(1, len(agents.id)):
        x, y = agents.position[row, 10, :2].tolist()
        parked.append(box(x, y, float(agents.heading[row, 10]), row))
    own = [box(x, y, heading, 0) for x, y, heading in driven.pose.tolist()]
    return any(car.intersects(other) for car in own for other in parked)


def test_a_parked_car_is_driven_around() -> None:
    scene = hand_made([Mover(speed=9.0), Mover(x=40.0, y=-1.2)], [straight_road(), *edges(6.0)])
    driven = drive(scene, frenet())
    assert not collides(driven, scene)
    assert driven.pose[-1, 0] > 55.0, "it gets past"
    assert driven.pose[:, 1].max() > 0.8
    assert abs(driven.pose[-1, 1]) < driven.pose[:, 1].max()
    # Without looking it is hit, so that the test can fail.
    assert collides(drive(scene, frenet("no_collision")), scene)


@pytest.mark.parametrize("name", ["baseline", "conservative", "fast", "high_speed"])
def test_a_blocked_road_is_stopped_at(name: str) -> None:
    cars = [Mover(x=45.0, y=y) for y in (-3.5, 0.0, 3.5)]
    scene = hand_made([Mover(speed=9.0), *cars], [straight_road(), *edges(5.5)])
    driven = drive(scene, frenet(name))
    assert not collides(driven, scene)
    assert driven.speed[-1] < (5.0 if name == "high_speed" else 1.0)
    assert driven.pose[-1, 0] < 43.0


def test_the_edge_of_the_road_leaves_no_way_around() -> None:
    movers = [Mover(speed=9.0), Mover(x=40.0, y=-1.2)]
    wide = drive(hand_made(movers, [straight_road(), *edges(6.0)]), frenet())
    narrow = drive(hand_made(movers, [straight_road(), *edges(1.7)]), frenet())
    assert wide.pose[-1, 0] > 55.0
    assert narrow.pose[-1, 0] < 37.0
    assert np.abs(narrow.pose[:, 1]).max() < 0.7


def test_corridors_are_the_distance_to_the_edges() -> None:
    scene = hand_made([Mover(speed=9.0)], [straight_road(), *edges(4.5)])
    mission = mission_of(scene)
    corridor = road_corridor(scene, mission.origin, mission.route)
    np.testing.assert_allclose(corridor.left[:-10], 4.5, atol=0.01)
    np.testing.assert_allclose(corridor.right[:-10], 4.5, atol=0.01)
    none = road_corridor(hand_made([Mover()], [straight_road()]), mission.origin, mission.route)
    assert (none.left == 10.0).all()


@pytest.mark.parametrize("name", ["baseline", "aggressive"])
def test_red_lights_are_stopped_at(name: str) -> None:
    red = [LightState.STOP] * 91
    scene = hand_made([Mover(speed=9.0)], [straight_road()], [Signal(0, (45.0, 0.0), red)])
    driven = drive(scene, frenet(name))
    assert 30.0 < driven.pose[-1, 0] < 43.1
    green = hand_made([Mover(speed=9.0)], [straight_road()], [Signal(0, (45.0, 0.0), [LightState.GO] * 91)])
    assert drive(green, frenet(name)).pose[-1, 0] > 60.0


def test_the_front_stands_behind_a_red_line() -> None:
    scene = hand_made([Mover(speed=9.0)], [straight_road()], [Signal(0, (45.0, 0.0), [LightState.STOP] * 91)])
    driven = drive(scene, frenet(), steps=160)
    assert driven.speed[-1] < 0.05, "it stands"
    front = driven.pose[-1, 0] + float(scene.agents.size[0, 10, 0]) / 2
    assert 42.0 < front < 45.1


def test_plans_are_continued_without_jumps() -> None:
    scene = hand_made([Mover(y=1.0, speed=6.0)], [straight_road()])
    driven = drive(scene, frenet())
    acceleration = np.diff(driven.speed) / 0.1
    assert np.abs(np.diff(acceleration)).max() < 1.0
    assert np.linalg.norm(np.diff(driven.pose[:2, :2], axis=0)) == pytest.approx(0.6, abs=0.05)
    assert abs(driven.pose[-1, 1]) < 0.05


def test_settings_are_those_of_the_table() -> None:
    assert len(FRENET_SETTINGS) == 10
    count = {name: value.offsets * value.speeds * value.times for name, value in FRENET_SETTINGS.items()}
    assert count["baseline"] == 150
    assert count["wide_search"] == 1400
    assert count["fast"] == 30
    smooth = FRENET_SETTINGS["smooth"]
    weights = (smooth.lateral, smooth.velocity, smooth.acceleration, smooth.progress, smooth.jerk)
    assert weights == (20, 2, 5, 1, 3)
    pairs = {name: (value.forwards, value.braking) for name, value in FRENET_SETTINGS.items()}
    slow = {"conservative": (1.5, 2), "smooth": (1.5, 2), "aggressive": (3, 4)}
    assert pairs == dict.fromkeys(FRENET_SETTINGS, (2, 3)) | slow
    wanted = {name: (value.lowest, value.highest) for name, value in FRENET_SETTINGS.items()}
    assert wanted == dict.fromkeys(FRENET_SETTINGS, (0, 30)) | {
        "aggressive": (0, 35),
        "conservative": (0, 20),
        "high_speed": (5, 40),
    }
    assert FRENET_SETTINGS["lane_keeper"].span == 1.5
    assert FRENET_SETTINGS["conservative"].penalty == 5 * FRENET_SETTINGS["baseline"].penalty == 5000
    horizons = {value.horizon for name, value in FRENET_SETTINGS.items() if name != "long_horizon"}
    assert (horizons, FRENET_SETTINGS["long_horizon"].horizon) == ({30}, 40)


def test_bends_are_left_as_soon_as_they_end() -> None:
    """What is allowed behind the bend must not make it cheaper to stay in it."""
    line = winding([0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).point
    heading = float(np.arctan2(*(line[1] - line[0])[::-1]))
    feature = (MapKind.LANE, [(float(x), float(y)) for x, y in line])
    scene = hand_made([Mover(float(line[12, 0]), float(line[12, 1]), 0.0, heading + 1.2, 4.0)], [feature])
    # The log follows the lane.
    s = 12.0 + 0.4 * np.arange(81)
    x, y, turned, _ = winding([0.1, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).at(s)
    scene.agents.position[0, 10:, :2] = torch.from_numpy(np.stack((x, y), axis=-1)).float()
    scene.agents.heading[0, 10:] = torch.from_numpy(turned).float()
    scene.agents.heading[0, :11] = float(turned[0])
    speed = drive(scene, frenet()).speed
    assert speed.min() > 2.5
    assert speed[-1] > 8.0


def bend_of(radius: float) -> Scene:
    """A lane that is a circle to the left, with the AV 5 m inside of it."""
    angle = np.linspace(0.0, 1.5 * np.pi, 200)
    line = [(float(radius * np.sin(a)), float(radius * (1 - np.cos(a)))) for a in angle]
    scene = hand_made([Mover(speed=6.0)], [(MapKind.LANE, line)])
    turned = 0.6 + 0.03 * (np.arange(91) - 10) * 20.0 / radius
    x, y = radius * np.sin(turned), radius * (1 - np.cos(turned))
    scene.agents.position[0, :, :2] = torch.from_numpy(np.stack((x, y), axis=-1)).float()
    scene.agents.heading[0] = torch.from_numpy(turned).float()
    return scene


def situation_of(scene: Scene, pose: tuple[float, float, float], speed: float, step: int = 0) -> Situation:
    """The AV alone, at a pose of the scene's coordinates."""
    origin = mission_of(scene).origin
    velocity = speed * np.array([[np.cos(pose[2]), np.sin(pose[2])]])
    place = np.array([[pose[0] - origin[0], pose[1] - origin[1], pose[2]]])
    return Situation(
        step, place, velocity, np.array([[4.0, 2.0]]), np.zeros(1, dtype=np.int64), np.ones(1, dtype=bool),
        0.0, 0.0, np.zeros((0, 3)), np.zeros(0, dtype=bool),
    )  # fmt: skip


def test_on_the_inside_of_a_bend_the_route_passes_faster() -> None:
    """6 m/s at 15 m from the centre of a lane of 20 m are 8 m/s along it; turned by 0.1 rad, a little less."""
    scene = bend_of(20.0)
    planner = FrenetPlanner(mission_of(scene))
    for turn in (0.0, 0.1):
        pose = (15.0 * np.sin(0.8), 20.0 - 15.0 * np.cos(0.8), 0.8 + turn)
        start = planner._start(situation_of(scene, pose, 6.0))
        assert start.d == pytest.approx(5.0, abs=0.05)
        assert start.rate == pytest.approx(8.0 * np.cos(turn), abs=0.1)
        assert start.slope == pytest.approx(0.75 * np.tan(turn), abs=0.02)


def test_a_plan_that_was_followed_goes_on_where_it_is() -> None:
    """Half a second into a plan that speeds up the AV is at its fifth step, with that step's acceleration."""
    scene = hand_made([Mover(y=1.0, speed=6.0)], [straight_road()])
    planner = FrenetPlanner(mission_of(scene))
    first = planner.plan(situation_of(scene, (0.0, 1.0, 0.0), 6.0)).pose
    assert planner._last is not None
    _, tried, _ = planner._last
    x, y, heading = first[4] + np.append(mission_of(scene).origin, 0.0)
    followed = situation_of(scene, (float(x), float(y), float(heading)), float(tried.speed[0, 4]), step=5)
    assert planner._start(followed) == tried.state(0, 4)
    astray = situation_of(scene, (float(x), float(y) + 0.5, float(heading)), float(tried.speed[0, 4]), step=5)
    assert planner._start(astray).acceleration == 0.0


def test_braking_is_as_hard_as_it_can_be() -> None:
    """7 m/s^2 from 7 m/s: a second, 3.5 m, and then nothing."""
    planner = FrenetPlanner(mission_of(hand_made([Mover(speed=7.0)], [straight_road()])))
    stop = planner._braking(Start(s=20.0, rate=7.0, acceleration=0.0, d=0.5, slope=0.0, bend=0.0))
    time = 0.1 * np.arange(1, 31)
    np.testing.assert_allclose(stop.s[0], 20 + np.where(time < 1, 7 * time - 3.5 * time**2, 3.5), atol=1e-9)
    np.testing.assert_allclose(stop.rate[0], np.maximum(7 - 7 * time, 0), atol=1e-9)
    np.testing.assert_allclose(stop.d, 0.5)


def test_room_is_left_behind_who_stands() -> None:
    """A metre and a half between bumpers: a tenth of the penalty for each metre of it that would be missing."""
    scene = hand_made([Mover(speed=7.0), Mover(x=60.0, size=(6.0, 2.0, 1.5))], [straight_road()])
    mission = mission_of(scene)
    planner = FrenetPlanner(mission)
    alone = situation_of(hand_made([Mover(speed=7.0)], [straight_road()]), (0.0, 0.0, 0.0), 7.0)
    now = dataclasses.replace(
        alone,
        pose=np.array([[0.0, 0.0, 0.0], [60.0, 0.0, 0.0]]) - np.append(mission.origin, 0.0),
        velocity=np.array([[7.0, 0.0], [0.0, 0.0]]),
        size=np.array([[4.0, 2.0], [6.0, 2.0]]),
        present=np.ones(2, dtype=bool),
    )
    seen = predict(mission.route, now, np.array([1]), 0.1 * np.arange(1, 31))
    rear = float(seen.s[0]) - 3.0
    for missing, share in ((-1.0, 0.0), (0.0, 0.0), (2.0, 0.2), (9.0, 0.9), (12.0, 1.0)):
        stands_at = rear - 1.5 - 2.0 + missing
        stop = planner._braking(Start(stands_at - 3.5, 7.0, 0.0, 0.0, 0.0, 0.0))
        found = planner._behind_others(stop, seen, np.ones(1, dtype=bool), now)
        # Who is beyond the car already is not behind it.
        expected = 0.0 if stands_at > seen.s[0] else share * planner.settings.penalty
        assert found.tolist() == pytest.approx([expected], abs=1e-6)
    # The AV that still moves needs its braking distance besides: v^2 / 2b.
    faster = dataclasses.replace(stop, speed=np.full_like(stop.speed, 6.0), s=np.full_like(stop.s, rear - 6.5))
    found = planner._behind_others(faster, seen, np.ones(1, dtype=bool), now)
    assert found.tolist() == pytest.approx([0.1 * (6.0 - 3.0) * planner.settings.penalty], abs=1e-6)
    # Both are two metres wide, and a quarter of a metre is left beside them.
    for aside, ahead in ((2.2, True), (-2.2, True), (2.3, False), (-2.3, False), (3.0, False)):
        beside = dataclasses.replace(faster, d=np.full_like(stop.d, aside))
        [penalty] = planner._behind_others(beside, seen, np.ones(1, dtype=bool), now)
        assert (penalty > 0) == ahead


def test_costs_are_those_of_a_slow_loop() -> None:
    """Weights times means over the steps: offsets, speeds missing and beyond the limit, accelerations, jerks."""
    scene = bend_of(20.0)
    planner = FrenetPlanner(mission_of(scene), FRENET_SETTINGS["smooth"])
    settings, route = planner.settings, planner.mission.route
    tried, wanted = planner._lattice(Start(s=12.0, rate=7.0, acceleration=0.5, d=0.4, slope=0.05, bend=0.0))
    found = planner._costs(tried, wanted)
    assert planner._allowed is not None
    assert (tried.speed > np.interp(tried.s, route.distance, planner._allowed)).any()
    steps = tried.s.shape[1]
    for row in range(0, len(found), 7):
        expected, before = 0.0, None
        for step in range(steps):
            speed, lateral = float(tried.speed[row, step]), float(tried.lateral[row, step])
            over = max(0.0, speed - float(np.interp(tried.s[row, step], route.distance, planner._allowed)))
            expected += settings.lateral * tried.d[row, step] ** 2 / steps
            expected += settings.velocity * ((wanted - speed) ** 2 + 10.0 * over**2) / steps
            expected += settings.acceleration * (tried.acceleration[row, step] ** 2 + lateral**2) / steps
            expected += settings.progress * (wanted - speed) / steps
            expected += settings.jerk * tried.jerk[row, step] ** 2 / steps
            if before is not None:
                expected += settings.jerk * ((lateral - before) / 0.1) ** 2 / (steps - 1)
            before = lateral
        assert found[row] == pytest.approx(expected, rel=1e-9)


def test_nearness_costs_a_share_of_the_penalty_below_half_a_metre() -> None:
    """Gaps of 0.1 and 0.4 m to a car beside cost 0.8 and 0.2 of it: the difference is 600 of 1000."""
    mission = mission_of(hand_made([Mover(speed=7.0)], [straight_road()]))
    planner = FrenetPlanner(mission)
    s = float(mission.route.project(np.zeros(2))[0])
    near, far = (planner._braking(Start(s, 7.0, 0.0, d, 0.0, 0.0)) for d in (0.0, -0.3))
    tried = Candidates(**{name: np.concatenate((value, vars(far)[name])) for name, value in vars(near).items()})
    alone = situation_of(hand_made([Mover(speed=7.0)], [straight_road()]), (0.0, 0.0, 0.0), 7.0)

    def chosen(gap: float, cost: float, x: float = 2.0) -> int | None:
        """Of near and far, the latter at so much more, beside a car with such a gap to the nearer."""
        now = dataclasses.replace(
            alone,
            pose=np.array([[0.0, 0.0, 0.0], [x, 2.0 + gap, 0.0]]),
            velocity=np.array([[7.0, 0.0], [0.0, 0.0]]),
            size=np.array([[4.0, 2.0], [4.0, 2.0]]),
            present=np.ones(2, dtype=bool),
        )
        start = Start(s, 7.0, 0.0, 0.0, 0.0, 0.0)
        return planner._cheapest_free(tried, np.array([0.0, cost]), np.ones(2, dtype=bool), now, start)

    assert (chosen(0.1, 590.0), chosen(0.1, 610.0)) == (1, 0)
    # Beyond half a metre nearness costs nothing: 0.4 m cost 0.2 of the penalty, 0.7 m none.
    assert (chosen(0.4, 190.0), chosen(0.4, 210.0)) == (1, 0)
    assert chosen(0.6, 1.0) == 0
    # A way into somebody ahead is no choice, whatever others cost; who is touched already tells nothing.
    assert chosen(-0.1, 1e6, x=5.0) == 1
    assert chosen(-0.1, 1.0) == 0


def test_who_is_turned_sweeps_more_than_its_width() -> None:
    """2.5 m of road on either side; at 0.9 m a box of 4 by 2 m fits along it, and turned by 0.3 rad it does not."""
    scene = hand_made([Mover(speed=7.0)], [straight_road(), *edges(2.5)])
    planner = FrenetPlanner(mission_of(scene))
    start = Start(20.0, 7.0, 0.0, 0.9, 0.0, 0.0)
    still = np.zeros((2, 10))
    tried = Candidates(
        s=20.0 + 0.7 * np.arange(1, 11) + still, d=0.9 + still, rate=7.0 + still, acceleration=still, jerk=still,
        speed=7.0 + still, turn=np.array([[0.0], [0.3]]) + still, lateral=still, slope=still, bend=still,
        curvature=still,
    )  # fmt: skip
    assert planner._possible(tried, start, np.array([2.0, 1.0])).tolist() == [True, False]
    # Where the car is off the road to begin with, its present offset must do.
    assert planner._possible(tried, dataclasses.replace(start, d=3.0), np.array([2.0, 1.0])).tolist() == [True] * 2


@pytest.mark.parametrize(
    ("name", "counts", "span"), [("baseline", (10, 5, 3), 3.0), ("lane_keeper", (15, 5, 3), 1.5)]
)
def test_as_many_are_sampled_as_the_settings_say(
    name: str, counts: tuple[int, int, int], span: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled: list[tuple[Any, ...]] = []

    def watched(route: Any, start: Any, *rest: Any) -> Any:
        sampled.append(rest)
        return candidates(route, start, *rest)

    monkeypatch.setattr(frenet_module, "candidates", watched)
    drive(hand_made([Mover(speed=8.0)], [straight_road()]), frenet(name), steps=1)
    speeds, durations, offsets, horizon, step = sampled[0]
    assert (len(offsets), len(speeds), len(durations)) == counts
    assert (offsets.min(), offsets.max()) == (-span, span)
    assert 0.0 in offsets
    np.testing.assert_allclose(durations, [1.5, 2.25, 3.0])
    assert (horizon, step) == (30, 0.1)
    # From 8 m/s: 3 m/s^2 less and 2 m/s^2 more for 3 s, at most 1.5 times the mean.
    assert (speeds.min(), speeds.max()) == (pytest.approx(2.0), pytest.approx(12.0))
