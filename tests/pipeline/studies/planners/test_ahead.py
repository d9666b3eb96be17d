"""What lies ahead on a path, and where others are expected, in situations of which the answer is a closed form."""

from __future__ import annotations

import numpy as np
import pytest

from data.scene import MapKind
from pipeline.studies.planners.interface import Situation
from pipeline.studies.planners.lattice import road_corridor
from pipeline.studies.planners.prediction import Obstacles, obstacles_ahead, predict, red_lines_ahead
from pipeline.studies.planners.route import Route, make_route
from tests.pipeline.studies.planners.driving import mission_of, straight_road
from tests.scenes import Mover, hand_made

ROAD = make_route(np.array([[0.0, 0.0], [300.0, 0.0]]))
WALKER = (0.6, 0.6)


def situation(
    *others: tuple[float, float, float, float, float],
    speed: float = 8.0,
    size: tuple[float, float] = (4.0, 2.0),
    lines: list[tuple[float, float, float]] | None = None,
    red: list[bool] | None = None,
) -> Situation:
    """The AV, a car of 4 m at x = 10, and others: x, y, heading, and velocity along x and y."""
    states = np.array([(10.0, 0.0, 0.0, speed, 0.0), *others])
    count = len(states)
    return Situation(
        step=0,
        pose=states[:, :3],
        velocity=states[:, 3:],
        size=np.array([(4.0, 2.0), *[size] * (count - 1)]),
        type=np.zeros(count, dtype=np.int64),
        present=np.ones(count, dtype=bool),
        acceleration=0.0,
        yaw_rate=0.0,
        stop_line=np.array(lines or np.zeros((0, 3))),
        red=np.array(red if red is not None else [True] * len(lines or []), dtype=bool),
    )


def ahead(now: Situation, reach: float = 60.0, path: Route = ROAD) -> Obstacles:
    return obstacles_ahead(path, 10.0, 0, now, 4.0, 1.0, reach)


def test_who_is_on_the_path_is_met_at_the_rear_with_its_speed() -> None:
    found = ahead(situation((30.0, 0.3, 0.0, 5.0, 0.0), (50.0, 0.0, np.pi, -3.0, 0.0)))
    np.testing.assert_allclose(found.s, [28.0, 48.0], atol=1e-6)
    np.testing.assert_allclose(found.speed, [5.0, -3.0], atol=1e-6)
    assert found.merging.tolist() == [False, False]
    assert found.row.tolist() == [1, 2]
    # The AV's front is at 12 m.
    assert len(ahead(situation((30.0, 0.0, 0.0, 5.0, 0.0)), reach=15.5).s) == 0
    assert len(ahead(situation((30.0, 0.0, 0.0, 5.0, 0.0)), reach=16.5).s) == 1


@pytest.mark.parametrize(
    ("x", "y", "speed", "met"),
    [
        (30.0, 2.2, 5.0, True),  # 1.2 m from the middle of the path: within 1.25 m
        (30.0, -2.2, 5.0, True),
        (30.0, 2.3, 5.0, False),
        (30.0, 2.2, 0.0, False),  # one may pass closer to who stands: 1.05 m
        (30.0, -2.2, 0.0, False),
        (30.0, 2.0, 0.0, True),
        (13.0, 0.0, 5.0, True),
        (11.5, 0.0, 5.0, False),  # its rear is behind the AV's middle
        (-30.0, 0.0, 20.0, False),
    ],
)
def test_what_is_in_the_way(x: float, y: float, speed: float, met: bool) -> None:
    found = ahead(situation((x, y, 0.0, speed, 0.0)))
    assert len(found.s[~found.merging]) == met


