"""The frozen reference as anchor: log-probabilities of all tokens along what was executed.

One teacher-forced pass per finished episode on its true context: the logged first second, the executed tokens, and
replayed agents tokenised from where they were. Maps are encoded once per scene, since the reference is frozen.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from data.batch import collate
from data.scene import Agents, Scene, map_tensors
from data.tokenizer import match_token
from data.vocabulary import Vocabulary
from models.reference.agent import ReferenceAgent
from models.reference.map_encoder import MapEncoding, stack_map_encodings
from pipeline.simulator.world import World

__all__ = ["Anchor"]

# Agents times tokens that are scored together: on a CPU what caches hold.
_SLOTS = {"cpu": 1 << 11, "cuda": 1 << 17}


class Anchor:
    """A reference that scores executed tokens.

    Args:
        reference: frozen.
        scene: finds a scene by the name of its world; it is asked once for each, unless it is forgotten.
        capacity: scenes whose encoded maps are kept.
    """

    def __init__(self, reference: ReferenceAgent, scene: Callable[[int], Scene], capacity: int = 512) -> None:
        self.reference = reference
        self._scene, self._capacity = scene, capacity
        self._known: OrderedDict[int, tuple[Scene, MapEncoding]] = OrderedDict()

    @property
    def vocabulary(self) -> Vocabulary:
        return self.reference.vocabulary

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
            chosen: [W] names of the worlds.
            world: the batch of these worlds.
            tokens: [W, A, D] executed by controlled agents.
            poses: [W, A, D + 1, 3] at the decisions and at the end, minus the origin.
            controlled: [W, A] bool. present: [W, A, D + 1] bool.

        Returns:
            [W, A, D, K]; rows of agents that are not controlled mean nothing.
        """
        executed = tokens
        if bool((world.exists & ~controlled).any()):
            types = world.types.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
            nearest, _ = match_token(self.vocabulary, poses[:, :, :-1], poses[:, :, 1:], types)
            executed = torch.where(controlled.unsqueeze(-1), tokens, nearest)
        history, decisions = world.history_ids.shape[-1], tokens.shape[-1]
        exists = world.exists[..., None]
        ids = torch.cat((world.history_ids, executed), dim=-1)
        both = present[..., :-1] & present[..., 1:] & exists
        valid = torch.cat((world.history_valid & exists, both), dim=-1)
        path = torch.cat((world.history_poses[:, :, :-1], poses), dim=2)
        result = torch.zeros(*tokens.shape, self.vocabulary.size, device=tokens.device)
        scenes = [self._prepared(name) for name in chosen]
        while len(self._known) > max(self._capacity, len(set(chosen))):
            self._known.popitem(last=False)
        for rows in self._groups([len(agents.agents.id) for agents, _ in scenes], history + decisions):
            batch = collate([scenes[row][0] for row in rows])
            count = batch.agents.id.shape[1]
            encoding = stack_map_encodings([scenes[row][1] for row in rows])
            part = self.reference.score(encoding, batch, *(t[rows, :count] for t in (ids, valid, path)))
            result[rows, :count] = part[:, :, history:].to(result.device)
        return result

    def _groups(self, sizes: Sequence[int], tokens: int) -> list[list[int]]:
        """Rows of worlds to be scored together: of similar size, since padding costs as much as agents do."""
        limit = _SLOTS["cpu" if self.reference.device.type == "cpu" else "cuda"] // tokens
        groups: list[list[int]] = []
        for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
            if not groups or (len(groups[-1]) + 1) * sizes[groups[-1][0]] > limit:
                groups.append([])
            groups[-1].append(row)
        return groups

    def _prepared(self, name: int) -> tuple[Scene, MapEncoding]:
        """A scene's agents and lights, and its encoded map."""
        if name not in self._known:
            scene = _simulated_only(self._scene(name))
            encoding = self.reference.encode_map(collate([scene]))
            # Nothing reads the map again.
            self._known[name] = replace(scene, map=map_tensors(scene.map, lambda t: t[:0])), encoding
        self._known.move_to_end(name)
        return self._known[name]


def _simulated_only(scene: Scene) -> Scene:
    """The scene with simulated agents alone, in the order of worlds."""
    chosen = scene.simulated
    agents = Agents(**{name: value[chosen] for name, value in vars(scene.agents).items()})
    return Scene(scene.scenario_id, scene.timestamp, agents, scene.map, scene.lights)
