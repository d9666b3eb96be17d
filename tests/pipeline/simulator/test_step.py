"""Execution of tokens and replay of the log against closed form, step by step."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from data.scene import AgentType
from data.tokenizer import tokenize_motion
from data.vocabulary import Vocabulary
from pipeline.simulator.step import agent_indices, controlled_agents, decisions, reset, step
from pipeline.simulator.world import build_world, repeat_world, stack_worlds
from tests.models.scenes import random_scene
from tests.scenes import Mover, hand_made


def arcs() -> Vocabulary:
    """Token 0 stands, 1 drives on at 10 m/s, 2 turns left on a circle of 5 m at 5 m/s."""
    still = torch.zeros(2, 3)
    ahead = torch.tensor([[1.0, 0, 0], [2.0, 0, 0]])
    angle = torch.tensor([0.1, 0.2])
    left = torch.stack((5 * angle.sin(), 5 * (1 - angle.cos()), angle), -1)
    return Vocabulary(torch.stack((still, ahead, left)).expand(3, 3, 2, 3), torch.ones(3, 2), torch.ones(3))


def nobody(world) -> torch.Tensor:
    return torch.zeros_like(world.exists)


def test_straight_on_and_round_a_circle() -> None:
    vocabulary = arcs()
    scene = hand_made([Mover(x=700.0, y=-3.0, heading=math.pi / 2), Mover(x=720.0, heading=3.0, speed=5.0)])
    world = build_world(scene, vocabulary, 4)
    state = reset(world, nobody(world))
    start = state.pose.clone()
    tokens = torch.tensor([[1, 2]])
    for count in range(1, 41):
        state, motion = step(world, state, tokens, world.exists, vocabulary)
        assert motion.first_step == 2 * count - 1
        # 10 m/s for 0.2 s each, along +y.
        expected = start[0, 0] + torch.tensor([0.0, 2.0 * count, 0.0])
        torch.testing.assert_close(state.pose[0, 0], expected, atol=1e-3, rtol=0)
        torch.testing.assert_close(state.velocity[0, 0], torch.tensor([0.0, 10.0]), atol=2e-3, rtol=0)
        turned = 3.0 + 0.2 * count
        around = start[0, 1, :2].double() + 5 * torch.tensor(
            [math.sin(turned) - math.sin(3.0), math.cos(3.0) - math.cos(turned)], dtype=torch.float64
        )
        torch.testing.assert_close(state.pose[0, 1, :2].double(), around, atol=1e-3, rtol=0)
        assert abs(math.remainder(float(state.pose[0, 1, 2]) - turned, 2 * math.pi)) < 1e-4
        assert -math.pi <= float(state.pose[0, 1, 2]) < math.pi
        half = 3.0 + 0.2 * count - 0.1
        middle = start[0, 1, :2].double() + 5 * torch.tensor(
            [math.sin(half) - math.sin(3.0), math.cos(3.0) - math.cos(half)], dtype=torch.float64
        )
        torch.testing.assert_close(motion.pose[0, 1, 0, :2].double(), middle, atol=1e-3, rtol=0)
        torch.testing.assert_close(state.last_motion[0, 1], vocabulary.poses[0, 2, 1], atol=1e-4, rtol=0)
    assert decisions(vocabulary) == 40
    assert state.step == 80


def test_state_after_reset_is_the_log(vocabulary) -> None:
    scene = random_scene(0)
    world = build_world(scene, vocabulary, 4)
    state = reset(world, nobody(world))
    chosen, agents = scene.simulated, scene.agents
    position = state.pose[0, :, :2].double() + world.origin[0].double()
    torch.testing.assert_close(position, agents.position[chosen, 10, :2].double(), atol=1e-4, rtol=0)
    assert torch.equal(state.pose[0, :, 2], agents.heading[chosen, 10])
    assert torch.equal(state.velocity[0], agents.velocity[chosen, 10])
    assert torch.equal(state.present[0], torch.ones(int(chosen.sum()), dtype=torch.bool))
    # The history ends where the simulation begins, and the last motion is what the log did in the last 0.2 s.
    assert torch.equal(world.history_poses[0, :, -1], state.pose[0])
    moved = agents.position[chosen, 10, :2] - agents.position[chosen, 8, :2]
    seen = world.history_valid[0, :, -1] & agents.valid[chosen, 8]
    assert int(seen.sum()) >= 4
    error = (state.last_motion[0, seen, :2].norm(dim=-1) - moved[seen].norm(dim=-1)).abs()
    assert float(error.max()) < 2 * float(vocabulary.tolerance.max()) + 0.05
    assert (state.last_motion[0, ~world.history_valid[0, :, -1]] == 0).all()


def test_who_is_controlled() -> None:
    parked, driving = Mover(x=10.0), Mover(x=30.0, speed=6.0)
    walking = Mover(x=50.0, speed=1.0, kind=AgentType.PEDESTRIAN)
    world = build_world(hand_made([parked, driving, walking]), arcs(), 4)
    assert controlled_agents(world).tolist() == [[True, True, True]]
    assert controlled_agents(world, "vehicles").tolist() == [[False, True, False]]
    assert controlled_agents(world, "moving").tolist() == [[False, True, True]]
    assert [t.tolist() for t in agent_indices(controlled_agents(world, "vehicles"))] == [[0], [1]]
    with pytest.raises(ValueError, match="expected one of"):
        controlled_agents(world, "nobody")


def test_one_moving_agent_of_each_world_is_controlled() -> None:
    """By the largest number drawn among those that move; where nobody moves, nobody."""
    parked, driving = Mover(x=10.0), Mover(x=30.0, speed=6.0)
    walking = Mover(x=50.0, speed=1.0, kind=AgentType.PEDESTRIAN)
    scenes = [[parked, driving, walking], [driving, parked], [parked], [walking, driving, parked]]
    world = stack_worlds([build_world(hand_made(movers), arcs(), 4) for movers in scenes])
    draw = torch.tensor([[0.9, 0.2, 0.3], [0.0, 0.5, 0.9], [0.5, 0.7, 0.9], [0.6, 0.5, 0.9]])
    chosen = controlled_agents(world, "one", draw)
    assert chosen.int().tolist() == [[0, 0, 1], [1, 0, 0], [0, 0, 0], [1, 0, 0]]
    others = controlled_agents(world, "one", 1 - draw)
    assert others.int().tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0], [0, 1, 0]]
    # All of the moving have their turn.
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack(
        [controlled_agents(world, "one", torch.rand(4, 3, generator=generator)) for _ in range(200)]
    )
    assert (drawn.sum(-1).unique(dim=0) == torch.tensor([1, 1, 0, 1])).all()
    assert torch.allclose(drawn.float().mean(0)[0], torch.tensor([0.0, 0.5, 0.5]), atol=0.12)
    with pytest.raises(ValueError, match="draw"):
        controlled_agents(world, "one")


def test_replayed_agents_follow_the_log_and_leave_with_it(vocabulary) -> None:
    scene = random_scene(4)
    world = build_world(scene, vocabulary, 4)
    chosen = scene.simulated
    state = reset(world, nobody(world))
    for _ in range(decisions(vocabulary)):
        state, motion = step(world, state, torch.ones_like(world.types), nobody(world), vocabulary)
        steps = slice(10 + motion.first_step, 12 + motion.first_step)
        valid = scene.agents.valid[chosen, steps]
        assert torch.equal(motion.present[0], valid)
        position = motion.pose[0, ..., :2] + world.origin[0]
        recorded = scene.agents.position[chosen, steps, :2]
        torch.testing.assert_close(position[valid], recorded[valid], atol=1e-3, rtol=0)
    assert not state.present[0].all()


def test_tokenising_executed_motion_gives_the_same_tokens(vocabulary) -> None:
    world = repeat_world(build_world(random_scene(1), vocabulary, 4), 3)
    generator = torch.Generator().manual_seed(0)
    state = reset(world, nobody(world))
    chosen, path = [], [state.pose]
    for _ in range(decisions(vocabulary)):
        tokens = torch.randint(vocabulary.size, world.types.shape, generator=generator)
        state, _ = step(world, state, tokens, world.exists, vocabulary)
        chosen.append(tokens)
        path.append(state.pose)
    # The tokenizer reads every second step.
    pose = torch.stack(path, 2).repeat_interleave(2, dim=2)[:, :, :-1]
    valid = torch.ones(pose.shape[:3], dtype=torch.bool)
    again = tokenize_motion(vocabulary, pose, valid, world.types, anchor=None)
    assert again.valid.all()
    assert torch.equal(again.ids, torch.stack(chosen, -1))


def test_worlds_in_a_batch_do_what_they_do_alone(vocabulary) -> None:
    worlds = [
        build_world(random_scene(seed, agents=count), vocabulary, 4) for seed, count in ((0, 6), (1, 3), (2, 1))
    ]
    batch = stack_worlds(worlds)
    tokens = torch.randint(vocabulary.size, batch.types.shape, generator=torch.Generator().manual_seed(1))
    state, motion = step(batch, reset(batch, nobody(batch)), tokens, batch.exists, vocabulary)
    for row, world in enumerate(worlds):
        count = world.types.shape[1]
        alone, moved = step(
            world, reset(world, nobody(world)), tokens[row : row + 1, :count], world.exists, vocabulary
        )
        # Sines of other shapes may take another path through the library and differ in the last place.
        torch.testing.assert_close(alone.pose[0], state.pose[row, :count], atol=1e-4, rtol=0)
        torch.testing.assert_close(alone.velocity[0], state.velocity[row, :count], atol=1e-3, rtol=0)
        torch.testing.assert_close(moved.pose[0], motion.pose[row, :count], atol=1e-4, rtol=0)
        assert not state.present[row, count:].any()
        assert not motion.present[row, count:].any()


def test_a_world_without_future_is_the_same_world(vocabulary) -> None:
    """Nothing that is seen or felt by an agent with a hidden goal may come from after the current step."""
    full, cut = (build_world(random_scene(3, steps=steps), vocabulary, 4) for steps in (91, 11))
    future = {"goal", "moves", "log", "log_valid", "log_ids", "red"}
    for field in dataclasses.fields(full):
        if field.name in future:
            continue
        values = [getattr(world, field.name) for world in (full, cut)]
        pairs = [values] if isinstance(values[0], torch.Tensor) else zip(*(vars(v).values() for v in values))
        assert all(torch.equal(*map(torch.as_tensor, pair)) for pair in pairs), field.name
    assert not cut.moves.any()
    assert not cut.log_valid.any()


def test_velocity_is_that_of_the_last_tenth_of_a_second() -> None:
    """Of a token that speeds up, and of tokens of a single step."""
    faster = torch.tensor([[0.8, 0.0, 0.0], [2.0, 0.0, 0.0]]).expand(3, 2, 2, 3)
    for words, speed in ((faster, 12.0), (faster[:, :, :1], 8.0)):
        vocabulary = Vocabulary(words, torch.ones(3, 2), torch.ones(3))
        world = build_world(hand_made([Mover(heading=math.pi / 2)]), vocabulary, 4)
        state, motion = step(
            world, reset(world, nobody(world)), torch.ones_like(world.types), world.exists, vocabulary
        )
        torch.testing.assert_close(state.velocity[0, 0], torch.tensor([0.0, speed]), atol=1e-4, rtol=0)
        assert motion.first_step == 1
        assert decisions(vocabulary) * vocabulary.token_steps == 80
