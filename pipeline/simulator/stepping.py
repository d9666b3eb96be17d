"""One decision of all worlds as two functions, plain or fused by torch.compile: what is seen, and what happens."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from data.vocabulary import Vocabulary
from pipeline.simulator.events import Events, find_events
from pipeline.simulator.observation import Observation, ObservationConfig, observe
from pipeline.simulator.reward import note_events
from pipeline.simulator.step import Motion, State, step
from pipeline.simulator.world import World

__all__ = ["Stepper"]


def _advance(
    world: World,
    state: State,
    tokens: Tensor,
    controlled: Tensor,
    who: tuple[Tensor, Tensor],
    drivers: tuple[Tensor, Tensor],
    vocabulary: Vocabulary,
    box_scale: float,
) -> tuple[State, Motion, Events]:
    state, motion = step(world, state, tokens, controlled, vocabulary)
    events = find_events(world, state, motion, box_scale, who, drivers)
    return note_events(state, events), motion, events


class Stepper:
    """Observes and steps.

    Args:
        vocabulary: of the tokens. view: what agents see.
        compiled: one compilation serves all decisions and all numbers of worlds and agents.
    """

    def __init__(self, vocabulary: Vocabulary, view: ObservationConfig, compiled: bool = False) -> None:
        self._observe: Any = partial(observe, config=view)
        self._advance: Any = partial(_advance, vocabulary=vocabulary, box_scale=view.box_scale)
        if compiled:
            # Indices come from the world's own tables, and tokens from the vocabulary: looking at each of them
            # again takes a seventh of the time.
            unchecked: dict[str, Any] = {"assert_indirect_indexing": False}
            self._observe = torch.compile(self._observe, fullgraph=True, dynamic=True, options=unchecked)
            self._advance = torch.compile(self._advance, fullgraph=True, dynamic=True, options=unchecked)

    def observe(self, world: World, state: State, who: tuple[Tensor, Tensor]) -> Observation:
        """What agents see; see ``observe``."""
        seen: Observation = self._observe(world, state, who)
        return seen

    def step(
        self,
        world: World,
        state: State,
        tokens: Tensor,
        controlled: Tensor,
        who: tuple[Tensor, Tensor],
        drivers: tuple[Tensor, Tensor],
    ) -> tuple[State, Motion, Events]:
        """The state behind a decision, its events noted; the motion; the events (``step``, ``find_events``)."""
        result: tuple[State, Motion, Events] = self._advance(world, state, tokens, controlled, who, drivers)
        return result
