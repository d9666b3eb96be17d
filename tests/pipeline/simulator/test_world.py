"""A scene as a world, field by field, against scenes whose answer is written down."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from data.scene import CURRENT_INDEX, AgentType, LightState, MapKind
from pipeline.simulator.world import build_world, choose_worlds, repeat_world, stack_worlds, with_empty_agent
from tests.pipeline.simulator.test_step import arcs
from tests.scenes import Mover, Signal, hand_made

RED, GREEN, ARROW = LightState.STOP, LightState.GO, LightState.ARROW_STOP
WALKER = Mover(104.0, 2.0, 3.0, 0.5, 0.0, AgentType.PEDESTRIAN, (0.8, 0.7, 1.8))
EASTWARDS = (MapKind.LANE, [(80.0, 0.0), (100.0, 0.0), (120.0, 0.0)])
# It turns to the north at (100, 20).
TURNING = (MapKind.LANE, [(80.0, 20.0), (100.0, 20.0), (100.0, 60.0)])


def test_agents_are_as_recorded_now_and_their_goal_is_where_they_are_seen_last() -> None:
    scene = hand_made([Mover(96.0, -2.0, 1.0, 0.0, 6.0, size=(4.0, 2.0, 1.5)), WALKER, Mover(0.0, 0.0)])
    agents = scene.agents
    agents.valid[0, 70:] = False
    agents.position[0, 70:] = 0.0
    agents.valid[2, CURRENT_INDEX] = False
    world = build_world(scene, arcs(), 4)
    assert world.origin.tolist() == [[100.0, 0.0]], "the mean of those that are there"
    torch.testing.assert_close(world.pose, torch.tensor([[[-4.0, -2.0, 0.0], [4.0, 2.0, 0.5]]]))
    assert world.types.tolist() == [[0, 1]]
    torch.testing.assert_close(world.size, torch.tensor([[[4.0, 2.0, 1.5], [0.8, 0.7, 1.8]]]))
    assert world.height.tolist() == [[1.0, 3.0]]
    torch.testing.assert_close(world.velocity, torch.tensor([[[6.0, 0.0], [0.0, 0.0]]]))
    assert world.exists.tolist() == [[True, True]]
    # Step 69 is 5.9 s from now.
    torch.testing.assert_close(world.goal, torch.tensor([[[-4.0 + 5.9 * 6.0, -2.0], [4.0, 2.0]]]))
    assert world.moves.tolist() == [[True, False]]
    assert world.log_valid[0, 0].tolist() == [True] * 59 + [False] * 21
    assert bool(world.log_valid[0, 1].all())
    torch.testing.assert_close(world.log[0, 0, :59, 0], -4.0 + 0.6 * torch.arange(1.0, 60.0), atol=1e-4, rtol=0)
    assert not bool(world.bounded)


def test_without_a_future_nothing_moves_and_the_log_is_empty() -> None:
    world = build_world(hand_made([Mover(speed=6.0)], steps=11), arcs(), 4)
    assert not bool(world.moves.any() | world.log_valid.any())
    assert torch.equal(world.goal, world.pose[..., :2])
    assert torch.equal(world.log, world.pose.unsqueeze(2).expand(-1, -1, 80, -1))


@pytest.mark.parametrize(("distance", "moves"), [(0.19, False), (0.21, True)])
def test_who_ends_a_fifth_of_a_metre_away_moves(distance: float, moves: bool) -> None:
    scene = hand_made([Mover()])
    scene.agents.position[0, -1, 1] += distance
    assert build_world(scene, arcs(), 4).moves.tolist() == [[moves]]


def test_stop_lines_point_along_their_lane_and_are_red_when_seen_so() -> None:
    """Lights of a lane that turns, of a lane whose light is late, of no lane, of a short lane and never seen."""
    states = [RED] * 30 + [GREEN] * 61
    late = [None] * 20 + [ARROW] * 71
    gone = [GREEN] * 4 + [ARROW] * 3 + [None] * 84
    features = [
        EASTWARDS,
        TURNING,
        (MapKind.ROAD_LINE, EASTWARDS[1]),
        (MapKind.LANE, [(0.0, 0.0)]),
        (EASTWARDS[0], [(80.0, 0.0), (120.0, 0.0)]),
    ]
    signals = [
        Signal(1, (101.0, 45.0), states),
        Signal(0, (110.0, 1.0), late),
        Signal(2, (110.0, 0.0), states),
        Signal(3, (110.0, 0.0), states),
        Signal(4, (90.0, 0.0), gone),
        Signal(0, (90.0, 0.0), [None] * 91),
    ]
    scene = hand_made([Mover(100.0, 0.0)], features, signals)
    # A state that nobody observed means nothing, and a stop point that moves later is where it was first.
    scene.lights.state[1, :20] = int(RED)
    scene.lights.stop_point[0, 50:] = 7.0
    world = build_world(scene, arcs(), 4)
    assert world.light_valid.tolist() == [[True, True, False, False, True, False]]
    expected = torch.tensor([[1.0, 45.0, math.pi / 2], [10.0, 1.0, 0.0]])
    torch.testing.assert_close(world.stop_line[0, :2], expected)
    torch.testing.assert_close(world.stop_line[0, 4], torch.tensor([-10.0, 0.0, 0.0]))
    assert world.red.shape == (1, 6, 81)
    assert world.red[0, 0].tolist() == [True] * 20 + [False] * 61
    assert world.red[0, 1].tolist() == [False] * 10 + [True] * 71
    assert not bool(world.red[0, 4].any())
    # What was seen last is known, not what comes.
    assert world.light_known.tolist() == [[True, False, False, False, True, False]]
    assert world.light_now.tolist() == [[True, False, True, True, True, False]]


def test_a_light_seen_in_the_first_step_alone_is_known() -> None:
    signals = [Signal(0, (110.0, 0.0), [state] + [None] * 90) for state in (RED, GREEN)]
    world = build_world(hand_made([Mover(100.0, 0.0)], [EASTWARDS], signals), arcs(), 4)
    assert world.light_known.tolist() == [[True, True]]
    assert world.light_now.tolist() == [[True, False]]


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_signals_are_padded_to_two(count: int) -> None:
    signals = [Signal(0, (110.0, 0.0), [RED] * 91)] * count
    world = build_world(hand_made([Mover(100.0, 0.0)], [EASTWARDS], signals), arcs(), 4)
    expected = [[True] * count + [False] * (2 - count)]
    for name in ("light_valid", "light_known", "light_now"):
        assert getattr(world, name).tolist() == expected, name
    assert world.red.any(-1).tolist() == expected


def test_stacked_and_padded_worlds_are_the_worlds() -> None:
    few = build_world(hand_made([Mover(100.0, 0.0)], [EASTWARDS], steps=11), arcs(), 4)
    many = build_world(hand_made([Mover(90.0, 0.0), WALKER], [EASTWARDS, TURNING]), arcs(), 4)
    both = stack_worlds([few, many])
    assert both.exists.tolist() == [[True, False], [True, True]]
    wider = with_empty_agent(both)
    assert wider.exists.tolist() == [[True, False, False], [True, True, False]]
    for field in dataclasses.fields(both):
        value = getattr(both, field.name)
        if not isinstance(value, torch.Tensor):
            continue
        assert torch.equal(value[1:], getattr(many, field.name)), field.name
        if value.dim() > 1 and value.shape[1] == 2 and field.name not in ("origin", "red", "stop_line"):
            padded = getattr(wider, field.name)
            assert padded.shape[2:] == value.shape[2:]
            if padded.shape[1] == 3:
                assert torch.equal(padded[:, :2], value), field.name
                assert not bool(padded[:, 2].any())
    rows = torch.tensor([1, 0, 1])
    chosen = choose_worlds(both, rows)
    for name in ("edge_grid", "road_grid"):
        found, wanted = getattr(chosen, name), getattr(both, name).of_scenes(rows)
        for field in dataclasses.fields(wanted):
            one, other = getattr(found, field.name), getattr(wanted, field.name)
            assert torch.equal(one, other) if isinstance(other, torch.Tensor) else one == other, field.name
    assert chosen.exists.tolist() == [[True, True], [True, False], [True, True]]
    assert torch.equal(repeat_world(few, 3).pose, few.pose.expand(3, -1, -1))