def test_who_crosses_is_met_where_it_enters() -> None:
    """A pedestrian gets onto the strip of 1.55 m on either side; the AV comes there in 3.5 s."""
    found = ahead(situation((40.0, -6.0, np.pi / 2, 0.0, 1.5), size=WALKER))
    np.testing.assert_allclose(found.s, [39.7], atol=1e-6)
    assert (found.speed.tolist(), found.merging.tolist()) == ([0.0], [False])
    # Not expected within 3 s; away long before; behind the AV; going away.
    for y, vy, x in ((-12.0, 1.5, 40.0), (-1.6, 3.0, 40.0), (-4.0, 1.5, 5.0), (-4.0, -1.5, 40.0)):
        assert len(ahead(situation((x, y, np.pi / 2, 0.0, vy), size=WALKER)).s) == 0
    # Leaves the strip after 2 s, less than a second before the AV.
    assert len(ahead(situation((30.0, -1.6, np.pi / 2, 0.0, 1.5), size=WALKER)).s) == 1


@pytest.mark.parametrize(("speed", "met"), [(8.0, True), (15.0, False)])
def test_whoever_cannot_stop_gently_goes_first_if_it_can(speed: float, met: bool) -> None:
    """A pedestrian enters after 2 s, 18 m ahead: at 15 m/s the AV is past in 1.7 s, too fast to stop gently."""
    assert len(ahead(situation((30.0, -4.4, np.pi / 2, 0.0, 1.5), speed=speed, size=WALKER)).s) == met


@pytest.mark.parametrize(("speed", "met"), [(10.0, True), (11.0, False)])
def test_who_can_stop_gently_lets_those_pass_who_come_a_little_later(speed: float, met: bool) -> None:
    """A pedestrian enters after 3 s, 17.7 m ahead, when the AV has been past for less than a second: it stops if
    3 m/s^2 will do, which is up to 10.3 m/s."""
    assert len(ahead(situation((30.0, -5.9, np.pi / 2, 0.0, 1.5), speed=speed, size=WALKER)).s) == met


def test_who_merges_is_met_as_far_away_as_at_its_entry() -> None:
    """A car in the lane beside that drifts in at 1 m/s, and is there after 1.5 s, both having gone 12 m."""
    found = ahead(situation((30.0, 3.5, 0.0, 8.0, -1.0)))
    np.testing.assert_allclose(found.s, [28.0], atol=1e-6)
    np.testing.assert_allclose(found.speed, [8.0], atol=1e-6)
    assert found.merging.tolist() == [True]
    slower = ahead(situation((30.0, 3.5, 0.0, 6.0, -1.0)))
    np.testing.assert_allclose(slower.s, [28.0 - 2.0 * 1.5], atol=1e-6)
    # One that stays in its lane, or would be behind.
    assert len(ahead(situation((30.0, 3.5, 0.0, 8.0, 0.0), (0.0, 3.5, 0.0, 8.0, -1.0))).s) == 0


def test_a_path_that_comes_back_beside_itself_is_not_blocked_by_its_other_part() -> None:
    """A lorry at the mouth of a hairpin of 3 m reaches over to the way back."""
    turn = [(100 + 3 * np.sin(a), 3 - 3 * np.cos(a)) for a in np.linspace(0.0, np.pi, 20)]
    path = make_route(np.array([(0.0, 0.0), (50.0, 0.0), *turn, (50.0, 6.0), (0.0, 6.0)]), smoothing=0.0)
    found = ahead(situation((40.0, 4.0, np.pi / 2, 0.0, 0.0), size=(8.0, 2.0)), reach=400.0, path=path)
    np.testing.assert_allclose(found.s, np.zeros(0))


