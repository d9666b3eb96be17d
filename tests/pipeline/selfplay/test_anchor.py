"""Scores of executed tokens are what the reference would have sampled from, agent by agent and step by step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import pytest
import torch

from data.batch import collate
from data.scene import Scene, until_now
from data.tokenizer import match_token
from models.reference.agent import ReferenceAgent
from models.reference.inputs import known_lights, select_agents
from models.reference.recording import scene_inputs
from pipeline.selfplay import anchor as anchor_module
from pipeline.selfplay.anchor import ReferenceScorer
from pipeline.simulator.step import controlled_agents, decisions, reset, step
from pipeline.simulator.world import World, build_world, stack_worlds
from tests.models.reference.conftest import make_model, roll_out
from tests.models.scenes import random_scene


def play(world: World, vocabulary, controlled, seed: int = 0):
    """Random tokens: what ``Anchor.log_probs`` reads."""
    generator = torch.Generator().manual_seed(seed)
    state = reset(world, torch.zeros_like(world.exists))
    tokens, poses, present = [], [state.pose], [state.present]
    for _ in range(decisions(vocabulary)):
        drawn = torch.randint(vocabulary.size, world.types.shape, generator=generator)
        state, _ = step(world, state, drawn, controlled, vocabulary)
        tokens.append(drawn)
        poses.append(state.pose)
        present.append(state.present)
    return torch.stack(tokens, -1), torch.stack(poses, 2), controlled, torch.stack(present, -1)


def step_by_step(reference: ReferenceAgent, scene, tokens) -> torch.Tensor:
    """Log-probabilities [A, D, K] met by the rollout engine while it is made to take these tokens [A, D]."""
    scene = select_agents(scene, scene.simulated.nonzero().squeeze(-1))
    batch = collate([until_now(scene)])
    inputs = scene_inputs(batch, reference.vocabulary)
    lights = known_lights(batch.lights.state, batch.lights.observed, 9)
    unrolling = reference.engine.begin(reference.encode_map(batch), inputs.agents, inputs.tokens, lights, 1)
    logits, *_ = roll_out(unrolling, tokens.shape[-1], lambda index, _: tokens[None, :, index])
    return logits[0].log_softmax(-1)


@pytest.mark.parametrize("token_steps", [2, 5])
def test_scores_are_those_of_the_rollout_engine(token_steps) -> None:
    reference = ReferenceAgent(make_model(token_steps))
    scenes = [random_scene(0), random_scene(1, agents=3), random_scene(2, agents=5)]
    world = stack_worlds([build_world(scene, reference.vocabulary, 4) for scene in scenes])
    executed = play(world, reference.vocabulary, world.exists)
    scores = ReferenceScorer(reference, scenes.__getitem__).log_probs([0, 1, 2], world, *executed)
    assert scores.shape == (*executed[0].shape, reference.vocabulary.size)
    for row, scene in enumerate(scenes):
        count = int(scene.simulated.sum())
        expected = step_by_step(reference, scene, executed[0][row, :count])
        torch.testing.assert_close(scores[row, :count], expected, atol=2e-4, rtol=1e-4)
    assert float(scores.exp().sum(-1)[world.exists].sub(1).abs().max()) < 1e-4


def test_a_score_does_not_depend_on_what_comes_with_it_or_after_it(reference) -> None:
    scenes = [random_scene(0)]
    vocabulary = reference.vocabulary
    world = build_world(scenes[0], vocabulary, 4)
    anchor = ReferenceScorer(reference, scenes.__getitem__)
    first = play(world, vocabulary, world.exists, seed=0)
    scores = anchor.log_probs([0], world, *first)
    changed = first[0].clone()
    changed[..., 17:] = (changed[..., 17:] + 11) % vocabulary.size
    state = reset(world, torch.zeros_like(world.exists))
    poses = [state.pose]
    for index in range(changed.shape[-1]):
        state, _ = step(world, state, changed[..., index], world.exists, vocabulary)
        poses.append(state.pose)
    other = anchor.log_probs([0], world, changed, torch.stack(poses, 2), *first[2:])
    # To the bit: the shapes are the same, and what is hidden has a weight of exactly zero.
    assert torch.equal(scores[:, :, :18], other[:, :, :18])
    assert float((scores[:, :, 18] - other[:, :, 18]).abs().amax(-1).min()) > 1e-4


def test_replayed_agents_are_seen_as_they_moved(reference) -> None:
    """A vehicle's score must change with what a replayed pedestrian does, and ignore its unused token."""
    scenes = [random_scene(2)]
    vocabulary = reference.vocabulary
    world = build_world(scenes[0], vocabulary, 4)
    controlled = controlled_agents(world, "vehicles")
    assert controlled.any()
    assert (world.exists & ~controlled).any()
    anchor = ReferenceScorer(reference, scenes.__getitem__)
    tokens, poses, _, present = play(world, vocabulary, controlled)
    scores = anchor.log_probs([0], world, tokens, poses, controlled, present)
    unused = torch.where(controlled[..., None], tokens, (tokens + 3) % vocabulary.size)
    assert torch.equal(anchor.log_probs([0], world, unused, poses, controlled, present), scores)
    types = world.types.unsqueeze(-1).expand_as(tokens)
    nearest, _ = match_token(vocabulary, poses[:, :, :-1], poses[:, :, 1:], types)
    expected = anchor.log_probs(
        [0], world, torch.where(controlled[..., None], tokens, nearest), poses, world.exists, present
    )
    torch.testing.assert_close(scores, expected)
    aside = torch.where(controlled[..., None, None], poses, poses + torch.tensor([6.0, -4.0, 0.0]))
    assert not torch.allclose(
        anchor.log_probs([0], world, tokens, aside, controlled, present)[controlled], scores[controlled], atol=1e-3
    )


