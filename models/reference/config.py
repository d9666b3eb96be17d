"""Sizes of the reference model."""

from __future__ import annotations

from dataclasses import dataclass

from data.errors import UserError
from data.scene import STEP_SECONDS


@dataclass(frozen=True)
class ReferenceConfig:
    """Size and reach of the reference model.

    Attributes:
        hidden: width of pieces and agents.
        heads: attention heads; must divide hidden.
        relation: width of the encoded relation of two poses.
        layers: agent layers, each of attention over time, map and agents.
        map_layers: layers of attention between map pieces.
        piece_neighbours: map pieces that a map piece attends to.
        map_neighbours: map pieces that an agent attends to.
        agent_neighbours: agents that an agent attends to.
        map_radius: range of attention of agents to map pieces, metres.
        agent_radius: range of attention of agents to agents, metres.
        piece_radius: range of attention of map pieces to map pieces, metres.
        time_span: range of attention of agents to their past, seconds.
        time_slots: number of past boundaries in that span, denser towards the present.
        dropout: probability, in training only.
        inertia: add logits that fall with the distance from the last motion (``models.layers.Inertia``).
    """

    hidden: int = 64
    heads: int = 4
    relation: int = 32
    layers: int = 2
    map_layers: int = 1
    piece_neighbours: int = 8
    map_neighbours: int = 32
    agent_neighbours: int = 12
    map_radius: float = 50.0
    agent_radius: float = 60.0
    piece_radius: float = 20.0
    time_span: float = 3.0
    time_slots: int = 8
    dropout: float = 0.0
    inertia: bool = True

    def __post_init__(self) -> None:
        if self.hidden % self.heads:
            raise UserError(f"reference hidden is {self.hidden}; it must be a multiple of heads ({self.heads})")
        counts = (self.layers, self.piece_neighbours, self.map_neighbours, self.agent_neighbours, self.time_slots)
        if min(counts) < 1 or self.map_layers < 0:
            raise UserError(
                "reference: layers, neighbours and time_slots must be at least 1, map_layers at least 0"
            )

    def time_offsets(self, token_steps: int) -> tuple[int, ...]:
        """Offset of each time slot in tokens, ascending from 1 with increasing steps."""
        furthest = max(1, round(self.time_span / (token_steps * STEP_SECONDS)))
        slots = min(self.time_slots, furthest)
        offsets = [1]
        for slot in range(1, slots):
            # Geometric from the last offset to the end, but at least one more.
            left = slots - slot
            step = offsets[-1] * (furthest / offsets[-1]) ** (1 / left)
            offsets.append(min(max(offsets[-1] + 1, round(step)), furthest - left + 1))
        return tuple(offsets)


# nano has about 1 M parameters, mini 3.2 M (the size of SPACeR's anchor), tiny 7 M (SMART-tiny), at K = 200.
SIZES: dict[str, ReferenceConfig] = {
    "micro": ReferenceConfig(),
    "nano": ReferenceConfig(
        hidden=128,
        relation=48,
        layers=2,
        map_layers=1,
        piece_neighbours=12,
        map_neighbours=40,
        agent_neighbours=16,
        dropout=0.1,
    ),
    "mini": ReferenceConfig(
        hidden=160,
        heads=8,
        relation=64,
        layers=4,
        map_layers=2,
        piece_neighbours=16,
        map_neighbours=48,
        agent_neighbours=24,
        dropout=0.1,
    ),
    "tiny": ReferenceConfig(
        hidden=208,
        heads=8,
        relation=64,
        layers=6,
        map_layers=2,
        piece_neighbours=16,
        map_neighbours=64,
        agent_neighbours=32,
        dropout=0.1,
    ),
    "large": ReferenceConfig(
        hidden=384,
        heads=12,
        relation=96,
        layers=8,
        map_layers=3,
        piece_neighbours=24,
        map_neighbours=96,
        agent_neighbours=48,
        dropout=0.1,
    ),
}


def size_preset(name: str) -> ReferenceConfig:
    """The configuration of a named size; UserError if there is none."""
    if name not in SIZES:
        raise UserError(f"no reference size {name!r}; choose one of {', '.join(SIZES)}")
    return SIZES[name]
