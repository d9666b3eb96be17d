"""Random road users of a world: type, driving style and route, and the cars parked at the kerb."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from waymo_open_dataset.protos import scenario_pb2

from data.traffic.surface import is_driving_lane, is_fringe, lane_class

_TRACK = scenario_pb2.Track


@dataclass(frozen=True)
class Kind:
    """A class of road user.

    Attributes:
        name: SUMO's vehicle class.
        track_type: ``Track.ObjectType``; motorcycles are vehicles, as in Waymo's labels.
        length, width, height: range of the box, metres.
        fraction: of the vehicles on the road.
        accel, max_speed: usual maxima, m/s^2 and m/s.
        lever: distance from the front to the rear axle, as a fraction of the length.
    """

    name: str
    track_type: int
    length: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    fraction: float
    accel: float
    max_speed: float
    lever: float


CAR = Kind("passenger", _TRACK.TYPE_VEHICLE, (4.1, 5.2), (1.85, 2.15), (1.45, 1.95), 0.83, 2.4, 55.0, 0.78)
TRUCK = Kind("truck", _TRACK.TYPE_VEHICLE, (6.2, 9.5), (2.3, 2.55), (2.6, 3.8), 0.05, 1.2, 27.0, 0.7)
BUS = Kind("bus", _TRACK.TYPE_VEHICLE, (9.5, 12.0), (2.5, 2.6), (3.0, 3.4), 0.03, 1.1, 24.0, 0.65)
MOTORCYCLE = Kind("motorcycle", _TRACK.TYPE_VEHICLE, (2.0, 2.3), (0.8, 0.95), (1.4, 1.7), 0.04, 3.0, 50.0, 0.8)
BICYCLE = Kind("bicycle", _TRACK.TYPE_CYCLIST, (1.7, 1.95), (0.75, 0.9), (1.65, 1.9), 0.05, 1.0, 6.0, 0.8)
PEDESTRIAN = Kind("pedestrian", _TRACK.TYPE_PEDESTRIAN, (0.7, 1.0), (0.7, 0.95), (1.45, 1.9), 0.0, 1.5, 1.35, 0.5)
_RIDDEN = (CAR, TRUCK, BUS, MOTORCYCLE, BICYCLE)

_USUAL_SPEED = 7.0  # mean speed of vehicles in town with stops, m/s
_USUAL_WALK = 200.0  # mean duration of a pedestrian's trip, s


@dataclass(frozen=True)
class User:
    """One road user; box in metres."""

    kind: Kind
    length: float
    width: float
    height: float


@dataclass(frozen=True)
class Parked:
    """A vehicle parked at the kerb: box centre in metres and heading in radians."""

    user: User
    x: float
    y: float
    heading: float


@dataclass(frozen=True)
class Demand:
    """``users`` by SUMO id, SUMO's route file for them, and parked vehicles."""

    users: dict[str, User]
    routes: Path
    parked: tuple[Parked, ...]


def _draw_user(rng: np.random.Generator, kind: Kind) -> User:
    def size(low: float, high: float) -> float:
        # The mean of two draws, so that medium sizes are more frequent.
        return round(float(rng.uniform(low, high, size=2).mean()), 3)

    return User(kind, size(*kind.length), size(*kind.width), size(*kind.height))


