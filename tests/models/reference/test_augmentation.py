"""Augmentation on batches equals the same done to the scenes, and what is learnt from noisy motion leads back."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from data.batch import collate
from data.errors import UserError
from data.scene import CURRENT_INDEX, map_tensors
from data.tokenizer import apply_token
from models.reference.augmentation import AugmentationConfig, Draws, augment, draw_for, token_ranks
from models.reference.inputs import collate_inputs
from models.reference.recording import Recording, recording_inputs, recording_of
from tests.models.scenes import random_scene
from tests.transformations import mirror, move

NOTHING = AugmentationConfig(mirror=0.0, history_drop=0.0, noise=0.0)


def draws_of(recording: Recording, value: float | None = None) -> Draws:
    scenes, agents = recording.types.shape
    drawn = collate_inputs([draw_for(3, 7, row, agents, 45) for row in range(scenes)])
    return drawn if value is None else map_tensors(drawn, lambda tensor: torch.full_like(tensor, value))


@pytest.fixture
def recording() -> Recording:
    return recording_of(collate([random_scene(0), random_scene(1, agents=4)]))


def assert_same(one: Recording, two: Recording, tolerance: float = 2e-3) -> None:
    """Equal where valid; headings on the circle."""
    valid = one.valid
    assert torch.equal(valid, two.valid)
    for name in ("light_state", "light_observed", "types", "size", "learnt"):
        assert torch.equal(getattr(one, name), getattr(two, name)), name
    pairs = [
        (one.pose[valid], two.pose[valid]),
        (one.pieces.pose[one.pieces.valid], two.pieces.pose[two.pieces.valid]),
    ]
    for first, second in pairs:
        torch.testing.assert_close(first[:, :2], second[:, :2], atol=tolerance, rtol=0)
        assert float((first[:, 2] - second[:, 2]).cos().min()) > 1 - 1e-6
    torch.testing.assert_close(one.velocity[valid], two.velocity[valid], atol=1e-4, rtol=0)
    torch.testing.assert_close(one.pieces.point, two.pieces.point, atol=tolerance, rtol=0)


def test_nothing_changes_nothing(recording):
    assert_same(augment(recording, draws_of(recording), NOTHING), recording, 0.0)


def test_mirroring_is_that_of_the_scene(recording):
    scenes = [mirror(random_scene(0)), mirror(random_scene(1, agents=4))]
    both = augment(recording, draws_of(recording), dataclasses.replace(NOTHING, mirror=1.0))
    assert_same(both, recording_of(collate(scenes)))
    one = augment(
        recording,
        dataclasses.replace(draws_of(recording), scene=torch.tensor([[0.1, 0, 0], [0.9, 0, 0]])),
        dataclasses.replace(NOTHING, mirror=0.5),
    )
    assert_same(one, recording_of(collate([scenes[0], random_scene(1, agents=4)])))


def test_turning_is_that_of_the_scene(recording):
    draws = dataclasses.replace(draws_of(recording), scene=torch.tensor([[0.0, 0.9, 0], [0.0, 0.25, 0]]))
    turned = augment(recording, draws, dataclasses.replace(NOTHING, rotate=True))
    scenes = [move(random_scene(0), 0.8 * math.pi), move(random_scene(1, agents=4), -0.5 * math.pi)]
    assert_same(turned, recording_of(collate(scenes)))


def test_a_shifted_scene_begins_later(recording):
    draws = dataclasses.replace(draws_of(recording), scene=torch.tensor([[0.0, 0, 0.99], [0.0, 0, 0.0]]))
    later = augment(recording, draws, dataclasses.replace(NOTHING, time_shift=12))
    for name in ("pose", "velocity", "valid", "light_state", "light_observed"):
        moved, was = getattr(later, name), getattr(recording, name)
        assert torch.equal(moved[0, :, :-12], was[0, :, 12:]), name
        assert torch.equal(moved[1], was[1]), name
    assert not bool(later.valid[0, :, -12:].any())
    assert not bool(later.light_observed[0, :, -12:].any())


def test_agents_are_dropped_whole_and_histories_up_to_now(recording):
    everyone = augment(recording, draws_of(recording), dataclasses.replace(NOTHING, agent_drop=1.0))
    assert not bool(everyone.valid.any())
    some = augment(recording, draws_of(recording), dataclasses.replace(NOTHING, agent_drop=0.5))
    kept = some.valid.any(-1)
    assert torch.equal(some.valid[kept], recording.valid[kept])
    assert 0 < int(kept.sum()) < int(recording.valid.any(-1).sum())
    hidden = augment(recording, draws_of(recording), dataclasses.replace(NOTHING, history_drop=1.0))
    assert not bool(hidden.valid[..., :CURRENT_INDEX].any())
    assert torch.equal(hidden.valid[..., CURRENT_INDEX:], recording.valid[..., CURRENT_INDEX:])


def test_an_agent_without_history_has_one_made_up_token(recording, model):
    hidden = augment(recording, draws_of(recording), dataclasses.replace(NOTHING, history_drop=1.0))
    inputs = recording_inputs(hidden, model.vocabulary)
    first = CURRENT_INDEX // model.vocabulary.token_steps
    assert not bool(inputs.tokens.valid[..., : first - 1].any())
    assert torch.equal(inputs.tokens.valid[..., first - 1], hidden.valid[..., CURRENT_INDEX])


def test_noise_strays_and_what_is_learnt_leads_back(recording, model):
    words = model.vocabulary
    exact = recording_inputs(recording, words)
    assert token_ranks(draws_of(recording), NOTHING) is None
    assert torch.equal(exact.target, exact.tokens.ids)
    config = dataclasses.replace(NOTHING, noise=0.5, noise_choices=4)
    draws = draws_of(recording)
    draws = dataclasses.replace(draws, token=draws.token[:, :, : exact.tokens.ids.shape[-1]])
    noisy = recording_inputs(recording, words, token_ranks(draws, config))
    valid, types = noisy.tokens.valid, noisy.agents.types.unsqueeze(-1).expand_as(noisy.target)
    assert bool((noisy.tokens.ids != noisy.target)[valid].any())
    reached = apply_token(words, noisy.tokens.poses[:, :, :-1], noisy.target, types)[..., -1, :2]
    executed = apply_token(words, noisy.tokens.poses[:, :, :-1], noisy.tokens.ids, types)[..., -1, :2]
    goal = noisy.recorded[:, :, 1:, :2]
    # The best of 40 random tokens: on the whole, not each, since boxes and not centres are compared.
    assert float((reached - goal).norm(dim=-1)[valid].mean()) < float((executed - goal).norm(dim=-1)[valid].mean())
    zero = recording_inputs(recording, words, torch.zeros_like(exact.tokens.ids))
    assert torch.equal(zero.tokens.ids, exact.tokens.ids)
    assert torch.equal(zero.target, exact.target)


def test_what_is_drawn_depends_on_seed_step_and_scene_alone():
    base = draw_for(0, 5, 2, 6, 45)
    assert torch.equal(base.token, draw_for(0, 5, 2, 6, 45).token)
    for other in (draw_for(1, 5, 2, 6, 45), draw_for(0, 6, 2, 6, 45), draw_for(0, 5, 3, 6, 45)):
        assert not torch.equal(base.scene, other.scene)


@pytest.mark.parametrize(
    "changes", [{"mirror": 1.5}, {"noise": -0.1}, {"time_shift": -1}, {"noise_choices": 0}, {"agent_drop": 2.0}]
)
def test_impossible_settings_are_refused(changes):
    with pytest.raises(UserError, match="augment"):
        AugmentationConfig(**changes)


def test_noise_draws_among_as_many_as_it_says_the_nearest_included(recording):
    ranks = token_ranks(draws_of(recording), dataclasses.replace(NOTHING, noise=1.0, noise_choices=4))
    assert ranks is not None
    assert ranks.unique().tolist() == [0, 1, 2, 3]
    some = token_ranks(draws_of(recording), dataclasses.replace(NOTHING, noise=0.25, noise_choices=4))
    assert some is not None
    assert float((some > 0).double().mean()) == pytest.approx(0.25 * 0.75, abs=0.05)


def test_noise_is_one_of_the_five_nearest_by_default(recording):
    ranks = token_ranks(draws_of(recording), AugmentationConfig(noise=1.0))
    assert ranks is not None
    assert ranks.unique().tolist() == [0, 1, 2, 3, 4]
