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
from pipeline.simulator.step import State, places, reset
from pipeline.simulator.stepping import Stepper
from pipeline.simulator.world import World, build_world, stack_worlds
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW

pytestmark = pytest.mark.usefixtures("forget_compilations")


def driven(vocabulary: Vocabulary) -> Iterator[tuple[World, State, Tensor]]:
    """Worlds of two sizes on their way, and the tokens [W, A] that take them on."""
    plain, generator = Stepper(vocabulary, VIEW), torch.Generator().manual_seed(0)
    for seeds in ((0, 1, 2), (3, 4)):
        world = stack_worlds([build_world(random_scene(seed), vocabulary, VIEW.road_segments) for seed in seeds])
        state = reset(world, torch.zeros_like(world.exists))
        for _ in range(6):
            tokens = torch.randint(vocabulary.size, world.types.shape, generator=generator)
            yield world, state, tokens
            state, _, _ = plain.step(world, state, tokens, world.exists, *who_and_drivers(world))


def who_and_drivers(world: World) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    return places(world.exists), places(world.exists & (world.types == 0))


def graphs() -> int:
    """How many were compiled up to now."""
    return int(counters["stats"]["unique_graphs"])


def test_compiled_observation_equals_plain(vocabulary: Vocabulary) -> None:
    plain, fused = (Stepper(vocabulary, VIEW, compiled=compiled) for compiled in (False, True))
    made = []
    for world, state, _ in driven(vocabulary):
        one, two = (stepper.observe(world, state, places(world.exists)) for stepper in (plain, fused))
        for name in ("ego", "neighbour", "neighbour_seen", "type", "motion"):
            torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=1e-4, rtol=1e-4)
        # The order of the road is nobody's business.
        torch.testing.assert_close(one.road.sum(1), two.road.sum(1), atol=1e-3, rtol=1e-3)
        made.append(graphs())
    assert 0 < made[5] == made[-1], "nothing is compiled anew for worlds of another size"


def test_compiled_step_equals_plain(vocabulary: Vocabulary) -> None:
    plain, fused = (Stepper(vocabulary, VIEW, compiled=compiled) for compiled in (False, True))
    made = []
    for world, before, tokens in driven(vocabulary):
        state, motion, events = plain.step(world, before, tokens, world.exists, *who_and_drivers(world))
        other, moved, happened = fused.step(world, before, tokens, world.exists, *who_and_drivers(world))
        torch.testing.assert_close(state.pose, other.pose, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(motion.pose, moved.pose, atol=1e-4, rtol=1e-5)
        for name, flag in vars(events).items():
            # Nobody here is within rounding of another's box, of an edge, a line or a goal.
            assert torch.equal(flag, getattr(happened, name)), name
        made.append(graphs())
    assert 0 < made[5] == made[-1], "nothing is compiled anew for worlds of another size"
