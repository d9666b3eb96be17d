"""Heights follow the map: on slopes, under bridges, and where there is nothing."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import torch

from data.ground import follow_ground, joint_states
from data.map_pieces import cut_map
from data.scene import CURRENT_INDEX, MapKind, Scene
from tests.models.scenes import random_scene
from tests.scenes import Mover, hand_made

ORIGIN = (900.0, -400.0)


def sloping(rise: float) -> Scene:
    """The crossing, rising along x; agents as they are."""
    scene = random_scene(0, origin=ORIGIN)
    point = scene.map.point.clone()
    point[:, 2] = rise * (point[:, 0] - ORIGIN[0])
    return dataclasses.replace(scene, map=dataclasses.replace(scene.map, point=point))


def drive(scene: Scene, start: torch.Tensor, speed: float) -> torch.Tensor:
    """[1, 1, 80, 2] along the first lane of the crossing."""
    lane = scene.map.point[scene.map.point_feature == 0, :2]
    direction = (lane[-1] - lane[0]) / (lane[-1] - lane[0]).norm()
    return (start[:2] + 0.1 * speed * torch.arange(1, 81).unsqueeze(-1) * direction).view(1, 1, 80, 2)


def start_of(scene: Scene, height: float = 0.8) -> torch.Tensor:
    """Ten metres along the first lane, the box's centre above the ground."""
    place = scene.map.point[scene.map.point_feature == 0][8]
    return place + torch.tensor([0.0, 0.0, height])


def test_an_agent_climbs_with_its_road():
    scene = sloping(0.06)
    start = start_of(scene)
    position = drive(scene, start, 10.0)
    height = follow_ground(scene, position, start.unsqueeze(0))
    expected = start[2] + 0.06 * (position[..., 0] - start[0])
    assert float((expected[..., -1] - start[2]).abs()) > 1.0, "it must climb or fall"
    assert float((height - expected).abs().max()) < 0.15
    assert height.dtype == torch.float32


def test_a_ramp_is_climbed_to_the_next_storey():
    """A helix: 4 m up or down, farther than storeys are apart, and the road is above and below itself."""
    radius, rise = 14.0, 0.05  # 4.4 m a turn

    def place(length: torch.Tensor) -> torch.Tensor:
        turn = length / radius
        return torch.stack((radius * turn.cos(), radius * turn.sin(), rise * length), dim=-1)

    ramp = place(torch.arange(0.0, 6 * math.pi * radius, 0.5)).tolist()
    scene = hand_made([Mover()], [(MapKind.LANE, ramp)])
    for begin, speed in ((10.0, 10.0), (200.0, -10.0)):
        length = begin + 0.1 * speed * torch.arange(81)
        path = place(length) + torch.tensor([0.0, 0.0, 0.8])
        height = follow_ground(scene, path[None, None, 1:, :2], path[:1])[0, 0]
        assert abs(float(path[-1, 2] - path[0, 2])) > 3.99
        torch.testing.assert_close(height, path[1:, 2], atol=0.1, rtol=0)


def test_who_stands_keeps_the_height():
    scene = sloping(0.06)
    start = start_of(scene)
    height = follow_ground(scene, start[:2].expand(3, 1, 80, 2), start.unsqueeze(0))
    assert torch.equal(height, start[2].expand(3, 1, 80))


def test_who_stops_keeps_the_height_where_it_stops():
    scene = sloping(0.06)
    start = start_of(scene)
    position = drive(scene, start, 10.0).repeat(1, 2, 1, 1)
    position[:, 0, 39:] = position[:, 0, 39:40]
    stops, goes = follow_ground(scene, position, start.expand(2, 3))[0]
    assert torch.equal(stops[:30], goes[:30])
    assert float(stops[49:].max() - stops[49:].min()) == 0.0
    assert abs(float(stops[-1] - goes[39])) < 0.05


def test_a_bridge_overhead_is_not_climbed():
    scene = sloping(0.0)
    road = scene.map
    # A second crossing six metres above and a little aside, so that its pieces are nearer by chance.
    above = road.point + torch.tensor([0.7, 0.4, 6.0])
    count = len(road.kind)
    both = dataclasses.replace(
        road,
        point=torch.cat((road.point, above)),
        point_feature=torch.cat((road.point_feature, road.point_feature + count)),
        **{
            name: getattr(road, name).repeat(2)
            for name in ("feature_id", "kind", "subtype", "speed_limit", "interpolating")
        },
    )
    scene = dataclasses.replace(scene, map=both)
    below, over = start_of(scene), start_of(scene) + torch.tensor([0.0, 0.0, 6.0])
    start = torch.stack((below, over))
    position = drive(scene, below, 8.0).expand(1, 2, 80, 2)
    height = follow_ground(scene, position, start)
    torch.testing.assert_close(height, start[:, 2].view(1, 2, 1).expand(1, 2, 80))


