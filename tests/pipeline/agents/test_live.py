"""Agents in a simulator that goes on: wide maps, people who come and go, others whom a script drives."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from data.errors import UserError
from data.nearby import feature_boxes, features_near
from data.scene import AgentType, MapKind, RoadMap, Scene
from data.tokenizer import scene_origin
from models.policy import save_policy
from models.reference.agent import ReferenceAgent
from pipeline.agents.agent import Agent
from pipeline.agents.baselines import ConstantVelocity, LogReplay, StraightDrive
from pipeline.agents.live import LiveTraffic, Moment
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy
from tests.scenes import Mover, hand_made

DOCS = Path(__file__).resolve().parents[3] / "docs" / "embedding.md"


@pytest.fixture(params=["policy", "reference"], scope="module")
def agent(request, vocabulary) -> Agent:
    if request.param == "policy":
        view = dataclasses.replace(VIEW, history=2)
        return PolicyAgent(make_policy(vocabulary, view), vocabulary, view)
    # Weights of its own: a new model says the same of all.
    model = make_model(2)
    with torch.no_grad():
        model.token_weight.normal_(std=0.5)
    return ReferenceDriver(ReferenceAgent(model))


def start(scene: Scene, *others: int) -> Moment:
    """The scene now, with all but ``others`` driven."""
    return Moment.of_scene(scene, ~np.isin(np.arange(int(scene.simulated.sum())), others))


def drive(traffic: LiveTraffic, moments: list[Moment], decisions: int) -> tuple[list[Moment], NDArray[np.float64]]:
    """The moments after so many decisions, in which those who are not driven stand; and poses [W * A, T, 3]."""
    parts = []
    for _ in range(decisions):
        poses = traffic.step(moments)
        for pose, moment in zip(poses, moments, strict=True):
            pose[~moment.driven] = moment.states[~moment.driven, -1:][..., [0, 1, 6]]
        moments = [moment.after(pose) for moment, pose in zip(moments, poses, strict=True)]
        parts.append(np.concatenate(poses))
    return moments, np.concatenate(parts, axis=1)


def test_the_lines_of_the_page_run_as_they_are(vocabulary, tmp_path, monkeypatch) -> None:
    save_policy(tmp_path / "policy.ckpt", make_policy(vocabulary), vocabulary, dataclasses.asdict(VIEW))
    monkeypatch.chdir(tmp_path)
    [lines] = re.findall(r"```python\n(.*?)```", DOCS.read_text().split("## Without Python")[0], re.DOTALL)
    names: dict[str, object] = {}
    exec(compile(lines, str(DOCS), "exec"), names)
    moment = names["moment"]
    assert isinstance(moment, Moment)
    assert moment.states[0, :, 0].tolist() == [30.0] * 11, "the AV stands where the script put it"
    travelled = np.hypot(*(moment.states[1:, -1, :2] - [[0.0, 0.0], [-30.0, 0.0]]).T)
    assert (travelled > 0.5).all(), "the others went on"


def test_the_same_calls_give_the_same_futures(agent) -> None:
    scene = random_scene(0)
    _, first = drive(LiveTraffic(agent, scene.map, 3), [start(scene, 0)] * 2, 7)
    _, again = drive(LiveTraffic(agent, scene.map, 3), [start(scene, 0)] * 2, 7)
    _, other = drive(LiveTraffic(agent, scene.map, 4), [start(scene, 0)] * 2, 7)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    worlds = np.split(first, 2)
    assert not np.array_equal(worlds[0][1:], worlds[1][1:]), "each world draws for itself"


def test_a_drive_is_that_of_the_agent(agent) -> None:
    """With the same numbers: for a second, and after it from the last second anew."""
    scene = random_scene(2, steps=11)
    moment, traffic = start(scene, 0), LiveTraffic(agent, scene.map, 0)
    for _ in range(2):
        whole = traffic.scene(moment)
        agents = len(moment.ids)
        alone = agent.start(agent.prepare(whole), 1, torch.from_numpy(moment.driven))
        draws = [generator.clone_state() for generator in traffic._draws.values()]
        if not draws:
            copy = LiveTraffic(agent, scene.map, 0)
            copy._uniform([list(zip(moment.ids.tolist(), moment.driven.tolist()))])
            draws = [torch.Generator().manual_seed(g.initial_seed()) for g in copy._draws.values()]
        for number in range(5):
            uniform = torch.zeros(1, agents)
            uniform[0, 1:] = torch.stack([torch.rand((), generator=generator) for generator in draws])
            expected, _ = alone.step(uniform)
            [pose] = traffic.step([moment])
            pose[0] = moment.states[0, -1, [0, 1, 6]] + [[1.0, 0, 0], [2.0, 0, 0]]
            moment = moment.after(pose)
            told = torch.from_numpy(pose).unsqueeze(0)
            told[..., :2] -= scene_origin(whole)
            np.testing.assert_allclose(told[:, 1:], expected[:, 1:], atol=2e-3, err_msg=str(number))
            alone.observe(told.float(), velocity=torch.from_numpy(moment.states[None, :, -1, 7:9]).float())


def test_worlds_driven_together_are_as_alone(agent) -> None:
    """Of different people: padded, and with another number of them driven."""
    scenes = [random_scene(0, agents=6), random_scene(0, agents=4)]
    moments = [start(scenes[0], 0), start(scenes[1], 0, 2)]
    _, both = drive(LiveTraffic(agent, scenes[0].map), moments, 8)
    _, first = drive(LiveTraffic(agent, scenes[0].map), moments[:1], 8)
    np.testing.assert_allclose(both[:6], first, atol=5e-3)
    two = LiveTraffic(agent, scenes[0].map)
    # The second world's own draws.
    nobody = dataclasses.replace(moments[0], driven=np.zeros(6, bool))
    _, second = drive(two, [nobody, moments[1]], 8)
    np.testing.assert_allclose(both[6:], second[6:], atol=5e-3)


def test_poses_set_by_a_script_are_kept_and_seen(agent) -> None:
    scene = random_scene(1)
    moment, traffic = start(scene, 0), LiveTraffic(agent, scene.map)
    for number in range(7):
        [pose] = traffic.step([moment])
        assert np.isnan(pose[0]).all()
        assert np.isfinite(pose[1:]).all()
        pose[0] = [[900.0 + number, -400.0, 0.5], [900.5 + number, -400.0, 0.5]]
        moment = moment.after(pose)
        kept = moment.states[0, -2:][:, [0, 1, 6]]
        assert np.array_equal(kept, pose[0])
    assert moment.states[0, -1, 7:9].tolist() == pytest.approx([5.0, 0.0])
    # Now as the drive has it.
    traffic.step([moment])
    state = traffic._drive.state.pose if isinstance(agent, PolicyAgent) else traffic._drive._unrolling.pose  # type: ignore[union-attr]
    np.testing.assert_allclose(state[0, 0, :2] + traffic._origin[0], kept[-1, :2], atol=1e-3)


def test_an_agent_comes_and_one_goes(agent) -> None:
    """Neither stops the others' draws, and a newcomer is driven from its first moment on."""
    scene = random_scene(0)
    moment, traffic = start(scene, 0), LiveTraffic(agent, scene.map)
    [moment], _ = drive(traffic, [moment], 3)
    draws = {name: generator.get_state().tolist() for (_, name), generator in traffic._draws.items()}
    stays = np.array([0, 1, 3, 4, 5])
    here = moment.of(stays)
    new = here.states[-1:].copy()
    new[..., 0] += 15.0
    moment = Moment(
        np.append(here.ids, 999),
        np.append(here.types, AgentType.VEHICLE),
        np.concatenate((here.states, new)),
        np.concatenate((here.valid, [[False] * 10 + [True]])),
        np.append(here.driven, True),
    )
    [pose] = traffic.step([moment])
    assert pose.shape == (6, 2, 3)
    assert np.isfinite(pose[1:]).all()
    assert np.hypot(*(pose[-1, -1, :2] - new[0, -1, :2])) < 5.0
    gone = int(start(scene).ids[2])
    now = {name: generator.get_state().tolist() for (_, name), generator in traffic._draws.items()}
    assert now[gone] == draws[gone]
    assert all(now[name] != draws[name] for name in here.ids[1:].tolist())
    pose[0] = moment.states[0, -1, [0, 1, 6]]
    [moment], _ = drive(traffic, [moment.after(pose)], 6)
    assert np.isfinite(moment.states).all()


