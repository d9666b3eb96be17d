"""SUMO: its programs, its poses, and a simulation that is stepped in this process and recorded.

SUMO's pose is the middle of the front bumper and degrees clockwise from north; ours is the centre of the box and
radians counter-clockwise from east.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.errors import UserError
from data.scene import STEP_SECONDS
from data.traffic.demand import Demand

FloatArray = NDArray[np.float64]


class SumoError(RuntimeError):
    """A SUMO program refused its input; a world from another seed may be accepted."""


def sumo_home() -> Path:
    """Folder of the installed eclipse-sumo wheel."""
    try:
        import sumo
    except ImportError as error:
        raise UserError(
            "generated traffic needs the packages eclipse-sumo and libsumo: run `make setup`, or give real "
            "scenarios with DATA="
        ) from error
    return Path(sumo.SUMO_HOME)


def require_sumo() -> None:
    """Raise ``UserError`` if a part of SUMO is missing; called before any work."""
    for name in ("netgenerate", "netconvert"):
        if not (sumo_home() / "bin" / name).is_file():
            raise UserError(f"eclipse-sumo at {sumo_home()} lacks bin/{name}: reinstall it with `make setup`")


def run_tool(name: str, arguments: Sequence[str], folder: Path) -> None:
    """Run a SUMO program in ``folder``.

    Raises:
        SumoError: it failed; the message ends with its first error.
    """
    home = sumo_home()
    done = subprocess.run(
        [str(home / "bin" / name), *arguments],
        cwd=folder,
        env={**os.environ, "SUMO_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.startswith("Error")] or ["no message"]
        raise SumoError(f"{name} failed ({done.returncode}): {lines[0]}")


def heading_of(angle: ArrayLike) -> FloatArray:
    """Radians of SUMO's degrees, not wrapped."""
    return np.asarray(np.radians(90.0 - np.asarray(angle, dtype=np.float64)))


def angle_of(heading: ArrayLike) -> FloatArray:
    """SUMO's degrees in [0, 360) of radians."""
    return np.asarray((90.0 - np.degrees(np.asarray(heading, dtype=np.float64))) % 360.0)


def box_pose(front: FloatArray, angle: ArrayLike, length: ArrayLike) -> FloatArray:
    """Box poses of SUMO's poses.

    Args:
        front: [..., 2] metres. angle: [...] degrees. length: [...] metres.

    Returns:
        [..., 3] x and y of the centre in metres, and the heading in [-pi, pi).
    """
    heading = (heading_of(angle) + math.pi) % (2 * math.pi) - math.pi
    back = np.asarray(length, dtype=np.float64)[..., None] / 2
    centre = front - back * np.stack((np.cos(heading), np.sin(heading)), axis=-1)
    return np.concatenate((centre, heading[..., None]), axis=-1)


def front_point(pose: FloatArray, length: ArrayLike) -> FloatArray:
    """Front points [..., 2] of box poses [..., 3]: the inverse of ``box_pose``."""
    ahead = np.asarray(length, dtype=np.float64)[..., None] / 2
    return np.asarray(pose[..., :2] + ahead * np.stack((np.cos(pose[..., 2]), np.sin(pose[..., 2])), axis=-1))


@dataclass(frozen=True)
class Record:
    """SUMO's output: N users over T steps after the warm-up, in the order of ``names``.

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
        network, demand: of the world. warm_up: steps before the record. steps: length of the record.
        seed: of SUMO.

    Raises:
        SumoError: the simulation failed. UserError: SUMO cannot be loaded.
    """
    with running(network, demand, seed) as sumo:
        for _ in range(warm_up):
            sumo.simulationStep()
        return _record(sumo, steps)


@contextlib.contextmanager
def running(network: Path, demand: Demand, seed: int, **changes: str) -> Iterator[Any]:
    """Start a simulation, yield the module ``libsumo``, and close it at the end.

    libsumo holds one simulation per process, so simulations in parallel need a process each.

    Args:
        network, demand: of the world. seed: of SUMO.
        changes: SUMO options that differ from those of generated traffic, with _ for - and __ for . in their names.

    Raises:
        SumoError: the simulation failed. UserError: SUMO cannot be loaded.
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
