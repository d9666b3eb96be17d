"""Random street layouts: nodes and streets with a cross-section each, before SUMO builds lanes from them.

The layouts come from SUMO's netgenerate (grid, spider, random) and are then bent, turned and moved; streets that
continue one another share one cross-section, and junctions get their kind from the streets that meet there.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.traffic.sumo import SumoError, run_tool

__all__ = ["LAYOUTS", "MPH", "CrossSection", "Node", "Point", "Skeleton", "Street", "draw_skeleton"]

Point = tuple[float, float]

MPH = 0.44704  # m/s in one mile per hour
LAYOUTS = ("grid", "spider", "random")

_BRISK_CHANCE = 0.4
# Streets that meet at less than this deviation from a straight line are one road.
_STRAIGHT = math.radians(35)


@dataclass(frozen=True)
class CrossSection:
    """One direction of a street; widths in metres, 0 where there is none.

    Attributes:
        lanes: driving lanes.
        lane_width: width of a driving lane.
        median: half of the strip between the directions.
        bike: bicycle lane.
        parking: parking strip along the kerb.
        sidewalk: pavement behind the kerb.
        speed: limit in m/s.
        priority: rank for the right of way; the higher goes first.
    """

    lanes: int
    lane_width: float
    median: float
    bike: float
    parking: float
    sidewalk: float
    speed: float
    priority: int


@dataclass(frozen=True)
class Node:
    """A junction: position in metres, SUMO node type, turning radius in metres."""

    x: float
    y: float
    kind: str = "priority"
    radius: float = 6.0


@dataclass(frozen=True)
class Street:
    """Both directions between nodes a and b, or only a to b; ``shape`` are the points between them."""

    a: str
    b: str
    section: CrossSection
    one_way: bool = False
    shape: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Skeleton:
    """A street layout; ``fringe`` are the dead ends, where traffic enters and leaves."""

    layout: str
    nodes: Mapping[str, Node]
    streets: tuple[Street, ...]
    fringe: frozenset[str]


def draw_skeleton(rng: np.random.Generator, layout: str, scratch: Path) -> Skeleton:
    """Draw a street layout.

    Args:
        rng: source of all randomness. layout: one of ``LAYOUTS``. scratch: folder for netgenerate's files.

    Raises:
        SumoError: netgenerate failed or its layout has no junction.
    """
    points, pairs = _generate(rng, layout, scratch)
    degree = {name: sum(name in pair for pair in pairs) for name in points}
    if max(degree.values()) < 3:
        raise SumoError(f"{layout} layout without a junction")
    points = _place(rng, points, degree, jitter=0.0 if layout == "random" else rng.uniform(2, 9))
    roads = _roads(points, pairs)
    brisk = bool(rng.random() < _BRISK_CHANCE)
    sections = {road: _draw_section(rng, brisk) for road in sorted(set(roads.values()))}
    streets = tuple(Street(a, b, sections[roads[a, b]], shape=_bend(rng, points[a], points[b])) for a, b in pairs)
    fringe = frozenset(name for name, count in degree.items() if count == 1)
    nodes = {
        name: _draw_node(rng, point, [s.section for s in streets if name in (s.a, s.b)])
        for name, point in points.items()
    }
    return Skeleton(layout, nodes, streets, fringe)


def _generate(
    rng: np.random.Generator, layout: str, scratch: Path
) -> tuple[dict[str, Point], list[tuple[str, str]]]:
    """Node positions and the connected pairs of nodes of a netgenerate layout."""
    if layout == "grid":
        options = {
            "grid.x-number": rng.integers(2, 5), "grid.y-number": rng.integers(2, 4),
            "grid.x-length": rng.integers(85, 220), "grid.y-length": rng.integers(85, 220),
            "grid.attach-length": 130,
        }  # fmt: skip
    elif layout == "spider":
        options = {
            "spider.arm-number": rng.integers(4, 7), "spider.circle-number": 2,
            "spider.space-radius": rng.integers(95, 170), "spider.attach-length": 130,
        }  # fmt: skip
    else:
        options = {
            "rand.iterations": rng.integers(18, 30), "rand.min-distance": 90, "rand.max-distance": 240,
            "rand.min-angle": 55, "bidi-probability": 1,
        }  # fmt: skip
    flag = {"grid": "--grid", "spider": "--spider", "random": "--rand"}[layout]
    arguments = [flag, "--seed", str(rng.integers(1 << 30)), "--plain-output-prefix", "plain"]
    for name, value in options.items():
        arguments += [f"--{name}", str(value)]
    run_tool("netgenerate", arguments, scratch)
    nodes = ElementTree.parse(scratch / "plain.nod.xml").getroot()
    edges = ElementTree.parse(scratch / "plain.edg.xml").getroot()
    points = {node.attrib["id"]: (float(node.attrib["x"]), float(node.attrib["y"])) for node in nodes.iter("node")}
    pairs = {tuple(sorted((edge.attrib["from"], edge.attrib["to"]))) for edge in edges.iter("edge")}
    return points, sorted((a, b) for a, b in pairs)


def _place(
    rng: np.random.Generator, points: dict[str, Point], degree: dict[str, int], jitter: float
) -> dict[str, Point]:
    """Jitter the inner nodes, then turn everything and move it to coordinates as large as WOMD's."""
    turn = rng.uniform(0, 2 * math.pi)
    shift = rng.uniform(-8000, 8000, size=2)
    cos, sin = math.cos(turn), math.sin(turn)
    placed = {}
    for name, (x, y) in points.items():
        if degree[name] > 1:
            x, y = x + rng.normal(0, jitter), y + rng.normal(0, jitter)
        placed[name] = (float(cos * x - sin * y + shift[0]), float(sin * x + cos * y + shift[1]))
    return placed


