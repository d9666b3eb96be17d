"""Generated scenes that go through every branch of the metric, and rollouts of them.

Waymo's scores of them are stored in official.json; ``scripts/checks/official_scores.py`` computes them anew.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from data.scene import AgentType, LightState, MapKind, Scene
from tests.scenes import Mover, Point, Signal, circle, hand_made

__all__ = ["BRANCHES", "Case"]

Case = tuple[Scene, Tensor]
Feature = tuple[MapKind, list[Point]]

_SURFACE_STREET = 2
_FREEWAY = 1


def _line(x0: float, y0: float, x1: float, y1: float, points: int = 9, z: float = 0.0) -> list[Point]:
    steps = [index / (points - 1) for index in range(points)]
    return [(x0 + (x1 - x0) * step, y0 + (y1 - y0) * step, z) for step in steps]


def _road() -> list[Feature]:
    """A straight road along x with edges at y = -6 and 6, and a lane in the middle."""
    return [
        (MapKind.ROAD_EDGE, _line(-150, -6, 150, -6)),
        (MapKind.ROAD_EDGE, _line(150, 6, -150, 6)),
        (MapKind.LANE, _line(-150, 0, 150, 0, 25)),
    ]


def _finished(scene: Scene, evaluated: Iterable[int], lane_types: Iterable[int] | None = None) -> Scene:
    """The scene with agents to predict, and lanes as surface streets unless said otherwise."""
    chosen = scene.agents.to_predict.clone()
    chosen[list(evaluated)] = True
    lanes = (scene.map.kind == MapKind.LANE).nonzero().flatten()
    subtype = scene.map.subtype.clone()
    subtype[lanes] = torch.tensor(list(lane_types) if lane_types else [_SURFACE_STREET] * len(lanes))
    return dataclasses.replace(
        scene,
        agents=dataclasses.replace(scene.agents, to_predict=chosen),
        map=dataclasses.replace(scene.map, subtype=subtype),
    )


def _hidden(scene: Scene, agent: int, steps: slice) -> Scene:
    """The scene without some recorded steps of an agent: zeros, as in the dataset."""
    agents = scene.agents
    changes = {}
    for name in ("position", "heading", "velocity", "size", "valid"):
        value = getattr(agents, name).clone()
        value[agent, steps] = 0
        changes[name] = value
    return dataclasses.replace(scene, agents=dataclasses.replace(agents, **changes))


def _rollouts(scene: Scene, seed: int, count: int = 3, noise: float = 0.5) -> Tensor:
    """[R, A, 80, 4]: the log's continuation at other speeds, drifting sideways, with turning headings."""
    generator = torch.Generator().manual_seed(seed)
    agents, chosen = scene.agents, scene.simulated
    now = agents.position[chosen, 10]
    velocity = agents.velocity[chosen, 10]
    number = len(now)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    seconds = 0.1 * torch.arange(1, 81)
    factor = 1 + 0.3 * noise * normal(count, number, 1, 1)
    plane = now[None, :, None, :2] + factor * velocity[None, :, None] * seconds[:, None]
    plane = plane + noise * normal(count, number, 1, 2) * (seconds[:, None] / 4) ** 2
    heading = agents.heading[chosen, 10][None, :, None] + 0.1 * noise * normal(count, number, 1) * seconds
    height = now[None, :, None, 2:].expand(count, number, 80, 1)
    states = torch.cat((plane, height, heading.unsqueeze(-1)), dim=-1)
    return states.float()


def _traffic(count: int, seed: int = 0) -> list[Mover]:
    generator = torch.Generator().manual_seed(seed)
    kinds = (AgentType.VEHICLE, AgentType.VEHICLE, AgentType.PEDESTRIAN, AgentType.CYCLIST)
    movers = []
    for index in range(count):
        x, y, speed, turn = torch.rand(4, generator=generator).tolist()
        kind = kinds[index % 4]
        size = {AgentType.VEHICLE: (4.6, 2.0, 1.6), AgentType.PEDESTRIAN: (0.8, 0.8, 1.7)}.get(
            kind, (1.8, 0.6, 1.7)
        )
        top = 12.0 if kind == AgentType.VEHICLE else 2.0
        movers.append(Mover(-80 + 160 * x, -5 + 10 * y, 0.8, 6.2 * turn - 3.1, top * speed, kind, size))
    return movers


def mixed_traffic() -> Case:
    """All types, some of each evaluated; no lights."""
    scene = _finished(hand_made(_traffic(10), _road(), name="mixed_traffic"), (1, 2, 3))
    return scene, _rollouts(scene, 1)


