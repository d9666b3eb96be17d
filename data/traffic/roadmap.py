"""Map features of a world as in WOMD's map.proto, and the part of them around a scene."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from waymo_open_dataset.protos import map_pb2

from data.traffic.skeleton import MPH
from data.traffic.surface import (
    POINT_SPACING,
    Surface,
    edge_lines,
    is_driving_lane,
    lane_class,
    lane_polygon,
    split_runs,
)

FloatArray = NDArray[np.float64]
_LANE, _LINE, _EDGE = map_pb2.LaneCenter, map_pb2.RoadLine, map_pb2.RoadEdge

# The line between two lanes is solid this near to the end of the street, metres.
_SOLID_END = 20.0


@dataclass(frozen=True)
class Lane:
    """A centre line: points [N, 2] metres in driving direction, ``LaneCenter.LaneType``, limit in mph."""

    id: int
    points: FloatArray
    subtype: int
    limit: float
    interpolating: bool
    entry: tuple[int, ...] = ()
    exit: tuple[int, ...] = ()
    left: tuple[int, ...] = ()
    right: tuple[int, ...] = ()


@dataclass(frozen=True)
class Line:
    """A road line or road edge: points [N, 2] metres and the proto's type."""

    points: FloatArray
    subtype: int


@dataclass(frozen=True)
class StopSign:
    """Position [2] metres and the lanes that begin behind it."""

    position: FloatArray
    lanes: tuple[int, ...]


@dataclass(frozen=True)
class WorldMap:
    """All features; ``lane_ids`` names the lanes by their SUMO ids."""

    lanes: dict[int, Lane]
    lines: tuple[Line, ...]
    edges: tuple[Line, ...]
    crosswalks: tuple[FloatArray, ...]
    stop_signs: tuple[StopSign, ...]
    lane_ids: dict[str, int] = field(default_factory=dict)


def resample(points: FloatArray, spacing: float = POINT_SPACING) -> FloatArray:
    """Even points [M, 2] along a polyline [N, 2], both ends kept, at most ``spacing`` apart."""
    stations = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    count = max(1, int(np.ceil(stations[-1] / spacing - 1e-6)))
    wanted = np.linspace(0, stations[-1], count + 1)
    return np.stack([np.interp(wanted, stations, points[:, axis]) for axis in (0, 1)], axis=-1)


def build_map(rng: np.random.Generator, net: Any, surface: Surface) -> WorldMap:
    """Collect the features of a network.

    Args:
        rng: draws the painted lines. net: a ``sumolib`` net read with internal edges. surface: its surface.
    """
    lanes = _lanes(net)
    ids = {name: lane.id for name, lane in lanes.items()}
    edge_type = {False: _EDGE.TYPE_ROAD_EDGE_BOUNDARY, True: _EDGE.TYPE_ROAD_EDGE_MEDIAN}
    crosswalks = [
        shapely.get_coordinates(lane_polygon(lane))[:-1]
        for edge in net.getEdges(withInternal=True)
        if edge.getFunction() == "crossing"
        for lane in edge.getLanes()
    ]
    return WorldMap(
        lanes={lane.id: lane for lane in lanes.values()},
        lines=tuple(_road_lines(rng, net)),
        edges=tuple(Line(line.points, edge_type[line.median]) for line in edge_lines(surface)),
        crosswalks=tuple(crosswalks),
        stop_signs=tuple(_stop_signs(net, ids)),
        lane_ids=ids,
    )


def _lanes(net: Any) -> dict[str, Lane]:
    driving = [
        lane
        for edge in net.getEdges(withInternal=True)
        if edge.getFunction() in ("", "internal")
        for lane in edge.getLanes()
        if is_driving_lane(lane)
    ]
    ids = {lane.getID(): index + 1 for index, lane in enumerate(driving)}
    exits: dict[str, list[str]] = defaultdict(list)
    entries: dict[str, list[str]] = defaultdict(list)
    for lane in driving:
        for connection in lane.getOutgoing():
            following = connection.getViaLaneID() or connection.getToLane().getID()
            if following in ids:
                exits[lane.getID()].append(following)
                entries[following].append(lane.getID())
    lanes = {}
    for lane in driving:
        name, edge = lane.getID(), lane.getEdge()
        internal = edge.getFunction() == "internal"
        bike = "passenger" not in lane.getPermissions()
        beside = {other.getIndex(): ids.get(other.getID()) for other in edge.getLanes()}
        left, right = (None if internal else beside.get(lane.getIndex() + side) for side in (1, -1))
        lanes[name] = Lane(
            id=ids[name],
            points=resample(np.array(lane.getShape())),
            subtype=_LANE.TYPE_BIKE_LANE if bike else _LANE.TYPE_SURFACE_STREET,
            limit=round(_limit(lane) / MPH / 5) * 5.0,
            interpolating=internal,
            entry=tuple(sorted({ids[other] for other in entries[name]})),
            exit=tuple(sorted({ids[other] for other in exits[name]})),
            left=(left,) if left else (),
            right=(right,) if right else (),
        )
    by_id = {lane.id: lane for lane in lanes.values()}
    return {name: _joined(lane, by_id) for name, lane in lanes.items()}


def _joined(lane: Lane, lanes: dict[int, Lane]) -> Lane:
    """Move the ends of a lane inside a junction to the ends of its neighbours.

    SUMO starts bicycles that change between a narrow and a wide lane at the side of the wide one.
    """
    if not lane.interpolating:
        return lane
    begin = lanes[lane.entry[0]].points[-1] if lane.entry else lane.points[0]
    end = lanes[lane.exit[0]].points[0] if lane.exit else lane.points[-1]
    part = np.linspace(0, 1, len(lane.points))[:, None]
    bent = lane.points + (1 - part) * (begin - lane.points[0]) + part * (end - lane.points[-1])
    return dataclasses.replace(lane, points=resample(bent))


