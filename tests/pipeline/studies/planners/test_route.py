"""Routes: coordinates along a polyline against brute force, and lanes found against those that were driven."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.scene import LinkKind, MapKind, Scene
from data.tokenizer import scene_origin
from pipeline.studies.planners.lanes import Lane, Taken, match_lanes, read_lanes, straightest
from pipeline.studies.planners.route import (
    Route,
    _along_lanes,
    _blend,
    _drive,
    _fits,
    find_route,
    make_route,
    path_onto,
)
from tests.pipeline.studies.planners.driving import mission_of, straight_road
from tests.scenes import Mover, circle, hand_made

Line = list[tuple[float, ...]]


def winding(bends: list[float], piece: float = 20.0) -> Route:
    """A polyline whose curvature goes through the given values."""
    s = np.arange(0.0, piece * len(bends), 0.5)
    bend = np.interp(s, piece * (np.arange(len(bends)) + 0.5), bends)
    heading = np.cumsum(bend) * 0.5
    return make_route(np.cumsum(0.5 * np.stack((np.cos(heading), np.sin(heading)), axis=-1), axis=0), smoothing=0.0)


@settings(max_examples=40)
@given(
    bends=st.lists(st.floats(-0.06, 0.06), min_size=2, max_size=5),
    places=st.lists(st.tuples(st.floats(-0.2, 1.2), st.floats(-5.0, 5.0)), min_size=1, max_size=20),
)
def test_projection_inverts_offset(bends: list[float], places: list[tuple[float, float]]) -> None:
    route = winding(bends)
    share, d = np.array(places).T
    s = share * route.length
    point = route.offset(s, d)
    found_s, found_d = route.project(point)
    np.testing.assert_allclose(found_s, s, atol=1e-4)
    np.testing.assert_allclose(found_d, d, atol=1e-4)
    np.testing.assert_allclose(route.project(point[0], near=float(s[0]))[0], s[0], atol=1e-4)


def test_projection_on_a_circle_is_the_closed_form() -> None:
    radius = 20.0
    angle = np.linspace(-np.pi, np.pi / 2, 200)
    route = make_route(radius * np.stack((np.cos(angle), np.sin(angle)), axis=-1))
    assert np.abs(route.curvature[5:-5] - 1 / radius).max() < 1e-3
    point = np.array([[0.0, -17.0], [0.0, -24.0], [16.0, 0.0]])
    s, d = route.project(point)
    np.testing.assert_allclose(d, [3.0, -4.0, 4.0], atol=0.05)
    np.testing.assert_allclose(s, radius * np.pi * np.array([0.5, 0.5, 1.0]), atol=0.1)
    x, y, heading, _ = route.at(np.linspace(5.0, 85.0, 777))
    np.testing.assert_allclose(np.hypot(x, y), radius, atol=0.06)
    np.testing.assert_allclose(np.cos(heading), -y / np.hypot(x, y), atol=0.01)


def test_projection_is_the_nearest_point() -> None:
    route = winding([0.05, -0.05, 0.02])
    points = np.random.default_rng(0).uniform(-5.0, 60.0, (300, 2))
    _, d = route.project(points)
    x, y, _, _ = route.at(np.arange(-40.0, 100.0, 0.01))
    least = np.hypot(points[:, :1] - x, points[:, 1:] - y).min(1)
    close = least < 12.0
    np.testing.assert_allclose(np.abs(d)[close], least[close], atol=0.02)
    assert close.sum() > 100


def test_limits_follow_the_road() -> None:
    route = make_route(np.array([[0.0, 0.0], [50.0, 0.0], [100.0, 0.0]]), np.array([10.0, 20.0, 20.0]))
    np.testing.assert_array_equal(route.limit_at(np.array([-5.0, 20.0, 48.0, 52.0, 500.0])), [10, 10, 10, 20, 20])


@pytest.mark.parametrize("pose", [(0.0, 2.0, 0.3), (5.0, -3.0, -0.4), (2.0, 0.5, 0.0)])
def test_a_path_onto_the_route_starts_where_the_car_is(pose: tuple[float, float, float]) -> None:
    route = make_route(np.array([[-10.0, 0.0], [300.0, 0.0]]))
    path = path_onto(route, np.array(pose), 25.0)
    x, y, heading, _ = path.at(0.0)
    np.testing.assert_allclose([x, y], pose[:2], atol=1e-6)
    assert abs(float(heading) - pose[2]) < 0.05
    _, beside, turned, _ = path.at(np.array([35.0, 80.0]))
    np.testing.assert_allclose(beside, 0.0, atol=1e-6)
    np.testing.assert_allclose(turned, 0.0, atol=1e-6)
    assert np.abs(path.curvature).max() < 0.15


def with_links(scene: Scene, links: list[tuple[int, LinkKind, int]]) -> Scene:
    source, kind, target = (torch.tensor(column) for column in zip(*links))
    changed = dataclasses.replace(scene.map, link_source=source, link_kind=kind, link_target=target)
    return dataclasses.replace(scene, map=changed)


def fork(linked: bool, heading: float) -> tuple[Scene, Line, Line]:
    """A lane that forks 30 m ahead, into one straight on and one that bends left; the AV's heading turns left."""
    left: Line = [(80 * np.sin(a), 80 - 80 * np.cos(a)) for a in np.linspace(0, np.pi / 2, 60)]
    branch: Line = [(30.0 + x, y) for x, y in left]
    ahead: Line = [(30.0 + x, 0.0) for x in np.arange(0.0, 130.0, 2.0)]
    road: Line = [(float(x), 0.0) for x in np.arange(-60.0, 31.0, 2.0)]
    # Linked lanes need not have points in common.
    lanes = [road, ahead, branch[1:] if linked else branch]
    scene = hand_made([Mover(heading=heading, speed=8.0)], [(MapKind.LANE, lane) for lane in lanes])
    links = [(0, LinkKind.EXIT, 1), (0, LinkKind.EXIT, 2), (0, LinkKind.EXIT, 99)]
    return (with_links(scene, links) if linked else scene), ahead, branch


