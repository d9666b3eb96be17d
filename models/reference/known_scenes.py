"""Scenes whose maps are encoded already, on the device: batches of them are chosen without a loop over scenes.

Shape legend: P scenes, M pieces of all maps, A agents, S lights, L blocks of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from data.batch import collate
from data.scene import Scene, until_now
from models.reference.agent import ReferenceAgent
from models.reference.inputs import (
    AgentInputs,
    KnownLights,
    agent_inputs,
    collate_inputs,
    known_lights,
    select_agents,
)
from models.reference.map_encoder import MapEncoding

# Scenes encoded in one pass. On a CPU padding costs more than passes do.
_BATCH = {"cpu": 1, "cuda": 64}


@dataclass(frozen=True)
class KnownScenes:
    """What ``ReferenceAgent.score_known`` needs of P scenes: their simulated agents, in order, lights, and maps."""

    origin: Tensor  # [P, 2]
    feature: Tensor  # [M, hidden] of the maps' pieces, one scene after the other; row 0 is padding
    pose: Tensor  # [M, 3]
    light: Tensor  # [M] int64 row of the scene's lights, -1 for none
    agents: AgentInputs  # [P, A]
    lights: KnownLights  # [P, S, L]
    count: Tensor  # [P] int64 pieces of each scene, on the CPU
    present: tuple[int, ...]  # agents of each scene

    @cached_property
    def _firsts(self) -> Tensor:
        """[P] int64 rows of the first pieces, on the CPU."""
        return self.count.cumsum(0) - self.count + 1

    def choose(self, rows: Sequence[int]) -> tuple[MapEncoding, AgentInputs, KnownLights]:
        """Some scenes as a batch, padded to the largest of them."""
        device = self.feature.device
        index = torch.tensor(rows)
        counts = self.count[index]
        place = torch.arange(max(1, int(counts.max())))
        valid = place < counts.unsqueeze(1)
        piece = torch.where(valid, self._firsts[index].unsqueeze(1) + place, 0).to(device, non_blocking=True)
        valid, index = valid.to(device, non_blocking=True), index.to(device, non_blocking=True)
        encoding = MapEncoding(self.origin[index], self.feature[piece], self.pose[piece], valid, self.light[piece])
        longest = max(self.present[row] for row in rows)
        agents = AgentInputs(**{name: value[index, :longest] for name, value in vars(self.agents).items()})
        lights = KnownLights(**{name: value[index] for name, value in vars(self.lights).items()})
        return encoding, agents, lights


@torch.no_grad()
def encode_scenes(reference: ReferenceAgent, scenes: Sequence[Scene], seconds: int) -> KnownScenes:
    """Encode the maps of single scenes.

    Args:
        reference: frozen. scenes: at least one; their future is not read. seconds: L.
    """
    size = _BATCH.get(reference.device.type, _BATCH["cuda"])
    return join_scenes(
        [_encoded(reference, scenes[first : first + size], seconds) for first in range(0, len(scenes), size)]
    )


def _encoded(reference: ReferenceAgent, scenes: Sequence[Scene], seconds: int) -> KnownScenes:
    chosen = [select_agents(until_now(scene), scene.simulated.nonzero().flatten()) for scene in scenes]
    batch = collate(chosen).to(reference.device)
    encoding = reference.encode_map(batch)

    def flat(tensor: Tensor) -> Tensor:
        return torch.cat((torch.zeros_like(tensor[:1, 0]), tensor[encoding.valid]))

    return KnownScenes(
        origin=encoding.origin,
        feature=flat(encoding.feature),
        pose=flat(encoding.pose),
        light=flat(encoding.light + 1) - 1,
        agents=agent_inputs(batch),
        lights=known_lights(batch.lights.state, batch.lights.observed, seconds),
        count=encoding.valid.sum(1).cpu(),
        present=tuple(len(scene.agents.id) for scene in chosen),
    )


def join_scenes(parts: Sequence[KnownScenes]) -> KnownScenes:
    """Scenes of several parts, one after the other."""
    pieces = {
        name: torch.cat([getattr(parts[0], name)[:1], *(getattr(part, name)[1:] for part in parts)])
        for name in ("feature", "pose", "light")
    }
    return KnownScenes(
        origin=torch.cat([part.origin for part in parts]),
        **pieces,
        agents=collate_inputs([part.agents for part in parts]),
        lights=collate_inputs([part.lights for part in parts]),
        count=torch.cat([part.count for part in parts]),
        present=tuple(count for part in parts for count in part.present),
    )
