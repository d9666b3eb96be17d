"""Every other score on hand-made drives with known answers, and the totals by hand."""

from __future__ import annotations

import dataclasses
import math
import time

import numpy as np
import pytest
import torch

from data.scene import MapKind, until_now
from pipeline.studies.planners.drive_record import Drive, logged_drive
from pipeline.studies.planners.motion_scores import COMFORT_BOUNDS, comfort, ego_motion, within_bounds
from pipeline.studies.planners.road_scores import surroundings
from pipeline.studies.planners.scores import SCORE_NAMES, score_drives, totals
from tests.pipeline.studies.planners.drives import ORIGIN, SIZE, TIME, Floats, drive_of, road, route_of, straight
from tests.scenes import Mover, hand_made

ROAD = road((0.0, 1))


def values(name: str, drive: Drive, scene=ROAD, route=None) -> list[float]:
    return score_drives(drive, scene, ORIGIN, route or route_of()).values[name].tolist()


# --- drivable area


def test_one_corner_beyond_the_edge_is_enough() -> None:
    """Half a length of 2 and half a width of 1, turned by 0.1: the corner is 2 sin + cos beyond the centre."""
    reach = 2 * math.sin(0.1) + math.cos(0.1)
    across = straight(speed=1.0)
    across[40:, 2] = 0.1
    inside, outside = across.copy(), across.copy()
    inside[40:, 1], outside[40:, 1] = 8.0 - reach - 0.01, 8.0 - reach + 0.01
    assert values("drivable_area", drive_of([inside, outside])) == [1.0, 0.0]


def test_what_the_av_starts_in_is_forgiven_until_it_is_out_of_it() -> None:
    """Half of it is off at the start. It stays; it comes in; it comes in and goes off again; it goes off wholly."""
    start = straight(y=7.5, speed=5.0)
    y = np.interp(TIME, [0, 2, 3, 5, 6], [7.5, 7.5, 5.0, 5.0, 7.5])
    back, entering, leaving = start.copy(), start.copy(), start.copy()
    back[:, 1] = y
    entering[:, 1] = np.minimum.accumulate(y)
    leaving[:, 1] = 7.5 + np.clip(TIME - 2, 0, 3)
    assert values("drivable_area", drive_of([start, entering, back, leaving])) == [1.0, 1.0, 0.0, 0.0]


def test_without_road_edges_nobody_is_off_the_road() -> None:
    scene = hand_made([Mover(speed=10.0)])
    assert values("drivable_area", drive_of([straight(y=50.0)]), scene) == [1.0]


# --- driving direction


@pytest.mark.parametrize(
    ("speed", "score"), [(1.9, 1.0), (2.1, 0.5), (3.0, 0.5), (5.9, 0.5), (6.1, 0.0), (7.0, 0.0)]
)
def test_metres_against_the_lane_within_a_second(speed: float, score: float) -> None:
    wrong = straight(x=100.0, heading=math.pi, speed=speed)
    assert values("driving_direction", drive_of([wrong, straight(speed=speed)])) == [score, 1.0]


def test_only_what_lies_within_one_second_adds_up() -> None:
    """Half a second at 7 m/s, twice: 3.5 m in any window."""
    going = 7.0 * (((TIME > 1.95) & (TIME < 2.45)) | ((TIME > 4.95) & (TIME < 5.45)))
    motion = straight(heading=math.pi)
    motion[:, 0] = 50 - np.cumsum(going * 0.1)
    assert values("driving_direction", drive_of([motion])) == [0.5]


def test_who_is_in_the_lane_of_the_opposite_direction_drives_against_it() -> None:
    """Own lane on y = 0, the other one on 3.7. Straddling is excused while the box reaches into the own lane; no
    lane at all is no wrong one."""
    scene = road((0.0, 1), (3.7, -1))
    drives = [straight(y=y, speed=8.0) for y in (0.0, 2.5, 3.7, 7.0)]
    assert values("driving_direction", drive_of(drives), scene) == [1.0, 1.0, 0.0, 1.0]


def test_crossing_the_opposite_lane_in_a_lane_of_its_own_is_fine() -> None:
    turn = [(0.0, 0.0), (10.0, 2.0), (20.0, 6.0)]
    path = np.stack((np.interp(TIME * 2.6, [0, 20], [0, 20]), np.zeros(81), np.zeros(81)), axis=1)
    path[:, 1] = np.interp(path[:, 0], [0, 10, 20], [0.0, 2.0, 6.0])
    drive = drive_of([path])
    assert values("driving_direction", drive, road((3.7, -1))) == [0.5]
    assert values("driving_direction", drive, road((3.7, -1), turns=[turn])) == [1.0]


