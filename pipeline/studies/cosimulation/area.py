"""The place of a co-simulation: a generated road network with its map, and everybody who will ever be in it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from shapely.geometry.base import BaseGeometry

from data.traffic.demand import BICYCLE, PEDESTRIAN, Demand, User, build_demand
from data.traffic.roadmap import WorldMap, build_map
from data.traffic.signals import SignalLink, signal_links
from data.traffic.skeleton import LAYOUTS
from data.traffic.surface import is_fringe
from data.traffic.world import draw_streets, draw_surface, fastest


@dataclass(frozen=True)
class Area:
    """A network, its map and its road users; A of them, those that SUMO moves first, then the parked ones.

    Attributes:
        name: tells areas apart. network: SUMO's file. demand: who drives where. map: features.
        links: signalled lanes. caps: the cross lines at which streets end and traffic leaves.
        exits: SUMO ids of the edges that lead there. sumo_seed: of SUMO's own randomness.
    """

    name: str
    network: Path
    demand: Demand
    map: WorldMap
    links: tuple[SignalLink, ...]
    caps: BaseGeometry
    exits: tuple[str, ...]
    sumo_seed: int

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of everybody whom SUMO moves, by SUMO id."""
        return {name: row for row, name in enumerate(self.demand.users)}

    @cached_property
    def users(self) -> tuple[User, ...]:
        """[A] boxes."""
        return (*self.demand.users.values(), *(parked.user for parked in self.demand.parked))

    @cached_property
    def lengths(self) -> NDArray[np.float64]:
        """[A] metres."""
        return np.array([user.length for user in self.users])

    @cached_property
    def fastest(self) -> NDArray[np.float64]:
        """[A] m/s that no user exceeds: a user that seems to was moved by SUMO."""
        return np.array([fastest(user) for user in self.users])

    @cached_property
    def motorised(self) -> NDArray[np.bool_]:
        """[A] whether SUMO moves it and it has a motor: who may be taken over."""
        moved = [user.kind not in (BICYCLE, PEDESTRIAN) for user in self.demand.users.values()]
        return np.array(moved + [False] * len(self.demand.parked), dtype=bool)


def build_area(seed: int, world: int, attempt: int, seconds: float, folder: Path) -> Area:
    """Draw an area; it depends on nothing but the numbers.

    Args:
        seed: of all areas. world: number of this one. attempt: how many were refused before.
        seconds: for how long traffic must last. folder: for SUMO's files, one a world.

    Raises:
        SumoError: a SUMO program refused what was drawn.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, *b"cosimulation", world, attempt]))
    network, net = draw_streets(rng, LAYOUTS[world % len(LAYOUTS)], folder)
    demand = build_demand(rng, net, seconds, folder)
    surface = draw_surface(rng, net)
    road_map = build_map(rng, net, surface)
    controllers = [light.getID() for light in net.getTrafficLights()]
    exits = [edge.getID() for edge in net.getEdges(withInternal=False) if is_fringe(edge.getToNode())]
    return Area(
        name=f"{seed}/{world}/{attempt}",
        network=network,
        demand=demand,
        map=road_map,
        links=tuple(signal_links(net, road_map, controllers)),
        caps=surface.caps,
        exits=tuple(sorted(exits)),
        sumo_seed=int(rng.integers(1 << 30)),
    )