def alone() -> Case:
    """A single agent: nothing near, nothing followed."""
    scene = _finished(hand_made([Mover(speed=8.0)], _road(), name="alone"), ())
    return scene, _rollouts(scene, 2)


def crowd() -> Case:
    """More agents than a scene of the dataset may have to predict, more than 128."""
    scene = _finished(hand_made(_traffic(140, 1), _road(), name="crowd"), (5, 6, 7))
    return scene, _rollouts(scene, 3, count=2)


def ties() -> Case:
    """Equally near edges and objects on both sides, one agent upon another."""
    movers = [Mover(speed=5.0), Mover(12.0, 4.0, speed=5.0), Mover(12.0, -4.0, speed=5.0), Mover(-9.0), Mover(-9.0)]
    scene = _finished(hand_made(movers, _road(), name="ties"), (1, 3))
    return scene, _rollouts(scene, 4, noise=0.0)


def headings_around_pi() -> Case:
    """Followers whose headings lie on either side of pi, and by whole turns beyond."""
    movers = [
        Mover(40.0, 0.0, heading=math.pi - 0.01, speed=9.0),
        Mover(28.0, 0.2, heading=-math.pi + 0.01, speed=4.0),
        Mover(16.0, 0.1, heading=math.pi, speed=6.0),
        Mover(4.0, -0.1, heading=3 * math.pi - 0.02, speed=1.0),
    ]
    scene = _finished(hand_made(movers, _road(), name="headings_around_pi"), (1, 2))
    states = _rollouts(scene, 5)
    states[1, ..., 3] += 2 * math.pi
    states[2, :, 40:, 3] -= 2 * math.pi
    return scene, states


def invalid_steps() -> Case:
    """Gaps in history and future, of evaluated agents and of others; one agent not seen at the current step."""
    scene = _finished(hand_made(_traffic(7, 2), _road(), name="invalid_steps"), (1, 2, 3))
    for agent, steps in (
        (1, slice(0, 9)),
        (1, slice(30, 45)),
        (2, slice(80, None)),
        (3, slice(9, 10)),
        (3, slice(11, 13)),
        (4, slice(50, 60)),
        (5, slice(11, None)),
        (6, slice(8, 12)),
    ):
        scene = _hidden(scene, agent, steps)
    states = _rollouts(scene, 6)
    # Off the road, and into another, only where the log does not see the agent.
    states[:, 2, 70:, 1] += 40.0
    states[:, 1, 20:30, :2] = states[:, 0, 20:30, :2]
    return scene, states


def closed_edges() -> Case:
    """Closed edges, turning left and right: the longest wraps around in Waymo's code, a shorter one does not."""
    features: list[Feature] = [
        (MapKind.ROAD_EDGE, circle(40.0, 16)),
        (MapKind.ROAD_EDGE, circle(6.0, 3)[::-1]),
        (MapKind.ROAD_EDGE, [*circle(9.0, 5, (20.0, 0.0))[::-1][:-1], (20.0 + 9.0, 0.4)]),
        (MapKind.LANE, circle(25.0, 30)),
    ]
    movers = [
        Mover(39.0, 0.5, heading=1.5, speed=4.0),
        Mover(6.5, 0.3, heading=0.4, speed=2.0),
        Mover(28.0, 1.0, heading=2.5, speed=3.0),
        Mover(-3.2, -5.4, heading=-2.0, speed=1.0),
    ]
    scene = _finished(hand_made(movers, features, name="closed_edges"), (1, 2, 3))
    return scene, _rollouts(scene, 7, noise=1.0)


def two_levels() -> Case:
    """A bridge over a road, edges above each other, agents on both."""
    features = _road()
    features += [
        (MapKind.ROAD_EDGE, _line(-6, 100, -6, -100, z=6.0)),
        (MapKind.ROAD_EDGE, _line(6, -100, 6, 100, z=6.0)),
        (MapKind.ROAD_EDGE, [(-40.0, -6.5, 1.0), (0.0, -6.5, 5.0), (40.0, -6.5, 1.0)]),
    ]
    movers = [
        Mover(-20.0, 3.0, z=0.8, speed=6.0),
        Mover(2.0, -20.0, z=6.8, heading=math.pi / 2, speed=6.0),
        Mover(10.0, -4.0, z=2.0, heading=math.pi, speed=6.0),
        Mover(2.0, 1.0, z=0.8),
    ]
    scene = _finished(hand_made(movers, features, name="two_levels"), (1, 2))
    return scene, _rollouts(scene, 8, noise=1.0)


