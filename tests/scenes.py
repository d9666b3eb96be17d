"""Hand-made scenes of which everything is known: agents at constant velocity, polylines, lights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from data.scene import NUM_STEPS, Agents, AgentType, Lights, LightState, MapKind, RoadMap, Scene

__all__ = ["Mover", "Signal", "circle", "hand_made"]

Point = tuple[float, ...]


@dataclass(frozen=True)
class Mover:
    """An agent that is at (x, y, z) at the current step and drives straight on."""

    x: float = 0.0
    y: float = 0.0
    z: float = 0.0
    heading: float = 0.0
    speed: float = 0.0
    kind: AgentType = AgentType.VEHICLE
    size: tuple[float, float, float] = (4.0, 2.0, 1.5)


@dataclass(frozen=True)
class Signal:
    """A light on a lane, given by its number among the features, with its state at every step."""

    lane: int
    stop: tuple[float, float]
    states: Sequence[LightState | None]


def _states(movers: Sequence[Mover], steps: int) -> dict[str, Tensor]:
    time = 0.1 * (torch.arange(steps) - 10)
    rows = torch.tensor([[m.x, m.y, m.z, m.heading, m.speed] for m in movers])
    direction = torch.stack((rows[:, 3].cos(), rows[:, 3].sin()), dim=-1)
    velocity = rows[:, 4:] * direction
    position = rows[:, None, :3].repeat(1, steps, 1)
    position[..., :2] += time[:, None] * velocity[:, None]
    return {
        "position": position,
        "heading": rows[:, 3:4].expand(-1, steps).clone(),
        "velocity": velocity[:, None].expand(-1, steps, -1).clone(),
        "size": torch.tensor([m.size for m in movers])[:, None].expand(-1, steps, -1).clone(),
    }


def hand_made(
    movers: Sequence[Mover],
    features: Sequence[tuple[MapKind, Sequence[Point]]] = (),
    signals: Sequence[Signal] = (),
    steps: int = NUM_STEPS,
    name: str = "hand-made",
) -> Scene:
    """A scene; the points of features are (x, y) or (x, y, z), and feature n has id n."""
    count = len(movers)
    flags = torch.zeros(count, dtype=torch.bool)
    first = flags.clone()
    first[:1] = True
    points = [(p[0], p[1], p[2] if len(p) > 2 else 0.0) for _, line in features for p in line]
    owner = [index for index, (_, line) in enumerate(features) for _ in line]
    stops = torch.zeros(len(signals), steps, 3)
    states = torch.zeros(len(signals), steps, dtype=torch.int64)
    observed = torch.zeros(len(signals), steps, dtype=torch.bool)
    for row, signal in enumerate(signals):
        for step, state in enumerate(signal.states[:steps]):
            if state is not None:
                states[row, step], observed[row, step] = int(state), True
                stops[row, step, :2] = torch.tensor(signal.stop)
    number = len(features)
    nothing = torch.zeros(0, dtype=torch.int64)
    return Scene(
        scenario_id=name,
        timestamp=0.1 * torch.arange(steps, dtype=torch.float64),
        agents=Agents(
            id=torch.arange(count) + 1,
            type=torch.tensor([int(m.kind) for m in movers]),
            valid=torch.ones(count, steps, dtype=torch.bool),
            is_sdc=first,
            to_predict=flags,
            of_interest=flags,
            **_states(movers, steps),
        ),
        map=RoadMap(
            point=torch.tensor(points, dtype=torch.float32).view(-1, 3),
            point_feature=torch.tensor(owner, dtype=torch.int64),
            feature_id=torch.arange(number),
            kind=torch.tensor([int(kind) for kind, _ in features], dtype=torch.int64),
            subtype=torch.zeros(number, dtype=torch.int64),
            speed_limit=torch.zeros(number),
            interpolating=torch.zeros(number, dtype=torch.bool),
            link_source=nothing,
            link_kind=nothing,
            link_target=nothing,
        ),
        lights=Lights(torch.tensor([s.lane for s in signals], dtype=torch.int64), states, stops, observed),
    )


def circle(radius: float, points: int, center: tuple[float, float] = (0.0, 0.0), z: float = 0.0) -> list[Point]:
    """A closed polygon, counter-clockwise: its inside is on the port side."""
    turns = [2 * math.pi * index / points for index in range(points)]
    ring = [(center[0] + radius * math.cos(a), center[1] + radius * math.sin(a), z) for a in turns]
    return [*ring, ring[0]]
