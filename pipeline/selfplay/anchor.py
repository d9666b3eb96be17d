"""The frozen reference as anchor: log-probabilities of all tokens along what was executed.

One teacher-forced pass per finished episode on its true context: the logged first second, the executed tokens, and
replayed agents tokenised from where they were. Maps are encoded once per scene, since the reference is frozen.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.batch import collate
from data.scene import Agents, Scene
from data.tokenizer import match_token
from data.vocabulary import Vocabulary
from models.reference.agent import ReferenceAgent
from models.reference.map_encoder import MapEncoding, stack_map_encodings
from pipeline.selfplay.worlds import World

__all__ = ["Anchor"]


class Anchor:
    """A reference that scores executed tokens.

    Args:
        reference: frozen.
        scenes: single scenes; worlds are named by their place in this list.
    """

    def __init__(self, reference: ReferenceAgent, scenes: Sequence[Scene]) -> None:
        self.reference = reference
        self._scenes = [_simulated_only(scene) for scene in scenes]
        self._encodings: dict[int, MapEncoding] = {}

    @property
    def vocabulary(self) -> Vocabulary:
        return self.reference.vocabulary

    def _encoding(self, index: int) -> MapEncoding:
        if index not in self._encodings:
            self._encodings[index] = self.reference.encode_map(collate([self._scenes[index]]))
        return self._encodings[index]

    @torch.no_grad()
    def log_probs(
        self,
        chosen: Sequence[int],
        world: World,
        tokens: Tensor,
        poses: Tensor,
        controlled: Tensor,
        present: Tensor,
    ) -> Tensor:
        """Log-probabilities of every token at every decision of an episode.

        Args:
            chosen: [W] places of the worlds' scenes.
            world: the batch of these worlds.
            tokens: [W, A, D] executed by controlled agents.
            poses: [W, A, D + 1, 3] at the decisions and at the end, minus the origin.
            controlled: [W, A] bool. present: [W, A, D + 1] bool.

        Returns:
            [W, A, D, K]; rows of agents that are not controlled mean nothing.
        """
        device = self.reference.device
        executed = tokens
        if bool((world.exists & ~controlled).any()):
            types = world.types.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
            nearest, _ = match_token(self.vocabulary, poses[:, :, :-1], poses[:, :, 1:], types)
            executed = torch.where(controlled.unsqueeze(-1), tokens, nearest)
        history = world.history_ids.shape[-1]
        ids = torch.cat((world.history_ids, executed), dim=-1)
        both = present[..., :-1] & present[..., 1:] & world.exists.unsqueeze(-1)
        valid = torch.cat((world.history_valid, both), dim=-1)
        path = torch.cat((world.history_poses[:, :, :-1], poses), dim=2)
        encoding = stack_map_encodings([self._encoding(index) for index in chosen])
        batch = collate([self._scenes[index] for index in chosen])
        agents = batch.agents.id.shape[1]
        result = self.reference.score(encoding, batch, ids[:, :agents], valid[:, :agents], path[:, :agents])
        result = result[:, :, history:].to(device)
        short = tokens.shape[1] - agents
        return torch.nn.functional.pad(result, (0, 0, 0, 0, 0, short))


def _simulated_only(scene: Scene) -> Scene:
    """The scene with simulated agents alone, in the order of worlds."""
    chosen = scene.simulated
    agents = Agents(**{name: value[chosen] for name, value in vars(scene.agents).items()})
    return Scene(scene.scenario_id, scene.timestamp, agents, scene.map, scene.lights)
