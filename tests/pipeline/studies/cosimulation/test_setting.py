"""What the policy sees of SUMO is what it would see of the recorded scene."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from data.scene import CURRENT_INDEX, MapKind
from data.vocabulary import Vocabulary
from pipeline.simulator.observation import observe_ego, observe_neighbours, observe_road
from pipeline.simulator.step import reset
from pipeline.simulator.world import build_world
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.drive import Drive
from pipeline.studies.cosimulation.session import Frame
from pipeline.studies.cosimulation.setting import snapshot
from tests.pipeline.conftest import VIEW


def test_the_snapshot_holds_everybody_and_the_whole_map(area: Area, own: Drive) -> None:
    scene, now = own.scene, own.before[-1]
    rows = np.flatnonzero(now.present)
    assert scene.num_steps == CURRENT_INDEX + 1
    assert scene.agents.id.tolist() == (np.arange(len(rows)) + 1).tolist()
    position = scene.agents.position[:, CURRENT_INDEX, :2].double().numpy()
    np.testing.assert_allclose(position, now.pose[rows, :2], atol=1e-3)
    np.testing.assert_allclose(scene.agents.size[:, CURRENT_INDEX, 0], area.lengths[rows], atol=1e-5)
    kinds = scene.map.kind.tolist()
    assert kinds.count(MapKind.LANE) == len(area.map.lanes)
    assert kinds.count(MapKind.ROAD_EDGE) == len(area.map.edges)
    assert scene.lights.lane_id.tolist() == [link.lane for link in area.links]
    assert scene.lights.state[:, -1].tolist() == now.signals.tolist()
    with pytest.raises(ValueError, match="expected 11"):
        snapshot(area, own.before[:5])


def test_the_policy_sees_what_it_would_see_of_a_recorded_scene(
    area: Area, own: Drive, vocabulary: Vocabulary
) -> None:
    # The tokens that led here are those of the recording there, the motion itself here.
    view = dataclasses.replace(VIEW, show_motion=False)
    scene_world = build_world(own.scene, vocabulary, view.listed_segments)
    scene_state = reset(scene_world, torch.ones_like(scene_world.exists))
    rows = torch.from_numpy(np.flatnonzero(own.before[-1].present))
    number = {int(row): index for index, row in enumerate(rows)}
    setting = own.setting
    moments = setting.moments(own.before)
    world = setting.world_at(moments, 2, 0)
    state = reset(world, torch.ones_like(world.exists))
    zero = torch.zeros_like(own.taken)
    here = (zero, own.taken)
    there = (zero, torch.tensor([number[int(row)] for row in own.taken]))
    torch.testing.assert_close(
        observe_ego(world, state, here, view),
        observe_ego(scene_world, scene_state, there, view),
        atol=2e-3,
        rtol=0,
    )
    # What is nearest comes first, unless two are as near; sums over all seen do not depend on the order.
    mine, theirs = (
        observe_neighbours(*pair, view) for pair in ((world, state, here), (scene_world, scene_state, there))
    )
    torch.testing.assert_close(mine["neighbour"].sum(1), theirs["neighbour"].sum(1), atol=5e-3, rtol=0)
    assert torch.equal(mine["neighbour_seen"], theirs["neighbour_seen"])
    road, road_seen = observe_road(world, state, here, view)
    other, other_seen = observe_road(scene_world, scene_state, there, view)
    # Of two pieces that are equally far the twelfth may be either.
    alike = (road.sum(1) - other.sum(1)).abs().amax(-1) < 5e-3
    assert float(alike.double().mean()) > 0.9
    assert torch.equal(road_seen.sum(1), other_seen.sum(1))


def _frames(area: Area, place: dict[int, list[tuple[float, float, float]]], origin: torch.Tensor) -> list[Frame]:
    count = len(next(iter(place.values())))
    frames = []
    for step in range(count):
        pose, present = np.zeros((len(area.users), 3)), np.zeros(len(area.users), dtype=bool)
        for row, track in place.items():
            if not np.isnan(track[step][0]):
                pose[row] = track[step]
                pose[row, :2] += origin.numpy()
                present[row] = True
        frames.append(Frame(pose, present, np.zeros(len(area.links), dtype=np.int64)))
    return frames


def test_motion_is_that_of_the_last_steps(area: Area, own: Drive) -> None:
    gone = (float("nan"), 0.0, 0.0)
    turned = np.pi / 2
    tracks = {
        0: [(0.0, 0.0, turned), (0.0, 0.5, turned), (0.0, 1.1, turned), (0.0, 1.8, turned), (0.0, 2.6, turned)],
        1: [gone, gone, gone, gone, (5.0, 5.0, 0.0)],
        2: [(0.0, 9.0, 0.0)] * 4 + [(500.0, 9.0, 0.0)],
    }
    setting = own.setting
    moments = setting.moments(_frames(area, tracks, setting.origin))
    world = setting.world_at(moments, 2, 1)
    state = reset(world, torch.ones_like(world.exists), history=1)
    assert state.velocity[0, 0].tolist() == pytest.approx([0.0, 8.0], abs=1e-3)
    assert state.last_motion[0, 0].tolist() == pytest.approx([1.5, 0.0, 0.0], abs=1e-3)
    assert state.past[0, 0, 0].tolist() == pytest.approx([0.0, 1.1, turned], abs=1e-3)
    assert state.velocity[0, 1].tolist() == [0.0, 0.0], "just appeared"
    assert state.past_known[0, :3, 0].tolist() == [True, False, True]
    assert state.velocity[0, 2].tolist() == [0.0, 0.0], "set down elsewhere"
    assert bool(state.goal_hidden.all())


def test_lights_are_those_of_now(area: Area, own: Drive) -> None:
    if not area.links:
        pytest.fail("the world of these tests must have signals")
    red = np.full(len(area.links), 4)
    red[::2] = 6
    frame = dataclasses.replace(own.before[-1], signals=red)
    moments = own.setting.moments([*own.before[:-1], frame])
    world = own.setting.world_at(moments, 2, 0)
    assert world.light_now[0].tolist() == [state == 4 for state in red]
    assert bool(world.light_known.all())
