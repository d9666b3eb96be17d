"""Turning some junctions of quiet streets into roundabouts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from data.traffic.skeleton import MPH, Node, Point, Skeleton, Street

__all__ = ["with_roundabouts"]

# Arms closer than this angle leave no room for the ring between them.
_MIN_GAP = math.radians(55)
# Arms shorter than this would end inside the ring.
_MIN_ARM = 65.0
_MOST = 2
_ARC_POINTS = 8


def with_roundabouts(rng: np.random.Generator, skeleton: Skeleton, chance: float) -> Skeleton:
    """Replace up to two suitable junctions by one-lane rings, each with probability ``chance``.

    A suitable junction joins three to five streets of one lane a direction, none with a median. The ring runs
    counter-clockwise, one node where each arm meets it; netconvert recognises it and gives it the right of way.
    """
    nodes, streets = dict(skeleton.nodes), list(skeleton.streets)
    taken: set[str] = set()
    for name in sorted(skeleton.nodes):
        arms = [street for street in streets if name in (street.a, street.b)]
        if len(taken) >= _MOST or not _suitable(name, arms, nodes, taken) or rng.random() >= chance:
            continue
        radius = float(rng.uniform(16, 20))
        ring, arms = _ring(name, nodes, arms, radius)
        for street in [street for street in streets if name in (street.a, street.b)]:
            streets.remove(street)
        del nodes[name]
        nodes.update(ring)
        streets += arms
        taken.add(name)
    return dataclasses.replace(skeleton, nodes=nodes, streets=tuple(streets))


def _other(street: Street, name: str) -> str:
    return street.b if street.a == name else street.a


def _angle(centre: Node, point: Point) -> float:
    return math.atan2(point[1] - centre.y, point[0] - centre.x)


def _suitable(name: str, arms: list[Street], nodes: dict[str, Node], taken: set[str]) -> bool:
    if not 3 <= len(arms) <= 5:
        return False
    if any(arm.section.lanes > 1 or arm.section.median > 0 for arm in arms):
        return False
    centre = nodes[name]
    ends = [nodes[_other(arm, name)] for arm in arms]
    if any(math.dist((centre.x, centre.y), (end.x, end.y)) < _MIN_ARM for end in ends):
        return False
    if any(_other(arm, name).split(".")[0] in taken for arm in arms):
        return False
    angles = sorted(_angle(centre, (end.x, end.y)) for end in ends)
    gaps = [(b - a) % (2 * math.pi) for a, b in zip(angles, angles[1:] + angles[:1])]
    return min(gaps) >= _MIN_GAP


def _ring(
    name: str, nodes: dict[str, Node], arms: list[Street], radius: float
) -> tuple[dict[str, Node], list[Street]]:
    """The ring's nodes, and its streets together with the arms that now end on it."""
    centre = nodes[name]

    def point(angle: float) -> Point:
        return centre.x + radius * math.cos(angle), centre.y + radius * math.sin(angle)

    placed = []
    for arm in arms:
        end = nodes[_other(arm, name)]
        placed.append((_angle(centre, (end.x, end.y)), arm))
    placed.sort(key=lambda item: item[0])
    names = [f"{name}.{index}" for index in range(len(placed))]
    ring = {label: Node(*point(angle), kind="priority", radius=4.0) for label, (angle, _) in zip(names, placed)}
    # An arm's bend was drawn to the old junction; towards the ring it runs straight.
    streets = [
        dataclasses.replace(arm, a=label if arm.a == name else arm.a, b=label if arm.b == name else arm.b, shape=())
        for label, (_, arm) in zip(names, placed)
    ]
    section = dataclasses.replace(
        placed[0][1].section, lane_width=4.8, bike=0.0, parking=0.0, speed=20 * MPH, priority=4
    )
    for index, (angle, _) in enumerate(placed):
        following = (index + 1) % len(placed)
        span = (placed[following][0] - angle) % (2 * math.pi)
        arc = tuple(point(angle + span * part) for part in np.linspace(0, 1, _ARC_POINTS + 2)[1:-1])
        streets.append(Street(names[index], names[following], section, one_way=True, shape=arc))
    return ring, streets