def test_red_lines_of_the_path_that_one_can_stop_for() -> None:
    def lines(*given: tuple[float, float, float], speed: float = 0.0, reach: float = 60.0) -> list[float]:
        return red_lines_ahead(ROAD, 10.0, situation(lines=list(given)), 4.0, speed, reach).tolist()

    assert lines((40.0, 0.5, 0.2), (30.0, 0.0, 0.0)) == pytest.approx([40.0, 30.0])
    # Another lane, the other direction, behind the AV's middle; the nose may be over the line.
    assert lines((40.0, 2.5, 0.0), (40.0, 0.0, np.pi), (9.5, 0.0, 0.0)) == []
    assert lines((11.0, 0.0, 0.0)) == pytest.approx([11.0])
    assert lines((71.5, 0.0, 0.0), (72.5, 0.0, 0.0)) == pytest.approx([71.5])
    # At 6 m/s^2 it takes 8.33 m to stop from 10 m/s.
    assert lines((18.4, 0.0, 0.0), (18.2, 0.0, 0.0), speed=10.0) == pytest.approx([18.4])
    green = situation(lines=[(40.0, 0.0, 0.0), (30.0, 0.0, 0.0)], red=[False, True])
    assert red_lines_ahead(ROAD, 10.0, green, 4.0, 0.0, 60.0).tolist() == pytest.approx([30.0])


def test_who_follows_a_bend_stays_beside_it() -> None:
    """On a circle of 20 m: one 5 m inside drives a circle of 15 m, one who crosses goes straight on."""
    angle = np.linspace(0.0, 1.2 * np.pi, 300)
    bend = make_route(20.0 * np.stack((np.sin(angle), 1 - np.cos(angle)), axis=-1), smoothing=0.0)
    inside = (15.0 * np.sin(0.5), 20.0 - 15.0 * np.cos(0.5), 0.5, 5 * np.cos(0.5), 5 * np.sin(0.5))
    across = (20.0 * np.sin(1.0), 20.0 - 20.0 * np.cos(1.0), 1.0 + np.pi / 2, -3 * np.sin(1.0), 3 * np.cos(1.0))
    seen = predict(bend, situation(inside, across), np.array([1, 2]), np.array([1.0, 2.0]))
    assert seen.follows.tolist() == [True, False]
    np.testing.assert_allclose(seen.d, [5.0, 0.0], atol=0.05)
    np.testing.assert_allclose(seen.along, [5.0, 0.0], atol=0.05)
    for row, time in enumerate((1.0, 2.0)):
        turned = 0.5 + 5.0 * time / 15.0
        place = [15.0 * np.sin(turned), 20.0 - 15.0 * np.cos(turned), turned]
        np.testing.assert_allclose(seen.pose[row, 0], place, atol=0.1)
        np.testing.assert_allclose(seen.future_s[row, 0], 20.0 * turned, atol=0.2)
        np.testing.assert_allclose(seen.pose[row, 1, :2], np.array(across[:2]) + time * np.array(across[3:]))
        np.testing.assert_allclose(seen.future_d[row], [5.0, 3.0 * time], atol=0.1)
    assert (seen.pose[:, 1, 2] == across[2]).all()


def test_corridors_tell_left_from_right_and_leave_out_bridges() -> None:
    """Edges 4.5 m to the left and 3 m to the right, one across, and a bridge's 2 m to the left, 6 m above."""
    xs = [float(x) for x in range(-60, 400, 4)]
    edges: list[tuple[MapKind, list[tuple[float, ...]]]] = [
        (MapKind.ROAD_EDGE, [(x, 4.5) for x in xs]),
        (MapKind.ROAD_EDGE, [(x, -3.0) for x in xs]),
        (MapKind.ROAD_EDGE, [(x, 2.0, 6.0) for x in xs]),
        (MapKind.ROAD_EDGE, [(40.0, -1.0), (40.0, 0.2), (40.0, 0.6)]),
        (MapKind.LANE, [(x, 1.0) for x in xs]),
    ]
    scene = hand_made([Mover(speed=9.0)], [straight_road(), *edges])
    mission = mission_of(scene)
    found = road_corridor(scene, mission.origin, mission.route)
    left, right = found.at(mission.route, np.array([100.0, 20.3]))
    np.testing.assert_allclose(left, 4.5, atol=0.01)
    np.testing.assert_allclose(right, 3.0, atol=0.01)
    assert found.right.min() == pytest.approx(1.0, abs=0.3), "of what runs across, no more than is beside"
    np.testing.assert_allclose(found.left[:-10], 4.5, atol=0.01)
