"""Terms of the reward, one by one, over several decisions."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from pipeline.simulator.episode import Simulator
from pipeline.simulator.events import Events
from pipeline.simulator.observation import ObservationConfig
from pipeline.simulator.reward import RewardConfig, blameable, note_events, ongoing_excused, task_rewards
from pipeline.simulator.step import reset
from pipeline.simulator.world import build_world
from tests.models.scenes import random_scene
from tests.pipeline.simulator.test_step import arcs
from tests.scenes import Mover, hand_made

WEIGHTS = RewardConfig(goal=1.0, collision=-2.0, off_road=-4.0, red_light=-8.0)
NAMES = ("collision", "off_road", "red_light", "goal")


def events(*happened: str) -> Events:
    return Events(**{name: torch.tensor([[name in happened]]) for name in NAMES})


def paid(config: RewardConfig, history: list[Events]) -> list[float]:
    before = events()
    rewards = []
    for now in history:
        rewards.append(float(sum(task_rewards(now, before, config).values())))
        before = now
    return rewards


@pytest.mark.parametrize(
    ("name", "worth"), [("goal", 1.0), ("collision", -2.0), ("off_road", -4.0), ("red_light", -8.0)]
)
def test_each_term_alone(name, worth) -> None:
    assert paid(WEIGHTS, [events(), events(name)]) == [0.0, worth]
    assert paid(RewardConfig(**(dataclasses.asdict(WEIGHTS) | {name: 0.0})), [events(name)]) == [0.0]


def test_terms_add_up() -> None:
    assert paid(WEIGHTS, [events(*NAMES)]) == [1 - 2 - 4 - 8]


def test_what_lasts_is_paid_per_decision_or_per_event() -> None:
    history = [
        events("collision"),
        events("collision", "off_road"),
        events("off_road"),
        events(),
        events("collision"),
    ]
    assert paid(WEIGHTS, history) == [-2, -6, -4, 0, -2]
    assert paid(dataclasses.replace(WEIGHTS, per_event=True), history) == [-2, -4, 0, 0, -2]


def test_what_an_agent_starts_in_is_excused_until_it_ends() -> None:
    excused, blamed = events("collision", "off_road"), []
    for now in (events("collision", "off_road"), events("off_road"), events("collision", "off_road"), events()):
        excused = ongoing_excused(excused, now)
        blame = blameable(now, excused)
        blamed.append([name for name in NAMES if bool(getattr(blame, name))])
    assert blamed == [[], [], ["collision"], []]
    blame = blameable(events("off_road", "red_light", "goal"), ongoing_excused(excused, events("off_road")))
    assert [bool(getattr(blame, name)) for name in NAMES] == [False, True, True, True]


def test_agents_remember_the_last_collision_and_any_goal(vocabulary) -> None:
    world = build_world(random_scene(0, agents=1), vocabulary, 4)
    state = reset(world, torch.zeros_like(world.exists))
    state = note_events(state, events("collision", "goal"))
    assert state.collided.tolist() == state.goal_reached.tolist() == [[True]]
    state = note_events(state, events())
    assert state.collided.tolist() == [[False]]
    assert state.goal_reached.tolist() == [[True]]


def test_distance_from_the_log_counts_for_those_that_move_while_their_log_goes_on() -> None:
    movers = [Mover(speed=5.0), Mover(x=40.0), Mover(y=30.0, speed=5.0), Mover(y=60.0, speed=5.0)]
    world = build_world(hand_made(movers), arcs(), 4)
    world = dataclasses.replace(world, log_valid=world.log_valid.clone())
    world.log_valid[0, 2, 3:] = False
    simulator = Simulator(arcs(), ObservationConfig(road_segments=4), RewardConfig(log_distance=-0.5))
    simulator.reset(world, world.exists, torch.zeros_like(world.exists))
    paid = []
    for _ in range(20):
        # Nobody moves: token 0 of ``arcs`` stands.
        rewards, _ = simulator.step(torch.zeros_like(world.types))
        paid.append(rewards["log_distance"][0])
    # The log is 1 m ahead after each decision of 0.2 s.
    for decision, reward in enumerate(paid, 1):
        expected = -0.5 * min(decision * 1.0, 20.0) / 10
        ended = expected if decision < 2 else 0.0
        assert reward.tolist() == pytest.approx([expected, 0.0, ended, expected], abs=1e-4)
    plain = Simulator(arcs(), ObservationConfig(road_segments=4))
    plain.reset(world, world.exists, torch.zeros_like(world.exists))
    assert "log_distance" not in plain.step(torch.zeros_like(world.types))[0]


@pytest.mark.parametrize(("least", "paid_for"), [(0.0, [1.0, 1.0]), (5.0, [0.0, 1.0])])
def test_goals_nearer_than_asked_are_not_paid(least: float, paid_for: list[float]) -> None:
    """Goals 4 m and 8 m ahead, passed in the first and the third decision."""
    world = build_world(hand_made([Mover(speed=0.5), Mover(y=30.0, speed=1.0)]), arcs(), 4)
    simulator = Simulator(arcs(), ObservationConfig(road_segments=4), RewardConfig(least_goal=least))
    simulator.reset(world, world.exists, torch.zeros_like(world.exists))
    total = torch.zeros(2)
    for _ in range(5):
        rewards, _ = simulator.step(torch.ones_like(world.types))
        total += rewards["goal"][0]
    assert total.tolist() == paid_for


def test_coming_nearer_to_a_goal_is_paid_until_it_is_reached() -> None:
    """An agent whose log drives 40 m; another one whose log stands still."""
    world = build_world(hand_made([Mover(speed=5.0), Mover(x=-30.0)]), arcs(), 4)
    simulator = Simulator(arcs(), ObservationConfig(road_segments=4), RewardConfig(progress=0.5))
    simulator.reset(world, world.exists, torch.zeros_like(world.exists))
    before = simulator.state
    rewards, _ = simulator.step(torch.ones_like(world.types))
    gone = float((simulator.state.pose - before.pose)[0, 0, 0])
    assert gone > 0.1
    torch.testing.assert_close(rewards["progress"], torch.tensor([[0.5 * gone, 0.0]]), atol=1e-4, rtol=1e-4)
    simulator.state = dataclasses.replace(simulator.state, goal_reached=torch.ones_like(world.exists))
    rewards, _ = simulator.step(torch.ones_like(world.types))
    assert rewards["progress"].tolist() == [[0.0, 0.0]]
