"""Generated scenes: map, lights, motion, choice of tracks, and a log replay without violations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from waymo_open_dataset.protos import scenario_pb2

from data.geometry import wrap_angle
from data.scene import CURRENT_INDEX, STEP_SECONDS, AgentType, LightState, LinkKind, MapKind, Scene
from data.tfrecord import read_records
from data.traffic.demand import BICYCLE, BUS, CAR, MOTORCYCLE, PEDESTRIAN, TRUCK
from submission.realism import prepare_scene
from tests.data.traffic import rules

STOP = (LightState.STOP, LightState.ARROW_STOP)


def lane_points(scene: Scene) -> dict[int, Tensor]:
    return {
        int(scene.map.feature_id[feature]): scene.map.point[scene.map.point_feature == feature]
        for feature in torch.nonzero(scene.map.kind == MapKind.LANE)[:, 0].tolist()
    }


def links(scene: Scene, kind: LinkKind) -> list[tuple[int, int]]:
    chosen = scene.map.link_kind == kind
    sources = scene.map.feature_id[scene.map.link_source[chosen]].tolist()
    return list(zip(sources, scene.map.link_target[chosen].tolist()))


def test_all_kinds_occur(scenes: list[Scene]) -> None:
    features: Counter[int] = Counter()
    types: Counter[int] = Counter()
    edge_types: set[int] = set()
    for scene in scenes:
        features.update(scene.map.kind.tolist())
        types.update(scene.agents.type.tolist())
        edge_types |= set(scene.map.subtype[scene.map.kind == MapKind.ROAD_EDGE].tolist())
    assert {MapKind.LANE, MapKind.ROAD_LINE, MapKind.ROAD_EDGE, MapKind.CROSSWALK, MapKind.STOP_SIGN} <= set(
        features
    )
    assert set(types) == {AgentType.VEHICLE, AgentType.PEDESTRIAN, AgentType.CYCLIST}
    assert 1 in edge_types
    assert edge_types <= {1, 2}


def test_connected_lanes_exist_and_meet(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert len(set(scene.map.feature_id.tolist())) == len(scene.map.feature_id)
        lanes = lane_points(scene)
        exits, entries = links(scene, LinkKind.EXIT), links(scene, LinkKind.ENTRY)
        assert exits
        assert set(exits) == {(source, target) for target, source in entries}
        for source, target in exits:
            assert (lanes[source][-1] - lanes[target][0]).norm() < 1e-3
        for source, target in links(scene, LinkKind.LEFT):
            here, step = lanes[source][0, :2], lanes[source][1, :2] - lanes[source][0, :2]
            aside = lanes[target][0, :2] - here
            cross = (step[0] * aside[1] - step[1] * aside[0]) / step.norm()
            assert 1.0 < cross < 6.0, "the left neighbour lies to the left, one lane over"
        assert set(links(scene, LinkKind.RIGHT)) == {(b, a) for a, b in links(scene, LinkKind.LEFT)}
        for _, lane in links(scene, LinkKind.STOP_CONTROLS):
            assert lane in lanes


def test_polylines_are_dense(scenes: list[Scene]) -> None:
    for scene in scenes:
        road = scene.map
        same = road.point_feature[1:] == road.point_feature[:-1]
        line = (road.kind == MapKind.LANE) | (road.kind == MapKind.ROAD_LINE) | (road.kind == MapKind.ROAD_EDGE)
        gap = (road.point[1:, :2] - road.point[:-1, :2]).norm(dim=-1)[same & line[road.point_feature[1:]]]
        assert gap.max() < 0.62
        assert gap.median() > 0.3


def test_road_lies_to_port_of_its_edges(scenes: list[Scene]) -> None:
    for scene in scenes:
        here = scene.agents.position[scene.agents.is_sdc, CURRENT_INDEX][0]
        lanes = torch.cat(list(lane_points(scene).values()))
        near = lanes[(lanes - here)[:, :2].norm(dim=-1) < 90][::25].double().numpy()
        distance = rules.edge_distance(scene, near)
        assert (distance < -0.3).all(), "centre lines are on the road"
        edge = scene.map.kind[scene.map.point_feature] == MapKind.ROAD_EDGE
        same = edge[1:] & (scene.map.point_feature[1:] == scene.map.point_feature[:-1])
        start, end = scene.map.point[:-1][same].double(), scene.map.point[1:][same].double()
        chosen = torch.nonzero((start - here)[:, :2].norm(dim=-1) < 90)[::40, 0]
        middle, step = (start[chosen] + end[chosen]) / 2, (end - start)[chosen]
        port = torch.stack([-step[:, 1], step[:, 0]], dim=-1) / step[:, :2].norm(dim=-1, keepdim=True)
        for side in (-1, 1):
            aside = middle.clone()
            aside[:, :2] += side * 0.2 * port
            distance = rules.edge_distance(scene, aside.numpy())
            np.testing.assert_allclose(distance, -side * 0.2, atol=0.02)


def test_log_replay_is_clean(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert not rules.collides(scene).any()
        assert not rules.leaves_road(scene).any()
        assert not rules.runs_red(scene).any()


def test_log_replay_is_clean_by_the_metric(scenes: list[Scene]) -> None:
    for scene in scenes:
        log = prepare_scene(scene).log_features
        assert log is not None
        assert not log.collision.any()
        assert not log.offroad.any()
        assert not log.traffic_light_violation.any()


def test_lights_are_complete_and_stop_the_traffic(scenes: list[Scene]) -> None:
    waiting, seen = 0, Counter[int]()
    for scene in scenes:
        lanes, lights = lane_points(scene), scene.lights
        assert lights.observed.all()
        for row, lane in enumerate(lights.lane_id.tolist()):
            seen.update(lights.state[row].tolist())
            assert (lights.stop_point[row] - lanes[lane][0]).abs().max() < 1e-3
            start, step = lanes[lane][0, :2], lanes[lane][1, :2] - lanes[lane][0, :2]
            step = step / step.norm()
            relative = scene.agents.position[..., :2] - start
            along = (relative * step).sum(-1)
            across = (relative[..., 0] * step[1] - relative[..., 1] * step[0]).abs()
            facing = torch.cos(scene.agents.heading - torch.atan2(step[1], step[0])) > 0.9
            vehicle = (
                (scene.agents.type == AgentType.VEHICLE)[:, None] & scene.agents.valid & (across < 1.5) & facing
            )
            red = torch.isin(lights.state[row], torch.tensor(STOP))
            crossing = vehicle[:, 1:] & vehicle[:, :-1] & (along[:, :-1] < 0) & (along[:, 1:] >= 0) & red[1:]
            assert int(crossing.sum()) == 0
            slow = scene.agents.velocity.norm(dim=-1) < 0.3
            waiting += int((vehicle & slow & red & (along < 0) & (along > -15)).any())
    assert waiting >= 3
    assert {LightState.GO, LightState.STOP, LightState.CAUTION} <= set(seen)


def test_motion_is_plausible(scenes: list[Scene]) -> None:
    for scene in scenes:
        agents = scene.agents
        both = agents.valid[:, 2:] & agents.valid[:, :-2]
        velocity = (agents.position[:, 2:, :2] - agents.position[:, :-2, :2]) / (2 * STEP_SECONDS)
        speed = velocity.norm(dim=-1)
        assert speed[both].max() < 35
        # Positions carry centimetres of tracking noise, the velocity field does not.
        assert (velocity - agents.velocity[:, 1:-1])[both].norm(dim=-1).max() < 1.0
        slip = wrap_angle(torch.atan2(velocity[..., 1], velocity[..., 0]) - agents.heading[:, 1:-1])
        assert slip[both & (speed > 4)].abs().max() < 0.45
        turn = wrap_angle(agents.heading[:, 2:] - agents.heading[:, :-2]) / (2 * STEP_SECONDS)
        vehicle = (agents.type != AgentType.PEDESTRIAN)[:, None]
        assert turn[both & vehicle].abs().max() < 1.6
        assert (agents.heading >= -np.pi).all()
        assert (agents.heading < np.pi).all()
        assert (agents.position[~agents.valid] == 0).all()


def test_boxes_stand_on_the_ground(scenes: list[Scene]) -> None:
    for scene in scenes:
        agents = scene.agents
        foot = agents.position[..., 2] - agents.size[..., 2] / 2
        points = scene.map.point
        for row in torch.nonzero(scene.simulated)[:, 0].tolist():
            where = agents.position[row, CURRENT_INDEX]
            nearest = (points - where)[:, :2].norm(dim=-1).argmin()
            assert (foot[row, CURRENT_INDEX] - points[nearest, 2]).abs() < 0.6


def test_av_and_tracks_to_predict(scenes: list[Scene]) -> None:
    for scene in scenes:
        agents = scene.agents
        (av,) = torch.nonzero(agents.is_sdc)[:, 0].tolist()
        assert agents.valid[av].all()
        assert agents.type[av] == AgentType.VEHICLE
        assert (agents.position[av, 1:] - agents.position[av, :-1]).norm(dim=-1).sum() > 5
        chosen = agents.to_predict
        assert 1 <= int(chosen.sum()) <= 8
        assert not chosen[av]
        assert agents.valid[chosen, CURRENT_INDEX].all()
        assert (agents.valid[chosen, CURRENT_INDEX + 1 :].sum(dim=1) >= 30).all()
        assert int(agents.of_interest.sum()) in (0, 2)
        assert not (agents.of_interest & ~scene.evaluated).any()
        distance = (agents.position[..., :2] - agents.position[av, :, :2]).norm(dim=-1)
        assert distance[agents.valid].max() < 101
    assert any((scene.agents.valid.any(1) & ~scene.agents.valid.all(1)).any() for scene in scenes)
    assert any((~scene.agents.valid[:, 0] & scene.agents.valid[:, -1]).any() for scene in scenes), "some appear"
    assert any((scene.agents.valid[:, 0] & ~scene.agents.valid[:, -1]).any() for scene in scenes), "some disappear"


def test_tracks_that_turn_are_the_difficult_ones(generated: Path) -> None:
    found: Counter[bool] = Counter()
    for path in sorted(generated.glob("training/*")):
        for record in read_records(path):
            assert isinstance(record, bytes)
            scenario = scenario_pb2.Scenario.FromString(record)
            for prediction in scenario.tracks_to_predict:
                states = scenario.tracks[prediction.track_index].states
                heading = np.unwrap([state.heading for state in states if state.valid])
                turning = bool(heading.max() - heading.min() > 0.5)
                level = "LEVEL_2" if turning else "LEVEL_1"
                assert prediction.difficulty == scenario_pb2.RequiredPrediction.DifficultyLevel.Value(level)
                found[turning] += 1
    assert found[True]
    assert found[False]


def test_boxes_are_of_the_sizes_of_people_and_vehicles() -> None:
    """Smallest and largest length, width and height in metres, of road law and of people."""
    bounds = {
        CAR: ((3.5, 5.5), (1.6, 2.2), (1.3, 2.1)),
        TRUCK: ((5.5, 12.0), (2.0, 2.6), (2.2, 4.1)),
        BUS: ((8.0, 13.5), (2.3, 2.6), (2.8, 4.1)),
        MOTORCYCLE: ((1.8, 2.6), (0.6, 1.1), (1.2, 1.9)),
        BICYCLE: ((1.5, 2.1), (0.5, 1.0), (1.5, 2.1)),
        PEDESTRIAN: ((0.3, 1.1), (0.3, 1.1), (1.2, 2.1)),
    }
    for kind, limits in bounds.items():
        for (low, high), (least, most) in zip((kind.length, kind.width, kind.height), limits, strict=True):
            assert least <= low < high <= most, kind.name
    assert sum(kind.fraction for kind in bounds) == pytest.approx(1.0)
