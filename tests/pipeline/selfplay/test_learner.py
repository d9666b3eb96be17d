"""Gradient steps: one graph of compiled code, bfloat16, gradients in one tensor, states that go on."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor

from data.errors import UserError
from models.policy import Policy
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.learner import Learner
from pipeline.selfplay.rollout import Rollout, act, collect
from pipeline.simulator.episode import Simulator
from pipeline.simulator.world import build_world
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW

CONFIG = PPOConfig(minibatch=120, epochs=2, beta=0.3)


@pytest.fixture
def rollout(policy, vocabulary) -> Rollout:
    world = build_world(random_scene(0), vocabulary, VIEW.road_segments)
    generator = torch.Generator().manual_seed(0)
    log_reference = torch.randn(vocabulary.size, generator=generator).log_softmax(-1)
    uniform = torch.rand(42, *world.types.shape, generator=generator)

    def score(driven) -> Tensor:
        return log_reference.expand(40, len(driven.agent_index[0]), -1)

    return collect(policy, Simulator(vocabulary, VIEW), world, score, CONFIG, uniform)


def learner_of(policy: Policy, precision: str = "32-true", compiled: bool = False) -> Learner:
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)  # type: ignore[arg-type]
    return Learner(fabric, copy.deepcopy(policy).train(), CONFIG, compiled)


def test_every_weight_has_a_gradient_in_the_one_tensor(policy, rollout) -> None:
    learner = learner_of(policy)
    learner.update(rollout, torch.Generator().manual_seed(0))
    begin = 0
    for name, parameter in learner.policy.named_parameters():
        part = learner._flat[begin : begin + parameter.numel()]
        assert parameter.grad is not None
        assert parameter.grad.data_ptr() == part.data_ptr(), name
        assert bool((part != 0).any()), name
        begin += parameter.numel()
    assert begin == len(learner._flat)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_compiled_net_is_one_graph_for_all_sizes(policy, rollout, precision, monkeypatch) -> None:
    """Without code generation, which is the compiler's affair; a break of the graph would raise."""
    compiled = functools.partial(torch.compile, backend="aot_eager")
    monkeypatch.setattr(torch, "compile", compiled)
    one = learner_of(policy, precision, compiled=True)
    one._net = one.actor  # as on a GPU
    figures = one.update(rollout, torch.Generator().manual_seed(0))
    assert figures["kl"] > 0
    weights = [parameter.detach().clone() for parameter in one.policy.parameters()]
    moved = [float((a - b.detach()).abs().max()) for a, b in zip(weights, policy.parameters(), strict=True)]
    assert all(change > 0 for change in moved)


def test_logits_and_values_are_of_full_precision_in_bfloat16(policy, rollout) -> None:
    exact, rounded = learner_of(policy), learner_of(policy, "bf16-mixed")
    assert rounded.in_bfloat16
    assert not exact.in_bfloat16
    for learner in (exact, rounded):
        learner.policy.eval()
    with torch.no_grad():
        logits, values = act(exact.actor, rollout.observations)
        others, guesses = act(rounded.actor, rollout.observations)
    # bfloat16 has 8 bits: logits of it would be multiples of their size over 256.
    assert others.dtype == torch.float32
    assert not torch.equal(others, others.bfloat16().float())
    assert not torch.equal(guesses, guesses.bfloat16().float())
    torch.testing.assert_close(others, logits, atol=0.05, rtol=0.05)
    torch.testing.assert_close(guesses, values, atol=0.05, rtol=0.05)


def test_a_saved_state_goes_on(policy, rollout) -> None:
    whole = learner_of(policy)
    whole.update(rollout, torch.Generator().manual_seed(0))
    other = Learner(whole.fabric, copy.deepcopy(whole.policy), CONFIG)
    other.load_state_dict(copy.deepcopy(whole.optimizer.state_dict()))
    for learner in (whole, other):
        torch.manual_seed(1)
        learner.update(rollout, torch.Generator().manual_seed(1), progress=0.5)
    for name, weight in whole.policy.state_dict().items():
        assert torch.equal(weight, other.policy.state_dict()[name]), name


def test_a_gradient_that_is_not_finite_is_an_error(policy, rollout) -> None:
    learner = learner_of(policy)
    rollout.rewards[3, 2] = torch.nan
    with pytest.raises(UserError, match="not finite"):
        learner.update(rollout, torch.Generator().manual_seed(0))
