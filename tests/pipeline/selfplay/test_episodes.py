"""What an episode holds, what is learnt from, and that padding is not part of either."""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import partial

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from models.policy import Policy, PolicyConfig
from pipeline.selfplay.anchor import Anchor
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.episode import Driven, Episode, Scorer, collect
from pipeline.selfplay.judges import score_all
from pipeline.selfplay.observation import feature_sizes
from pipeline.selfplay.ppo import update
from pipeline.selfplay.reward import RewardConfig
from pipeline.selfplay.worlds import build_world, stack_worlds
from tests.models.scenes import random_scene
from tests.pipeline.selfplay.conftest import VIEW
from tests.pipeline.selfplay.test_observation import garbage
from tests.scenes import Mover, hand_made

PLAIN = PPOConfig(minibatch=256, beta=0.0)


def collected(policy, vocabulary, world, config: PPOConfig = PLAIN, score: Scorer | None = None) -> Episode:
    uniform = torch.rand(42, *world.types.shape, generator=torch.Generator().manual_seed(9))
    return collect(policy, world, vocabulary, score, config, RewardConfig(), VIEW, uniform)


@pytest.mark.parametrize("value", [5.0, math.nan])
def test_garbage_in_padding_changes_no_episode_and_no_loss(policy, vocabulary, value: float) -> None:
    scenes = [random_scene(0), random_scene(1, agents=2), random_scene(2, agents=4)]
    batch = stack_worlds([build_world(scene, vocabulary, VIEW.road_segments) for scene in scenes])
    clean = collected(policy, vocabulary, batch)
    dirty = collected(policy, vocabulary, garbage(batch, value))
    assert clean.transitions == 40 * (6 + 2 + 4)
    for name, total in clean.sums.items():
        assert torch.equal(total, dirty.sums[name]), name
    for name, tensor in vars(clean.observation).items():
        assert torch.equal(tensor, getattr(dirty.observation, name)), name
    for name in ("action", "log_prob", "value", "reward"):
        assert torch.equal(getattr(clean, name), getattr(dirty, name)), name


@pytest.mark.parametrize("vehicles_only", [False, True])
def test_garbage_in_padding_changes_no_anchored_loss(policy, vocabulary, reference, vehicles_only: bool) -> None:
    """Numbers, token ids, types and flags of empty slots: not what the reference says, not a step of learning."""
    scenes = [random_scene(0), random_scene(1, agents=2), random_scene(2, agents=4)]
    batch = stack_worlds([build_world(scene, vocabulary, VIEW.road_segments) for scene in scenes])
    empty = ~batch.exists
    assert int(empty.sum()) == 6
    generator = torch.Generator().manual_seed(11)

    def spoilt(tensor: Tensor, most: int) -> Tensor:
        other = torch.randint(most, tensor.shape, generator=generator).to(tensor.dtype)
        return torch.where(empty.view(*empty.shape, *(1,) * (tensor.dim() - 2)), other, tensor)

    dirty = dataclasses.replace(
        garbage(batch, 7.0),
        types=spoilt(batch.types, 3),
        moves=spoilt(batch.moves, 2),
        history_ids=spoilt(batch.history_ids, vocabulary.size),
        history_valid=spoilt(batch.history_valid, 2),
        log_valid=spoilt(batch.log_valid, 2),
    )
    assert not torch.equal(dirty.history_ids, batch.history_ids)
    config = PPOConfig(minibatch=128, epochs=2, beta=0.5, alpha=0.01, vehicles_only=vehicles_only)
    found = []
    for world in (batch, dirty):
        score = partial(score_all, Anchor(reference, scenes.__getitem__), range(3), world)
        episode = collected(policy, vocabulary, world, config, score)
        student = copy.deepcopy(policy).train()
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
        fabric = Fabric(accelerator="cpu", devices=1)
        torch.manual_seed(0)
        figures = update(fabric, student, optimizer, episode, config, torch.Generator().manual_seed(0))
        found.append((episode, figures, student.state_dict()))
    (clean, figures, weights), (other, same, moved) = found
    assert clean.covered.any()
    assert figures["kl"] > 0
    assert torch.equal(clean.reward, other.reward)
    assert clean.reference is not None
    assert other.reference is not None
    assert torch.equal(clean.reference, other.reference)
    assert figures == same
    for name, weight in weights.items():
        assert torch.equal(weight, moved[name]), name
    # And there was a step.
    assert any(not torch.equal(weight, policy.state_dict()[name]) for name, weight in weights.items())


