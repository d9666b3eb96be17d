"""Signal states of a world in WOMD's terms: one state a lane a step, with the point where to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from waymo_open_dataset.protos import map_pb2

from data.traffic.roadmap import WorldMap

__all__ = ["STOP_STATES", "SignalLane", "signal_lanes"]

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
    """A signalled lane: the lane inside the junction, as in WOMD, whose first point is the point to stop at.

    Attributes:
        lane: feature id. stop_point: [2] metres. state: [T] ``TrafficSignalLaneState.State``.
    """

    lane: int
    stop_point: NDArray[np.float64]
    state: NDArray[np.int64]


def signal_lanes(net: Any, world: WorldMap, letters: dict[str, tuple[str, ...]]) -> list[SignalLane]:
    """Join SUMO's controllers to lanes.

    Args:
        net: the ``sumolib`` net. world: its map. letters: state string of each controller at each step.
    """
    lanes: dict[int, SignalLane] = {}
    for edge in net.getEdges(withInternal=False):
        for lane in edge.getLanes():
            connections = [
                link
                for link in lane.getOutgoing()
                if link.getTLSID() in letters and link.getViaLaneID() in world.lane_ids
            ]
            # A lane for one kind of turn has an arrow signal.
            directions = {link.getDirection().lower() for link in connections}
            arrow = len(directions) == 1 and directions <= {"l", "r"}
            for link in connections:
                index = world.lane_ids[link.getViaLaneID()]
                states = [_ROUND[step[link.getTLLinkIndex()]] for step in letters[link.getTLSID()]]
                state = np.array([_ARROW.get(value, value) if arrow else value for value in states])
                lanes[index] = SignalLane(index, world.lanes[index].points[0], state)
    return [lanes[index] for index in sorted(lanes)]