def wide(road: RoadMap, reach: float) -> RoadMap:
    """The map with streets of 400 m every 100 m to the north-east and south-west, before and after its features."""
    lines = [
        torch.stack((torch.arange(y - 200.0, y + 201.0, 50.0), torch.full((9,), y)), dim=-1)
        for y in torch.arange(-reach, reach, 100.0).tolist()
        if abs(y) > 500.0
    ]
    count = len(lines)
    origin = road.point.mean(0)
    point = torch.cat([torch.nn.functional.pad(line, (0, 1)) for line in lines]) + origin
    owner = torch.repeat_interleave(torch.arange(count), torch.tensor([len(line) for line in lines]))
    half = len(point) // 2 // len(lines[0]) * len(lines[0])
    before = int(owner[half])
    own = len(road.kind)

    def mixed(name: str, fill: int) -> torch.Tensor:
        values = getattr(road, name)
        return torch.cat((values.new_full((before,), fill), values, values.new_full((count - before,), fill)))

    return dataclasses.replace(
        road,
        point=torch.cat((point[:half], road.point, point[half:])),
        point_feature=torch.cat((owner[:half], road.point_feature + before, owner[half:] + own)),
        feature_id=torch.cat((1000 + torch.arange(before), road.feature_id, 5000 + torch.arange(count - before))),
        kind=mixed("kind", MapKind.LANE),
        subtype=mixed("subtype", 2),
        speed_limit=mixed("speed_limit", 0),
        interpolating=mixed("interpolating", 0),
    )