def turned(branch: Line) -> np.ndarray:
    """The drive along the road and then the branch, 8 m/s."""
    path = make_route(np.array([(0.0, 0.0), *branch]), smoothing=0.0)
    x, y, heading, _ = path.at(0.8 * np.arange(1, 81))
    return np.stack((x, y, heading), axis=-1)


@pytest.mark.parametrize("linked", [True, False], ids=["by links", "by points in common"])
def test_the_branch_that_was_driven_is_the_route(linked: bool) -> None:
    scene, ahead, branch = fork(linked, 0.0)
    origin = np.zeros(2)
    route = find_route(scene, origin, turned(branch))
    assert np.abs(route.project(np.array(branch[1:]))[1]).max() < 0.2
    straight = np.stack((0.8 * np.arange(1, 81), np.zeros(80), np.zeros(80)), axis=-1)
    route = find_route(scene, origin, straight)
    assert np.abs(route.project(np.array(ahead))[1]).max() < 0.2
    # Nothing known of the future: straight on.
    np.testing.assert_array_equal(find_route(scene, origin, None).point, route.point)
    assert 300.0 <= route.length <= 325.0
    np.testing.assert_allclose(np.diff(route.distance), 1.0, atol=0.05)


def test_the_drive_has_a_pose_for_every_metre_before_and_after() -> None:
    """Of 2 m between two steps too; closer ones are left out, and what is behind a jump or a reversal."""
    scene = hand_made([Mover(speed=20.0)], [straight_road()])
    x = np.array([0.4, 1.2, 3.0, 7.9, 13.0, 14.0])
    now, driven = _drive(scene, np.zeros(2), np.stack((x, 0 * x, 0 * x), axis=-1))
    np.testing.assert_allclose(now, 0.0, atol=1e-5)
    np.testing.assert_allclose(driven[:, 0], [*range(-20, 0, 2), 0.0, 1.2, 3.0, 7.9], atol=1e-4)
    back = np.stack((np.array([1.5, 0.2, 3.0]), np.zeros(3), np.zeros(3)), axis=-1)
    np.testing.assert_allclose(_drive(scene, np.zeros(2), back)[1][-2:, 0], [0.0, 1.5], atol=1e-4)