# --- progress


@pytest.mark.parametrize(("speed", "expected"), [(5.0, 0.5), (12.0, 1.0), (0.0, 0.0)])
def test_progress_is_relative_to_the_logs(speed: float, expected: float) -> None:
    """The log drives 80 m."""
    assert values("progress", drive_of([straight(speed=speed)]))[0] == pytest.approx(expected, abs=1e-5)


def test_progress_is_along_the_route_not_across_it_nor_back() -> None:
    skew = straight(heading=math.pi / 3, speed=10.0)
    back = straight(heading=math.pi, speed=10.0)
    assert values("progress", drive_of([skew, back])) == pytest.approx([0.5, 0.0], abs=1e-5)


def test_a_log_that_stands_asks_for_no_progress() -> None:
    assert values("progress", drive_of([straight()]), road((0.0, 1), speed=0.24)) == [1.0]
    assert values("progress", drive_of([straight()]), road((0.0, 1), speed=0.26)) == [0.0]


def test_progress_needs_the_log() -> None:
    with pytest.raises(ValueError, match="only 11 of 91 steps"):
        values("progress", drive_of([straight()]), until_now(ROAD))


# --- time to collision


@pytest.mark.parametrize(("seconds", "score"), [(0.9, 0.0), (0.94, 0.0), (0.96, 1.0), (1.5, 1.0)])
def test_least_time_behind_one_that_is_slower(seconds: float, score: float) -> None:
    """A gap of g at a closing speed of 10 m/s; after one step the AV has the other's speed, so that g / 10 is the
    least time, of step 0."""
    ego = straight(speed=15.0)
    ego[1:, 0] = 1.5 + 5.0 * (TIME[1:] - 0.1)
    other = straight(x=4.0 + 10.0 * seconds, speed=5.0)
    result = score_drives(drive_of([ego], other), ROAD, ORIGIN, route_of())
    assert float(result.least_ttc) == pytest.approx(seconds, abs=1e-4)
    assert result.values["ttc"].tolist() == [score]


def test_time_to_a_braking_leader_by_closed_form() -> None:
    """Gap 20, both 10 m/s, the leader brakes at 2 m/s^2: at t the gap is 20 - t^2 and closes at 2 t."""
    drive = drive_of([straight(speed=10.0)], straight(x=24.0, speed=10.0, acceleration=-2.0))
    result = score_drives(drive, ROAD, ORIGIN, route_of())
    steps = TIME[1:45]
    assert float(result.least_ttc) == pytest.approx(float(((20 - steps**2) / (2 * steps)).min()), abs=1e-3)


def test_who_counts_for_the_time_to_collision() -> None:
    """Towards the side of the AV: crossing traffic counts; from behind, at a standstill, or beside it in a lane of
    its own not."""
    scene = road((0.0, 1), (3.7, 1))
    crossing = straight(x=40.0, y=-23.0, heading=math.pi / 2, speed=5.0)
    assert values("ttc", drive_of([straight(speed=10.0)], crossing), scene) == [0.0]
    assert values("ttc", drive_of([straight(speed=2.0)], straight(x=-10.0, speed=9.0)), scene) == [1.0]
    assert values("ttc", drive_of([straight()], straight(x=20.0, heading=math.pi, speed=9.0)), scene) == [1.0]
    beside = straight(x=1.0, y=2.3, speed=8.0)
    beside[:, 1] -= 0.5 * np.minimum(TIME, 0.2)
    own, straddling = straight(speed=8.0), straight(y=-0.4, speed=8.0)
    straddling[:, 2] = 0.3
    assert values("ttc", drive_of([own], beside), scene) == [1.0]
    assert values("ttc", drive_of([straddling], beside), scene) == [0.0]


# --- comfort


