"""Signal states of a world as in WOMD: a state per lane and step, with the stop point."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from waymo_open_dataset.protos import map_pb2

from data.traffic.roadmap import WorldMap

_STATE = map_pb2.TrafficSignalLaneState

# SUMO's letters: r red, u red and yellow, y yellow, g and G green (without and with priority), s red but a right
# turn is allowed after a stop, o blinking, O off.
_ROUND = {
    "r": _STATE.LANE_STATE_STOP,
    "u": _STATE.LANE_STATE_STOP,
    "y": _STATE.LANE_STATE_CAUTION,
    "Y": _STATE.LANE_STATE_CAUTION,
    "g": _STATE.LANE_STATE_GO,
    "G": _STATE.LANE_STATE_GO,
    "s": _STATE.LANE_STATE_FLASHING_STOP,
    "o": _STATE.LANE_STATE_FLASHING_CAUTION,
    "O": _STATE.LANE_STATE_UNKNOWN,
}
_ARROW = {
    _STATE.LANE_STATE_STOP: _STATE.LANE_STATE_ARROW_STOP,
    _STATE.LANE_STATE_CAUTION: _STATE.LANE_STATE_ARROW_CAUTION,
    _STATE.LANE_STATE_GO: _STATE.LANE_STATE_ARROW_GO,
}
STOP_STATES = (_STATE.LANE_STATE_STOP, _STATE.LANE_STATE_ARROW_STOP)


@dataclass(frozen=True)
class SignalLane:
    """A signalled lane: the lane inside the junction, as in WOMD; its first point is the stop point.

    Attributes:
        lane: feature id. stop_point: [2] metres. state: [T] ``TrafficSignalLaneState.State``.
    """

    lane: int
    stop_point: NDArray[np.float64]
    state: NDArray[np.int64]


@dataclass(frozen=True)
class SignalLink:
    """Controller and light of a lane inside a junction.

    Attributes:
        lane: feature id. stop_point: [2] metres. controller, index: of SUMO. arrow: an arrow light.
    """

    lane: int
    stop_point: NDArray[np.float64]
    controller: str
    index: int
    arrow: bool

    def state(self, letters: str) -> int:
        """``TrafficSignalLaneState.State`` of the controller's letters."""
        state = int(_ROUND[letters[self.index]])
        return int(_ARROW.get(state, state)) if self.arrow else state


def signal_links(net: Any, world: WorldMap, controllers: Collection[str]) -> list[SignalLink]:
    """The signalled lanes of a ``sumolib`` net and its map, in the order of their ids."""
    lanes: dict[int, SignalLink] = {}
    for edge in net.getEdges(withInternal=False):
        for lane in edge.getLanes():
            connections = [
                link
                for link in lane.getOutgoing()
                if link.getTLSID() in controllers and link.getViaLaneID() in world.lane_ids
            ]
            # A lane for a single turn has an arrow light.
            directions = {link.getDirection().lower() for link in connections}
            arrow = len(directions) == 1 and directions <= {"l", "r"}
            for link in connections:
                index = world.lane_ids[link.getViaLaneID()]
                point = world.lanes[index].points[0]
                lanes[index] = SignalLink(index, point, link.getTLSID(), link.getTLLinkIndex(), arrow)
    return [lanes[index] for index in sorted(lanes)]


def signal_lanes(net: Any, world: WorldMap, letters: dict[str, tuple[str, ...]]) -> list[SignalLane]:
    """Signal states of the lanes from those of SUMO's controllers.

    Args:
        net: the ``sumolib`` net. world: its map. letters: state string of each controller at each step.
    """
    return [
        SignalLane(link.lane, link.stop_point, np.array([link.state(step) for step in letters[link.controller]]))
        for link in signal_links(net, world, letters)
    ]
