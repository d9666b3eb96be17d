"""The reference network: teacher forcing over whole token sequences, and decoding of one boundary for rollouts.

Logits of token t depend on the tokens before t of all agents, the map and the known lights, but not on any token t:
agents are independent within a step. Shape legend: B scenes, R rollouts, A agents, N tokens, W ring size, K
vocabulary size, D hidden. All poses are centred on the scene (see ``MapEncoding.origin``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data.map_pieces import MapPieces
from data.tokenizer import MotionTokens
from data.vocabulary import TYPE_NAMES, Vocabulary
from models.layers import Inertia, full_precision, mlp
from models.reference.config import ReferenceConfig
from models.reference.decoder import (
    AgentLayer,
    Relations,
    block_length,
    expected_centre,
    look_at_map,
)
from models.reference.inputs import AgentInputs, KnownLights, SceneInputs
from models.reference.kv_cache import KVCache
from models.reference.map_encoder import MapEncoder, MapEncoding

# Metres by which agent sizes are divided.
_SIZE_SCALE = (5.0, 2.0, 2.0)


@dataclass(frozen=True)
class TokenTables:
    """Embedding and output layer of all tokens; depends on the weights only, so rollouts compute it once."""

    embedding: Tensor  # [3 * K + 1, D], the last row is "no token"
    weight: Tensor  # [3, K, D] of the output layer
    bias: Tensor  # [3, K]


@dataclass(frozen=True)
class StepInput:
    """State of all agents at a boundary."""

    pose: Tensor  # [B * R, A, 3]
    previous: Tensor  # [B * R, A] int64 the token before the boundary
    moved: Tensor  # [B * R, A] bool, whether that token is valid
    present: Tensor  # [B * R, A] bool


class Reference(nn.Module):
    """A SMART-style decoder over padded neighbour lists.

    Args:
        config: sizes. vocabulary: stored as buffers, which move with the weights between devices.

    Attributes:
        recompute: recompute the activations of layers in the backward pass, for less memory and more time.
        trained_on: digests of the scenarios it was trained on, see ``models.checkpoints``.
    """

    motion: Tensor
    offset: Tensor
    size_scale: Tensor

    def __init__(self, config: ReferenceConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.config, self.recompute = config, False
        self.trained_on = torch.zeros(0, dtype=torch.int64)
        width, steps = config.hidden, vocabulary.token_steps
        for name, tensor in vocabulary.state_dict().items():
            self.register_buffer(f"vocabulary_{name}", tensor.clone(), persistent=False)
        self.register_buffer("motion", _motion_features(vocabulary), persistent=False)
        self.block = block_length(steps)
        self.offsets = config.time_offsets(steps)
        self.register_buffer("offset", torch.tensor(self.offsets), persistent=False)
        self.register_buffer("size_scale", torch.tensor(_SIZE_SCALE), persistent=False)
        self.map_encoder = MapEncoder(config)
        self.token = mlp(4 * steps + len(TYPE_NAMES), width, width)
        self.no_token = nn.Parameter(torch.zeros(width))
        self.agent = mlp(3 + len(TYPE_NAMES), width, width)
        self.relations = Relations(config, len(self.offsets))
        self.layers = nn.ModuleList(AgentLayer(config) for _ in range(config.layers))
        self.head = nn.ModuleList([nn.LayerNorm(width), mlp(width, width, width), nn.Linear(width, width)])
        self.token_weight = nn.Parameter(torch.zeros(len(TYPE_NAMES), vocabulary.size, width))
        self.token_bias = nn.Parameter(torch.zeros(len(TYPE_NAMES), vocabulary.size))
        self.inertia = Inertia(width, vocabulary.ends) if config.inertia else None

    @property
    def vocabulary(self) -> Vocabulary:
        buffers = dict(self.named_buffers(recurse=False))
        return Vocabulary(*(buffers[f"vocabulary_{name}"] for name in ("poses", "box", "tolerance")))

    def agent_layers(self) -> Iterator[AgentLayer]:
        for layer in self.layers:
            assert isinstance(layer, AgentLayer)
            yield layer

    def token_tables(self) -> TokenTables:
        """Embeddings of all tokens from their motion, and the output layer computed from them.

        Similar motions start with similar embeddings and logits; free weights per type allow differences.
        """
        kind = torch.eye(len(TYPE_NAMES), device=self.motion.device)[:, None].expand(-1, self.motion.shape[1], -1)
        with full_precision(self.motion.device):
            embedding = self.token(torch.cat((self.motion, kind), dim=-1))  # [3, K, D]
            weight = self.head[2](embedding) / self.config.hidden**0.5 + self.token_weight
        flat = torch.cat((embedding.flatten(0, 1), self.no_token.unsqueeze(0)))
        return TokenTables(flat, weight, self.token_bias)

    def encode_map(self, pieces: MapPieces, origin: Tensor) -> MapEncoding:
        """Encode the maps of a batch; ``origin`` [B, 2] is stored with them."""
        return MapEncoding(origin, self.map_encoder(pieces), pieces.pose, pieces.valid, pieces.light)

    def map_sources(self, encoding: MapEncoding) -> tuple[Tensor, ...]:
        """Keys and values of all pieces for each agent layer."""
        return tuple(layer.map.sources(encoding.feature) for layer in self.agent_layers())

    def embed(self, tables: TokenTables, agents: AgentInputs, previous: Tensor, moved: Tensor) -> Tensor:
        """Embedding [B, A, T, D] of agents and their last tokens.

        Args:
            previous: [B, A, T] ids. moved: [B, A, T] bool, whether that token is valid.
        """
        size = tables.weight.shape[1]
        row = torch.where(moved, agents.types.unsqueeze(-1) * size + previous, len(TYPE_NAMES) * size)
        kind = nn.functional.one_hot(agents.types, len(TYPE_NAMES))
        static = self.agent(torch.cat((agents.size / self.size_scale, kind.to(agents.size.dtype)), dim=-1))
        moving = tables.embedding.index_select(0, row.flatten()).view(*row.shape, -1)
        return moving + static.unsqueeze(2)

    def logits(self, tables: TokenTables, types: Tensor, x: Tensor, previous: Tensor, moved: Tensor) -> Tensor:
        """Logits [B, A, T, K] of features [B, A, T, D], by the head of each agent's type plus inertia.

        Args:
            types: [B, A]. previous: [B, A, T] ids. moved: [B, A, T] bool, whether that token is valid.
        """
        with full_precision(x.device):
            # bfloat16 is too coarse for differences of logits near ten.
            weight = tables.weight
            hidden = self.head[1](self.head[0](x.to(weight.dtype)))
            result = hidden @ weight[0].T + tables.bias[0]
            for index in range(1, len(TYPE_NAMES)):
                mine = (types == index)[..., None, None]
                result = torch.where(mine, hidden @ weight[index].T + tables.bias[index], result)
        if self.inertia is None:
            return result
        kind = types.unsqueeze(-1).expand_as(previous)
        last = torch.where(moved.unsqueeze(-1), self.vocabulary.ends[kind, previous], 0.0)
        return result + self.inertia(hidden, kind, last)

    def forward(self, inputs: SceneInputs, encoding: MapEncoding | None = None) -> Tensor:
        """Teacher-forced logits of a batch for training; see ``teacher_forced``.

        Args:
            encoding: of the maps, where it is known.
        """
        if encoding is None:
            encoding = self.encode_batch(inputs)
        return self.teacher_forced(encoding, inputs.agents, inputs.tokens, inputs.lights)

    def encode_batch(self, inputs: SceneInputs) -> MapEncoding:
        """The maps of a batch for training, whose poses are centred on each scene."""
        return self.encode_map(inputs.pieces, inputs.pieces.pose.new_zeros(len(inputs.pieces.pose), 2))

    def teacher_forced(
        self, encoding: MapEncoding, agents: AgentInputs, tokens: MotionTokens, lights: KnownLights
    ) -> Tensor:
        """Logits [B, A, N, K] of token n given tokens before n, for all n in one causal pass.

        Agents and tokens may be of several rollouts of each scene, in consecutive rows; B counts rollouts then.

        Args:
            encoding: of the scenes.
            tokens: [B, A, N]; ``valid`` must be false for agents that are not simulated. An agent is present at
                boundary n if token n - 1 or n is valid.
            lights: of the scenes, [scenes, S, L] for the L blocks of the N boundaries.
        """
        real = tokens.ids.shape[-1]
        tokens = _fill_last_block(tokens, self.block)
        pose, valid = tokens.poses[:, :, :-1], tokens.valid
        moved = torch.cat((torch.zeros_like(valid[..., :1]), valid[..., :-1]), dim=-1)
        previous = torch.cat((torch.zeros_like(tokens.ids[..., :1]), tokens.ids[..., :-1]), dim=-1)
        present = valid | moved
        count = pose.shape[2]
        tables = self.token_tables()
        slot = torch.arange(count, device=pose.device).unsqueeze(-1) - self.offset  # [N, J]
        exists, slot = slot >= 0, slot.clamp(min=0)
        before = torch.cat((pose[:, :, :1], pose[:, :, :-1]), dim=2)
        centre = expected_centre(pose, before, moved, self.block)[:, :, :: self.block]
        view, seen = look_at_map(encoding, centre.unflatten(0, (len(encoding.origin), -1)), self.config)
        time = self.relations.over_time(pose, pose, present, slot, exists)
        road = self.relations.to_map(view, pose.unflatten(2, (-1, self.block)), lights)
        social = self.relations.between_agents(
            pose.transpose(1, 2).flatten(0, 1), present.transpose(1, 2).flatten(0, 1)
        )
        x = self.embed(tables, agents, previous, moved)
        for layer in self.agent_layers():

            def run(x: Tensor, layer: AgentLayer = layer) -> Tensor:
                past = layer.time.by_head(layer.time.sources(x))
                here = layer.see(layer.map.sources(encoding.feature), seen)
                return layer(x, past, here, time, road, social)

            x = checkpoint(run, x, use_reentrant=False) if self.recompute else run(x)
        return self.logits(tables, agents.types, *(t[:, :, :real] for t in (x, previous, moved)))

    def empty_cache(self, rows: int, agents: int) -> KVCache:
        """A cache for rollouts of ``rows`` scenes."""
        config = self.config
        return KVCache.empty(self.no_token, config.layers, rows, agents, config.heads, self.offsets[-1])

    def lookup_map(
        self, boundary: int, cache: KVCache, encoding: MapEncoding, sources: tuple[Tensor, ...], step: StepInput
    ) -> None:
        """Find the map neighbours for the block that begins at a boundary, and store them in the cache.

        Args:
            boundary: n, counted from 0. encoding, sources: of B scenes (see ``map_sources``).
        """
        centre = expected_centre(step.pose, cache.pose_before(boundary), step.moved, self.block)
        centre = centre.view(len(encoding.origin), -1, step.pose.shape[1], 1, 2)
        view, index = look_at_map(encoding, centre, self.config)
        cache.set_map(
            view, [layer.see(source, index) for layer, source in zip(self.agent_layers(), sources, strict=True)]
        )

    def decode_step(
        self,
        boundary: Tensor,
        cache: KVCache,
        tables: TokenTables,
        agents: AgentInputs,
        lights: KnownLights,
        step: StepInput,
    ) -> Tensor:
        """Logits [B * R, A, K] at one boundary, which is added to the cache.

        Shapes are the same at every boundary and do not depend on values, so that it compiles once.

        Args:
            boundary: [1] int64 n from 0, in order; ``lookup_map`` is called before the first of a block.
            agents: of B * R rows. lights: [B, S, 1] of this block.
        """
        if cache.view is None:
            raise ValueError("decode_step needs lookup_map before the first boundary")
        pose, previous, moved = step.pose, step.previous.unsqueeze(-1), step.moved.unsqueeze(-1)
        slot, exists = cache.lookup(boundary, self.offset)
        time = self.relations.over_time(pose.unsqueeze(2), cache.pose, cache.present, slot, exists)
        road = self.relations.to_map(cache.view, pose[:, :, None, None], lights)
        social = self.relations.between_agents(pose, step.present)
        x = self.embed(tables, agents, previous, moved)
        for index, layer in enumerate(self.agent_layers()):
            own = layer.time.by_head(layer.time.sources(x))  # [2, B * R, A, H, 1, D / H]
            x = layer(x, cache.keys_values[index], cache.map_keys_values[index], time, road, social)
            cache.write_layer(boundary, index, own)
        cache.write_state(boundary, pose, step.present)
        return self.logits(tables, agents.types, x, previous, moved)[:, :, 0]


def _motion_features(vocabulary: Vocabulary) -> Tensor:
    """[3, K, token_steps * 4]: positions in metres, and headings as unit vectors, of every sub-step."""
    position, heading = vocabulary.poses[..., :2], vocabulary.poses[..., 2:]
    return torch.cat((position, torch.cos(heading), torch.sin(heading)), dim=-1).flatten(-2)


def _fill_last_block(tokens: MotionTokens, block: int) -> MotionTokens:
    """Pad a sequence to whole blocks with boundaries at which no agent is present."""
    missing = -tokens.ids.shape[-1] % block
    if not missing:
        return tokens
    pad = nn.functional.pad
    return MotionTokens(
        ids=pad(tokens.ids, (0, missing)),
        valid=pad(tokens.valid, (0, missing)),
        poses=torch.cat((tokens.poses, tokens.poses[:, :, -1:].expand(-1, -1, missing, -1)), dim=2),
        pose_valid=pad(tokens.pose_valid, (0, missing)),
    )
