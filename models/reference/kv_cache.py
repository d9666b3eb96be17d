"""KV cache of a rollout: keys and values of the past, and of the current map neighbours.

Shape legend: B rows (scenes times rollouts), A agents, W slots of the ring, H heads, D hidden, J neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.reference.decoder import MapView


@dataclass
class KVCache:
    """A ring buffer of the last W boundaries of each agent; W is the largest time offset, boundary n has slot n mod
    W.

    All shapes are the same at every boundary and writes are in place, so that a step compiles once.

    Attributes:
        keys_values: per layer [2, B, A, H, W, D / H].
        pose: [B, A, W, 3]. present: [B, A, W] bool.
        view: map neighbours of the current block, None before the first ``set_map``.
        map_keys_values: per layer [2, B, A, 1, H, J, D / H] of these neighbours.
    """

    keys_values: list[Tensor]
    pose: Tensor
    present: Tensor
    view: MapView | None = None
    map_keys_values: tuple[Tensor, ...] = ()

    @classmethod
    def empty(cls, like: Tensor, layers: int, rows: int, agents: int, heads: int, slots: int) -> KVCache:
        """An empty cache; ``like`` [D] gives width, dtype and device."""
        shape = (2, rows, agents, heads, slots, len(like) // heads)
        return cls(
            keys_values=[like.new_zeros(shape) for _ in range(layers)],
            pose=like.new_zeros(rows, agents, slots, 3),
            present=torch.zeros(rows, agents, slots, dtype=torch.bool, device=like.device),
        )

    @property
    def slots(self) -> int:
        return self.present.shape[-1]

    def repeat(self, rollouts: int) -> KVCache:
        """Repeat each row R times."""

        def copy(tensor: Tensor, dim: int = 0) -> Tensor:
            return tensor.repeat_interleave(rollouts, dim=dim)

        view = self.view and MapView(copy(self.view.pose), copy(self.view.bias), copy(self.view.light))
        keys_values, of_map = (
            [copy(t, 1) for t in tensors] for tensors in (self.keys_values, self.map_keys_values)
        )
        return KVCache(keys_values, copy(self.pose), copy(self.present), view, tuple(of_map))

    def lookup(self, boundary: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """Slots of earlier boundaries.

        Args:
            boundary: [1] int64 the current boundary. offset: [J] int64 boundaries before it, at most W.

        Returns:
            [1, J] int64 slots, and [1, J] bool whether these boundaries exist.
        """
        return ((boundary - offset) % self.slots).unsqueeze(0), (offset <= boundary).unsqueeze(0)

    def pose_before(self, boundary: int) -> Tensor:
        """Poses [B, A, 3] at the previous boundary."""
        return self.pose[:, :, (boundary - 1) % self.slots]

    def write_layer(self, boundary: Tensor, layer: int, keys_values: Tensor) -> None:
        """Store keys and values [2, B, A, H, 1, D / H] of a boundary [1]."""
        ring = self.keys_values[layer]
        ring.index_copy_(4, boundary % self.slots, keys_values.to(ring.dtype))

    def write_state(self, boundary: Tensor, pose: Tensor, present: Tensor) -> None:
        """Store poses [B, A, 3] and presence [B, A] of a boundary [1]."""
        slot = boundary % self.slots
        self.pose.index_copy_(2, slot, pose.unsqueeze(2))
        self.present.index_copy_(2, slot, present.unsqueeze(2))

    def set_map(self, view: MapView, keys_values: Sequence[Tensor]) -> None:
        """Replace the map neighbours, at the beginning of a block."""
        self.view, self.map_keys_values = view, tuple(keys_values)
