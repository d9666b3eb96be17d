"""SUMO while it runs: one step at a time, with some vehicles put where we want them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.traffic.sumo import angle_of, box_pose, front_point, running
from pipeline.studies.cosimulation.area import Area

# No generated vehicle brakes harder than this by choice, m/s^2 (``data.traffic.demand``); in an emergency SUMO's
# vehicles can do 8.
_HARD_BRAKE = 4.5
# How far ahead the cause of a hard braking is looked for, metres.
_LOOK_AHEAD = 40.0
# moveToXY: the route is given up where it does not lead there. The pose is taken as it is, and others see it in the
# nearest lane, or beside it. With 2 vehicles off the lanes leave SUMO's network; it crashes when they come back.
_ANY_ROUTE = 0
# How far the nearest lane may be, metres.
_REACH = 2000.0


@dataclass(frozen=True)
class Frame:
    """Everybody at one moment.

    Attributes:
        pose: [A, 3] float64 x, y, heading of the box, global; zero where absent. present: [A] bool.
        signals: [S] int64 ``TrafficSignalLaneState.State`` of the area's links.
    """

    pose: NDArray[np.float64]
    present: NDArray[np.bool_]
    signals: NDArray[np.int64]


@dataclass(frozen=True)
class Brake:
    """A vehicle of SUMO's begins to brake harder than it would by choice: its row, and that of the vehicle ahead on
    its way (-1 where there is none)."""

    row: int
    leader: int


class Session:
    """A running world; see ``open_session``."""

    def __init__(self, sumo: Any, area: Area) -> None:
        self._sumo, self._area = sumo, area
        self._braking: set[str] = set()
        self._names = list(area.rows)
        standing = [(parked.x, parked.y, parked.heading) for parked in area.demand.parked]
        self._standing = np.array(standing, dtype=np.float64).reshape(-1, 3)

    def step(self) -> None:
        """0.1 s."""
        self._sumo.simulationStep()

    def frame(self) -> Frame:
        """Where everybody is."""
        area, count = self._area, len(self._names)
        front, angle = np.zeros((count, 2)), np.zeros(count)
        present = np.zeros(len(area.users), dtype=bool)
        present[count:] = True
        for domain in (self._sumo.vehicle, self._sumo.person):
            for name in domain.getIDList():
                row = area.rows[name]
                front[row], angle[row], present[row] = domain.getPosition(name), domain.getAngle(name), True
        pose = np.concatenate((box_pose(front, angle, area.lengths[:count]), self._standing))
        pose[~present] = 0.0
        read = self._sumo.trafficlight.getRedYellowGreenState
        letters = {name: read(name) for name in {link.controller for link in area.links}}
        signals = np.array([link.state(letters[link.controller]) for link in area.links], dtype=np.int64)
        return Frame(pose, present, signals)

    def move(self, row: int, pose: NDArray[np.float64], speed: float) -> None:
        """Put a vehicle exactly there with the next step.

        Args:
            row: whom. pose: [3] of the box, global. speed: m/s at which it gets there, told to those behind it.
        """
        name, vehicle = self._names[row], self._sumo.vehicle
        x, y = front_point(pose, self._area.lengths[row])
        vehicle.moveToXY(name, "", -1, float(x), float(y), float(angle_of(pose[2])), _ANY_ROUTE, _REACH)
        vehicle.setPreviousSpeed(name, speed)

    def remove(self, row: int) -> None:
        """Take a vehicle out of the world."""
        self._sumo.vehicle.remove(self._names[row])

    def lead_on(self, row: int, choice: float) -> None:
        """Give a vehicle that is on the last street of its route a way out of the world.

        SUMO's drivers yield to where they believe others to be going; one that left its route has none. Which of
        the exits it is, ``choice`` in [0, 1) says.
        """
        name, vehicle, exits = self._names[row], self._sumo.vehicle, self._area.exits
        street = vehicle.getRoadID(name)
        if street.startswith(":") or street in exits or vehicle.getRoute(name)[-1] != street:
            return
        # An exit that cannot be reached from there is as good as none.
        with contextlib.suppress(self._sumo.TraCIException):
            vehicle.changeTarget(name, exits[int(choice * len(exits))])

    def collisions(self) -> set[tuple[int, int]]:
        """Pairs of rows that SUMO itself says collided in the last step."""
        rows = self._area.rows
        found = self._sumo.simulation.getCollisions()
        return {
            (rows[each.collider], rows[each.victim])
            for each in found
            if each.collider in rows and each.victim in rows
        }

    def brakes(self, moved: NDArray[np.bool_]) -> list[Brake]:
        """Who began to brake hard in the last step.

        Args:
            moved: [A] bool, whose braking does not count since SUMO does not drive it.
        """
        vehicle, rows = self._sumo.vehicle, self._area.rows
        found, braking = [], set()
        for name in vehicle.getIDList():
            row = rows[name]
            if moved[row] or not self._area.motorised[row] or vehicle.getAcceleration(name) > -_HARD_BRAKE:
                continue
            braking.add(name)
            if name not in self._braking:
                ahead = vehicle.getLeader(name, _LOOK_AHEAD)
                found.append(Brake(row, rows.get(ahead[0], -1) if ahead else -1))
        self._braking = braking
        return found


@contextlib.contextmanager
def open_session(area: Area) -> Iterator[Session]:
    """SUMO at the start of the area's traffic, watching for collisions without doing anything about them.

    Raises:
        SumoError: SUMO gave up. UserError: SUMO cannot be loaded.
    """
    watch = {"collision__action": "warn", "collision__check_junctions": "true", "collision__mingap_factor": "0"}
    with running(area.network, area.demand, area.sumo_seed, **watch) as sumo:
        yield Session(sumo, area)
