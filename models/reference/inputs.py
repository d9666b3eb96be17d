"""Inputs of the reference: a batch of scenes as tensors, centred on each scene.

Shape legend: B scenes, A agents, N tokens, S lights, L blocks of a second, K vocabulary size. Boundary n is the
step n * token_steps, before token n; there the model predicts token n.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from data.map_pieces import MapPieces
from data.scene import CURRENT_INDEX, STEP_SECONDS, Scene, map_tensors
from data.tokenizer import MotionTokens
from data.vocabulary import type_index

PartT = TypeVar("PartT")


@dataclass(frozen=True)
class KnownLights:
    """Known lights at the start of each second; the challenge hides those after the current step."""

    code: Tensor  # [B, S, L] int64: 0 never observed, else LightState + 1 as last observed
    age: Tensor  # [B, S, L] float32 seconds since that observation


@dataclass(frozen=True)
class AgentInputs:
    """Constant features of agents."""

    types: Tensor  # [B, A] int64 from type_index
    size: Tensor  # [B, A, 3] float32 length, width, height at the current step, metres
    simulated: Tensor  # [B, A] bool: valid at the current step; others are masked


@dataclass(frozen=True)
class SceneInputs:
    """A batch for training."""

    pieces: MapPieces
    lights: KnownLights
    agents: AgentInputs
    tokens: MotionTokens  # [B, A, N] and [B, A, N + 1, ...], valid only for simulated agents
    recorded: Tensor  # [B, A, N + 1, 3] poses at the boundaries as recorded (see tokens.pose_valid)
    target: Tensor  # [B, A, N] int64 the token that ends nearest to the recording, from the pose of the tokens
    learnt: Tensor  # [B, A] bool agents with a loss; others are context

    def pin_memory(self) -> SceneInputs:
        """In page-locked memory; torch's loaders call this."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


def known_lights(state: Tensor, observed: Tensor, seconds: int) -> KnownLights:
    """Light states by second, without those after the current step, which the challenge hides.

    A light keeps its last state observed up to the current step, with increasing age. Training uses the same.

    Args:
        state: [B, S, T] int64 LightState. observed: [B, S, T] bool.
        seconds: L; the second of them begins at the current step.
    """
    observed, state = observed[..., : CURRENT_INDEX + 1], state[..., : CURRENT_INDEX + 1]
    step = torch.arange(CURRENT_INDEX + 1, device=state.device)
    last = torch.where(observed, step, -1).cummax(-1).values  # [B, S, 11]
    begin = torch.arange(seconds, device=state.device) * CURRENT_INDEX
    last = last[..., begin.clamp(max=CURRENT_INDEX)]  # [B, S, L]
    code = torch.where(last >= 0, state.gather(-1, last.clamp(min=0)) + 1, 0)
    return KnownLights(code, torch.where(last >= 0, (begin - last) * STEP_SECONDS, 0.0))


def agent_inputs(scene: Scene) -> AgentInputs:
    return AgentInputs(
        types=type_index(scene.agents.type),
        size=scene.agents.size[..., CURRENT_INDEX, :],
        simulated=scene.simulated,
    )


def collate_inputs(parts: Sequence[PartT]) -> PartT:
    """Concatenate dataclasses of tensors [B_i, n_i, ...] along B, padded to the largest n."""
    joined: dict[str, Any] = {}
    first: Any = parts[0]
    for field in dataclasses.fields(first):
        values = [getattr(part, field.name) for part in parts]
        if dataclasses.is_dataclass(values[0]):
            joined[field.name] = collate_inputs(values)
            continue
        longest = max(value.shape[1] for value in values)
        fill = -1 if field.name == "light" else 0
        padded = [v.new_full((len(v), longest, *v.shape[2:]), fill) for v in values]
        for target, value in zip(padded, values, strict=True):
            target[:, : value.shape[1]] = value
        joined[field.name] = torch.cat(padded)
    result: PartT = type(first)(**joined)
    return result


def keep_agents(scene: Scene, count: int, until: int = CURRENT_INDEX) -> Scene:
    """A single scene with at most ``count`` agents, in the same order.

    Evaluated agents come first, then those that come nearest to the AV between the current step and ``until``.
    Agents that are not valid in this span are dropped.
    """
    agents, time = scene.agents, slice(CURRENT_INDEX, until + 1)
    position, valid = agents.position[:, time, :2], agents.valid[:, time]
    distance = (position - position[agents.is_sdc].mean(0)).norm(dim=-1).nan_to_num(0.0)
    distance = distance.masked_fill(~valid, torch.inf).amin(-1)
    exists = valid.any(-1)
    rank = torch.where(scene.evaluated & exists, -1.0, distance)
    kept = torch.argsort(rank, stable=True)[: min(count, int(exists.sum()))].sort().values
    return select_agents(scene, kept)


def select_agents(scene: Scene, index: Tensor) -> Scene:
    """A single scene with the agents at ``index``."""
    parts = {name: tensor[index] for name, tensor in vars(scene.agents).items()}
    return Scene(scene.scenario_id, scene.timestamp, type(scene.agents)(**parts), scene.map, scene.lights)