def test_linked_lanes_with_a_gap_are_joined_by_a_straight_line() -> None:
    """From (30, 0) to (40, 5), rounded off by a metre at its ends; a change of lanes would be a curve."""
    road = [(float(x), 0.0) for x in np.arange(-60.0, 31.0, 2.0)]
    ahead = [(40.0 + x, 5.0) for x in np.arange(0.0, 130.0, 2.0)]
    scene = hand_made([Mover(speed=10.0)], [(MapKind.LANE, road), (MapKind.LANE, ahead)])
    scene = with_links(scene, [(0, LinkKind.EXIT, 1)])
    x = np.arange(1.0, 81.0)
    y = np.interp(x, [30.0, 40.0], [0.0, 5.0])
    recorded = np.stack((x, y, np.arctan2(np.gradient(y), 1.0)), axis=-1)
    found, beside, _, _ = find_route(scene, np.zeros(2), recorded).at(np.arange(0.0, 90.0, 0.1))
    wanted = np.array([20.0, 32.5, 35.0, 37.5, 50.0])
    np.testing.assert_allclose(np.interp(wanted, found, beside), [0.0, 1.25, 2.5, 3.75, 5.0], atol=0.1)


def test_pieces_of_one_straight_line_are_joined_by_it() -> None:
    """At an even pace: the cubic is as fast at both ends as the gap between them is long."""
    before, after = np.array([[-1.0, 0.0], [0.0, 0.0]]), np.array([[10.0, 0.0], [12.0, 0.0]])
    joined = [(x, 0.0) for x in range(1, 10)]
    np.testing.assert_allclose(_blend(before, after), joined, atol=1e-9)
    # Their outermost pieces alone say whither.
    bent = [(-1.0, -5.0), *before], [*after, (12.0, 9.0)]
    np.testing.assert_allclose(_blend(*map(np.array, bent)), joined, atol=1e-9)


def test_a_lane_change_is_part_of_the_route() -> None:
    scene = hand_made([Mover(speed=10.0)], [straight_road(), straight_road(y=3.5)])
    x = np.arange(1, 81) * 1.0
    y = 3.5 / (1 + np.exp(-(x - 40.0) / 4.0))
    heading = np.arctan2(np.gradient(y), 1.0)
    route = find_route(scene, np.zeros(2), np.stack((x, y, heading), axis=-1))
    place, beside, _, _ = route.at(np.arange(0.0, 120.0, 1.0))
    np.testing.assert_allclose(beside[place < 15], 0.0, atol=0.05)
    np.testing.assert_allclose(beside[place > 70], 3.5, atol=0.05)
    assert np.abs(route.curvature).max() < 0.1
    assert np.abs(np.diff(beside)).max() < 0.3


def test_a_lane_between_two_changes_is_followed_in_its_middle() -> None:
    """Entered at x = 30 and left at x = 50, both half of a change long: along it at x = 40, and askew before."""
    scene = hand_made([Mover(speed=10.0)], [straight_road(y=y) for y in (0.0, 3.5, 7.0)])
    lanes = read_lanes(scene, np.zeros(2))
    taken = [Taken(0, 50.0, 80.0, False), Taken(1, 80.0, 100.0, True), Taken(2, 100.0, 150.0, True)]
    x, y, heading, _ = _along_lanes(lanes, taken, np.zeros(3)).at(np.arange(0.0, 150.0, 0.1))
    assert float(np.interp(40.0, x, y)) == pytest.approx(3.5, abs=0.01)
    assert abs(float(np.interp(40.0, x, heading))) < 0.06
    for askew in (30.0, 50.0):
        assert float(np.interp(askew, x, heading)) == pytest.approx(0.196, abs=0.01)


def test_a_drive_off_all_lanes_is_its_own_route() -> None:
    scene = hand_made([Mover(y=20.0, speed=5.0)], [straight_road()])
    angle = np.arange(1, 81) * 0.5 / 30.0
    drive = np.stack((30 * np.sin(angle), 20.0 + 30 - 30 * np.cos(angle), angle), axis=-1)
    route = find_route(scene, np.zeros(2), drive)
    assert np.abs(route.project(drive[:, :2])[1]).max() < 0.2
    assert route.length > 300.0
    assert np.abs(route.curvature).max() < 0.05