def varied(name: str, value: float) -> Floats:
    """A motion in which one quantity is ``value`` throughout, and the others follow from it."""
    pose = np.zeros((81, 3))
    if name == "longitudinal_acceleration":
        pose[:, 0] = 40.0 * TIME + value / 2 * TIME**2
    elif name in ("longitudinal_jerk", "jerk"):
        pose[:, 0] = 200.0 * TIME + value / 6 * (TIME + 1.0) ** 3
        if name == "jerk":  # sideways, so that the longitudinal jerk is none; an acceleration that grows or shrinks
            pose[:, 2] = math.pi / 2
            pose[:, 0] = abs(value) / 6 * ((TIME + 1.0) ** 3 if value > 0 else (9.0 - TIME) ** 3)
    elif name == "yaw_rate":
        pose[:, 2] = value * TIME
    elif name == "yaw_acceleration":
        pose[:, 2] = value / 2 * (TIME - 4.0) ** 2
    else:  # a circle, slow enough for the filter
        rate = 0.05
        radius = value / rate**2
        pose[:] = np.stack((radius * np.sin(rate * TIME), radius * (1 - np.cos(rate * TIME)), rate * TIME), axis=1)
    return pose


@pytest.mark.parametrize("name", COMFORT_BOUNDS)
@pytest.mark.parametrize("side", [0, 1])
def test_each_bound_of_comfort(name: str, side: int) -> None:
    """Just below and just above; the filter is exact for polynomials, and almost so for the slow circle."""
    bound = COMFORT_BOUNDS[name][side]
    margin = 0.005 if name == "lateral_acceleration" else 0.0005
    below, above = varied(name, bound * (1 - margin)), varied(name, bound * (1 + margin))
    pose = torch.from_numpy(np.stack((below, above)))
    motion = ego_motion(pose)
    middle = motion[name][:, 40]
    expected = torch.tensor([bound * (1 - margin), bound * (1 + margin)]).double()
    torch.testing.assert_close(middle, expected, rtol=2e-3 if name == "lateral_acceleration" else 1e-6, atol=0.0)
    assert within_bounds(motion)[name].tolist() == [True, False]
    if name in ("longitudinal_acceleration", "yaw_rate", "lateral_acceleration"):
        assert comfort(pose).tolist() == [1.0, 0.0]  # nothing else is uncomfortable in these


def test_a_sinusoid_has_the_accelerations_of_a_sinusoid() -> None:
    """Longitudinal acceleration -a sin wt and jerk -a w cos wt; the filters damp them by some per cent."""
    rate, size = 0.8, 3.0
    pose = np.zeros((1, 81, 3))
    pose[0, :, 0] = 10 * TIME + size / rate**2 * np.sin(rate * TIME)
    motion = ego_motion(torch.from_numpy(pose))
    inner = slice(10, 71)
    expected = -size * np.sin(rate * TIME)
    assert np.abs(motion["longitudinal_acceleration"][0].numpy() - expected)[inner].max() < 0.05 * size
    jerk = -size * rate * np.cos(rate * TIME)
    assert np.abs(motion["longitudinal_jerk"][0].numpy() - jerk)[inner].max() < 0.08 * size * rate


def test_heading_may_pass_half_a_turn_and_float32_is_enough() -> None:
    pose = varied("lateral_acceleration", 3.0)
    pose[:, 2] = (pose[:, 2] + math.pi - 0.2 + math.pi) % (2 * math.pi) - math.pi
    turned = pose.copy()
    cos, sin = math.cos(math.pi - 0.2), math.sin(math.pi - 0.2)
    turned[:, 0], turned[:, 1] = 150 + cos * pose[:, 0] - sin * pose[:, 1], sin * pose[:, 0] + cos * pose[:, 1]
    motion = ego_motion(torch.from_numpy(turned[None]).float())
    assert float((motion["lateral_acceleration"] - 3.0).abs().max()) < 0.05
    assert float((motion["yaw_rate"] - 0.05).abs().max()) < 1e-3


# --- speed limit


@pytest.mark.parametrize(("over", "expected"), [(-3.0, 1.0), (0.0, 1.0), (1.0, 1 - 1 / 2.23), (2.3, 0.0)])
def test_mean_overspeed(over: float, expected: float) -> None:
    assert values("speed_limit", drive_of([straight(speed=12 + over)]), route=route_of(12.0)) == pytest.approx(
        [expected], abs=1e-4
    )


def test_overspeed_is_averaged_over_all_steps_and_unknown_limits_forgive() -> None:
    """13 m/s where 12 are allowed, up to x = 52."""
    route = route_of(12.0)
    route = dataclasses.replace(route, speed_limit=np.where(route.point[:, 0] < 51.5, 12.0, 0.0))
    seconds = float((13 * TIME < 52.1).mean())
    assert values("speed_limit", drive_of([straight(speed=13.0)]), route=route) == pytest.approx(
        [1 - seconds / 2.23], abs=1e-4
    )
    assert values("speed_limit", drive_of([straight(speed=40.0)]), route=route_of(0.0)) == [1.0]


