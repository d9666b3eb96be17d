"""Random small scenes with turns, gaps, late starts, all agent types, crossing roads and lights; no real data."""

from __future__ import annotations

import math

import torch

from data.scene import NUM_STEPS, Agents, Lights, MapKind, RoadMap, Scene

__all__ = ["random_scene"]


def random_scene(
    seed: int, agents: int = 6, steps: int = NUM_STEPS, origin: tuple[float, float] = (900.0, -400.0)
) -> Scene:
    """One scene; agent 0 is the AV, agent 1 first seen at step 10, agent 2 has a gap, agent 3 leaves early."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    kind = torch.tensor([1, 2, 3, 1, 4, 1]).repeat(1 + agents // 6)[:agents]
    speed = torch.where(kind == 2, uniform(0.5, 2.0, agents), uniform(3.0, 12.0, agents))
    turn = uniform(-0.25, 0.25, agents)
    time = 0.1 * torch.arange(NUM_STEPS)
    heading = uniform(-math.pi, math.pi, agents)[:, None] + turn[:, None] * time
    velocity = speed[:, None, None] * torch.stack((heading.cos(), heading.sin()), dim=-1)
    position = uniform(-25.0, 25.0, agents, 1, 2) + torch.cumsum(velocity * 0.1, dim=1) + torch.tensor(origin)
    valid = torch.ones(agents, NUM_STEPS, dtype=torch.bool)
    if agents > 1:
        valid[1, :10] = False
    if agents > 2:
        valid[2, 31:44] = False
    if agents > 3:
        valid[3, 60:] = False
    height = torch.full((agents, NUM_STEPS, 1), 1.5)
    size = torch.tensor([4.5, 1.9, 1.6]).expand(agents, NUM_STEPS, 3) * uniform(0.9, 1.1, agents, 1, 1)
    flags = torch.zeros(agents, dtype=torch.bool)
    is_sdc = flags.clone()
    is_sdc[0] = True
    return _crop(
        Scene(
            scenario_id=f"random{seed}",
            timestamp=time.double(),
            agents=Agents(
                id=torch.arange(agents) * 3 + 5,
                type=kind,
                position=torch.cat((position, height), dim=-1),
                heading=torch.remainder(heading + math.pi, 2 * math.pi) - math.pi,
                velocity=velocity,
                size=size,
                valid=valid,
                is_sdc=is_sdc,
                to_predict=flags | (torch.arange(agents) == 1),
                of_interest=flags,
            ),
            map=_crossing(origin, float(uniform(0.0, math.pi, 1))),
            lights=_lights(generator),
        ),
        steps,
    )


def _crossing(origin: tuple[float, float], angle: float) -> RoadMap:
    """Two lanes with edges that cross, a crosswalk and a stop sign."""
    shapes: list[tuple[torch.Tensor, MapKind, int]] = []
    along = torch.arange(-60.0, 60.5, 1.5)
    for turn in (angle, angle + math.pi / 2):
        direction = torch.tensor([math.cos(turn), math.sin(turn)])
        side = torch.tensor([-math.sin(turn), math.cos(turn)])
        shapes.append((along[:, None] * direction, MapKind.LANE, 2))
        shapes += [(along[:, None] * direction + shift * side, MapKind.ROAD_EDGE, 1) for shift in (-4.0, 4.0)]
    square = torch.tensor([[8.0, -4.0], [11.0, -4.0], [11.0, 4.0], [8.0, 4.0]])
    shapes.append((square, MapKind.CROSSWALK, 0))
    shapes.append((torch.tensor([[7.0, 5.0]]), MapKind.STOP_SIGN, 0))
    points = torch.cat([shape for shape, _, _ in shapes]) + torch.tensor(origin)
    count = len(shapes)
    return RoadMap(
        point=torch.cat((points, torch.full((len(points), 1), 0.5)), dim=-1),
        point_feature=torch.repeat_interleave(torch.arange(count), torch.tensor([len(s) for s, _, _ in shapes])),
        feature_id=torch.arange(count) + 100,
        kind=torch.tensor([int(kind) for _, kind, _ in shapes]),
        subtype=torch.tensor([subtype for _, _, subtype in shapes]),
        speed_limit=torch.zeros(count),
        interpolating=torch.zeros(count, dtype=torch.bool),
        link_source=torch.zeros(0, dtype=torch.int64),
        link_kind=torch.zeros(0, dtype=torch.int64),
        link_target=torch.zeros(0, dtype=torch.int64),
    )


def _lights(generator: torch.Generator) -> Lights:
    """A light for each lane, red and green in turn, the second first observed at step 4."""
    state = torch.randint(1, 9, (2, NUM_STEPS), generator=generator)
    observed = torch.ones(2, NUM_STEPS, dtype=torch.bool)
    observed[1, :4] = False
    return Lights(torch.tensor([100, 103]), state, torch.zeros(2, NUM_STEPS, 3), observed)


def _crop(scene: Scene, steps: int) -> Scene:
    agents, lights = scene.agents, scene.lights
    timed = ("position", "heading", "velocity", "size", "valid")
    return Scene(
        scenario_id=scene.scenario_id,
        timestamp=scene.timestamp[:steps],
        agents=Agents(**{n: t[:, :steps] if n in timed else t for n, t in vars(agents).items()}),
        map=scene.map,
        lights=Lights(
            lights.lane_id, lights.state[:, :steps], lights.stop_point[:, :steps], lights.observed[:, :steps]
        ),
    )
