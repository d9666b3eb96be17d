"""What the reference reads of scenes before it is tokenised: light enough to keep in memory, and batched.

Augmentation works on this, and tokenising follows it, both on the device of the batch. Shape legend: B scenes, A
agents, T steps, S lights, M pieces, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.map_pieces import MapPieces, cut_map
from data.scene import CURRENT_INDEX, Scene
from data.tokenizer import MotionTokens, extend_back, scene_origin, tokenize_noisy
from data.vocabulary import Vocabulary, type_index
from models.reference.inputs import AgentInputs, SceneInputs, known_lights

__all__ = ["Recording", "recording_inputs", "recording_of", "scene_inputs"]

# CAT-K learns from agents with a role, and from those this near to the AV that have this much of a future.
_LEARNT_RADIUS = 100.0
_LEARNT_STEPS = 5


@dataclass(frozen=True)
class Recording:
    """Recorded motion, map and lights of a batch of scenes, centred on each."""

    pieces: MapPieces
    light_state: Tensor  # [B, S, T] int64 LightState
    light_observed: Tensor  # [B, S, T] bool
    pose: Tensor  # [B, A, T, 3] float32 x, y, heading
    velocity: Tensor  # [B, A, T, 2] float32 m/s
    valid: Tensor  # [B, A, T] bool
    types: Tensor  # [B, A] int64 from type_index
    size: Tensor  # [B, A, 3] float32 at the current step, metres
    learnt: Tensor  # [B, A] bool, see ``SceneInputs``


def recording_of(scene: Scene) -> Recording:
    """What a batch of scenes holds for the reference."""
    agents, origin = scene.agents, scene_origin(scene)
    position = agents.position[..., :2] - origin[:, None, None]
    now = agents.position[:, :, CURRENT_INDEX, :2]
    # Where no AV is known, all are near.
    apart = (now.unsqueeze(2) - now.unsqueeze(1)).norm(dim=-1).masked_fill(~agents.is_sdc.unsqueeze(1), torch.inf)
    near = (apart.amin(-1) <= _LEARNT_RADIUS) | ~agents.is_sdc.any(-1, keepdim=True)
    lasting = agents.valid[..., CURRENT_INDEX + 1 :].sum(-1) >= _LEARNT_STEPS
    return Recording(
        pieces=cut_map(scene, origin),
        light_state=scene.lights.state,
        light_observed=scene.lights.observed,
        pose=torch.cat((position, agents.heading.unsqueeze(-1)), dim=-1),
        velocity=agents.velocity,
        valid=agents.valid,
        types=type_index(agents.type),
        size=_size(scene),
        learnt=agents.is_sdc | agents.to_predict | agents.of_interest | (near & lasting),
    )


def _size(scene: Scene) -> Tensor:
    """[B, A, 3] at the current step, or when the agent is first seen after it."""
    later = scene.agents.valid[..., CURRENT_INDEX:].int().argmax(-1)[..., None, None]  # 0 if never
    size = scene.agents.size[..., CURRENT_INDEX:, :]
    return size.gather(2, later.expand(*later.shape[:-1], 3)).squeeze(2)


def recording_inputs(recording: Recording, vocabulary: Vocabulary, rank: Tensor | None = None) -> SceneInputs:
    """Tokenise recorded motion.

    Args:
        rank: [B, A, N] int64, see ``tokenize_noisy``; 0 everywhere if not given.
    """
    pose, valid = extend_back(recording.pose, recording.velocity, recording.valid, vocabulary.token_steps)
    tokens, target = tokenize_noisy(vocabulary, pose, valid, recording.types, rank)
    simulated = recording.valid[..., CURRENT_INDEX]
    shown = simulated.unsqueeze(-1)
    tokens = MotionTokens(
        ids=tokens.ids,
        valid=tokens.valid & shown,
        poses=torch.where(shown.unsqueeze(-1), tokens.poses, 0.0),
        pose_valid=tokens.pose_valid & shown,
    )
    steps, count = vocabulary.token_steps, tokens.ids.shape[-1]
    recorded = recording.pose[..., : steps * count + 1 : steps, :]
    return SceneInputs(
        pieces=recording.pieces,
        lights=known_lights(
            recording.light_state, recording.light_observed, -(-recording.pose.shape[2] // CURRENT_INDEX) - 1
        ),
        agents=AgentInputs(recording.types, recording.size, simulated),
        tokens=tokens,
        recorded=recorded,
        target=target,
        learnt=recording.learnt & simulated,
    )


def scene_inputs(scene: Scene, vocabulary: Vocabulary) -> SceneInputs:
    """Tokenise a batch of scenes and cut its map."""
    return recording_inputs(recording_of(scene), vocabulary)
