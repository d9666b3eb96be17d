"""Mirror, turn and shift of whole scenes: what tests compare recordings and invariance with.

All take single scenes and batches, and return new ones. Mirroring changes which side traffic drives on, yet each
agent's motion, seen from itself, is one that agents of the other hand make; vocabulary and models gain from it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from data.geometry import rotate, wrap_angle
from data.scene import LinkKind, Scene

__all__ = ["mirror", "move"]


def mirror(scene: Scene) -> Scene:
    """Reflect at the x axis: y, headings and lateral velocities change sign, left and right neighbours swap."""
    agents, road, lights = scene.agents, scene.map, scene.lights
    left, right = road.link_kind == LinkKind.LEFT, road.link_kind == LinkKind.RIGHT
    link_kind = torch.where(left, int(LinkKind.RIGHT), torch.where(right, int(LinkKind.LEFT), road.link_kind))
    return dataclasses.replace(
        scene,
        agents=dataclasses.replace(
            agents,
            position=_flip_y(agents.position),
            heading=wrap_angle(-agents.heading),
            velocity=_flip_y(agents.velocity),
        ),
        map=dataclasses.replace(road, point=_flip_y(road.point), link_kind=link_kind),
        lights=dataclasses.replace(lights, stop_point=_flip_y(lights.stop_point)),
    )


def _flip_y(vector: Tensor) -> Tensor:
    return torch.cat((vector[..., :1], -vector[..., 1:2], vector[..., 2:]), dim=-1)


def move(scene: Scene, angle: float, offset: tuple[float, float] = (0.0, 0.0)) -> Scene:
    """Turn about the origin by ``angle`` (radians, counter-clockwise), then shift by ``offset`` (metres).

    Values at invalid steps are moved too; they mean nothing before or after.
    """
    agents, road, lights = scene.agents, scene.map, scene.lights

    def turn(vector: Tensor, shift: tuple[float, float]) -> Tensor:
        double = vector[..., :2].double()
        planar = rotate(double, torch.full_like(double[..., 0], angle)) + torch.tensor(shift, dtype=torch.float64)
        return torch.cat((planar.to(vector.dtype), vector[..., 2:]), dim=-1)

    return dataclasses.replace(
        scene,
        agents=dataclasses.replace(
            agents,
            position=turn(agents.position, offset),
            heading=wrap_angle(agents.heading + angle),
            velocity=turn(agents.velocity, (0.0, 0.0)),
        ),
        map=dataclasses.replace(road, point=turn(road.point, offset)),
        lights=dataclasses.replace(lights, stop_point=turn(lights.stop_point, offset)),
    )
