"""One world from its seed to serialized scenes."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from data.scene import NUM_STEPS, STEP_SECONDS
from data.traffic.demand import Demand, Parked, User, build_demand
from data.traffic.motion import Motion, box_motion, with_tracking_noise
from data.traffic.network import build_network
from data.traffic.protos import draw_terrain, scenario_id, to_scenario
from data.traffic.roadmap import build_map
from data.traffic.signals import signal_lanes
from data.traffic.skeleton import LAYOUTS, draw_skeleton, with_roundabouts
from data.traffic.sumo import Record, SumoError, simulate
from data.traffic.surface import Surface, build_surface
from data.traffic.window import Cast, pick_window

# Steps between windows, and windows tried per scene.
_PAUSE = 10
_SPARE = 1.2
_MOST_ATTEMPTS = 12
_ROUNDABOUT_CHANCE = 0.5
_SHARED_CHANCE = 0.45
# Standard deviation of the smoothing of front points, seconds.
_SMOOTHING = {"pedestrian": 0.5, "bicycle": 0.45}
_SMOOTHING_OTHERS = 0.4
# Standard deviations of the tracking noise: metres along and across, radians.
_NOISE = {"pedestrian": (0.012, 0.010, 0.008), "bicycle": (0.020, 0.008, 0.005)}
_NOISE_OTHERS = (0.018, 0.005, 0.002)
# Highest speed, m/s.
_FASTEST = {"pedestrian": 4.5, "bicycle": 15.0}
_FASTEST_OTHERS = 45.0
# Distance of houses from the pavements, metres.
_SETBACK = 14.0


@dataclass(frozen=True)
class WorldTask:
    """Work of one worker.

    Attributes:
        seed: of the whole data set. split: training, validation or testing. world: number of the world in its
            split. first: index in the split of its first scene. scenes: number of scenes.
        radius: of the map around the AV's path, metres. warm_up: seconds before the first window.
    """

    seed: int
    split: str
    world: int
    first: int
    scenes: int
    radius: float
    warm_up: float


def generate_world(task: WorldTask, scratch: Path) -> tuple[list[bytes], Counter[str]]:
    """Generate the scenes of a task.

    If SUMO refuses a network, or it gives too few scenes, another one is drawn.

    Args:
        task: determines the result. scratch: folder for SUMO's files.

    Returns:
        Serialized scenarios and the counts of what was dropped.

    Raises:
        RuntimeError: many networks in a row gave too few scenes.
    """
    counts: Counter[str] = Counter()
    records: list[bytes] = []
    for attempt in range(_MOST_ATTEMPTS):
        key = [task.seed, *task.split.encode(), task.world, attempt]
        rng = np.random.default_rng(np.random.SeedSequence(key))
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            try:
                records += _attempt(
                    rng, task, task.scenes - len(records), task.first + len(records), Path(folder), counts
                )
            except SumoError:
                counts["networks_refused"] += 1
        if len(records) == task.scenes:
            return records, counts
    raise RuntimeError(
        f"world {task.world} of {task.split}, seed {task.seed}: {len(records)} of {task.scenes} scenes after "
        f"{_MOST_ATTEMPTS} networks ({dict(counts)})"
    )


def _attempt(
    rng: np.random.Generator, task: WorldTask, wanted: int, first: int, folder: Path, counts: Counter[str]
) -> list[bytes]:
    network, net = draw_streets(rng, LAYOUTS[task.world % len(LAYOUTS)], folder)
    warm_up = round(task.warm_up / STEP_SECONDS)
    slots = int(np.ceil(wanted * _SPARE))
    steps = slots * (NUM_STEPS + _PAUSE)
    demand = build_demand(rng, net, (warm_up + steps) * STEP_SECONDS, folder)
    record = simulate(network, demand, warm_up, steps, int(rng.integers(1 << 30)))
    counts["networks"] += 1
    cast = _cast(rng, net, draw_surface(rng, net), record, demand)
    x, y = cast.motion.centre[cast.motion.present][0]
    terrain = draw_terrain(rng, (float(x), float(y)))
    scenes: list[bytes] = []
    for slot in range(slots):
        if len(scenes) == wanted:
            break
        window = pick_window(rng, cast, slot * (NUM_STEPS + _PAUSE) + _PAUSE // 2, counts)
        if window is None:
            continue
        name = scenario_id(task.seed, task.split, first + len(scenes))
        scenario = to_scenario(name, window, cast, terrain, task.radius, task.split != "testing")
        scenes.append(scenario.SerializeToString(deterministic=True))
    counts["scenes"] += len(scenes)
    return scenes


def draw_streets(rng: np.random.Generator, layout: str, folder: Path) -> tuple[Path, Any]:
    """Draw and build a network of one of ``LAYOUTS``: its file in ``folder``, and the ``sumolib`` net.

    Raises:
        SumoError: a SUMO program refused the network.
    """
    # Imported here so that runs on real scenarios need no SUMO; the stage checks for it first.
    import sumolib

    skeleton = with_roundabouts(rng, draw_skeleton(rng, layout, folder), _ROUNDABOUT_CHANCE)
    network = build_network(rng, skeleton, folder)
    return network, sumolib.net.readNet(str(network), withInternal=True)


def draw_surface(rng: np.random.Generator, net: Any) -> Surface:
    """The paved surface of a net; whether pavements are flush with the road is drawn."""
    return build_surface(net, bool(rng.random() < _SHARED_CHANCE))


def fastest(user: User) -> float:
    """Highest speed of this kind of user, m/s; a faster motion of SUMO is a jump."""
    return _FASTEST.get(user.kind.name, _FASTEST_OTHERS)


def _cast(rng: np.random.Generator, net: Any, surface: Surface, record: Record, demand: Demand) -> Cast:
    """The recorded users and the parked vehicles of a world."""
    driving = [demand.users[name] for name in record.names]
    length = np.array([user.length for user in driving])
    lever = length * np.array([user.kind.lever for user in driving])
    smoothing = np.array([_SMOOTHING.get(user.kind.name, _SMOOTHING_OTHERS) for user in driving])
    limit = np.array([fastest(user) for user in driving])
    motion = box_motion(record.front, record.heading, length, lever, smoothing, limit)
    noise = np.array([_NOISE.get(user.kind.name, _NOISE_OTHERS) for user in driving]).reshape(-1, 3)
    motion = with_tracking_noise(rng, motion, noise[:, 0], noise[:, 1], noise[:, 2])
    world = build_map(rng, net, surface)
    sight = shapely.union_all([surface.road, surface.medians, surface.walks]).buffer(_SETBACK)
    shapely.prepare(sight)
    return Cast(
        users=(*driving, *(parked.user for parked in demand.parked)),
        motion=with_parked(motion, demand.parked),
        signals=tuple(signal_lanes(net, world, record.signals)),
        road=surface.road,
        sight=sight,
        map=world,
    )


def with_parked(motion: Motion, parked: Sequence[Parked]) -> Motion:
    """Append parked vehicles to the motion of the others."""
    steps = motion.present.shape[1]
    poses = [(vehicle.x, vehicle.y, vehicle.heading) for vehicle in parked]
    pose = np.array(poses, dtype=np.float64).reshape(-1, 1, 3).repeat(steps, axis=1)
    return Motion(
        centre=np.concatenate([motion.centre, pose[..., :2]]),
        heading=np.concatenate([motion.heading, (pose[..., 2] + np.pi) % (2 * np.pi) - np.pi]),
        velocity=np.concatenate([motion.velocity, np.zeros_like(pose[..., :2])]),
        present=np.concatenate([motion.present, np.ones(pose.shape[:2], dtype=bool)]),
    )
