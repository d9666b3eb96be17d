"""Leave-one-out credit against scoring again without the rollout."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from submission.realism import COMPONENTS, Features, SceneContext, leave_one_out, load_config, prepare_scene
from submission.realism.config import Component, Histogram
from submission.realism.estimators import left_out
from submission.realism.features import compute_features
from submission.realism.score import INDICATORS, SceneScore, align, score_features
from tests.models.scenes import random_scene
from tests.submission.realism.branches import BRANCHES

CONFIG = load_config("2025")
TIMED = [name for name in COMPONENTS if name not in INDICATORS]


def rows(features: Features, index: list[int]) -> Features:
    """The features of some rollouts."""
    return Features(**{name: value[index] for name, value in vars(features).items()})


def scene_with_rollouts(name: str, seed: int, bug_compatible: bool = True) -> tuple[SceneContext, Features]:
    """A scene by name, or a random one, and the features of five disturbed futures."""
    scene, states = BRANCHES[name]() if name in BRANCHES else (random_scene(seed), None)
    context = prepare_scene(scene, bug_compatible)
    log = context.log[:, 11:].nan_to_num(0.0)
    states = (
        log.expand(5, *log.shape) if states is None else align(context, scene.agents.id[scene.simulated], states)
    )
    generator = torch.Generator().manual_seed(seed)
    sway = torch.randn(5, states.shape[1], 1, 4, generator=generator) * torch.tensor([3.0, 3.0, 0.1, 0.2])
    some = states[torch.arange(5) % len(states)]
    return context, compute_features(context, some + sway * torch.linspace(0, 1, 80).unsqueeze(-1))


def expected(context: SceneContext, features: Features, whole: SceneScore, rollout: int) -> Tensor:
    """Gains [F, E]: the likelihood where one agent's values are those of a score without the rollout."""
    others = [index for index in range(len(features.linear_speed)) if index != rollout]
    less = score_features(context, rows(features, others), CONFIG)
    gains = []
    for name in COMPONENTS:
        own, without = whole.agent_log_likelihood[name].double(), less.agent_log_likelihood[name].double()
        mean = (own.sum() - own + without) / whole.agent_samples[name].sum()
        gains.append(whole.values[f"{name}_likelihood"].double() - mean.exp())
    return torch.stack(gains)


@settings(max_examples=12)
@given(st.integers(0, 10_000), st.sampled_from(["random", "mixed_traffic", "lights", "invalid_steps", "alone"]))
def test_credit_is_what_is_lost_without_the_rollout(seed: int, name: str) -> None:
    context, features = scene_with_rollouts(name, seed)
    whole = score_features(context, features, CONFIG)
    gain = leave_one_out(context, whole, CONFIG, torch.tensor([0]))[..., 0]  # [F, R, E]
    for rollout in range(5):
        torch.testing.assert_close(
            gain[:, rollout].double(), expected(context, features, whole, rollout), atol=2e-6, rtol=1e-3
        )
        # Of all agents together: the score without the rollout itself.
        others = [index for index in range(5) if index != rollout]
        less = score_features(context, rows(features, others), CONFIG).values
        for row, component in zip(gain[:, rollout], COMPONENTS, strict=True):
            likelihood = whole.values[f"{component}_likelihood"]
            without = likelihood * torch.prod(1 - row / likelihood)
            assert float(without) == pytest.approx(float(less[f"{component}_likelihood"]), abs=2e-5), component


@settings(max_examples=8)
@given(st.integers(0, 10_000), st.sampled_from(["random", "mixed_traffic", "lights"]), st.integers(3, 79))
def test_later_credit_is_what_is_lost_without_the_later_values(seed: int, name: str, first: int) -> None:
    """The corrected metric ignores missing values, so it can be asked without them."""
    context, features = scene_with_rollouts(name, seed, bug_compatible=False)
    whole = score_features(context, features, CONFIG)
    gain = leave_one_out(context, whole, CONFIG, torch.tensor([first]))[..., 0]
    for rollout, agent in ((0, 0), (3, context.evaluated - 1)):
        changed = {}
        for component in TIMED:
            value = getattr(features, component).clone()
            value[rollout, agent, first - 2 :] = math.nan
            changed[component] = value
        less = score_features(context, dataclasses.replace(features, **changed), CONFIG)
        for component in TIMED:
            likelihood = whole.values[f"{component}_likelihood"] - less.values[f"{component}_likelihood"]
            found = float(gain[COMPONENTS.index(component), rollout, agent])
            assert found == pytest.approx(float(likelihood), abs=2e-6), component


