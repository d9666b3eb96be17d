"""What agents are told of SUMO is what a recorded scene holds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from data.scene import CURRENT_INDEX, MapKind
from pipeline.agents.live import LiveTraffic
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.drive import Drive
from pipeline.studies.cosimulation.drivers import moment
from pipeline.studies.cosimulation.setting import recent_velocity, snapshot


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


def test_agents_are_told_what_the_snapshot_holds(area: Area, own: Drive, agent: PolicyAgent) -> None:
    rows = np.flatnonzero(own.before[-1].present)
    told = moment(area, own.before, rows, np.isin(rows, own.taken.numpy()))
    scene, wanted = LiveTraffic(agent, own.scene.map).scene(told), own.scene
    assert torch.equal(scene.agents.type, wanted.agents.type)
    valid = wanted.agents.valid
    assert torch.equal(scene.agents.valid, valid)
    for name in ("position", "heading", "velocity", "size"):
        mine, theirs = getattr(scene.agents, name), getattr(wanted.agents, name)
        torch.testing.assert_close(mine[valid], theirs[valid], atol=1e-3, rtol=0, msg=name)
    for name in ("lane_id", "state", "stop_point"):
        torch.testing.assert_close(getattr(scene.lights, name), getattr(wanted.lights, name), atol=1e-3, rtol=0)


def test_velocities_are_those_of_the_last_step() -> None:
    gone, turned = (0.0, 0.0, 0.0), np.pi / 2
    pose = np.array(
        [
            [(0.0, 1.1, turned), (0.0, 1.8, turned), (0.0, 2.6, turned)],
            [gone, gone, (5.0, 5.0, 0.0)],
            [(0.0, 9.0, 0.0), (0.0, 9.0, 0.0), (500.0, 9.0, 0.0)],
        ]
    )
    present = np.array([[True] * 3, [False, False, True], [True] * 3])
    velocity = recent_velocity(pose, present, np.full(3, 20.0))
    np.testing.assert_allclose(velocity[0, 1:], [(0.0, 7.0), (0.0, 8.0)], atol=1e-9)
    assert velocity[1].tolist() == [[0.0, 0.0]] * 3, "just appeared"
    assert velocity[2].tolist() == [[0.0, 0.0]] * 3, "set down elsewhere"


def test_lights_are_those_of_now(area: Area, own: Drive) -> None:
    if not area.links:
        pytest.fail("the world of these tests must have signals")
    red = np.full(len(area.links), 4)
    red[::2] = 6
    frame = dataclasses.replace(own.before[-1], signals=red)
    lights = moment(area, [*own.before[:-1], frame], own.taken.numpy(), np.ones(len(own.taken), bool)).lights
    assert lights is not None
    assert lights.state[:, -1].tolist() == red.tolist()
    assert bool(lights.observed.all())
