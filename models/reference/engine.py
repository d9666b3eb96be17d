"""Autoregressive rollouts, with many futures of a scene on the batch axis.

The map is encoded once per scene, and the KV cache has a fixed size. The choice of tokens is a parameter: sampling
for ``sample``, the token nearest to the log for closed-loop fine-tuning. Shape legend: B scenes, R rollouts, A
agents, M new tokens, K vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from data.scene import CURRENT_INDEX, map_tensors
from data.tokenizer import MotionTokens, apply_token
from models.reference.inputs import AgentInputs, KnownLights
from models.reference.kv_cache import KVCache
from models.reference.map_encoder import MapEncoding
from models.reference.network import Reference, StepInput, TokenTables
from models.sampling import SamplingConfig, draw

# (index of the new token, logits [B * R, A, K], poses [B * R, A, 3]) to ids [B * R, A].
Chooser = Callable[[int, Tensor, Tensor], Tensor]


class Sampler:
    """Draws tokens with given uniform numbers, the only randomness of a rollout.

    Args:
        uniform: [B * R, M, A] in [0, 1). types: [B * R, A] of the agents.
    """

    def __init__(self, uniform: Tensor, types: Tensor, config: SamplingConfig) -> None:
        self.uniform, self.types, self.config = uniform, types, config

    def __call__(self, step: int, logits: Tensor, pose: Tensor) -> Tensor:
        return draw(logits, self.uniform[:, step], self.types, self.config)


@dataclass(frozen=True)
class Rollout:
    """New tokens and their motion."""

    ids: Tensor  # [B, R, A, M] int64
    poses: Tensor  # [B, R, A, M, token_steps, 3] after each 0.1 s, centred on the scene

    def executed(self, agents: AgentInputs, history: MotionTokens) -> MotionTokens:
        """The history and the new tokens of every rollout, [B * R, A, N], for a teacher-forced pass."""
        rollouts, count = self.ids.shape[1], self.ids.shape[-1]
        first = history.ids.shape[-1] - count
        past = map_tensors(history, lambda tensor: tensor.repeat_interleave(rollouts, 0))
        simulated = agents.simulated.repeat_interleave(rollouts, 0).unsqueeze(-1).expand(-1, -1, count)
        return MotionTokens(
            ids=torch.cat((past.ids[..., :first], self.ids.flatten(0, 1)), dim=-1),
            valid=torch.cat((past.valid[..., :first], simulated), dim=-1),
            poses=torch.cat((past.poses[:, :, : first + 1], self.poses[..., -1, :].flatten(0, 1)), dim=2),
            pose_valid=torch.cat((past.pose_valid[..., : first + 1], simulated), dim=-1),
        )


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
    def rollout(
        self,
        encoding: MapEncoding,
        agents: AgentInputs,
        history: MotionTokens,
        lights: KnownLights,
        rollouts: int,
        tokens: int,
        choose: Chooser,
    ) -> Rollout:
        """Move every simulated agent by ``tokens`` tokens from the current step.

        Args:
            encoding, agents, history, lights: of B scenes; history is read up to the current step, lights are
                those of every second.
            choose: see ``Chooser``.
        """
        unrolling = self.begin(encoding, agents, history, lights, rollouts)
        ids, poses = [], []
        for step in range(tokens):
            token = choose(step, unrolling.logits(), unrolling.pose)
            ids.append(token)
            poses.append(unrolling.execute(token))
        scenes = len(encoding.origin)
        return Rollout(
            torch.stack(ids, dim=-1).unflatten(0, (scenes, rollouts)),
            torch.stack(poses, dim=2).unflatten(0, (scenes, rollouts)),
        )

    @torch.no_grad()
    def begin(
        self,
        encoding: MapEncoding,
        agents: AgentInputs,
        history: MotionTokens,
        lights: KnownLights,
        rollouts: int,
    ) -> Unrolling:
        """Rollouts token by token, for callers that decide some tokens; arguments as ``rollout``."""
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
        return Unrolling(self.model, decode, repeat_agents(agents, rollouts), first, previous, moved, pose)

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


def repeat_agents(agents: AgentInputs, rollouts: int) -> AgentInputs:
    """Agents of the rollouts of each scene, in consecutive rows."""
    return map_tensors(agents, lambda tensor: tensor.repeat_interleave(rollouts, 0))