def test_a_parked_car_gets_a_route_ahead() -> None:
    scene = hand_made([Mover(y=30.0, heading=1.0)], [straight_road()])
    route = find_route(scene, np.zeros(2), np.repeat([[0.0, 30.0, 1.0]], 80, axis=0))
    np.testing.assert_allclose(route.heading, 1.0, atol=1e-6)
    s, d = route.project(np.array([0.0, 30.0]))
    assert 5.0 < s < 15.0
    assert abs(d) < 1e-6
    assert route.length - s >= 300.0


def test_reversing_is_not_followed() -> None:
    scene = hand_made([Mover(speed=0.0)], [straight_road()])
    back = np.stack((-0.2 * np.arange(1, 81), np.zeros(80), np.zeros(80)), axis=-1)
    route = find_route(scene, np.zeros(2), back)
    np.testing.assert_allclose(route.heading, 0.0, atol=1e-6)


def test_no_map_at_all() -> None:
    scene = hand_made([Mover(heading=0.5, speed=6.0)], [(MapKind.ROAD_EDGE, circle(50.0, 20))])
    route = mission_of(scene).route
    np.testing.assert_allclose(route.heading, 0.5, atol=1e-5)


def test_bike_lanes_are_not_for_cars() -> None:
    scene = hand_made([Mover(y=0.3, speed=6.0)], [straight_road(), straight_road(y=0.4)])
    subtype = torch.tensor([2, 3])
    scene = dataclasses.replace(scene, map=dataclasses.replace(scene.map, subtype=subtype))
    assert len(read_lanes(scene, np.zeros(2))) == 1


def nearest_lanes(scene: Scene, pose: np.ndarray) -> list[int]:
    """Places of the lanes within 2 m of a pose that go the same way."""
    found = []
    for index, lane in enumerate(read_lanes(scene, scene_origin(scene).double().numpy())):
        gap = np.linalg.norm(lane.point[:-1] - pose[:2], axis=1)
        if gap.min() < 2.0 and np.cos(lane.heading[gap.argmin()] - pose[2]) > 0.7:
            found.append(index)
    return found


def test_generated_scenes_follow_the_lanes_that_were_driven(generated: list[Scene]) -> None:
    """Against the lanes that are nearest to the recorded drive, pose by pose."""
    compared = 0
    for scene in generated:
        mission = mission_of(scene)
        lanes = read_lanes(scene, mission.origin)
        moved = np.linalg.norm(np.diff(mission.recorded[:, :2], axis=0), axis=1).sum()
        s, d = mission.route.project(mission.recorded[:, :2])
        assert np.abs(d).mean() < 1.5
        assert abs((s[-1] - s[0]) - moved) < 1.0 + 0.05 * moved
        thinned = mission.recorded[::5]
        taken = {part.lane for part in match_lanes(lanes, thinned)}
        for pose in thinned:
            near = nearest_lanes(scene, pose)
            if len(near) == 1:
                compared += 1
                assert near[0] in taken
    assert compared > 10


def test_limits_of_lanes_are_miles_per_hour() -> None:
    scene = hand_made([Mover(speed=9.0)], [straight_road()])
    scene.map.speed_limit[:] = 35.0
    (lane,) = read_lanes(scene, np.zeros(2))
    assert lane.speed_limit == pytest.approx(35 * 1609.344 / 3600)
    route = find_route(scene, np.zeros(2), None)
    np.testing.assert_allclose(route.limit_at(np.array([0.0, 100.0])), 15.6464)


def test_a_drive_round_a_bend_fits_its_lane() -> None:
    """Half a circle of 25 m is 78 m long, though its ends are 50 m apart: it is the lane, not its own route."""
    line = [(x, 0.0) for x in np.arange(-40.0, 0.0, 2.0)]
    line += [(25 * np.sin(a), 25 - 25 * np.cos(a)) for a in np.linspace(0.0, np.pi, 60)]
    line += [(x, 50.0) for x in np.arange(-2.0, -60.0, -2.0)]
    scene = hand_made([Mover(speed=9.0)], [(MapKind.LANE, line)])
    scene.map.speed_limit[:] = 25.0
    angle = np.arange(1, 81) / 25.0
    recorded = np.stack((25.5 * np.sin(angle), 25 - 25.5 * np.cos(angle), angle), axis=-1)
    route = find_route(scene, np.zeros(2), recorded)
    # Its own route would have no limit, and would be where the drive was.
    assert (route.speed_limit[20:80] > 0).all()
    assert np.abs(np.hypot(route.point[15:80, 0], route.point[15:80, 1] - 25.0) - 25.0).max() < 0.1