def test_an_event_counts_until_it_has_happened() -> None:
    context, features = scene_with_rollouts("mixed_traffic", 3)
    log = context.log_features
    assert log is not None
    peaceful = dataclasses.replace(log, collision=torch.zeros_like(log.collision))
    context = dataclasses.replace(context, log_valid=torch.ones_like(context.log_valid), log_features=peaceful)
    collision = torch.zeros_like(features.collision)
    collision[1, 0, 40] = True
    whole = score_features(context, dataclasses.replace(features, collision=collision), CONFIG)
    first = torch.tensor([0, 20, 40, 43, 60])
    gain = leave_one_out(context, whole, CONFIG, first)[COMPONENTS.index("collision_indication")]
    assert bool((gain[1, 0, :3] < 0).all())
    assert torch.equal(gain[1, 0, 3:], torch.zeros(2))
    assert bool((gain[0, 0] > 0).all()), "who has not collided could still"
    assert torch.equal(gain[1, 0, :3], gain[1, 0, :1].expand(3))


def test_components_without_values_pay_nothing() -> None:
    context, features = scene_with_rollouts("mixed_traffic", 0)
    context = dataclasses.replace(context, is_vehicle=torch.zeros_like(context.is_vehicle))
    whole = score_features(context, features, CONFIG)
    assert bool(whole.values["time_to_collision_likelihood"].isnan())
    gain = leave_one_out(context, whole, CONFIG, torch.tensor([0, 30]))
    assert not bool(gain[COMPONENTS.index("time_to_collision")].any())
    assert bool(gain.isfinite().all())


def test_missing_values_are_counted_or_dropped() -> None:
    """By hand: bins of 2 from 0 to 10, pseudocount 0.1."""
    component = Component(Histogram(0.0, 10.0, 5, 0.1), 1.0, independent_timesteps=True)
    sim = torch.tensor([[[1.0, math.nan]], [[9.0, 3.0]]])
    log = torch.tensor([[0.5, 9.5]])
    counted, removed = torch.ones(1, 2, dtype=torch.bool), torch.ones(2, 1)

    def total(counts: list[int]) -> float:
        values = np.array(counts) + 0.1
        return float(np.log(values[0] / values.sum()) + np.log(values[4] / values.sum()))

    kept, dropped = (left_out(log, sim, component, counted, removed, drop_nan=drop) for drop in (False, True))
    assert kept.flatten().tolist() == pytest.approx(
        [total([0, 1, 0, 0, 1]) - total([1, 1, 0, 0, 2]), total([1, 0, 0, 0, 1]) - total([1, 1, 0, 0, 2])], abs=1e-5
    )
    assert dropped.flatten().tolist() == pytest.approx(
        [total([0, 1, 0, 0, 1]) - total([1, 1, 0, 0, 1]), total([1, 0, 0, 0, 0]) - total([1, 1, 0, 0, 1])], abs=1e-5
    )


@pytest.mark.parametrize("flags", [{"aggregate_objects": True, "independent_timesteps": True}, {}])
def test_pooled_agents_and_separate_steps_are_refused(flags: dict[str, bool]) -> None:
    component = Component(Histogram(0.0, 10.0, 5, 0.1), 1.0, **flags)
    with pytest.raises(ValueError, match="a distribution for each agent"):
        left_out(
            torch.zeros(1, 2),
            torch.zeros(2, 1, 2),
            component,
            torch.ones(1, 2, dtype=torch.bool),
            torch.ones(2, 1),
        )