def _roads(points: dict[str, Point], pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Number the streets so that those continuing straight over a node have the same number."""
    parent = list(range(len(pairs)))

    def find(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    at_node: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for index, (a, b) in enumerate(pairs):
        (ax, ay), (bx, by) = points[a], points[b]
        at_node[a].append((math.atan2(by - ay, bx - ax), index))
        at_node[b].append((math.atan2(ay - by, ax - bx), index))
    for arms in at_node.values():
        free = set(range(len(arms)))
        candidates = sorted(
            (abs(abs(math.remainder(arms[i][0] - arms[j][0], 2 * math.pi)) - math.pi), i, j)
            for i in free
            for j in free
            if i < j
        )
        for deviation, i, j in candidates:
            if deviation < _STRAIGHT and i in free and j in free:
                free -= {i, j}
                parent[find(arms[i][1])] = find(arms[j][1])
    return {pair: find(index) for index, pair in enumerate(pairs)}


def _draw_section(rng: np.random.Generator, brisk: bool) -> CrossSection:
    """An arterial, a collector or a residential street; ``brisk`` towns have more and faster arterials."""
    rank = int(rng.choice([3, 2, 1], p=[0.7, 0.2, 0.1] if brisk else [0.35, 0.35, 0.3]))
    limits = {3: (45, 50, 55) if brisk else (35, 40, 45), 2: (25, 30, 35), 1: (15, 25)}[rank]
    parking_chance = {3: 0.15 if brisk else 0.45, 2: 0.75, 1: 0.9}[rank]
    lanes = {3: int(rng.integers(2, 4)), 2: int(rng.integers(1, 3)), 1: 1}[rank]
    has_bike, has_parking = rng.random() < 0.3, rng.random() < parking_chance
    return CrossSection(
        lanes=lanes,
        lane_width=round(rng.uniform(3.2, 3.6) + (0.3 if lanes == 1 else 0.0), 2),
        median=round(rng.uniform(0.8, 2.0), 2) if rank == 3 and rng.random() < 0.5 else 0.0,
        bike=round(rng.uniform(1.5, 1.9), 2) if has_bike else 0.0,
        parking=round(rng.uniform(2.4, 2.7), 2) if has_parking else 0.0,
        sidewalk=round(rng.uniform(1.8, 3.0), 2),
        speed=float(rng.choice(limits)) * MPH,
        priority=rank,
    )


def _draw_node(rng: np.random.Generator, point: Point, sections: Sequence[CrossSection]) -> Node:
    """Choose right-of-way rules that fit the streets that meet."""
    radius = round(float(rng.uniform(5.5, 8.5)), 2)
    if len(sections) < 3:
        return Node(*point, radius=radius)
    highest, lowest = max(s.priority for s in sections), min(s.priority for s in sections)
    if lowest == 3:
        kind = "traffic_light"
    elif highest > lowest:
        kind = str(rng.choice(["priority_stop", "priority", "traffic_light"], p=[0.45, 0.15, 0.4]))
    else:
        kind = str(rng.choice(["allway_stop", "right_before_left", "traffic_light"], p=[0.6, 0.15, 0.25]))
    return Node(*point, kind=kind, radius=radius)


def _bend(rng: np.random.Generator, a: Point, b: Point) -> tuple[Point, ...]:
    """Points of a shallow arc from a to b, or none for a straight street."""
    length = math.dist(a, b)
    if rng.random() < 0.6 or length < 60:
        return ()
    bulge = rng.uniform(-0.1, 0.1) * length
    normal = ((a[1] - b[1]) / length, (b[0] - a[0]) / length)
    shape = []
    for part in np.linspace(0, 1, 9)[1:-1].tolist():
        height = 4 * part * (1 - part) * bulge
        x, y = (a[axis] + part * (b[axis] - a[axis]) + height * normal[axis] for axis in (0, 1))
        shape.append((x, y))
    return tuple(shape)
