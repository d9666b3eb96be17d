"""Stepping a SUMO world in this process and recording every road user and signal."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from data.scene import STEP_SECONDS
from data.traffic.demand import Demand
from data.traffic.poses import heading_of
from data.traffic.sumo import SumoError

__all__ = ["Record", "running", "simulate"]


@dataclass(frozen=True)
class Record:
    """What SUMO said, N users over T steps after the warm-up; N in the order of ``names``.

    Attributes:
        names: SUMO ids of the users that appeared.
        front: [N, T, 2] float64 metres, middle of the front bumper, NaN while absent.
        heading: [N, T] float64 radians counter-clockwise from +x, NaN while absent.
        signals: state letters of each signal controller, one string a step.
    """

    names: tuple[str, ...]
    front: NDArray[np.float64]
    heading: NDArray[np.float64]
    signals: dict[str, tuple[str, ...]]


def simulate(network: Path, demand: Demand, warm_up: int, steps: int, seed: int) -> Record:
    """Run SUMO with the sublane model at 0.1 s.

    Args:
        network, demand: what to run. warm_up: steps before the record. steps: length of the record.
        seed: of SUMO's own randomness.

    Raises:
        SumoError: SUMO gave up. UserError: SUMO cannot be loaded.
    """
    with running(network, demand, seed) as sumo:
        for _ in range(warm_up):
            sumo.simulationStep()
        return _record(sumo, steps)


@contextlib.contextmanager
def running(network: Path, demand: Demand, seed: int, **changes: str) -> Iterator[Any]:
    """SUMO at the start of a simulation, as the module ``libsumo``; it is closed in the end.

    libsumo holds one simulation a process, so worlds that run at the same time need processes of their own.

    Args:
        network, demand: what to run. seed: of SUMO's own randomness.
        changes: SUMO options that differ from those of generated traffic; _ for - and . in their names as ``__``.

    Raises:
        SumoError: SUMO gave up. UserError: SUMO cannot be loaded.
    """
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            import libsumo
        except ImportError as error:
            raise UserError(
                f"SUMO cannot be loaded: {error}; install the system libraries of OpenGL and X11 "
                "(Debian, Ubuntu: apt install libgl1 libxrender1)"
            ) from error

    options = {
        "net-file": str(network),
        "route-files": str(demand.routes),
        "seed": str(seed),
        "step-length": f"{STEP_SECONDS}",
        "lateral-resolution": "0.8",
        "collision.action": "none",
        "time-to-teleport": "-1",
        "ignore-route-errors": "true",
        "pedestrian.striping.stripe-width": "0.9",
        "no-step-log": "true",
        "no-warnings": "true",
        "xml-validation": "never",
    }
    options |= {name.replace("__", ".").replace("_", "-"): value for name, value in changes.items()}
    command = ["sumo", *(item for name, value in options.items() for item in (f"--{name}", value))]
    try:
        libsumo.start(command)
        try:
            yield libsumo
        finally:
            libsumo.close()
    except libsumo.TraCIException as error:
        raise SumoError(f"simulation failed: {error}") from error


def _record(sumo: Any, steps: int) -> Record:
    vehicle, person, lights = sumo.vehicle, sumo.person, sumo.trafficlight
    index: dict[str, int] = {}
    rows: list[tuple[int, int, float, float, float]] = []
    controllers = lights.getIDList()
    signals: dict[str, list[str]] = {name: [] for name in controllers}
    for step in range(steps):
        sumo.simulationStep()
        for domain in (vehicle, person):
            for name in domain.getIDList():
                x, y = domain.getPosition(name)
                rows.append((index.setdefault(name, len(index)), step, x, y, domain.getAngle(name)))
        for name in controllers:
            signals[name].append(lights.getRedYellowGreenState(name))
    front = np.full((len(index), steps, 2), np.nan)
    heading = np.full((len(index), steps), np.nan)
    if rows:
        user, step_of, x, y, angle = (np.array(column) for column in zip(*rows))
        front[user, step_of] = np.stack([x, y], axis=-1)
        heading[user, step_of] = heading_of(angle)
    return Record(tuple(index), front, heading, {name: tuple(states) for name, states in signals.items()})
