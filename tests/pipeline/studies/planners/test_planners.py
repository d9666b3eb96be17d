"""All planners on generated scenes, planners of one's own, and errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data.errors import UserError
from data.scene import LightState, Scene
from pipeline.studies.planners.catalogue import builtin_planners, load_planner
from pipeline.studies.planners.interface import Trajectory
from tests.pipeline.studies.planners.driving import drive, straight_road
from tests.scenes import Mover, Signal, hand_made

EXAMPLE = "pipeline.studies.planners.example:make"


def test_twenty_two_are_built_in() -> None:
    names = set(builtin_planners())
    assert {"idm_baseline", "frenet_smooth", "constant_velocity", "log"} < names
    assert sum(name.startswith("idm_") for name in names) == sum(name.startswith("frenet_") for name in names) == 10


def test_how_often_planners_are_asked() -> None:
    scene = hand_made([Mover(speed=5.0)], [straight_road()])
    periods = {"log": 10, "constant_velocity": 10, "idm_baseline": 1, "frenet_baseline": 5, EXAMPLE: 2}
    for name, period in periods.items():
        steps = [situation.step for situation in drive(scene, load_planner(name), steps=21).situations]
        assert steps == list(range(0, 21, period)), name


@pytest.mark.parametrize("name", [*sorted(builtin_planners()), EXAMPLE])
def test_eight_seconds_on_generated_scenes(name: str, generated: list[Scene]) -> None:
    for scene in generated:
        driven = drive(scene, load_planner(name))
        assert driven.pose.shape == (81, 3)
        assert np.isfinite(driven.pose).all()
        velocity = np.diff(driven.pose[:, :2], axis=0) / 0.1
        heading = driven.pose[1:, 2]
        # No jump onto the route.
        start = driven.situations[0].velocity[driven.mission.ego]
        assert np.linalg.norm(velocity[0] - start) < 1.5
        if name in ("log", "constant_velocity"):
            continue
        forward = velocity[:, 0] * np.cos(heading) + velocity[:, 1] * np.sin(heading)
        aside = velocity[:, 1] * np.cos(heading) - velocity[:, 0] * np.sin(heading)
        acceleration = np.diff(forward) / 0.1
        assert acceleration.min() > -9.0
        assert acceleration.max() < 7.0
        assert forward.min() > -0.05
        yaw = np.diff(np.unwrap(driven.pose[:, 2])) / 0.1
        assert np.abs(yaw[1:] * forward[1:]).max() < 7.0
        assert np.abs(aside).max() < 0.1 * np.abs(forward).max() + 0.3


def test_the_log_planner_drives_the_log(generated: list[Scene]) -> None:
    driven = drive(generated[0], load_planner("log"))
    recorded = driven.mission.recorded + np.append(driven.mission.origin, 0.0)
    np.testing.assert_allclose(driven.pose[1:], recorded, atol=1e-9)


def test_constant_velocity_goes_straight_on() -> None:
    driven = drive(hand_made([Mover(heading=0.7, speed=5.0)]), load_planner("constant_velocity"))
    expected = 0.5 * np.arange(81)[:, None] * [np.cos(0.7), np.sin(0.7)]
    np.testing.assert_allclose(driven.pose[:, :2], expected, atol=1e-4)
    np.testing.assert_allclose(driven.pose[:, 2], 0.7, atol=1e-6)


def test_both_plan_a_second() -> None:
    """Tenths of a second apart, the log to its end."""
    scene = hand_made([Mover(heading=0.7, speed=5.0)])
    driven = drive(scene, load_planner("constant_velocity"), steps=1)
    (situation,) = driven.situations
    plan = load_planner("constant_velocity")(driven.mission).plan(situation)
    assert isinstance(plan, Trajectory)
    move = 0.5 * np.arange(1, 11)[:, None] * [np.cos(0.7), np.sin(0.7)]
    np.testing.assert_allclose(plan.pose - situation.pose[0], np.column_stack((move, np.zeros(10))), atol=1e-5)
    log = load_planner("log")(driven.mission)
    for step, wanted in ((0, range(10)), (35, range(35, 45)), (74, [74, 75, 76, 77, 78, *[79] * 5])):
        plan = log.plan(dataclasses.replace(situation, step=step))
        assert isinstance(plan, Trajectory)
        assert np.array_equal(plan.pose, driven.mission.recorded[list(wanted)])


def test_the_example_stops_for_cars_and_lights() -> None:
    car = hand_made([Mover(y=0.8, speed=8.0), Mover(x=50.0)], [straight_road()])
    driven = drive(car, load_planner(EXAMPLE))
    assert 35.0 < driven.pose[-1, 0] < 46.0
    assert driven.speed[-1] < 0.5
    assert abs(driven.pose[-1, 1]) < 0.3, "it has come onto the lane"
    light = hand_made([Mover(speed=8.0)], [straight_road()], [Signal(0, (40.0, 0.0), [LightState.STOP] * 91)])
    assert 30.0 < drive(light, load_planner(EXAMPLE)).pose[-1, 0] < 38.0
    near = hand_made([Mover(speed=10.0), Mover(x=8.0)], [straight_road()])
    speed = drive(near, load_planner(EXAMPLE), steps=5).speed
    assert np.diff(speed).min() / 0.1 == pytest.approx(-8.0), "it brakes no harder"


def test_planners_know_nothing_of_the_future(generated: list[Scene]) -> None:
    """What comes is not in the scene that they are given."""
    seen = []

    def make(mission):
        seen.append(mission.scene.num_steps)
        return load_planner("constant_velocity")(mission)

    drive(generated[0], make, steps=1)
    assert seen == [11]


def test_nobody_else_present_and_an_empty_road() -> None:
    scene = hand_made([Mover(speed=5.0), Mover(x=20.0)], [straight_road()])
    agents = dataclasses.replace(scene.agents, valid=scene.agents.valid.clone())
    agents.valid[1, 11:] = False
    gone = dataclasses.replace(scene, agents=agents)
    for name in ("idm_baseline", "frenet_baseline", EXAMPLE):
        assert drive(gone, load_planner(name)).pose[-1, 0] > 25.0


def test_a_planner_of_ones_own_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine_for_tests.py").write_text(
        "from pipeline.studies.planners.interface import Control\n"
        "class Stop:\n"
        "    period = 3\n"
        "    def __init__(self, mission): pass\n"
        "    def plan(self, situation): return Control(-3.0, 0.0)\n"
        "number = 3\n"
    )
    (tmp_path / "broken_for_tests.py").write_text("import nothing_of_this_name\n")
    monkeypatch.syspath_prepend(tmp_path)
    driven = drive(hand_made([Mover(speed=6.0)], [straight_road()]), load_planner("mine_for_tests:Stop"))
    assert driven.pose[-1, 0] == pytest.approx(6.0, abs=1e-3)
    for name, expected in (
        ("mine_for_tests:Stopp", "did you mean Stop?"),
        ("mine_for_tests:number", "is a int, expected a function of a Mission"),
        ("mine_for_tests:", "has no name behind the colon"),
        ("broken_for_tests:make", "No module named 'nothing_of_this_name'"),
        ("not_there_for_tests:make", "cannot be imported"),
        ("idm_basline", "did you mean idm_baseline?"),
        ("nothing/policy.ckpt", "policy.ckpt"),
    ):
        with pytest.raises(UserError, match=expected.replace("?", r"\?")) as caught:
            load_planner(name)
        assert "\n" not in str(caught.value)