def degenerate_segments() -> Case:
    """Repeated points in edges and lanes, an edge of two points, one of a single point."""
    features: list[Feature] = [
        (MapKind.ROAD_EDGE, [(-60.0, -6.0), (-20.0, -6.0), (-20.0, -6.0), (0.0, -6.0), (0.0, -6.0), (80.0, -6.0)]),
        (MapKind.ROAD_EDGE, [(80.0, 6.0), (-60.0, 6.0)]),
        (MapKind.ROAD_EDGE, [(3.0, 1.0)]),
        (MapKind.LANE, [(-60.0, 0.0), (-10.0, 0.0), (-10.0, 0.0), (20.0, 0.0), (80.0, 0.0)]),
        (MapKind.LANE, [(5.0, 5.0)]),
    ]
    movers = [Mover(-30.0, 0.5, speed=7.0), Mover(10.0, -5.5, speed=1.0), Mover(30.0, 5.0, heading=3.0, speed=2.0)]
    states: list[LightState | None] = [LightState.STOP] * 91
    signals = [Signal(3, (5.0, 0.0), states)]
    scene = _finished(hand_made(movers, features, signals, name="degenerate_segments"), (1, 2))
    return scene, _rollouts(scene, 9)


def lights() -> Case:
    """Red, arrow, flashing and green; signals that appear, vanish and move; lanes of other kinds and lengths."""
    red, arrow, flash, go = LightState.STOP, LightState.ARROW_STOP, LightState.FLASHING_STOP, LightState.GO
    features = _road()
    features += [
        (MapKind.LANE, _line(-150, 3, 150, 3, 7)),
        (MapKind.LANE, _line(-150, -3, 150, -3, 40)),
        (MapKind.LANE, _line(0, -100, 0, 100, 12)),
        (MapKind.LANE, [(-4.0, 4.5), (4.0, 4.5)]),
    ]
    signals = [
        Signal(2, (10.0, 0.0), [red] * 50 + [go] * 41),
        Signal(3, (12.0, 3.0), [None] * 30 + [arrow] * 61),
        Signal(4, (10.0, -3.0), [flash] * 40 + [red] * 30 + [None] * 21),
        Signal(5, (0.0, -8.0), [red if step % 7 else None for step in range(91)]),
        Signal(77, (0.0, 0.0), [red] * 91),
    ]
    movers = [
        Mover(-20.0, 0.1, speed=7.0),
        Mover(-25.0, 2.9, speed=9.0),
        Mover(-15.0, -3.1, speed=5.0),
        Mover(0.2, -30.0, heading=math.pi / 2, speed=6.0),
        Mover(-12.0, 0.4, speed=2.5, kind=AgentType.PEDESTRIAN, size=(0.8, 0.8, 1.8)),
        Mover(60.0, 4.4, speed=0.0),
    ]
    kinds = (_SURFACE_STREET, _SURFACE_STREET, _SURFACE_STREET, _FREEWAY, _SURFACE_STREET)
    scene = _finished(hand_made(movers, features, signals, name="lights"), (1, 2, 3, 4), kinds)
    return scene, _rollouts(scene, 10)


def on_bin_edges() -> Case:
    """Speeds, distances and times to collision on and next to the edges of the histograms' bins."""
    movers = [
        Mover(0.0, 0.0, speed=2.5),
        Mover(8.5, 0.0, speed=0.0),
        Mover(-20.0, 4.0, speed=5.0),
        Mover(-20.0, -4.5, speed=7.5),
    ]
    scene = _finished(hand_made(movers, _road(), name="on_bin_edges"), (1, 2, 3))
    states = _rollouts(scene, 11, count=5, noise=0.0)
    for rollout, speed in enumerate((2.5, 5.0, 12.5, 25.0, 30.0)):
        states[rollout, :, :, 0] = states[rollout, :, :1, 0] + 0.1 * speed * torch.arange(80)
        states[rollout, :, :, 3] = 0.0628 * (rollout - 2) * torch.arange(80)
    return scene, states


BRANCHES: dict[str, Callable[[], Case]] = {
    case.__name__: case
    for case in (
        mixed_traffic,
        alone,
        crowd,
        ties,
        headings_around_pi,
        invalid_steps,
        closed_edges,
        two_levels,
        degenerate_segments,
        lights,
        on_bin_edges,
    )
}
