"""Recordings: the inputs of the reference before augmentation and tokenisation, small enough to cache in memory.

Augmentation and then tokenisation run for whole batches, in training by the loader. Shape legend: B scenes, A
agents, T steps, S lights, M pieces, N tokens.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data.map_pieces import MapPieces, cut_map
from data.scene import CURRENT_INDEX, Scene
from data.tokenizer import MotionTokens, extend_back, scene_origin, tokenize_noisy
from data.vocabulary import Vocabulary, type_index
from models.attention import k_nearest
from models.reference.config import ReferenceConfig
from models.reference.decoder import block_length, expected_centre
from models.reference.inputs import AgentInputs, SceneInputs, known_lights

# CAT-K has a loss for agents with a role, and for those within this distance of the AV (metres) with this many
# valid future steps.
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
    """The recording of a batch of scenes."""
    agents, origin = scene.agents, scene_origin(scene)
    position = agents.position[..., :2] - origin[:, None, None]
    now = agents.position[:, :, CURRENT_INDEX, :2]
    # Without an AV all agents count as near.
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
    """Sizes [B, A, 3] at the first valid step from the current one on."""
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


def prune_map(inputs: SceneInputs, config: ReferenceConfig, token_steps: int, margin: float = 1.0) -> SceneInputs:
    """Inputs of one scene (B = 1) without the map pieces that cannot influence its agents, in the same order.

    In training the positions of the agents are known, and so are their map neighbours and the neighbours of those
    in the map layers. A third of the pieces remains, at a third of the cost; at least one remains.

    Args:
        margin: multiple of the model's number of map neighbours to keep around each agent. With 1 the logits of the
            recorded motion are unchanged; more is for motion that deviates from it.
    """
    tokens, pieces = inputs.tokens, inputs.pieces
    pose, valid = tokens.poses[:, :, :-1], tokens.valid
    block = block_length(token_steps)
    moved = torch.cat((torch.zeros_like(valid[..., :1]), valid[..., :-1]), dim=-1)
    before = torch.cat((pose[:, :, :1], pose[:, :, :-1]), dim=2)
    centre = expected_centre(pose, before, moved, block)[:, :, ::block].flatten(1, 2)
    position, present = pieces.pose[..., :2], pieces.valid
    count = math.ceil(margin * config.map_neighbours)
    # One more than the neighbours, since the first one outside the list sets the weights.
    index, distance = k_nearest(centre, position, present, count + 1)
    used = _mark(index, distance <= 2 * config.map_radius, present)
    for _ in range(config.map_layers):
        rows = used[0].nonzero().squeeze(-1)
        # One more again, since a piece is its own nearest neighbour.
        index, distance = k_nearest(position[:, rows], position, present, config.piece_neighbours + 2)
        used = used | _mark(index, distance <= config.piece_radius, present)
    kept = used[0].nonzero().squeeze(-1)
    if not len(kept):
        kept = torch.zeros(1, dtype=torch.int64, device=used.device)
    fields = {field.name: getattr(pieces, field.name)[:, kept] for field in dataclasses.fields(pieces)}
    return dataclasses.replace(inputs, pieces=type(pieces)(**fields))


def _mark(index: Tensor, mask: Tensor, like: Tensor) -> Tensor:
    """Pieces [1, M] that occur in neighbour lists."""
    marked = torch.zeros_like(like)
    marked[0, index[mask]] = True
    return marked