def test_between_its_points_a_route_is_a_smooth_curve() -> None:
    """Through the points along their headings; heading and curvature by shares; straight beyond the ends."""
    route = winding([0.0, 0.02, 0.05, -0.03])
    s = np.linspace(0.0, route.length, 997)
    _, _, heading, bend = route.at(s)
    np.testing.assert_allclose(heading, np.interp(s, route.distance, route.heading), atol=1e-9)
    np.testing.assert_allclose(bend, np.interp(s, route.distance, route.curvature), atol=1e-9)
    np.testing.assert_allclose(np.stack(route.at(route.distance)[:2], axis=-1), route.point, atol=1e-9)
    before, after = (np.stack(route.at(route.distance[1:-1] + step)[:2]) for step in (-1e-4, 1e-4))
    moved = (after - before) / 2e-4
    np.testing.assert_allclose(moved, [np.cos(route.heading[1:-1]), np.sin(route.heading[1:-1])], atol=1e-3)
    ends = route.at(np.array([-5.0, route.length + 5.0]))
    turned = route.heading[[0, -1]]
    np.testing.assert_allclose(ends[0] - route.point[[0, -1], 0], np.array([-5, 5]) * np.cos(turned), atol=1e-9)
    np.testing.assert_allclose(ends[1] - route.point[[0, -1], 1], np.array([-5, 5]) * np.sin(turned), atol=1e-9)
    assert ends[3].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("aside", "fits"), [(3.0, True), (-3.0, True), (3.01, False), (-3.01, False)])
def test_a_drive_fits_a_route_three_metres_away_at_most(aside: float, fits: bool) -> None:
    route = make_route(np.array([[-20.0, 0.0], [200.0, 0.0]]))
    x = np.arange(0.0, 41.0)
    driven = np.stack((x, np.full_like(x, aside), np.zeros_like(x)), axis=-1)
    assert _fits(route, driven[0], driven) == fits


@pytest.mark.parametrize(("share", "fits"), [(1.0, True), (0.68, True), (0.67, False)])
def test_a_drive_fits_a_route_that_is_about_as_long(share: float, fits: bool) -> None:
    """Forty metres that wind to and fro, of which so much is progress: 3 m and a quarter may be missing."""
    route = make_route(np.array([[-20.0, 0.0], [200.0, 0.0]]))
    x = 40.0 * share * np.linspace(0.0, 1.0, 41)
    y = np.where(np.arange(41) % 2, np.sqrt(1.0 - share**2), 0.0)
    driven = np.stack((x, y, np.zeros_like(x)), axis=-1)
    assert np.linalg.norm(np.diff(driven[:, :2], axis=0), axis=1).sum() == pytest.approx(40.0)
    assert _fits(route, driven[0], driven) == fits


def lane_to(*successors: int, heading: float = 0.0, length: float = 20.0) -> Lane:
    """A straight lane from the origin; only its direction, length and successors count."""
    point = np.array([[0.0, 0.0], [length * np.cos(heading), length * np.sin(heading)]])
    return Lane(point, np.array([0.0, length]), np.array([heading]), 0.0, successors)


def test_lanes_go_on_straightest_far_enough_and_never_in_a_ring() -> None:
    lanes = [
        lane_to(1, 2),
        lane_to(3, heading=0.5),
        lane_to(3, 4, heading=-0.4),
        lane_to(0, heading=1.0),
        lane_to(2, 5, heading=-0.4),
        lane_to(),
    ]
    assert straightest(lanes, 0, 100.0) == [2, 4, 5], "of two the one that turns less, and no lane twice"
    assert straightest(lanes, 0, 40.0) == [2, 4]
    assert straightest(lanes, 0, 41.0) == [2, 4, 5]
    assert straightest(lanes, 3, 1.0) == [0]
    assert straightest(lanes, 0, 0.0) == []