def test_a_map_of_kilometres_is_cut_to_the_same(agent) -> None:
    scene = random_scene(0)
    town = wide(scene.map, 4000.0)
    moment = start(scene, 0)
    traffic = LiveTraffic(agent, town)
    cut = traffic.scene(moment, 1.0).map
    assert len(town.kind) > 70
    assert cut.feature_id.tolist() == scene.map.feature_id.tolist()
    _, small = drive(LiveTraffic(agent, scene.map), [moment], 8)
    _, large = drive(traffic, [moment], 8)
    np.testing.assert_allclose(large, small, atol=1e-6)


def test_features_are_near_that_pass_by_without_a_point_there() -> None:
    road = hand_made(
        [Mover()],
        [
            (MapKind.LANE, [(-5000.0, 10.0), (5000.0, 10.0)]),
            (MapKind.LANE, [(300.0, 400.0), (900.0, 800.0)]),
            (MapKind.LANE, [(9000.0, 0.0), (9100.0, 0.0)]),
            (MapKind.STOP_SIGN, []),
        ],
    ).map
    boxes = feature_boxes(road)
    here = torch.zeros(1, 2)
    for reach, near in (
        (9.9, [False, False]),
        (10.1, [True, False]),
        (499.9, [True, False]),
        (500.1, [True, True]),
    ):
        assert features_near(boxes, here, torch.tensor([reach])).tolist() == [*near, False, False]
    both = features_near(boxes, torch.tensor([[0.0, 0.0], [9050.0, 5.0]]), torch.tensor([1.0, 6.0]))
    assert both.tolist() == [False, False, True, False]