# --- totals and the whole


def test_totals_by_hand() -> None:
    names = (
        "no_at_fault_collision",
        "drivable_area",
        "driving_direction",
        "progress",
        "ttc",
        "speed_limit",
        "comfort",
    )
    rows = torch.tensor([[1, 1, 0.5, 0.8, 0, 0.25, 1], [0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]).double()
    result = totals(dict(zip(names, rows.T)))
    assert result["pdm"].tolist() == pytest.approx([0.5 * (4 + 0 + 1 + 2) / 16, 0.0, 1.0])
    assert result["pdm_mean"].tolist() == pytest.approx([(5 + 5 + 2.5 + 4 + 0 + 1 + 2) / 31, 26 / 31, 1.0])


def test_the_logged_drive_of_a_tidy_scene_scores_one() -> None:
    result = score_drives(logged_drive(ROAD, ORIGIN), ROAD, ORIGIN, route_of(10.5))
    assert set(result.values) == set(SCORE_NAMES)
    assert all(value.tolist() == [1.0] for value in result.values.values())


def test_scores_do_not_depend_on_where_the_origin_is_nor_on_the_other_drives() -> None:
    """Each drive alone has the scores that it has among others."""
    shift = torch.tensor([-37.0, 21.0])
    egos = [straight(speed=v, heading=h, y=y) for v, h, y in [(12.0, 0.0, 0.0), (9.0, 0.05, 1.0), (8.0, 3.1, 3.7)]]
    others = (
        straight(x=30.0, speed=6.0),
        straight(x=-20.0, speed=9.5),
        straight(x=25.0, y=-5.0, heading=1.2, speed=3.0),
    )
    drive, scene = drive_of(egos, *others), road((0.0, 1), (3.7, -1), half_width=5.0)
    together = score_drives(drive, scene, ORIGIN, route_of(10.0)).values
    route = route_of(10.0)
    moved = dataclasses.replace(route, point=route.point - shift.numpy())
    poses = drive.pose - torch.cat((shift, torch.zeros(1)))
    away = score_drives(dataclasses.replace(drive, pose=poses), scene, shift, moved).values
    for name in SCORE_NAMES:
        torch.testing.assert_close(away[name], together[name], atol=2e-4, rtol=0.0)
        alone = [values(name, drive_of([ego], *others), scene, route_of(10.0))[0] for ego in egos]
        assert alone == pytest.approx(together[name].tolist(), abs=1e-5)


def test_drives_are_checked() -> None:
    drive = drive_of([straight()], straight(x=9.0))
    with pytest.raises(ValueError, match="absent"):
        dataclasses.replace(drive, present=torch.zeros_like(drive.present))
    with pytest.raises(ValueError, match="poses"):
        dataclasses.replace(drive, pose=drive.pose[:, :, :40])


def test_many_drives_are_scored_at_once() -> None:
    """24 drives among 60 agents; the bound is generous, since machines are shared (measured: 0.1 s)."""
    egos = [straight(speed=4.0 + index / 2) for index in range(24)]
    others = [straight(x=-150.0 + 6.0 * i, y=-5.0 + 10.0 * (i % 2), speed=i % 13) for i in range(59)]
    drive = drive_of(egos, *others, sizes=[SIZE] * 60)
    score_drives(drive, ROAD, ORIGIN, route_of())
    start = time.process_time()
    score_drives(drive, ROAD, ORIGIN, route_of())
    assert time.process_time() - start < 2.0


def test_a_single_edge_and_a_short_lane_are_a_map() -> None:
    scene = hand_made(
        [Mover(speed=5.0)],
        [
            (MapKind.ROAD_EDGE, [(-60.0, -4.0), (200.0, -4.0)]),
            (MapKind.LANE, [(10.0, 0.0), (10.6, 0.0)]),
            (MapKind.LANE, [(10.0, 90.0), (20.0, 90.0)]),
            (MapKind.LANE, [(5.0, 1.0)]),
        ],
    )
    around = surroundings(drive_of([straight(speed=5.0)]), scene, ORIGIN)
    assert around.has_edges
    # Near the drive, and with a direction.
    torch.testing.assert_close(around.lanes, torch.tensor([[10.0, 0.0, 0.6, 0.0]]))
    on, off = straight(y=-2.9, speed=5.0), straight(y=-3.1, speed=5.0)
    start = straight(speed=5.0)
    on[:10], off[:10] = start[:10], start[:10]
    assert values("drivable_area", drive_of([on, off]), scene) == [1.0, 0.0]
