"""The Intelligent Driver Model against its closed form, and what it stops for."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from data.scene import AgentType, LightState, Scene
from pipeline.studies.planners.idm import IDM_SETTINGS, IDMPlanner, IDMSettings, free_and_interaction
from pipeline.studies.planners.interface import MakePlanner
from pipeline.studies.planners.motion_scores import progress
from pipeline.studies.planners.route import ASSUMED_LIMIT, allowed_speeds
from tests.pipeline.studies.planners.driving import drive, mission_of, straight_road
from tests.pipeline.studies.planners.test_route import winding
from tests.scenes import Mover, Signal, hand_made


def idm(name: str = "baseline") -> MakePlanner:
    return partial(IDMPlanner, settings=IDM_SETTINGS[name])


def follow(speed: float, gap: float, leader: float) -> Scene:
    """The AV and a leader so many metres ahead of its front; both cars are 4 m long."""
    return hand_made([Mover(speed=speed), Mover(x=gap + 4.0, speed=leader)], [straight_road()])


def equilibrium(settings: IDMSettings, speed: float) -> float:
    """The gap in which the acceleration is nothing behind a leader of the same speed."""
    desired = min(settings.speed, ASSUMED_LIMIT)
    return float(settings.safety * (settings.gap + speed * settings.headway) / np.sqrt(1 - (speed / desired) ** 4))


@pytest.mark.parametrize("name", sorted(IDM_SETTINGS))
def test_the_gap_in_equilibrium_is_the_closed_form(name: str) -> None:
    settings, speed = IDM_SETTINGS[name], 10.0
    believed = ((settings.length or 4.0) - 4.0) / 2
    gap = equilibrium(settings, speed) + believed
    assert drive(follow(speed, gap, speed), idm(name), steps=6).speed == pytest.approx(speed, abs=1e-3)
    assert drive(follow(speed, 0.9 * gap, speed), idm(name), steps=1).speed[0] < speed - 1e-3
    assert drive(follow(speed, 1.1 * gap, speed), idm(name), steps=1).speed[0] > speed + 1e-3


def test_the_gap_in_equilibrium_is_reached() -> None:
    gap = equilibrium(IDM_SETTINGS["baseline"], 10.0)
    driven = drive(follow(10.0, gap + 3.0, 10.0), idm(), steps=300)
    leader = gap + 7.0 + 10.0 * 30.0
    assert leader - driven.pose[-1, 0] - 4.0 == pytest.approx(gap, abs=0.2)


def test_a_free_road_is_driven_at_its_limit_or_the_wanted_speed() -> None:
    scene = hand_made([Mover(speed=12.0)], [straight_road()])
    capped = drive(scene, idm(), steps=150)
    assert capped.speed[-1] == pytest.approx(ASSUMED_LIMIT, abs=0.2)
    free = drive(scene, partial(IDMPlanner, settings=IDMSettings(keep_limit=False)), steps=150)
    assert free.speed[-1] > 22.0
    np.testing.assert_allclose(free.pose[:, 1:], 0.0, atol=1e-6)


@pytest.mark.parametrize("name", sorted(IDM_SETTINGS))
def test_it_stops_behind_who_stands(name: str) -> None:
    driven = drive(follow(8.0, 30.0, 0.0), idm(name), steps=120)
    settings = IDM_SETTINGS[name]
    gap = 32.0 - driven.pose[-1, 0] - (settings.length or 4.0) / 2
    assert driven.speed[-1] < 0.3
    # The model itself comes a little too near before it stands.
    assert 0.6 * settings.safety * settings.gap < gap < settings.safety * settings.gap + 2.0
    assert (np.diff(driven.pose[:, 0]) >= 0).all(), "never backwards"


def test_the_terms_are_those_of_the_paper() -> None:
    settings = IDMSettings(30.0, 2.0, 1.5, 0.5, acceleration=2.0, braking=3.0)
    free, taken = free_and_interaction(settings, 15.0, 30.0, np.array([20.0, 40.0]), np.array([10.0, 15.0]))
    assert free == pytest.approx(2.0 * (1 - 0.5**4))
    wanted = np.array([2 + 15 * 1.5 + 15 * 5 / (2 * np.sqrt(6)), 2 + 15 * 1.5])
    np.testing.assert_allclose(taken, 2.0 * (wanted / [20.0, 40.0]) ** 2)
    # Bumper to bumper, and overlapping, as at a gap of 0.1 m: not without bound.
    _, taken = free_and_interaction(settings, 15.0, 30.0, np.array([0.5, 0.1, 0.01, -3.0]), np.full(4, 15.0))
    np.testing.assert_allclose(taken, 2.0 * ((2 + 15 * 1.5) / np.array([0.5, 0.1, 0.1, 0.1])) ** 2)


def test_specials_do_something() -> None:
    """Each special changes the drive in the direction that its field says."""
    scene = follow(12.0, 45.0, 0.0)

    def driven(**changes: float) -> np.ndarray:
        return drive(scene, partial(IDMPlanner, settings=IDMSettings(**changes)), steps=80).speed  # type: ignore[arg-type]

    plain = driven()
    # Whoever sees less far, or late, is faster for longer.
    assert (driven(perception=15.0)[:15] >= plain[:15]).all()
    assert driven(perception=15.0)[10] > plain[10] + 0.3
    assert driven(safety=1.5)[10] < plain[10]
    assert driven(length=8.0)[10] < plain[10]
    assert driven(time_to_collision=6.0)[5] < plain[5]
    start = hand_made([Mover(speed=0.0)], [straight_road()])
    gentle = drive(start, partial(IDMPlanner, settings=IDMSettings(jerk=2.0)), steps=40)
    jerk = np.diff(gentle.speed, n=2) / 0.01
    assert np.abs(jerk).max() < 2.01
    eager = drive(start, partial(IDMPlanner, settings=IDMSettings(aggressiveness=0.9)), steps=10)
    assert eager.speed[-1] == pytest.approx(drive(start, idm(), steps=10).speed[-1] * 1.4, rel=0.02)


def test_reaction_is_late_by_its_time() -> None:
    """A leader that brakes is answered two steps later."""
    scene = follow(10.0, 15.0, 10.0)
    time = 0.1 * torch.arange(81)
    # 4 m/s^2 from half a second on.
    scene.agents.position[1, 10:, 0] = 19.0 + 10.0 * time - 2.0 * (time - 0.5).clamp(min=0.0) ** 2
    first = {}
    for name in ("baseline", "adaptive"):
        changes = np.diff(drive(scene, idm(name), steps=15).speed)
        first[name] = int(np.argmax(np.diff(changes) < 0.0))
    # Step 6 is the first to show it; the second difference of index 4 is the first with the speed after that step.
    assert first == {"baseline": 4, "adaptive": 6}


@pytest.mark.parametrize("name", ["baseline", "aggressive", "truck"])
def test_red_lights_are_stopped_at_until_they_change(name: str) -> None:
    states = [LightState.STOP] * 61 + [LightState.GO] * 30
    scene = hand_made([Mover(speed=9.0)], [straight_road()], [Signal(0, (40.0, 0.0), states)])
    driven = drive(scene, idm(name))
    assert driven.pose[50, 0] + 2.0 < 40.0
    assert driven.speed[70:].min() > driven.speed[45:50].max() or driven.pose[-1, 0] > driven.pose[50, 0] + 1.0
    stays = hand_made([Mover(speed=9.0)], [straight_road()], [Signal(0, (40.0, 0.0), [LightState.STOP] * 91)])
    assert drive(stays, idm(name)).pose[-1, 0] + 2.0 < 40.0


def test_lights_of_other_lanes_and_ones_too_near_are_passed() -> None:
    red = [LightState.STOP] * 91
    lanes = [straight_road(), straight_road(y=4.0)]
    beside = hand_made([Mover(speed=9.0)], lanes, [Signal(1, (40.0, 4.0), red)])
    assert drive(beside, idm()).pose[-1, 0] > 60.0
    near = hand_made([Mover(speed=14.0)], lanes, [Signal(0, (8.0, 0.0), red)])
    assert drive(near, idm()).pose[-1, 0] > 60.0


def test_who_crosses_is_let_pass_and_who_has_passed_is_forgotten() -> None:
    """A pedestrian 30 m ahead, on the way onto the lane."""
    walker = Mover(x=30.0, y=-6.0, heading=np.pi / 2, speed=1.5, kind=AgentType.PEDESTRIAN, size=(0.6, 0.6, 1.8))
    driven = drive(hand_made([Mover(speed=8.0), walker], [straight_road()]), idm())
    there = np.abs(-6.0 + 0.15 * np.arange(81)) < 1.3
    assert not (there & (driven.pose[:, 0] > 27.7)).any(), "nobody is hit"
    assert driven.pose[-1, 0] > 31.0


def test_neighbours_in_bends_are_no_obstacles() -> None:
    """A car beside in the next lane of a bend, whose straight prediction would cross."""
    route = winding([0.0, 0.0, 0.03, 0.03, 0.03, 0.0, 0.0, 0.0])
    features = []
    for side in (0.0, 3.6):
        line = route.offset(np.arange(0.0, 150.0, 2.0), np.full(75, side))
        features.append((straight_road()[0], [(float(x), float(y)) for x, y in line]))
    x, y, heading, _ = route.at(10.0)
    scene = hand_made([Mover(float(x), float(y), 0.0, float(heading), 8.0), Mover(speed=8.0)], features)
    s = 16.0 + 0.8 * (np.arange(91) - 10)
    turned = torch.from_numpy(route.at(s)[2]).float()
    scene.agents.position[1, :, :2] = torch.from_numpy(route.offset(s, np.full(91, 3.6))).float()
    scene.agents.heading[1] = turned
    scene.agents.velocity[1] = 8.0 * torch.stack((turned.cos(), turned.sin()), dim=-1)
    driven = drive(scene, idm(), steps=60)
    assert driven.speed.min() > 7.0


def test_curves_are_slowed_down_for_in_time() -> None:
    route = winding([0.0, 0.0, 0.0, 0.06, 0.0, 0.0])
    allowed = allowed_speeds(route, 30.0, 15.0, lateral=2.0, braking=1.5)
    sharpest = np.sqrt(2.0 / np.abs(route.curvature).max())
    assert allowed.min() == pytest.approx(sharpest, rel=0.05)
    falls = -np.diff(allowed**2) / 2 / np.diff(route.distance)
    assert falls.max() < 1.5 + 1e-6
    assert allowed.max() == pytest.approx(ASSUMED_LIMIT)
    assert allowed_speeds(route, 30.0, 22.0, 2.0, 1.5).max() == pytest.approx(22.0)
    assert allowed_speeds(route, 30.0, 10.0, 2.0, 1.5, keep_limit=False).max() > 22.0


def test_it_joins_the_route_smoothly() -> None:
    scene = hand_made([Mover(y=1.5, heading=-0.03, speed=8.0)], [straight_road()])
    driven = drive(scene, idm())
    step = np.diff(driven.pose, axis=0)
    assert np.linalg.norm(step[0, :2]) == pytest.approx(0.8, abs=0.05), "no jump"
    assert np.abs(step[:, 2]).max() < 0.03
    assert abs(driven.pose[-1, 1]) < 0.01
    np.testing.assert_allclose(np.arctan2(step[:, 1], step[:, 0]), driven.pose[1:, 2], atol=0.02)


def test_of_several_leaders_the_one_that_demands_most_counts() -> None:
    """And none beside it: one farther ahead at the same speed takes nothing away."""
    gap = equilibrium(IDM_SETTINGS["baseline"], 10.0)
    cars = [Mover(speed=10.0), Mover(x=gap + 4.0, speed=10.0), Mover(x=2 * gap + 8.0, speed=10.0)]
    driven = drive(hand_made(cars, [straight_road()]), idm(), steps=5)
    np.testing.assert_allclose(driven.speed, 10.0, atol=1e-3)


def test_for_who_merges_one_brakes_comfortably_until_it_is_there() -> None:
    """A car comes in from the lane beside, hardly a metre ahead; in the own lane it is braked for hard."""
    for y, hardest in ((3.4, 3.0), (0.0, 8.0)):
        merging = Mover(x=6.0, y=y, speed=9.9)
        scene = hand_made([Mover(speed=10.0), merging], [straight_road(), straight_road(y=3.4)])
        scene.agents.velocity[1, :, 1] = -1.0 if y else 0.0
        first = drive(scene, partial(IDMPlanner, settings=IDMSettings(time_to_collision=2.0)), steps=1).speed[0]
        assert 10.0 - float(first) == pytest.approx(0.1 * hardest, abs=0.01)


def test_what_was_seen_late_is_where_it_has_got_to_since() -> None:
    """A leader at constant speed in equilibrium is no reason to brake for who sees it 0.2 s late."""
    settings = IDM_SETTINGS["adaptive"]
    gap = equilibrium(settings, 10.0)
    np.testing.assert_allclose(drive(follow(10.0, gap, 10.0), idm("adaptive"), steps=20).speed, 10.0, atol=2e-3)


def test_the_faster_the_longer_it_takes_to_join_the_route() -> None:
    """2 m beside it at 14 m/s: over 56 m, without more than 1 m/s^2 to the side."""
    scene = hand_made([Mover(y=2.0, speed=14.0)], [straight_road()])
    driven = drive(scene, idm(), steps=60)
    sideways = np.diff(driven.pose[:, 1], n=2) / 0.01
    assert np.abs(sideways[2:]).max() < 1.0
    assert 0.5 < driven.pose[20, 1] < 1.5


def test_a_map_that_ends_stops_nobody_and_pays_nobody() -> None:
    """30 m of lane ahead, 80 m of log: were the route as short, who brakes at its end would score like the log."""
    scene = hand_made([Mover(speed=10.0)], [straight_road(length=30.0)])
    route = mission_of(scene).route
    assert route.length > 300.0
    driven = drive(scene, idm())
    assert driven.speed.min() > 9.0
    logged = torch.stack((torch.linspace(0.0, 80.0, 81), torch.zeros(81), torch.zeros(81)), dim=-1)
    logged[:, :2] += torch.from_numpy(driven.pose[0, :2] - driven.mission.origin)
    braking = logged.clone()
    braking[:, 0] = torch.minimum(logged[:, 0], logged[0, 0] + 30.0)
    score = progress(torch.stack((logged, braking)), logged[None], torch.from_numpy(route.point).float())
    assert score.tolist() == pytest.approx([1.0, 30 / 80], abs=1e-3)


def test_settings_are_those_of_the_table() -> None:
    """Speed, gap, headway and aggressiveness, then what only some have (A.7)."""
    table = {
        "baseline": (30, 2, 1.5, 0.5),
        "conservative": (25, 3, 2.0, 0.2),
        "aggressive": (35, 1.5, 1.0, 0.8),
        "comfort": (28, 2.5, 1.8, 0.3),
        "highway": (40, 3, 1.2, 0.6),
        "city": (15, 2, 1.5, 0.4),
        "truck": (25, 4, 2.0, 0.3),
        "emergency": (40, 1.5, 0.8, 0.9),
        "adaptive": (30, 2.5, 1.5, 0.5),
        "defensive": (25, 4, 2.5, 0.1),
    }
    assert {n: (s.speed, s.gap, s.headway, s.aggressiveness) for n, s in IDM_SETTINGS.items()} == table
    pairs = {"conservative": (1.5, 2), "aggressive": (3, 4), "comfort": (1.5, 2), "emergency": (4, 3)}
    assert {n: (s.acceleration, s.braking) for n, s in IDM_SETTINGS.items()} == dict.fromkeys(table, (2, 3)) | pairs
    assert {n: s.safety for n, s in IDM_SETTINGS.items() if s.safety != 1} == {
        "conservative": 1.5,
        "aggressive": 0.9,
    }
    assert {n: s.perception for n, s in IDM_SETTINGS.items() if s.perception != 60} == {"highway": 100, "city": 30}
    assert (IDM_SETTINGS["truck"].length, IDM_SETTINGS["comfort"].jerk) == (8, 2)
    assert (IDM_SETTINGS["adaptive"].reaction, IDM_SETTINGS["defensive"].time_to_collision) == (0.2, 3)


def accelerated(settings: IDMSettings, speed: float, gap: float | None, leader: float, merging: bool) -> float:
    """m/s^2 on a free road or behind one leader, from none before."""
    scene = hand_made([Mover(speed=speed)], [straight_road()])
    planner = IDMPlanner(mission_of(scene), settings)
    planner._followed(np.zeros(3), speed)
    gaps = np.zeros(0) if gap is None else np.array([gap])
    return planner._acceleration(
        0.0, speed, gaps, np.full(len(gaps), leader), np.full(len(gaps), merging), before=0.0
    )


def test_accelerations_change_by_the_jerk_times_a_step() -> None:
    """From a stand the model wants 2 m/s^2 at once."""
    assert accelerated(IDMSettings(), 0.0, None, 0.0, False) == pytest.approx(2.0)
    for jerk in (2.0, 5.0):
        assert accelerated(IDMSettings(jerk=jerk), 0.0, None, 0.0, False) == pytest.approx(0.1 * jerk)


def test_time_to_collision_is_of_those_in_the_lane() -> None:
    """Forty metres at 8 m/s are 5 s: below 6 s it brakes with 3 m/s^2, but not for who is still beside."""
    settings = IDMSettings(time_to_collision=6.0)
    assert accelerated(settings, 10.0, 40.0, 2.0, merging=False) == pytest.approx(-3.0)
    beside = accelerated(settings, 10.0, 40.0, 2.0, merging=True)
    assert beside == accelerated(IDMSettings(), 10.0, 40.0, 2.0, merging=False)
    assert beside > 0.0