def test_an_episode_is_made_of_its_decisions(policy, vocabulary) -> None:
    """Log-probabilities are those of the policy, and the reward of the reference is alpha times its own."""
    batch = stack_worlds([build_world(random_scene(seed), vocabulary, VIEW.road_segments) for seed in (0, 3)])
    fixed = torch.randn(vocabulary.size, generator=torch.Generator().manual_seed(1)).mul(9).log_softmax(-1)
    calls = []

    def score(driven: Driven) -> Tensor:
        calls.append((driven.tokens.shape, driven.poses.shape, driven.present.shape))
        return fixed.expand(driven.tokens.shape[-1], len(driven.who[0]), -1)

    plain = collected(policy, vocabulary, batch, PLAIN, score)
    paid = collected(policy, vocabulary, batch, dataclasses.replace(PLAIN, alpha=0.1), score)
    assert calls[0] == ((2, 6, 40), (2, 6, 41, 3), (2, 6, 41))
    with torch.no_grad():
        logits, value = policy(*(vars(plain.observation)[name] for name in vars(plain.observation)))
    log_prob = logits.log_softmax(-1).gather(-1, plain.action.flatten()[:, None]).view_as(plain.action)
    torch.testing.assert_close(plain.log_prob, log_prob, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.value[:-1].flatten(), value, atol=1e-5, rtol=0)
    assert torch.equal(paid.action, plain.action)
    expected = 0.1 * fixed[plain.action].clamp(min=-20.0)
    torch.testing.assert_close(paid.reward - plain.reward, expected, atol=1e-5, rtol=0)
    assert plain.covered.all()


def test_parked_agents_are_driven_but_not_all_learnt_from(policy, vocabulary) -> None:
    scene = hand_made([Mover(speed=4.0), Mover(x=30.0), Mover(x=60.0), Mover(x=90.0, speed=3.0), Mover(x=120.0)])
    batch = stack_worlds([build_world(scene, vocabulary, VIEW.road_segments)] * 30)
    whole = collected(policy, vocabulary, batch)
    part = collected(policy, vocabulary, batch, dataclasses.replace(PLAIN, parked_share=0.4))
    assert whole.agent_steps == part.agent_steps == whole.transitions == 40 * 150
    assert 40 * (60 + 22) < part.transitions < 40 * (60 + 50)
    none = collected(policy, vocabulary, batch, dataclasses.replace(PLAIN, parked_share=0.0))
    moving = batch.moves[batch.exists].nonzero().flatten()
    assert torch.equal(none.action, whole.action[:, moving])
    assert torch.equal(none.value, whole.value[:, moving])
    rows = (torch.arange(40)[:, None] * 150 + moving).flatten()
    assert torch.equal(none.observation.ego, whole.observation.ego[rows])
    for name, total in whole.sums.items():
        assert torch.equal(total, none.sums[name]), name


def test_every_transition_is_used_once_an_epoch(policy, vocabulary) -> None:
    batch = build_world(random_scene(0), vocabulary, VIEW.road_segments)
    episode = collected(policy, vocabulary, batch)
    sizes = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = Policy(PolicyConfig(dropout=0.0), feature_sizes(VIEW), vocabulary.ends)

        def forward(self, *seen: Tensor) -> tuple[Tensor, Tensor]:
            sizes.append(len(seen[0]))
            result: tuple[Tensor, Tensor] = self.net(*seen)
            return result

    spy = Spy()
    config = PPOConfig(minibatch=100, epochs=3, beta=0.0)
    figures = update(
        Fabric(accelerator="cpu", devices=1),
        spy,
        torch.optim.Adam(spy.parameters()),
        episode,
        config,
        torch.Generator().manual_seed(0),
    )
    assert sizes == [120, 120] * 3
    assert all(math.isfinite(value) for value in figures.values())
