"""Rollouts of the policy: exact execution, one future per seed and scenario, and nothing of the recorded future."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from data.errors import UserError
from data.scene import AgentType, map_tensors
from data.tokenizer import apply_token, local_pose, scene_origin
from data.vocabulary import type_index
from models.policy import save_policy
from models.sampling import SamplingConfig
from pipeline.agents import policy_agent
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.simulator.observation import observe_road
from pipeline.simulator.step import agent_indices, reset, step
from pipeline.simulator.world import build_world, repeat_world
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy
from tests.scenes import Mover, hand_made


@pytest.fixture(scope="module")
def agent(policy, vocabulary) -> PolicyAgent:
    return PolicyAgent(policy, vocabulary, VIEW)


def test_every_two_steps_are_one_token(agent, vocabulary) -> None:
    scene = random_scene(0)
    states = agent.rollouts(scene, 3, 0)
    chosen = scene.simulated
    assert states.shape == (3, int(chosen.sum()), 80, 4)
    assert states.dtype == torch.float32
    assert ((states[..., 3] >= -torch.pi) & (states[..., 3] < torch.pi)).all()
    assert torch.equal(states[..., 2], scene.agents.position[chosen, 10, 2][None, :, None].expand(3, -1, 80))
    origin = scene_origin(scene)
    pose = torch.cat((states[..., :2] - origin, states[..., 3:]), -1)
    now = torch.cat((scene.agents.position[chosen, 10, :2] - origin, scene.agents.heading[chosen, 10, None]), -1)
    start = torch.cat((now[None, :, None].expand(3, -1, 1, -1), pose[:, :, 1:-1:2]), 2)  # [3, A, 40, 3]
    step = local_pose(pose[:, :, 1::2], start)
    types = type_index(scene.agents.type[chosen])
    ends = vocabulary.poses[types][:, :, -1]  # [A, K, 3]
    error, token = (step.unsqueeze(-2) - ends[:, None]).abs().amax(-1).min(-1)
    assert float(error.max()) < 1e-3
    between = apply_token(vocabulary, start, token, types[None, :, None].expand_as(token))[..., 0, :]
    torch.testing.assert_close(between[..., :2], pose[:, :, ::2, :2], atol=1e-3, rtol=0)


def test_rollouts_depend_on_seed_and_scenario_alone(agent, monkeypatch) -> None:
    scene = random_scene(1)
    states = agent.rollouts(scene, 6, 3)
    assert torch.equal(agent.rollouts(scene, 6, 3), states)
    assert not torch.equal(agent.rollouts(scene, 6, 4), states)
    renamed = dataclasses.replace(scene, scenario_id="another")
    assert not torch.equal(agent.rollouts(renamed, 6, 3), states)
    assert len({tuple(rollout.flatten().tolist()) for rollout in states}) == 6
    for rows in (1, 12, 18):
        monkeypatch.setattr(agent, "max_rows", rows)
        torch.testing.assert_close(agent.rollouts(scene, 6, 3), states, atol=1e-3, rtol=0)


def test_the_future_never_matters(agent) -> None:
    full, cut = random_scene(3), random_scene(3, steps=11)
    states = agent.rollouts(full, 4, 0)
    assert torch.equal(agent.rollouts(cut, 4, 0), states)
    future = dataclasses.replace(
        full,
        agents=dataclasses.replace(
            full.agents,
            position=torch.cat((full.agents.position[:, :11], full.agents.position[:, 11:] + 200), 1),
            valid=torch.cat((full.agents.valid[:, :11], ~full.agents.valid[:, 11:]), 1),
        ),
        lights=map_tensors(full.lights, lambda t: t),
    )
    assert torch.equal(agent.rollouts(future, 4, 0), states)
    # But the present does.
    nearer = dataclasses.replace(
        full, agents=dataclasses.replace(full.agents, size=full.agents.size * torch.tensor([1.5, 1.5, 1.0]))
    )
    assert not torch.equal(agent.rollouts(nearer, 4, 0), states)


@pytest.mark.parametrize(
    "scene",
    [
        hand_made([Mover(speed=4.0)], steps=11),
        hand_made([Mover(x=3000.0, y=-8000.0, kind=AgentType.OTHER)]),
        hand_made([Mover(x=7.0 * (i % 20), y=7.0 * (i // 20), speed=0.3 * (i % 9)) for i in range(150)], steps=11),
    ],
    ids=["one agent", "no road", "150 agents"],
)
def test_unusual_scenes(agent, scene) -> None:
    states = agent.rollouts(scene, 2, 0)
    assert states.shape == (2, len(scene.agents.id), 80, 4)
    assert torch.isfinite(states).all()
    travelled = (states[:, :, 1:, :2] - states[:, :, :-1, :2]).norm(dim=-1)
    assert float(travelled.max()) < 6.0


def test_lights_that_are_observed_replace_those_of_the_start(agent) -> None:
    prepared = agent.prepare(random_scene(0))
    drive = agent.start(prepared, 2)
    pose, _ = drive.step(torch.full((2, prepared.types.shape[1]), 0.5))
    red = ~prepared.light_now.expand(2, -1)
    drive.observe(pose, red=red)
    assert torch.equal(drive._worlds.light_now, red)


def test_velocities_that_are_observed_replace_those_of_the_last_step(agent) -> None:
    prepared = agent.prepare(random_scene(0))
    drive = agent.start(prepared, 2)
    pose, _ = drive.step(torch.full((2, prepared.types.shape[1]), 0.5))
    drive.observe(pose)
    last = (pose[:, :, -1, :2] - pose[:, :, -2, :2]) / 0.1
    torch.testing.assert_close(drive.state.velocity, last, atol=1e-3, rtol=0)
    told = torch.randn(2, prepared.types.shape[1], 2, generator=torch.Generator().manual_seed(0))
    drive.observe(drive.step(torch.full(told.shape[:2], 0.5))[0], velocity=told)
    assert torch.equal(drive.state.velocity, told)


def test_who_is_absent_or_driven_by_others_decides_nothing(agent) -> None:
    """It keeps its pose, whatever is drawn, and the others go on."""
    prepared = agent.prepare(random_scene(0))
    agents = prepared.types.shape[1]
    uniform = torch.rand(10, 8, agents, generator=torch.Generator().manual_seed(1))
    alone, leaving, nobody = (
        agent.start(prepared, 8, driven) for driven in (torch.arange(agents) != 1, None, torch.zeros(agents) > 0)
    )
    for number in range(10):
        for drive, quiet in ((alone, [1]), (leaving, [0] * (number > 0)), (nobody, list(range(agents)))):
            before = drive.state.pose.unsqueeze(2).expand(-1, -1, agent.token_steps, -1)
            pose, present = drive.step(uniform[number])
            assert pose.shape == (8, agents, agent.token_steps, 3)
            torch.testing.assert_close(pose[:, quiet], before[:, quiet], atol=1e-4, rtol=0)
            moving = [row for row in range(agents) if row not in quiet]
            assert not moving or not torch.equal(pose[:, moving], before[:, moving])
            there = present.clone()
            there[:, 0] = drive is not leaving
            drive.observe(pose, there)


def test_another_that_leaves_in_the_same_decision_as_one_returns_is_told_apart(agent) -> None:
    prepared = agent.prepare(random_scene(0))
    drive = agent.start(prepared, 1)
    for absent in (0, 1):
        pose, present = drive.step(torch.full((1, prepared.types.shape[1]), 0.5))
        there = present.clone()
        there[:] = True
        there[:, absent] = False
        drive.observe(pose, there)
        assert drive._agent_index[1].tolist() == [a for a in range(pose.shape[1]) if a != absent]


def test_an_agent_is_not_trained_sees_no_goal_and_remembers_as_in_training(vocabulary) -> None:
    view = dataclasses.replace(VIEW, history=3)
    net = make_policy(vocabulary, view).train()
    agent = PolicyAgent(net, vocabulary, view)
    assert not net.training
    scene = random_scene(0)
    drive = agent.start(agent.prepare(scene), 2)
    assert drive.state.goal_hidden.all()
    world = repeat_world(build_world(scene, vocabulary, view.road_segments), 2)
    expected = reset(world, torch.ones_like(world.exists), 3)
    assert drive.state.past.shape[2] == 3
    assert torch.equal(drive.state.past, expected.past)
    assert torch.equal(drive.state.past_known, expected.past_known)


def test_a_checkpoint_with_other_options_is_of_another_version(policy, vocabulary, tmp_path) -> None:
    save_policy(tmp_path / "policy.ckpt", policy, vocabulary, {"colours": 3})
    with pytest.raises(UserError, match="of another version of the code; train again"):
        PolicyAgent.from_checkpoint(tmp_path / "policy.ckpt")


def test_the_likeliest_token_alone_gives_one_future(policy, vocabulary) -> None:
    greedy = PolicyAgent(policy, vocabulary, VIEW, SamplingConfig(top_k=1))
    rollouts = greedy.rollouts(random_scene(0), 3, 0)
    # Rows of a batch: the same tokens, and positions within rounding.
    torch.testing.assert_close(rollouts[0], rollouts[1], atol=1e-3, rtol=0)


def test_roads_seen_by_those_that_stand_are_reused_and_right(policy, vocabulary) -> None:
    """Whatever moves and stands, the codes are those of everybody's road encoded anew."""
    world = repeat_world(build_world(random_scene(3), vocabulary, VIEW.road_segments), 3)
    controlled = world.exists
    who = agent_indices(controlled)
    state = reset(world, torch.ones_like(controlled))
    roads = policy_agent._Roads(PolicyAgent(policy, vocabulary, VIEW)._see_road)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        with torch.no_grad():
            expected = policy.see_road(*observe_road(world, state, who, VIEW))
            torch.testing.assert_close(roads.seen(world, state, who), expected, atol=1e-5, rtol=0)
        tokens = torch.randint(vocabulary.size, world.types.shape, generator=generator)
        tokens = torch.where(torch.rand(tokens.shape, generator=generator) < 0.5, 0, tokens)
        before = state.pose
        state, _ = step(world, state, tokens, controlled, vocabulary)
        still = (state.pose == before).all(-1)
        assert torch.equal(still, tokens == 0), "token 0 is rest, exactly"


