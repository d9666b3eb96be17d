"""Compiled observation and step compute what the plain ones do, once compiled for all sizes."""

from __future__ import annotations

import pytest
import torch

from pipeline.selfplay.simulator import places, reset
from pipeline.selfplay.stepping import Stepper
from pipeline.selfplay.worlds import build_world, stack_worlds
from tests.models.scenes import random_scene
from tests.pipeline.selfplay.conftest import VIEW


@pytest.mark.usefixtures("forget_compilations")
def test_compiled_equals_plain(vocabulary) -> None:
    plain, fused = (Stepper(vocabulary, VIEW, compiled=compiled) for compiled in (False, True))
    generator = torch.Generator().manual_seed(0)
    for seeds in ((0, 1, 2), (3, 4)):
        world = stack_worlds([build_world(random_scene(seed), vocabulary, VIEW.road_segments) for seed in seeds])
        who, drivers = places(world.exists), places(world.exists & (world.types == 0))
        state = reset(world, torch.zeros_like(world.exists))
        for _ in range(6):
            one, two = (stepper.observe(world, state, who) for stepper in (plain, fused))
            for name in ("ego", "neighbour", "neighbour_seen", "type", "motion"):
                torch.testing.assert_close(getattr(one, name), getattr(two, name), atol=1e-4, rtol=1e-4)
            # The order of the road is nobody's business.
            torch.testing.assert_close(one.road.sum(1), two.road.sum(1), atol=1e-3, rtol=1e-3)
            tokens = torch.randint(vocabulary.size, world.types.shape, generator=generator)
            before = state
            state, motion, events = plain.step(world, before, tokens, world.exists, who, drivers)
            other, moved, happened = fused.step(world, before, tokens, world.exists, who, drivers)
            torch.testing.assert_close(state.pose, other.pose, atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(motion.pose, moved.pose, atol=1e-4, rtol=1e-5)
            for name, flag in vars(events).items():
                assert torch.equal(flag, getattr(happened, name)), name