def test_order_groups_and_repeated_worlds_do_not_matter(reference, monkeypatch) -> None:
    scenes = [random_scene(seed, agents=agents) for seed, agents in ((0, 6), (1, 2), (2, 4))]
    vocabulary = reference.vocabulary
    chosen = [2, 0, 1, 0]
    world = stack_worlds([build_world(scenes[index], vocabulary, 4) for index in chosen])
    executed = play(world, vocabulary, world.exists)
    together = ReferenceScorer(reference, scenes.__getitem__).log_probs(chosen, world, *executed)
    monkeypatch.setattr(anchor_module, "_SLOTS", {"cpu": 1, "cuda": 1})
    anchor = ReferenceScorer(reference, scenes.__getitem__)
    apart = anchor.log_probs(chosen, world, *executed)
    torch.testing.assert_close(apart[world.exists], together[world.exists], atol=1e-4, rtol=1e-4)
    # A second time, from kept encodings.
    assert torch.equal(anchor.log_probs(chosen, world, *executed), apart)


def test_one_token_may_not_be_certain_for_all(reference) -> None:
    """The tests above would pass for a reference without opinions."""
    scenes = [random_scene(0)]
    world = build_world(scenes[0], reference.vocabulary, 4)
    scores = ReferenceScorer(reference, scenes.__getitem__).log_probs(
        [0], world, *play(world, reference.vocabulary, world.exists)
    )
    entropy = -(scores.exp() * scores).sum(-1)
    assert float(entropy.std()) > 0.01


def test_where_an_absent_agent_was_is_not_read(reference) -> None:
    """A replayed agent that is away in between: a token from where it was not to where it is again is none."""
    scenes = [random_scene(2)]
    world = build_world(scenes[0], reference.vocabulary, 4)
    controlled = controlled_agents(world, "vehicles")
    tokens, poses, _, present = play(world, reference.vocabulary, controlled)
    away = (world.exists & ~controlled)[0].nonzero().flatten()[0]
    present[0, away, 5:12] = False
    elsewhere = poses.clone()
    # As near as a token leads, so that it would be taken for one. Not where a second begins: the map of a second is
    # looked up there, whoever is present.
    elsewhere[0, away, [6, 7, 8, 9, 11]] = poses[0, away, 12] + torch.tensor([0.3, 0.0, 0.0])
    anchor = ReferenceScorer(reference, scenes.__getitem__)
    one, two = (anchor.log_probs([0], world, tokens, at, controlled, present) for at in (poses, elsewhere))
    assert torch.equal(one[controlled], two[controlled])


def test_other_devices_than_a_cpu_take_large_groups() -> None:
    references = (SimpleNamespace(device=torch.device(name)) for name in ("meta", "cpu"))
    there, here = (ReferenceScorer(cast(ReferenceAgent, one), [random_scene(0)].__getitem__) for one in references)
    assert there._groups([64] * 22, 45) == [list(range(11)), list(range(11, 22))]
    assert here._groups([64] * 40, 45) == [[row] for row in range(40)]
    # Padded to the largest of a group, wherever that stands among the rows.
    assert there._groups([1, 300, 2, 400, 1, 2], 45) == [[3], [1, 2], [5, 0, 4]]


def test_scenes_are_encoded_again_where_there_are_too_many(reference) -> None:
    scenes = [random_scene(seed, agents=2) for seed in range(3)]
    asked: list[int] = []

    def scene(name: int) -> Scene:
        asked.append(name)
        return scenes[name]

    anchor = ReferenceScorer(reference, scene, capacity=2)
    for name in (0, 1, 0, 2, 0, 1):
        world = build_world(scenes[name], reference.vocabulary, 4)
        anchor.log_probs([name], world, *play(world, reference.vocabulary, world.exists))
    assert asked == [0, 1, 2, 0, 1]
