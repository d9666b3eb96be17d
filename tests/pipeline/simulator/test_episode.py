"""Compiled observation and step compute what the plain ones do, once compiled for all sizes.

A test each, since what takes the time is compiling.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from data.vocabulary import Vocabulary
from pipeline.simulator.episode import Simulator
from pipeline.simulator.world import build_world, stack_worlds
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW

pytestmark = pytest.mark.usefixtures("forget_compilations")


def both_on_the_way(vocabulary: Vocabulary) -> Iterator[tuple[Simulator, Simulator, Tensor]]:
    """A plain and a compiled simulator in the same state, in worlds of two sizes, and the next tokens [W, A]."""
    plain, fused = (Simulator(vocabulary, VIEW, compiled=compiled) for compiled in (False, True))
    generator = torch.Generator().manual_seed(0)
    # Not two or three: as many worlds as coordinates are compiled separately.
    for seeds in ((0, 1, 2, 3), (4, 5, 6, 7, 8)):
        world = stack_worlds([build_world(random_scene(seed), vocabulary, VIEW.road_segments) for seed in seeds])
        for simulator in (plain, fused):
            simulator.reset(world, world.exists, torch.zeros_like(world.exists))
        for _ in range(6):
            tokens = torch.randint(vocabulary.size, world.types.shape, generator=generator)
            before = plain.state
            fused.state = before
            yield plain, fused, tokens
            if plain.state is before:
                plain.step(tokens)


def test_compiled_observation_equals_plain(vocabulary: Vocabulary) -> None:
    compiled = []
    for plain, fused, _ in both_on_the_way(vocabulary):
        one, two = plain.observe(), fused.observe()
        for name in ("ego", "neighbour", "neighbour_seen", "type", "motion"):
            torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=1e-4, rtol=1e-4)
        # The order of the road is nobody's business.
        torch.testing.assert_close(one.road.sum(1), two.road.sum(1), atol=1e-3, rtol=1e-3)
        compiled.append(counters["stats"]["unique_graphs"])
    assert 0 < compiled[5] == compiled[-1], "nothing is compiled again for worlds of another size"


def test_compiled_step_equals_plain(vocabulary: Vocabulary) -> None:
    for plain, fused, tokens in both_on_the_way(vocabulary):
        rewards, events = plain.step(tokens)
        others, happened = fused.step(tokens)
        assert plain.motion is not None
        assert fused.motion is not None
        torch.testing.assert_close(plain.state.pose, fused.state.pose, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(plain.motion.pose, fused.motion.pose, atol=1e-4, rtol=1e-5)
        for name, flag in vars(events).items():
            # Nobody here is within rounding of another's box, of an edge, a line or a goal.
            assert torch.equal(flag, getattr(happened, name)), name
        for name, term in rewards.items():
            assert torch.equal(term, others[name]), name
