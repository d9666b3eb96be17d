"""The trained reference: its state in a scene, and log-probabilities of executed tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from data.batch import collate
from data.map_pieces import MapPieces, cut_map
from data.scene import CURRENT_INDEX, FUTURE_STEPS, Scene, map_tensors, until_now
from data.tokenizer import MotionTokens, scene_origin
from data.vocabulary import Vocabulary
from models.reference.checkpoint import load_reference
from models.reference.engine import Engine, Unrolling
from models.reference.inputs import (
    AgentInputs,
    KnownLights,
    SceneInputs,
    agent_inputs,
    collate_inputs,
    known_lights,
    select_agents,
)
from models.reference.map_encoder import MapEncoding
from models.reference.network import Reference
from models.reference.recording import scene_inputs

PartT = TypeVar("PartT")

# Agents times tokens in a batch of ``score``.
_MAX_SCORED = 32_768
# Scenes whose maps are cut together, and pairs of their pieces that are compared at once.
_MAX_MAPS, _MAX_PAIRS = 16, 1 << 26


@dataclass(frozen=True)
class PreparedScene:
    """Inputs of the network for B scenes up to their current steps, simulated agents only, padded."""

    inputs: SceneInputs
    encoding: MapEncoding
    lights: KnownLights
    origin: Tensor  # [B, 2]


class ReferenceAgent:
    """A frozen reference in evaluation mode, on the device of its weights.

    Args:
        compiled: see ``Engine``.
    """

    def __init__(self, model: Reference, compiled: bool = False) -> None:
        self.model = model.eval().requires_grad_(False)
        self.engine = Engine(self.model, compiled)

    @classmethod
    def from_checkpoint(
        cls, path: Path, device: torch.device | str = "cpu", compiled: bool = False
    ) -> ReferenceAgent:
        """Load ``reference.ckpt``; UserError if it is not a reference checkpoint."""
        return cls(load_reference(path, device), compiled)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.model.vocabulary

    @property
    def device(self) -> torch.device:
        return self.model.motion.device

    @torch.no_grad()
    def unroll(self, prepared: PreparedScene, count: int) -> Unrolling:
        """Rollouts of each scene, token by token.

        Poses are centred on ``scene_origin``; agents are the simulated ones, in order.
        """
        inputs = prepared.inputs
        return self.engine.begin(prepared.encoding, inputs.agents, inputs.tokens, prepared.lights, count)

    @torch.no_grad()
    def prepare(self, *scenes: Scene) -> PreparedScene:
        """Single scenes with their maps encoded, for ``unroll``; their first 11 steps are all that is read."""
        if self.device.type != "cpu":
            return self.prepare_together(scenes)
        # Padded to the largest map, they would take a CPU twice as long.
        parts = [self.prepare_together([scene]) for scene in scenes]
        return parts[0] if len(parts) == 1 else collate_inputs(parts)

    @torch.no_grad()
    def prepare_together(self, scenes: Sequence[Scene]) -> PreparedScene:
        """``prepare`` with few launches, as for a GPU."""
        own = [select_agents(scene, scene.simulated.nonzero().squeeze(-1)) for scene in scenes]
        batch = collate([until_now(scene) for scene in own]).to(self.device)
        inputs, origin = scene_inputs(batch, self.vocabulary), scene_origin(batch)
        encoding = collate_inputs(self._encoded(inputs.pieces, origin))
        lights = known_lights(batch.lights.state, batch.lights.observed, 1 + FUTURE_STEPS // CURRENT_INDEX)
        return PreparedScene(inputs, encoding, lights, origin)

    @torch.no_grad()
    def encode_map(self, scene: Scene) -> MapEncoding:
        """Encode the maps of a batch of scenes; the result can be cached while the reference is frozen.

        Many scenes at once cost a GPU few more launches and waits than one, and memory for a few of them.
        ``KnownScenes`` keeps the result without padding.
        """
        # Maps of similar size are encoded together, with little padding.
        order = (scene.map.point_feature >= 0).sum(-1).argsort()
        scene = _take(scene, order).to(self.device)
        origin = scene_origin(scene)
        parts = []
        for maps in _slices(len(origin), _MAX_MAPS):
            parts += self._encoded(cut_map(_take(scene, maps), origin[maps]), origin[maps])
        return _take(collate_inputs(parts), order.argsort().to(self.device))

    def _encoded(self, pieces: MapPieces, origin: Tensor) -> list[MapEncoding]:
        """In parts, to bound the memory."""
        size = max(1, _MAX_PAIRS // max(1, pieces.kind.shape[1]) ** 2)
        return [self.model.encode_map(_take(pieces, rows), origin[rows]) for rows in _slices(len(origin), size)]

    @torch.no_grad()
    def score(
        self, encoding: MapEncoding, scene: Scene, token_ids: Tensor, token_valid: Tensor, poses: Tensor
    ) -> Tensor:
        """Log-probabilities of all tokens at every boundary of executed motion, by teacher forcing.

        The sequence begins with the tokens of the logged first second (``tokenize_scene``), followed by the
        executed ones. Entry n is the distribution of token n given the tokens before n of all agents, without
        temperature, top-k or top-p.

        Args:
            encoding: of ``encode_map``, for the same scenes in the same order.
            scene: B scenes; types, sizes at the current step, and lights up to it are read.
            token_ids: [B, A, N] int64. token_valid: [B, A, N] bool; false for padding, missing history, and agents
                that are not simulated. These are masked, and their rows of the result are undefined.
            poses: [B, A, N + 1, 3] float32 at the boundaries (boundary n is step n * token_steps of the scene),
                minus ``encoding.origin`` in x and y.

        Returns:
            [B, A, N, K] float32, normalised over K.
        """
        scene = scene.to(self.device)
        lights = known_lights(scene.lights.state, scene.lights.observed, self.seconds(token_ids.shape[-1]))
        return self.score_known(encoding, agent_inputs(scene), lights, token_ids, token_valid, poses)

    def seconds(self, tokens: int) -> int:
        """Blocks of a second, begun ones included, in so many tokens."""
        return -(-tokens // self.model.block)

    @torch.no_grad()
    def score_known(
        self,
        encoding: MapEncoding,
        agents: AgentInputs,
        lights: KnownLights,
        token_ids: Tensor,
        token_valid: Tensor,
        poses: Tensor,
    ) -> Tensor:
        """As ``score``, for scenes that are inputs of the network already, on its device."""
        device = self.device
        token_ids, token_valid, poses = token_ids.to(device), token_valid.to(device), poses.to(device)
        token_valid = token_valid & agents.simulated.unsqueeze(-1)
        pose_valid = torch.nn.functional.pad(token_valid, (1, 0)) | torch.nn.functional.pad(token_valid, (0, 1))
        tokens = MotionTokens(token_ids, token_valid, poses, pose_valid)
        size = max(1, _MAX_SCORED // max(1, token_ids[0].numel()))
        parts = []
        for rows in _slices(len(token_ids), size):
            logits = self.model.teacher_forced(
                _take(encoding, rows), _take(agents, rows), _take(tokens, rows), _take(lights, rows)
            )
            parts.append(logits.log_softmax(-1))
        return torch.cat(parts)


def _slices(count: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` rows."""
    return (slice(start, start + size) for start in range(0, count, size))


def _take(value: PartT, rows: slice | Tensor) -> PartT:
    return map_tensors(value, lambda tensor: tensor[rows])
