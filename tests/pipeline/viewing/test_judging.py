"""What is marked in a picture happened there, and losses are those of the metric."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.scene import MapKind
from pipeline.viewing.judging import Event, find_intervals, judge, log_events
from submission.protos import Rollouts
from submission.realism import load_config, prepare_scene
from tests.scenes import Mover, hand_made

LANE = (MapKind.LANE, [(-100.0, 0.0), (100.0, 0.0)])
# The road is on the left of its edges.
RIGHT = (MapKind.ROAD_EDGE, [(-100.0, -6.0), (100.0, -6.0)])
LEFT = (MapKind.ROAD_EDGE, [(100.0, 6.0), (-100.0, 6.0)])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=5))
def test_intervals_are_those_of_a_slow_loop(rows: list[list[bool]]) -> None:
    expected = []
    for row, flags in enumerate(rows):
        first = None
        for step, flag in enumerate([*flags, False], 1):
            if flag and first is None:
                first = step
            if not flag and first is not None:
                expected.append([0, row, first, step - 1])
                first = None
    assert find_intervals(torch.tensor(rows).unsqueeze(0)).tolist() == expected


def straight(scene, row: int, to_x: float, to_y: float) -> torch.Tensor:
    """[80, 4] of an agent that goes there evenly."""
    start = scene.agents.position[row, 10]
    share = torch.arange(1, 81).unsqueeze(-1) / 80
    place = start[:2] + share * (torch.tensor([to_x, to_y]) - start[:2])
    return torch.cat((place, start[2].expand(80, 1), scene.agents.heading[row, 10].expand(80, 1)), -1)


def test_a_collision_and_leaving_the_road_are_marked_where_they_happen() -> None:
    scene = hand_made([Mover(x=0.0), Mover(x=20.0)], [LANE, RIGHT, LEFT])
    context = prepare_scene(scene)
    # In the second rollout the first one drives into the second one: 4 m long, they touch 16 m on, at step 64.
    calm = torch.stack((straight(scene, 0, 0.0, 0.0), straight(scene, 1, 20.0, 0.0)))
    crash = torch.stack((straight(scene, 0, 20.0, 0.0), straight(scene, 1, 20.0, 0.0)))
    # In the third one it drifts over the edge: half of its width is 1 m, so it leaves 5 m on, at step 40.
    leave = torch.stack((straight(scene, 0, 0.0, 10.0), straight(scene, 1, 20.0, 0.0)))
    rollouts = Rollouts(str(scene.scenario_id), scene.agents.id, torch.stack((calm, crash, leave)))
    found = judge(context, rollouts, load_config("2025"))
    events = {tuple(row) for row in found.events.tolist()}
    first = int(scene.agents.id[0])
    collisions = [row for row in events if row[2] == Event.COLLISION and row[1] == first]
    assert [row[:3] for row in collisions] == [(1, first, Event.COLLISION)]
    # The metric rounds corners, so that contact begins a little earlier or later.
    assert abs(collisions[0][3] - 64) <= 4
    assert collisions[0][4] == 80
    assert (2, first, Event.OFF_ROAD, 41, 80) in events or (2, first, Event.OFF_ROAD, 40, 80) in events
    assert not any(row[0] == 0 for row in events)
    assert len(log_events(context)) == 0


def test_losses_add_up_to_what_is_missing() -> None:
    scene = hand_made([Mover(x=0.0, speed=5.0), Mover(x=20.0)], [LANE, RIGHT, LEFT])
    states = torch.stack((straight(scene, 0, 70.0, 0.0), straight(scene, 1, 20.0, 0.0))).repeat(4, 1, 1, 1)
    rollouts = Rollouts(str(scene.scenario_id), scene.agents.id, states)
    found = judge(prepare_scene(scene), rollouts, load_config("2025"))
    lost = sum(value for row in found.losses.values() for value in row.values())
    assert lost == pytest.approx(1 - found.values["metametric"], abs=1e-5)
    assert len(found.displacement) == 4
    assert set(found.likelihoods) == set(found.losses)


def test_other_objects_are_refused() -> None:
    scene = hand_made([Mover(x=0.0), Mover(x=20.0)], [LANE, RIGHT, LEFT])
    rollouts = Rollouts("x", scene.agents.id + 1, torch.zeros(1, 2, 80, 4))
    with pytest.raises(ValueError, match="wrong set of objects"):
        judge(prepare_scene(scene), rollouts, load_config("2025"))
