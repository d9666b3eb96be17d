"""A small vocabulary, a tiny reference with random weights, and worlds of random scenes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.vocabulary import Vocabulary
from models.policy import Policy, PolicyConfig
from models.reference.agent import ReferenceAgent
from pipeline.execution.manifest import Recipe, State, Work, begin, finish
from pipeline.simulator.observation import ObservationConfig, feature_sizes
from tests.models.reference.conftest import make_model

VIEW = ObservationConfig(neighbours=4, road_segments=12)


@pytest.fixture(scope="session")
def reference() -> ReferenceAgent:
    return ReferenceAgent(make_model(2))


@pytest.fixture(scope="session")
def vocabulary(reference) -> Vocabulary:
    return reference.vocabulary


def make_policy(vocabulary: Vocabulary, view: ObservationConfig = VIEW, gain: float = 3.0) -> Policy:
    """A policy with decided opinions."""
    torch.manual_seed(5)
    policy = Policy(PolicyConfig(dropout=0.0), feature_sizes(view), vocabulary.ends)
    with torch.no_grad():
        policy.actor.weight.normal_(std=gain / 10)
    return policy.eval()


@pytest.fixture(scope="session")
def policy(vocabulary) -> Policy:
    return make_policy(vocabulary)


def finish_stages(run: Path, *stages: str) -> None:
    """Have stages of a made-up run count as done, as the runner does."""
    for stage in stages:
        recipe = Recipe(config={"stage": stage}, seed=0, code="0" * 16, inputs={})
        work = Work(run / stage, stage, run / "replaced" / stage)
        begin(work, recipe, State("interrupted, going on"))
        finish(work, recipe, {}, seconds=1.5, peak_memory_mb=200.0)


@pytest.fixture
def forget_compilations() -> None:
    """Compilations of one test must not count for the limits of another."""
    torch._dynamo.reset()
