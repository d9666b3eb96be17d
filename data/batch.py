"""Padding single scenes to a batch with a leading dimension, and cropping a batch back to single scenes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from data.scene import Agents, Lights, RoadMap, Scene

__all__ = ["collate", "uncollate"]

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
        scenes: single scenes. multiple: every padded dimension is rounded up to a multiple of this, so that
            compiled code meets few shapes.

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


def uncollate(batch: Scene) -> list[Scene]:
    """Inverse of ``collate``: the single scenes without padding."""

    def crop(part: PartT, index: int, counts: dict[str, int]) -> PartT:
        names = [field.name for field in dataclasses.fields(part)]
        return type(part)(**{n: getattr(part, n)[index, : counts[_axis(part, n)]] for n in names})

    scenes = []
    for index, scenario_id in enumerate(batch.scenario_id):
        agents, road, lights = batch.agents, batch.map, batch.lights
        counts = {
            "agents": int((agents.id[index] >= 0).sum()),
            "points": int((road.point_feature[index] >= 0).sum()),
            "features": int((road.kind[index] > 0).sum()),
            "links": int((road.link_source[index] >= 0).sum()),
            "lights": int((lights.lane_id[index] >= 0).sum()),
        }
        scenes.append(
            Scene(
                scenario_id=scenario_id,
                timestamp=batch.timestamp[index],
                agents=crop(agents, index, counts),
                map=crop(road, index, counts),
                lights=crop(lights, index, counts),
            )
        )
    return scenes


def _axis(part: Agents | RoadMap | Lights, name: str) -> str:
    """What the first dimension of a field counts."""
    if isinstance(part, Agents):
        return "agents"
    if isinstance(part, Lights):
        return "lights"
    if name.startswith("link"):
        return "links"
    return "points" if name.startswith("point") else "features"
