"""Leaving out map pieces that cannot matter, for training on recorded motion.

Where the agents will be is known then, and so is which pieces they look at, and which pieces those heard of in the
map layers. Nothing the network computes for the agents changes; with a third of the pieces it costs a third.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from models.attention import k_nearest
from models.reference.config import ReferenceConfig
from models.reference.decoder import block_length, expected_centre
from models.reference.inputs import SceneInputs

__all__ = ["prune_map"]


def prune_map(inputs: SceneInputs, config: ReferenceConfig, token_steps: int, margin: float = 1.0) -> SceneInputs:
    """Inputs of one scene (B = 1) with only the pieces that reach its agents, at least one; their order stays.

    Args:
        margin: how many times the model's own number of map neighbours are kept around each agent. With 1 the
            logits of the recorded motion are the same; more is for motion that strays from it.
    """
    tokens, pieces = inputs.tokens, inputs.pieces
    pose, valid = tokens.poses[:, :, :-1], tokens.valid
    block = block_length(token_steps)
    moved = torch.cat((torch.zeros_like(valid[..., :1]), valid[..., :-1]), dim=-1)
    before = torch.cat((pose[:, :, :1], pose[:, :, :-1]), dim=2)
    centre = expected_centre(pose, before, moved, block)[:, :, ::block].flatten(1, 2)
    position, present = pieces.pose[..., :2], pieces.valid
    count = math.ceil(margin * config.map_neighbours)
    # One more than are seen, since the first that is not seen says where sight ends.
    index, distance = k_nearest(centre, position, present, count + 1)
    used = _mark(index, distance <= 2 * config.map_radius, present)
    for _ in range(config.map_layers):
        rows = used[0].nonzero().squeeze(-1)
        # And one more again, since a piece finds itself first.
        index, distance = k_nearest(position[:, rows], position, present, config.piece_neighbours + 2)
        used = used | _mark(index, distance <= config.piece_radius, present)
    kept = used[0].nonzero().squeeze(-1)
    if not len(kept):
        kept = torch.zeros(1, dtype=torch.int64, device=used.device)
    fields = {field.name: getattr(pieces, field.name)[:, kept] for field in dataclasses.fields(pieces)}
    return dataclasses.replace(inputs, pieces=type(pieces)(**fields))


def _mark(index: Tensor, mask: Tensor, like: Tensor) -> Tensor:
    """[1, M] bool: which pieces appear in neighbour lists."""
    marked = torch.zeros_like(like)
    marked[0, index[mask]] = True
    return marked