def test_far_from_any_road_and_without_a_map_the_height_stays():
    scene = sloping(0.06)
    start = start_of(scene)
    away = drive(scene, start, 10.0) + 500.0
    assert torch.equal(follow_ground(scene, away, start.unsqueeze(0)), start[2].expand(1, 1, 80))
    empty = dataclasses.replace(
        scene,
        map=dataclasses.replace(
            scene.map,
            **{name: value[:0] for name, value in vars(scene.map).items() if not name.startswith("link")},
        ),
    )
    assert torch.equal(
        follow_ground(empty, drive(scene, start, 10.0), start.unsqueeze(0)), start[2].expand(1, 1, 80)
    )


def test_one_height_between_two_looks_is_between_their_heights():
    scene = sloping(0.06)
    start = start_of(scene)
    height = follow_ground(scene, drive(scene, start, 10.0), start.unsqueeze(0))[0, 0]
    steps = torch.cat((start[2:], height)).diff()
    assert bool((steps * steps.sum() > 0).all()), "it climbs or falls all the time"


def test_the_four_nearest_pieces_are_looked_up_once_a_second():
    """The road has bumps: another interval, or another number of pieces, gives other heights."""
    place = torch.arange(-50.0, 150.0, 0.5)
    road = torch.stack((place, torch.zeros_like(place), (place / 3).sin()), dim=-1)
    scene = hand_made([Mover()], [(MapKind.LANE, road.tolist())])
    position = torch.stack((0.9 * torch.arange(1.0, 81.0), torch.full((80,), 0.3)), dim=-1)
    start = torch.tensor([[0.0, 0.3, 0.0]])
    pieces = cut_map(scene, torch.zeros(2))

    def ground(point: torch.Tensor) -> float:
        distance, index = (pieces.pose[:, :2] - point).norm(dim=-1).sort()
        weight = 1 / (distance[:4] + 0.5) ** 2
        return float((weight * pieces.height[index[:4]]).sum() / weight.sum())

    height = follow_ground(scene, position[None, None], start)[0, 0]
    looked_up = [ground(start[0, :2]), *(ground(position[step]) for step in range(9, 80, 10))]
    expected = np.interp(np.arange(1, 81), np.arange(0, 81, 10), looked_up) - looked_up[0]
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(height, expected, atol=1e-5)


def test_ground_far_away_says_nothing():
    """A road that climbs 40 m beside the agent's way, one of whose pieces is on the agent's level at any time."""
    scene = sloping(0.01)
    start = start_of(scene)
    lane = scene.map.point[scene.map.point_feature == 0, :2]
    direction = (lane[-1] - lane[0]) / (lane[-1] - lane[0]).norm()
    aside = torch.stack((-direction[1], direction[0]))
    only = dataclasses.replace(
        scene.map, kind=torch.where(torch.arange(len(scene.map.kind)) == 0, scene.map.kind, int(MapKind.CROSSWALK))
    )
    scene = dataclasses.replace(scene, map=only)
    for distance, moves in ((20.0, True), (29.9, True), (30.1, False), (40.0, False)):
        away = drive(scene, start, 10.0) + distance * aside
        place = torch.cat((start[:2] + distance * aside, start[2:]))
        height = follow_ground(scene, away, place.unsqueeze(0))
        assert (float((height - start[2]).abs().max()) > 0.05) == moves


def test_states_of_an_entry_are_global_follow_the_ground_and_have_wrapped_headings():
    scene = sloping(0.06)
    origin = torch.tensor([895.0, -402.0])
    start = scene.agents.position[scene.simulated, CURRENT_INDEX]
    pose = torch.zeros(2, len(start), 80, 3)
    pose[..., :2] = start[:, None, :2] - origin
    pose[1, :, :, 0] += 0.5 * torch.arange(1, 81)
    pose[..., 2] = torch.linspace(-9.0, 9.0, 80)
    states = joint_states(scene, pose, origin)
    assert states.shape == (2, len(start), 80, 4)
    assert states.dtype == torch.float32
    torch.testing.assert_close(states[..., :2], pose[..., :2] + origin, atol=1e-3, rtol=0)
    torch.testing.assert_close(states[0, :, :, 2], start[:, 2:].expand(-1, 80))
    assert torch.equal(states[..., 2], follow_ground(scene, states[..., :2], start))
    assert bool(((states[..., 3] >= -math.pi) & (states[..., 3] < math.pi)).all())
    torch.testing.assert_close(states[..., 3].sin(), pose[..., 2].sin(), atol=1e-5, rtol=0)
    torch.testing.assert_close(states[..., 3].cos(), pose[..., 2].cos(), atol=1e-5, rtol=0)
