"""Autoregressive rollouts, with many futures of a scene on the batch axis.

The map is encoded once per scene, and the KV cache has a fixed size. Callers choose the tokens. Shape legend: B
scenes, R rollouts, A agents, K vocabulary size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from data.scene import CURRENT_INDEX
from data.tokenizer import MotionTokens, apply_token
from models.reference.inputs import AgentInputs, KnownLights
from models.reference.kv_cache import KVCache
from models.reference.map_encoder import MapEncoding
from models.reference.network import Reference, StepInput, TokenTables


class Unrolling:
    """Rollouts of one or more scenes, token by token; made by ``Engine.begin``.

    Attributes:
        pose: [B * R, A, 3] current poses, centred on the scene.
    """

    def __init__(
        self,
        model: Reference,
        decode: Callable[[int, AgentInputs, StepInput], Tensor],
        agents: AgentInputs,
        boundary: int,
        previous: Tensor,
        moved: Tensor,
        pose: Tensor,
    ) -> None:
        self._model, self._decode, self._agents, self._boundary = model, decode, agents, boundary
        self._previous, self._moved, self.pose = previous, moved, pose

    @property
    def types(self) -> Tensor:
        """[B * R, A] int64 from ``type_index``."""
        return self._agents.types

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Logits [B * R, A, K] of the next token of every agent; called once before each ``execute``."""
        step = StepInput(self.pose, self._previous, self._moved, self._agents.simulated)
        return self._decode(self._boundary, self._agents, step)

    @torch.no_grad()
    def execute(self, ids: Tensor, motion: Tensor | None = None) -> Tensor:
        """Move all agents by a token.

        Args:
            ids: [B * R, A] int64 tokens.
            motion: [B * R, A, token_steps, 3] executed motion if it differs from that of the tokens, for agents
                that something else drives; ``ids`` are then the nearest tokens.

        Returns:
            [B * R, A, token_steps, 3] the poses after each 0.1 s.
        """
        if motion is None:
            motion = apply_token(self._model.vocabulary, self.pose, ids, self._agents.types)
        self.pose = motion[..., -1, :].contiguous()
        self._previous, self._moved = ids, self._agents.simulated.clone()
        self._boundary += 1
        return motion


class Engine:
    """Rollouts of a reference with fixed weights.

    Args:
        compiled: compile the step of a rollout with torch.compile, once for all sizes of scenes.
    """

    def __init__(self, model: Reference, compiled: bool = False) -> None:
        self.model = model.eval()
        self._decode = (
            torch.compile(model.decode_step, fullgraph=True, dynamic=True) if compiled else model.decode_step
        )
        with torch.no_grad():
            self.tables: TokenTables = model.token_tables()

    @torch.no_grad()
    def begin(
        self,
        encoding: MapEncoding,
        agents: AgentInputs,
        history: MotionTokens,
        lights: KnownLights,
        rollouts: int,
    ) -> Unrolling:
        """Start rollouts at the current step.

        Args:
            encoding, agents, history, lights: of B scenes; history is read up to the current step, lights are
                those of every second.
            rollouts: R.
        """
        first = CURRENT_INDEX // self.model.vocabulary.token_steps
        sources = self.model.map_sources(encoding)
        cache = self._prefill(encoding, agents, history, lights, sources, first).repeat(rollouts)
        # The last token of the history, which ends at the current poses. Cloned, since compiled code has guards on
        # views and aliases.
        previous, moved, pose = (
            t.repeat_interleave(rollouts, 0).clone()
            for t in (history.ids[:, :, first - 1], history.valid[:, :, first - 1], history.poses[:, :, first])
        )
        decode = partial(self._step, self._decode, cache=cache, encoding=encoding, sources=sources, lights=lights)
        return Unrolling(self.model, decode, _repeat(agents, rollouts), first, previous, moved, pose)

    def _prefill(
        self,
        encoding: MapEncoding,
        agents: AgentInputs,
        history: MotionTokens,
        lights: KnownLights,
        sources: tuple[Tensor, ...],
        first: int,
    ) -> KVCache:
        """A cache of the boundaries before the current step."""
        rows, count = agents.types.shape
        cache = self.model.empty_cache(rows, count)
        none = torch.zeros_like(history.valid[:, :, 0])
        for boundary in range(first):
            previous = history.ids[:, :, boundary - 1] if boundary else none.long()
            moved = history.valid[:, :, boundary - 1] if boundary else none
            present = moved | history.valid[:, :, boundary]
            step = StepInput(history.poses[:, :, boundary], previous, moved, present)
            # Not compiled, since there are few steps of few rows.
            self._step(self.model.decode_step, boundary, agents, step, cache, encoding, sources, lights)
        return cache

    def _step(
        self,
        decode: Callable[..., Tensor],
        boundary: int,
        agents: AgentInputs,
        step: StepInput,
        cache: KVCache,
        encoding: MapEncoding,
        sources: tuple[Tensor, ...],
        lights: KnownLights,
    ) -> Tensor:
        """Logits [B * R, A, K] at the next boundary, by ``Reference.decode_step``, plain or compiled."""
        if boundary % self.model.block == 0:
            self.model.lookup_map(boundary, cache, encoding, sources, step)
        number = torch.full((1,), boundary, device=step.pose.device)
        second = _at_second(lights, boundary // self.model.block)
        return decode(number, cache, self.tables, agents, second, step)


def _at_second(lights: KnownLights, second: int) -> KnownLights:
    return KnownLights(lights.code[..., second : second + 1], lights.age[..., second : second + 1])


def _repeat(agents: AgentInputs, rollouts: int) -> AgentInputs:
    fields = (getattr(agents, field.name) for field in dataclasses.fields(agents))
    return AgentInputs(*(tensor.repeat_interleave(rollouts, dim=0) for tensor in fields))
