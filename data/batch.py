"""Padding single scenes to a batch with a leading dimension."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from data.scene import Agents, Lights, RoadMap, Scene

PartT = TypeVar("PartT", Agents, RoadMap, Lights)

# Padding that must differ from a real value; every other tensor is padded with zeros.
_FILL: dict[str, int] = {
    "Agents.id": -1,
    "RoadMap.point_feature": -1,
    "RoadMap.feature_id": -1,
    "RoadMap.link_source": -1,
    "RoadMap.link_target": -1,
    "Lights.lane_id": -1,
}


def _pad_stack(tensors: Sequence[Tensor], fill: int, multiple: int) -> Tensor:
    """Stack tensors [N_i, ...] to [B, max N, ...], N rounded up to ``multiple``."""
    longest = max(len(tensor) for tensor in tensors)
    size = max(1, -(-longest // multiple)) * multiple
    first = tensors[0]
    batch = torch.full((len(tensors), size, *first.shape[1:]), fill, dtype=first.dtype)
    for row, tensor in zip(batch, tensors, strict=True):
        row[: len(tensor)] = tensor
    return batch


def _collate_part(parts: Sequence[PartT], multiple: int) -> dict[str, Tensor]:
    name = type(parts[0]).__name__
    return {
        field.name: _pad_stack(
            [getattr(part, field.name) for part in parts], _FILL.get(f"{name}.{field.name}", 0), multiple
        )
        for field in dataclasses.fields(parts[0])
    }


def collate(scenes: Sequence[Scene], multiple: int = 1) -> Scene:
    """Pad scenes of equal step count to one batched scene.

    Args:
        scenes: single scenes. multiple: padded dimensions are rounded up to a multiple of this, so that compiled
            code sees few shapes.

    Returns:
        A ``Scene`` whose tensors have a leading B. Padded agents have id -1 and are never valid; padded points
        and links have feature index -1; padded features have kind PADDING; padded lights have lane id -1.

    Raises:
        ValueError: scenes of different numbers of steps.
    """
    steps = {scene.num_steps for scene in scenes}
    if len(steps) != 1:
        raise ValueError(f"cannot batch scenes of different lengths: {sorted(steps)} steps")
    return Scene(
        scenario_id=tuple(str(scene.scenario_id) for scene in scenes),
        timestamp=torch.stack([scene.timestamp for scene in scenes]),
        agents=Agents(**_collate_part([scene.agents for scene in scenes], multiple)),
        map=RoadMap(**_collate_part([scene.map for scene in scenes], multiple)),
        lights=Lights(**_collate_part([scene.lights for scene in scenes], multiple)),
    )
