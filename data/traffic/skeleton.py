"""Random street layouts: nodes and streets with a cross-section each, from which SUMO builds lanes.

The layouts come from SUMO's netgenerate (grid, spider, random) and are then bent, rotated and moved. Streets that
continue each other have the same cross-section; the streets at a junction decide its type. Some junctions of quiet
streets become roundabouts.
"""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.traffic.sumo import SumoError, run_tool

Point = tuple[float, float]

MPH = 0.44704  # m/s in one mile per hour
LAYOUTS = ("grid", "spider", "random")

_BRISK_CHANCE = 0.4
# Streets that meet within this angle of a straight line are one road.
_STRAIGHT = math.radians(35)
# Smallest angle between the arms of a roundabout.
_MIN_GAP = math.radians(55)
# Shortest arm of a roundabout, metres.
_MIN_ARM = 65.0
_MOST_ROUNDABOUTS = 2
_ARC_POINTS = 8


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
    """A street layout; traffic enters and leaves at its dead ends."""

    nodes: Mapping[str, Node]
    streets: tuple[Street, ...]


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
    nodes = {
        name: _draw_node(rng, point, [s.section for s in streets if name in (s.a, s.b)])
        for name, point in points.items()
    }
    return Skeleton(nodes, streets)


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
    """Jitter the inner nodes, then rotate and move everything to coordinates as large as WOMD's."""
    angle = rng.uniform(0, 2 * math.pi)
    shift = rng.uniform(-8000, 8000, size=2)
    cos, sin = math.cos(angle), math.sin(angle)
    placed = {}
    for name, (x, y) in points.items():
        if degree[name] > 1:
            x, y = x + rng.normal(0, jitter), y + rng.normal(0, jitter)
        placed[name] = (float(cos * x - sin * y + shift[0]), float(sin * x + cos * y + shift[1]))
    return placed


def _roads(points: dict[str, Point], pairs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """Number the streets so that those that continue straight through a node have the same number."""
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
    """Draw right-of-way rules that fit the streets at a node."""
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


def with_roundabouts(rng: np.random.Generator, skeleton: Skeleton, chance: float) -> Skeleton:
    """Replace up to two suitable junctions by one-lane rings, each with probability ``chance``.

    A suitable junction joins three to five streets of one lane per direction, none with a median. The ring is
    counter-clockwise with one node per arm; netconvert recognises it and gives it the right of way.
    """
    nodes, streets = dict(skeleton.nodes), list(skeleton.streets)
    taken: set[str] = set()
    for name in sorted(skeleton.nodes):
        arms = [street for street in streets if name in (street.a, street.b)]
        if len(taken) >= _MOST_ROUNDABOUTS or not _suitable(name, arms, nodes, taken) or rng.random() >= chance:
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
    """The nodes of the ring, and its streets with the arms that end on it."""
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
    # The bend of an arm led to the old junction, so arms become straight.
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