@dataclass
class _Plan:
    """Contents of the route file: users by SUMO id, and the departure and XML elements of each."""

    users: dict[str, User] = field(default_factory=dict)
    departures: list[tuple[float, list[ElementTree.Element]]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        """Write the routes in the order of departure, which SUMO requires."""
        root = ElementTree.Element("routes")
        for _, elements in sorted(self.departures, key=lambda departure: departure[0]):
            root.extend(elements)
        ElementTree.ElementTree(root).write(path)


def build_demand(rng: np.random.Generator, net: Any, seconds: float, scratch: Path) -> Demand:
    """Draw the demand of a world and write it as SUMO's route file.

    Vehicles of the first step start anywhere; later ones enter at the fringe. All leave there.

    Args:
        rng: source of all randomness. net: ``sumolib`` net. seconds: length of the simulation.
        scratch: folder for the route file.
    """
    edges = [edge for edge in net.getEdges(withInternal=False) if any(map(is_driving_lane, edge.getLanes()))]
    edges.sort(key=lambda edge: edge.getID())
    plan, path = _Plan(), scratch / "world.rou.xml"
    _add_vehicles(rng, plan, edges, seconds)
    _add_persons(rng, plan, edges, seconds)
    plan.write(path)
    return Demand(plan.users, path, _park(rng, edges))


def _add_vehicles(rng: np.random.Generator, plan: _Plan, edges: list[Any], seconds: float) -> None:
    entries = [edge for edge in edges if is_fringe(edge.getFromNode())]
    exits = [edge for edge in edges if is_fringe(edge.getToNode())]
    lengths = np.array([edge.getLength() for edge in edges])
    lanes = np.array([sum(map(is_driving_lane, edge.getLanes())) for edge in edges])
    # Vehicles per metre of lane; the inflow below keeps this density at the usual speed.
    density = rng.uniform(0.003, 0.011)
    for _ in range(int(density * (lengths * lanes).sum())):
        begin = edges[int(rng.choice(len(edges), p=lengths / lengths.sum()))]
        _add_vehicle(rng, plan, 0.0, begin, _pick(rng, exits), "random_free")
    inflow = density * _USUAL_SPEED * sum(sum(map(is_driving_lane, edge.getLanes())) for edge in entries)
    for depart in _poisson(rng, inflow, seconds):
        _add_vehicle(rng, plan, depart, _pick(rng, entries), _pick(rng, exits), "base")


def _add_persons(rng: np.random.Generator, plan: _Plan, edges: list[Any], seconds: float) -> None:
    pavements = [edge for edge in edges if any(lane_class(lane) == "sidewalk" for lane in edge.getLanes())]
    crowd = rng.uniform(0.0015, 0.015) * sum(edge.getLength() for edge in pavements)
    for depart in [0.0] * int(crowd) + _poisson(rng, crowd / _USUAL_WALK, seconds):
        _add_person(rng, plan, depart, pavements)


def _pick(rng: np.random.Generator, items: list[Any]) -> Any:
    return items[int(rng.integers(len(items)))]


def _poisson(rng: np.random.Generator, rate: float, seconds: float) -> list[float]:
    """Sorted times of a Poisson process of ``rate`` per second."""
    times: list[float] = np.sort(rng.uniform(0, seconds, size=rng.poisson(rate * seconds))).round(1).tolist()
    return times


def _clipped(rng: np.random.Generator, mean: float, spread: float, low: float, high: float) -> str:
    return f"{np.clip(rng.normal(mean, spread), low, high):.3f}"


def _vehicle_type(rng: np.random.Generator, name: str, user: User) -> ElementTree.Element:
    """A SUMO vehicle type with a random driving style; every vehicle has its own."""
    kind = user.kind
    model = str(rng.choice(["IDM", "EIDM", "Krauss"], p=[0.45, 0.25, 0.3]))
    calm = kind is not CAR
    return ElementTree.Element(
        "vType",
        {
            "id": f"type_{name}",
            "vClass": kind.name,
            "length": f"{user.length}",
            "width": f"{user.width}",
            "height": f"{user.height}",
            "carFollowModel": model,
            "accel": _clipped(rng, kind.accel, 0.3, 0.6, 3.5),
            "decel": _clipped(rng, 3.0, 0.5, 2.0, 4.5),
            "emergencyDecel": "8.0",
            "tau": _clipped(rng, 1.4, 0.3, 1.0, 2.2),
            "sigma": _clipped(rng, 0.25, 0.2, 0.0, 0.6),
            "minGap": _clipped(rng, 2.3, 0.6, 1.2, 4.0),
            "maxSpeed": _clipped(rng, kind.max_speed, 0.15 * kind.max_speed, 3.0, 60.0),
            "speedFactor": _clipped(rng, 1.0, 0.13, 0.65, 1.3),
            "minGapLat": _clipped(rng, 0.7, 0.15, 0.4, 1.2),
            "maxSpeedLat": _clipped(rng, 0.8, 0.15, 0.4, 1.2),
            "latAlignment": "right" if kind is BICYCLE else str(rng.choice(["center", "center", "nice"])),
            "lcSublane": "0.6",
            "lcKeepRight": "0.2",
            "lcStrategic": _clipped(rng, 1.2, 0.3, 0.5, 2.0),
            "lcSpeedGain": "0.3" if calm else _clipped(rng, 0.8, 0.4, 0.0, 2.0),
            "lcPushy": "0",
            "jmTimegapMinor": _clipped(rng, 2.0, 0.5, 1.2, 3.5),
            "jmCrossingGap": "12",
        },
    )


def _add_vehicle(rng: np.random.Generator, plan: _Plan, depart: float, begin: Any, end: Any, position: str) -> None:
    kind = _RIDDEN[int(rng.choice(len(_RIDDEN), p=[kind.fraction for kind in _RIDDEN]))]
    user, name = _draw_user(rng, kind), f"v{len(plan.users)}"
    plan.users[name] = user
    trip = ElementTree.Element(
        "trip",
        {
            "id": name,
            "type": f"type_{name}",
            "depart": f"{depart:.1f}",
            "from": begin.getID(),
            "to": end.getID(),
            "departPos": position,
            "departLane": "best",
            "departSpeed": "desired" if position == "base" else "max",
        },
    )
    plan.departures.append((depart, [_vehicle_type(rng, name, user), trip]))


def _add_person(rng: np.random.Generator, plan: _Plan, depart: float, pavements: list[Any]) -> None:
    """Add a pedestrian who walks to streets nearby and sometimes waits there."""
    user, name = _draw_user(rng, PEDESTRIAN), f"p{len(plan.users)}"
    plan.users[name] = user
    kind = ElementTree.Element(
        "vType",
        {
            "id": f"type_{name}",
            "vClass": "pedestrian",
            "length": f"{user.length}",
            "width": f"{user.width}",
            "minGap": "0.4",
            "maxSpeed": _clipped(rng, 1.4, 0.25, 0.6, 3.2),
            "speedFactor": "1",
            "jmCrossingGap": _clipped(rng, 10, 2, 6, 15),
        },
    )
    begin = _pick(rng, pavements)
    person = ElementTree.Element(
        "person", {"id": name, "type": f"type_{name}", "depart": f"{depart:.1f}", "departPos": "random"}
    )
    here = begin.getToNode().getCoord()
    for _ in range(int(rng.integers(1, 4))):
        near = sorted(pavements, key=lambda edge: math.dist(edge.getFromNode().getCoord(), here))[:16]
        end = _pick(rng, near)
        ElementTree.SubElement(person, "walk", {"from": begin.getID(), "to": end.getID(), "arrivalPos": "random"})
        if rng.random() < 0.35:
            duration = f"{rng.uniform(3, 40):.1f}"
            ElementTree.SubElement(person, "stop", {"edge": end.getID(), "duration": duration})
        begin, here = end, end.getToNode().getCoord()
    plan.departures.append((depart, [kind, person]))


def _park(rng: np.random.Generator, edges: list[Any]) -> tuple[Parked, ...]:
    """Park cars on the parking strips, except near the ends of streets."""
    parked: list[Parked] = []
    for edge in edges:
        for lane in edge.getLanes():
            if lane_class(lane) != "parking":
                continue
            occupancy = rng.uniform(0.3, 1.0)
            walk = _walker(np.array(lane.getShape()))
            station = 7.0
            while station < lane.getLength() - 12:
                user = _draw_user(rng, CAR)
                if rng.random() < occupancy:
                    x, y, heading = walk(station + user.length / 2)
                    aside = rng.normal(0, 0.06)
                    parked.append(
                        Parked(
                            user,
                            float(x - aside * math.sin(heading)),
                            float(y + aside * math.cos(heading)),
                            float(heading + rng.normal(0, 0.012)),
                        )
                    )
                station += user.length + rng.uniform(0.45, 1.3)
    return tuple(parked)


def _walker(shape: np.ndarray) -> Callable[[float], tuple[float, float, float]]:
    """A function from arc length to position and heading on a polyline [N, 2]."""
    steps = np.diff(shape, axis=0)
    stations = np.concatenate([[0], np.cumsum(np.linalg.norm(steps, axis=1))])
    headings = np.arctan2(steps[:, 1], steps[:, 0])

    def at(station: float) -> tuple[float, float, float]:
        segment = int(np.clip(np.searchsorted(stations, station) - 1, 0, len(steps) - 1))
        x, y = (np.interp(station, stations, shape[:, axis]) for axis in (0, 1))
        return float(x), float(y), float(headings[segment])

    return at
