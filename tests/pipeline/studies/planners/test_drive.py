"""Driving: plans are followed exactly, nobody knows the future, and nonsense is one line."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from data.errors import UserError
from data.scene import CURRENT_INDEX, Scene
from data.tokenizer import scene_origin
from pipeline.agents.agent import Agent
from pipeline.agents.baselines import LogReplay
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.studies.planners.catalogue import ConstantVelocityPlanner, LogPlanner
from pipeline.studies.planners.drive import drive_scene, mission_of
from pipeline.studies.planners.drive_record import logged_drive
from pipeline.studies.planners.interface import Control, MakePlanner, Mission, Situation, Trajectory
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy
from tests.scenes import Mover, hand_made


@dataclass
class Scripted:
    """Answers what it was given, and keeps what it was told."""

    answer: Trajectory | Control
    period: int = 5
    told: list[Situation] = field(default_factory=list)

    def plan(self, situation: Situation) -> Trajectory | Control:
        self.told.append(situation)
        return self.answer


def ramp(speed: float) -> Trajectory:
    return Trajectory(np.stack([np.arange(1, 81) * 0.1 * speed, np.zeros(80), np.zeros(80)], axis=-1))


def test_log_in_log_replay_is_the_log() -> None:
    scene = random_scene(4)
    found = drive_scene(scene, {"log": LogPlanner}, LogReplay(), mission_of(scene))
    expected = logged_drive(scene, scene_origin(scene))
    there = expected.present
    assert torch.equal(found.present, there)
    torch.testing.assert_close(found.pose[there][..., :2], expected.pose[there][..., :2], atol=1e-3, rtol=0)
    turn = found.pose[there][..., 2] - expected.pose[there][..., 2]
    assert float(torch.sin(turn).abs().max()) < 1e-4


def test_a_trajectory_is_followed_until_the_next_call() -> None:
    scene = random_scene(0)
    plan = Trajectory(np.arange(30, dtype=np.float64).reshape(10, 3))
    planner = Scripted(plan, period=7)
    drive = drive_scene(scene, {"p": lambda mission: planner}, LogReplay(), mission_of(scene))
    assert [one.step for one in planner.told] == list(range(0, 80, 7))
    rows = plan.pose[:7]
    expected = np.concatenate([rows] * 12)[:80]
    np.testing.assert_allclose(drive.pose[0, drive.ego, 1:].numpy(), expected)


def test_a_control_drives_a_circle() -> None:
    scene = hand_made([Mover(speed=5.0), Mover(x=50.0, y=50.0)])
    planner = Scripted(Control(0.0, 0.2), period=4)
    drive = drive_scene(scene, {"p": lambda mission: planner}, LogReplay(), mission_of(scene))
    pose = drive.pose[0, drive.ego].double()
    step = (pose[1:, :2] - pose[:-1, :2]).norm(dim=-1)
    assert float((step - step[0]).abs().max()) < 1e-3
    assert float(step[0]) == pytest.approx(0.5, abs=1e-3)
    slip = np.arctan(np.tan(0.2) / 2)
    radius = 2.8 / (np.cos(slip) * np.tan(0.2))
    turn = (pose[1:, 2] - pose[:-1, 2]).abs()
    assert float(turn.mean()) == pytest.approx(0.5 / radius, rel=1e-3)


def test_what_is_told_is_what_has_happened() -> None:
    scene = random_scene(2)
    planner = Scripted(Control(0.0, 0.0), period=1)
    drive = drive_scene(scene, {"p": lambda mission: planner}, LogReplay(), mission_of(scene))
    for told in planner.told:
        np.testing.assert_allclose(told.pose, drive.pose[0, :, told.step].numpy(), atol=1e-6)
        assert told.present.tolist() == drive.present[0, :, told.step].tolist()
    first, later = planner.told[0], planner.told[20]
    chosen = scene.simulated
    np.testing.assert_allclose(first.velocity, scene.agents.velocity[chosen, CURRENT_INDEX].numpy(), atol=1e-5)
    moved = (drive.pose[0, :, 20, :2] - drive.pose[0, :, 19, :2]).numpy() / 0.1
    seen = drive.present[0, :, 19].numpy()
    np.testing.assert_allclose(later.velocity[seen], moved[seen], atol=1e-4)
    assert (later.velocity[~seen] == 0).all()


def test_who_comes_back_has_no_velocity_at_first() -> None:
    """Away until two seconds on, and then 5 m/s: where it was while it was away is nowhere."""
    scene = hand_made([Mover(speed=4.0), Mover(x=30.0, speed=5.0)])
    scene.agents.valid[1, CURRENT_INDEX + 1 : CURRENT_INDEX + 20] = False
    scene.agents.position[1, CURRENT_INDEX + 1 : CURRENT_INDEX + 20] = 0.0
    planner = Scripted(Control(0.0, 0.0), period=1)
    drive_scene(scene, {"p": lambda mission: planner}, LogReplay(), mission_of(scene))
    speeds = [float(told.velocity[1, 0]) for told in planner.told[20:22]]
    assert [bool(told.present[1]) for told in planner.told[19:21]] == [False, True]
    assert speeds == pytest.approx([0.0, 5.0], abs=1e-3)


class Listening(Agent):
    """Agents that stand, and keep what they observe, two steps at a time."""

    token_steps = 2

    def __init__(self) -> None:
        self.observed: list[torch.Tensor] = []

    def start(self, prepared: Scene, count: int, driven: torch.Tensor | None = None) -> Listening:
        self.shape = (count, int(prepared.simulated.sum()), 2)
        return self

    def step(self, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(*self.shape, 3), torch.ones(self.shape, dtype=torch.bool)

    def observe(
        self,
        pose: torch.Tensor,
        present: torch.Tensor | None = None,
        velocity: torch.Tensor | None = None,
        red: torch.Tensor | None = None,
    ) -> None:
        self.observed.append(pose.clone())


def test_traffic_hears_of_the_steps_of_its_own_decision() -> None:
    scene, traffic = hand_made([Mover(speed=5.0), Mover(x=50.0)]), Listening()
    planner = Scripted(ramp(5.0), period=80)
    drive = drive_scene(scene, {"p": lambda mission: planner}, traffic, mission_of(scene))
    seen = [pose[:, drive.ego] for pose in traffic.observed]
    assert [pose.shape for pose in seen] == [(1, 2, 3)] * 40
    assert torch.equal(torch.cat(seen, dim=1), drive.pose[:, drive.ego, 1:])
    assert float(seen[0][0, 1, 0]) == pytest.approx(1.0)


def test_accelerations_of_the_av() -> None:
    scene = hand_made([Mover(speed=4.0), Mover(x=90.0)])
    planner = Scripted(Control(2.0, 0.0), period=1)
    drive_scene(scene, {"p": lambda mission: planner}, LogReplay(), mission_of(scene))
    assert planner.told[0].acceleration == pytest.approx(0.0, abs=1e-4)
    # The velocity of a step is its mean: half a step of the acceleration is missing in the first one.
    assert planner.told[1].acceleration == pytest.approx(1.0, abs=1e-2)
    assert all(one.acceleration == pytest.approx(2.0, abs=2e-2) for one in planner.told[2:])
    assert all(one.yaw_rate == pytest.approx(0.0, abs=1e-6) for one in planner.told)


def test_planners_do_not_meet() -> None:
    """Each has a copy of the scene of its own, and none changes what the others get."""
    reference = make_model(2)
    agent = PolicyAgent(make_policy(reference.vocabulary), reference.vocabulary, VIEW)
    scene = random_scene(1)
    both: dict[str, MakePlanner] = {
        "calm": ConstantVelocityPlanner,
        "wild": lambda mission: Scripted(ramp(20.0), period=10),
    }
    together = drive_scene(scene, both, agent, mission_of(scene))
    for row, name in enumerate(both):
        alone = drive_scene(scene, {name: both[name]}, agent, mission_of(scene))
        torch.testing.assert_close(alone.pose[0], together.pose[row], atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("answer", "period", "words"),
    [
        (Trajectory(np.zeros((3, 3))), 5, "trajectory of shape"),
        (Trajectory(np.zeros((9, 2))), 5, "trajectory of shape"),
        (Trajectory(np.full((9, 3), np.nan)), 5, "not a number"),
        (Control(float("nan"), 0.0), 5, "not a number"),
        (Control(0.0, 0.0), 0, "period is 0"),
    ],
)
def test_nonsense_is_one_line(answer, period, words) -> None:
    scene = random_scene(0)
    with pytest.raises(UserError, match=words) as caught:
        drive_scene(scene, {"mine": lambda mission: Scripted(answer, period)}, LogReplay(), mission_of(scene))
    assert "planner mine" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missions() -> None:
    scene = random_scene(3)
    mission = mission_of(scene)
    assert isinstance(mission, Mission)
    assert not mission.scene.has_future
    assert mission.recorded.shape == (80, 3)
    with pytest.raises(UserError, match="future"):
        mission_of(random_scene(3, steps=11))


def test_gaps_of_the_log_are_crossed_the_short_way_round() -> None:
    """Headings on both sides of half a turn, with nothing recorded between; and standing still beyond the ends."""
    scene = hand_made([Mover(heading=3.0, speed=5.0)], [])
    scene.agents.heading[0, 40:] = -3.0
    scene.agents.valid[0, 31:40] = False
    scene.agents.valid[0, 80:] = False
    recorded = mission_of(scene).recorded
    between = recorded[20:29, 2]
    np.testing.assert_allclose(np.cos(between), np.cos(np.linspace(3.0, 2 * np.pi - 3.0, 11)[1:-1]), atol=1e-6)
    assert (np.cos(between) < -0.98).all()
    np.testing.assert_allclose(
        np.diff(recorded[:69, :2], axis=0), np.diff(recorded[:2, :2], axis=0).repeat(68, 0), atol=1e-4
    )
    assert (recorded[69:] == recorded[69]).all()