def _limit(lane: Any) -> float:
    """Speed limit in m/s; inside a junction that of the next street, not SUMO's turning speed."""
    edge = lane.getEdge()
    if edge.getFunction() != "internal":
        return float(lane.getSpeed())
    return max(float(other.getSpeed()) for connection in lane.getOutgoing() for other in [connection.getTo()])


def _border(lane: Any, side: float) -> FloatArray:
    """Left (side 1) or right (side -1) border [N, 2] of a lane, in driving direction."""
    shape = np.array(lane.getShape())
    tangent = np.gradient(shape, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=-1)
    return shape + side * lane.getWidth() / 2 * normal


def _road_lines(rng: np.random.Generator, net: Any) -> list[Line]:
    lines: list[Line] = []
    for edge in sorted(net.getEdges(withInternal=False), key=lambda edge: edge.getID()):
        lanes = edge.getLanes()
        kinds = [lane_class(lane) for lane in lanes]
        for lane, kind, left_kind in zip(lanes, kinds, kinds[1:]):
            border = resample(_border(lane, 1.0))
            solid_points = int(_SOLID_END / POINT_SPACING)
            if kind == left_kind == "driving":
                if len(border) > 2 * solid_points:
                    lines.append(Line(border[:-solid_points], _LINE.TYPE_BROKEN_SINGLE_WHITE))
                    border = border[-solid_points - 1 :]
                lines.append(Line(border, _LINE.TYPE_SOLID_SINGLE_WHITE))
            elif {kind, left_kind} <= {"driving", "bike", "parking"}:
                lines.append(Line(border, _LINE.TYPE_SOLID_SINGLE_WHITE))
            elif left_kind == "median":
                lines.append(Line(border, _LINE.TYPE_SOLID_SINGLE_YELLOW))
        opposite = [
            other
            for other in edge.getToNode().getOutgoing()
            if other.getToNode() is edge.getFromNode() and other.getID() > edge.getID()
        ]
        if opposite and kinds[-1] == "driving":
            subtype = _centre_line(rng, kinds.count("driving"), edge.getSpeed())
            if subtype is not None:
                lines.append(Line(resample(_border(lanes[-1], 1.0)), subtype))
    return lines


def _centre_line(rng: np.random.Generator, lanes: int, speed: float) -> int | None:
    """Type of the line between the directions of a street; quiet streets often have none."""
    if lanes > 1 or speed > 31 * MPH:
        return int(_LINE.TYPE_SOLID_DOUBLE_YELLOW)
    usual = (_LINE.TYPE_SOLID_DOUBLE_YELLOW, _LINE.TYPE_BROKEN_SINGLE_YELLOW, _LINE.TYPE_PASSING_DOUBLE_YELLOW)
    choice = int(rng.integers(6))
    return int(usual[choice]) if choice < len(usual) else None


def _stop_signs(net: Any, ids: dict[str, int]) -> list[StopSign]:
    signs = []
    for node in sorted(net.getNodes(), key=lambda node: node.getID()):
        if node.getType() not in ("priority_stop", "allway_stop"):
            continue
        for edge in node.getIncoming():
            driving = [lane for lane in edge.getLanes() if is_driving_lane(lane)]
            stops = [
                connection.getViaLaneID()
                for lane in driving
                for connection in lane.getOutgoing()
                if connection.getState() in "sw" and connection.getViaLaneID() in ids
            ]
            if stops:
                position = _border(driving[0], -1.0)[-1]
                signs.append(StopSign(position, tuple(sorted({ids[name] for name in stops}))))
    return signs


def crop_map(world: WorldMap, path: FloatArray, radius: float) -> WorldMap:
    """The features within ``radius`` metres of a path [N, 2].

    A lane is kept whole if any part is near; its connections to dropped lanes are removed. Lines and edges are cut.
    """
    region = shapely.LineString(path).buffer(radius) if len(path) > 1 else shapely.Point(path[0]).buffer(radius)
    shapely.prepare(region)

    def inside(points: FloatArray) -> NDArray[np.bool_]:
        return shapely.contains_xy(region, points[:, 0], points[:, 1])

    kept = {index for index, lane in world.lanes.items() if inside(lane.points).any()}

    def known(others: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(other for other in others if other in kept)

    lanes = {
        index: dataclasses.replace(
            lane, entry=known(lane.entry), exit=known(lane.exit), left=known(lane.left), right=known(lane.right)
        )
        for index, lane in world.lanes.items()
        if index in kept
    }

    def cut(lines: tuple[Line, ...]) -> tuple[Line, ...]:
        pieces = []
        for line in lines:
            closed = bool(np.array_equal(line.points[0], line.points[-1]))
            runs = split_runs(line.points, inside(line.points), closed)
            pieces += [Line(run, line.subtype) for run in runs]
        return tuple(pieces)

    return WorldMap(
        lanes=lanes,
        lines=cut(world.lines),
        edges=cut(world.edges),
        crosswalks=tuple(polygon for polygon in world.crosswalks if inside(polygon).any()),
        stop_signs=tuple(
            StopSign(sign.position, known(sign.lanes))
            for sign in world.stop_signs
            if inside(sign.position[None]).any() and known(sign.lanes)
        ),
        lane_ids=world.lane_ids,
    )