def test_people_far_apart_drive_in_scenes_of_their_own(agent) -> None:
    """Two groups at the ends of a town go as each would alone; who stands between them is in both or none."""
    scene = random_scene(0)
    town = wide(scene.map, 4000.0)
    moment = start(scene, 0)
    away = moment.states.copy()
    away[..., :2] += 3000.0
    both = Moment(
        np.concatenate((moment.ids, moment.ids + 500)),
        np.tile(moment.types, 2),
        np.concatenate((moment.states, away)),
        np.tile(moment.valid, (2, 1)),
        np.tile(moment.driven, 2),
        moment.lights,
    )
    traffic = LiveTraffic(agent, town)
    _, together = drive(traffic, [both], 8)
    assert len(traffic._parts) == 2
    _, alone = drive(LiveTraffic(agent, town), [moment], 8)
    np.testing.assert_allclose(together[:6], alone, atol=5e-3)
    assert sorted(np.concatenate([part.rows[part.own] for part in traffic._parts])) == [*range(1, 6), *range(7, 12)]


def test_what_is_wrong_is_said(agent) -> None:
    scene = random_scene(0)
    moment, traffic = start(scene, 0), LiveTraffic(agent, scene.map)
    [pose] = traffic.step([moment])
    with pytest.raises(UserError, match=f"state of agent {moment.ids[0]} is no number; set the poses"):
        moment.after(pose)
    with pytest.raises(UserError, match=r"states has the shape \(6, 10, 9\), expected \(6, 11, 9\)"):
        dataclasses.replace(moment, states=moment.states[:, 1:])
    with pytest.raises(UserError, match="those who are there now"):
        dataclasses.replace(moment, ids=np.zeros(6, np.int64))
    with pytest.raises(UserError, match=r"from 0\.2 to 8"):
        LiveTraffic(agent, scene.map, renew_seconds=9.0)
    with pytest.raises(UserError, match="one scene at a time, not in 2"):
        LiveTraffic(LogReplay(), scene.map, renew_seconds=8.0).step([moment] * 2)


def test_constant_velocity_drives_in_two_worlds() -> None:
    class Steps(ConstantVelocity):
        token_steps = 2

    scenes = [random_scene(0), random_scene(1, agents=3)]
    moments = [Moment.of_scene(scene, np.ones(int(scene.simulated.sum()), bool)) for scene in scenes]
    poses = LiveTraffic(Steps(), scenes[0].map).step(moments)
    for moment, pose in zip(moments, poses):
        velocity = np.diff(np.concatenate((moment.states[:, -1:, :2], pose[..., :2]), axis=1), axis=1) / 0.1
        np.testing.assert_allclose(velocity, moment.states[:, -1:, 7:9].repeat(2, axis=1), atol=1e-2)


def test_an_agent_is_told_where_everybody_went_and_how_fast_they_are_now(monkeypatch) -> None:
    class Steps(ConstantVelocity):
        token_steps = 5

    told: list[tuple[torch.Tensor, ...]] = []
    monkeypatch.setattr(StraightDrive, "observe", lambda self, *given: told.append(given))
    scene = random_scene(0)
    moment, traffic = start(scene), LiveTraffic(Steps(), scene.map)
    [pose] = traffic.step([moment])
    # Everybody brakes.
    pose[..., :2] = moment.states[:, -1:, :2] + np.array([0.9, 1.7, 2.4, 3.0, 3.5])[:, None]
    traffic.step([moment.after(pose)])
    [(where, present, velocity)] = told
    assert present is None
    went = where[0, ..., :2].double() + scene_origin(traffic.scene(moment)).double()
    torch.testing.assert_close(went, torch.from_numpy(pose[..., :2]), atol=1e-3, rtol=0)
    torch.testing.assert_close(velocity, torch.full_like(velocity, 5.0), atol=1e-3, rtol=0)


def test_nobody_is_driven(agent) -> None:
    scene = random_scene(0)
    [pose] = LiveTraffic(agent, scene.map).step([start(scene, *range(6))])
    assert np.isnan(pose).all()