@pytest.mark.usefixtures("forget_compilations")
def test_new_scenes_need_no_new_graphs(policy, vocabulary, monkeypatch) -> None:
    """What compiling rests on; that compiled code computes the same is tested in test_episode."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_(f, backend=count, **options))
    agent = PolicyAgent(policy, vocabulary, VIEW, compiled=True)

    def check(sizes: list[tuple[int, int]]) -> None:
        for seed, (agents, rollouts) in enumerate(sizes):
            scene = random_scene(seed, agents=agents)
            plain = PolicyAgent(policy, vocabulary, VIEW).rollouts(scene, rollouts, 0)
            torch.testing.assert_close(agent.rollouts(scene, rollouts, 0), plain, atol=1e-4, rtol=0)

    check([(6, 3), (4, 5), (5, 2)])
    first = len(graphs)
    check([(7, 3), (3, 4), (8, 6)])
    assert 3 <= first == len(graphs)


def test_agents_see_that_they_collided(agent) -> None:
    """Two that overlap after a decision, and one far away."""
    drive = agent.start(agent.prepare(hand_made([Mover(), Mover(x=20.0), Mover(x=60.0)])), 1)
    assert not drive.state.collided.any()
    pose = drive.state.pose.unsqueeze(2).repeat(1, 1, agent.token_steps, 1)
    pose[0, 1, -1, 0] = pose[0, 0, -1, 0] + 1.0
    drive.observe(pose)
    assert drive.state.collided[0].tolist() == [True, True, False]
