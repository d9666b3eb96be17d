"""Writing a window of a world, on gently sloping ground, as WOMD's ``Scenario`` proto."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from waymo_open_dataset.protos import scenario_pb2

from data.scene import CURRENT_INDEX, NUM_STEPS, STEP_SECONDS
from data.traffic.roadmap import WorldMap, crop_map
from data.traffic.window import Cast, Window

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Terrain:
    """Height in metres: a tilted plane and a long wave.

    Attributes:
        origin: [2] metres. level: height there. slope: [2] metres a metre. wave: amplitude in metres.
        direction: [2] unit vector of the wave. length: wavelength in metres.
    """

    origin: tuple[float, float]
    level: float
    slope: tuple[float, float]
    wave: float
    direction: tuple[float, float]
    length: float

    def height(self, points: FloatArray) -> FloatArray:
        """Height [...] at points [..., 2]."""
        x, y = points[..., 0] - self.origin[0], points[..., 1] - self.origin[1]
        phase = (x * self.direction[0] + y * self.direction[1]) * (2 * math.pi / self.length)
        return self.level + self.slope[0] * x + self.slope[1] * y + self.wave * np.sin(phase)


def draw_terrain(rng: np.random.Generator, origin: tuple[float, float]) -> Terrain:
    """Draw a ground with slopes of up to about 3 %."""
    grade, bearing, turn = abs(rng.normal(0, 0.01)), rng.uniform(0, 2 * math.pi), rng.uniform(0, 2 * math.pi)
    return Terrain(
        origin=origin,
        level=float(rng.uniform(-20, 120)),
        slope=(float(grade * math.cos(bearing)), float(grade * math.sin(bearing))),
        wave=float(rng.uniform(0, 1.2)),
        direction=(math.cos(turn), math.sin(turn)),
        length=float(rng.uniform(300, 700)),
    )


def scenario_id(seed: int, split: str, index: int) -> str:
    """16 hexadecimal digits, the same for the same arguments."""
    return hashlib.sha256(f"generated traffic/{seed}/{split}/{index}".encode()).hexdigest()[:16]


def to_scenario(
    name: str, window: Window, cast: Cast, terrain: Terrain, radius: float, with_future: bool
) -> scenario_pb2.Scenario:
    """Write one scene.

    Args:
        name: scenario id. window, cast: the agents. terrain: heights. radius: of the map around the AV's path,
            metres. with_future: False ends tracks and signals at the current step, as in the test split.
    """
    steps = NUM_STEPS if with_future else CURRENT_INDEX + 1
    scenario = scenario_pb2.Scenario(scenario_id=name, current_time_index=CURRENT_INDEX)
    scenario.timestamps_seconds.extend(round(step * STEP_SECONDS, 1) for step in range(steps))
    path = cast.motion.centre[window.agents[window.av], window.start : window.start + NUM_STEPS]
    world = crop_map(cast.map, path, radius)
    rows = np.flatnonzero(window.valid[:, :steps].any(axis=1))
    track_of = {int(row): track for track, row in enumerate(rows)}
    for row in rows:
        _add_track(scenario, window, cast, terrain, int(row), steps)
    scenario.sdc_track_index = track_of[window.av]
    for row in window.targets:
        turning = np.ptp(np.unwrap(cast.motion.heading[window.agents[row]][_seen(window, row)])) > 0.5
        scenario.tracks_to_predict.add(
            track_index=track_of[row],
            difficulty=scenario_pb2.RequiredPrediction.LEVEL_2
            if turning
            else scenario_pb2.RequiredPrediction.LEVEL_1,
        )
    scenario.objects_of_interest.extend(scenario.tracks[track_of[row]].id for row in window.interest)
    _add_signals(scenario, window, cast, world, terrain, steps)
    _add_map(scenario, world, terrain)
    return scenario


def _seen(window: Window, row: int) -> NDArray[np.int64]:
    """Steps of the world at which a row of the window is valid."""
    return window.start + np.flatnonzero(window.valid[row])


def _add_track(
    scenario: scenario_pb2.Scenario, window: Window, cast: Cast, terrain: Terrain, row: int, steps: int
) -> None:
    agent = int(window.agents[row])
    user, span = cast.users[agent], slice(window.start, window.start + steps)
    centre, heading = cast.motion.centre[agent, span], cast.motion.heading[agent, span]
    velocity, z = cast.motion.velocity[agent, span], terrain.height(centre) + user.height / 2
    track = scenario.tracks.add(id=row + 1, object_type=user.kind.track_type)
    for step in range(steps):
        if not window.valid[row, step]:
            track.states.add(valid=False)
            continue
        track.states.add(
            center_x=centre[step, 0],
            center_y=centre[step, 1],
            center_z=z[step],
            length=user.length,
            width=user.width,
            height=user.height,
            heading=heading[step],
            velocity_x=velocity[step, 0],
            velocity_y=velocity[step, 1],
            valid=True,
        )


def _add_signals(
    scenario: scenario_pb2.Scenario,
    window: Window,
    cast: Cast,
    world: WorldMap,
    terrain: Terrain,
    steps: int,
) -> None:
    near = [signal for signal in cast.signals if signal.lane in world.lanes]
    points = [(*signal.stop_point, float(terrain.height(signal.stop_point))) for signal in near]
    for step in range(steps):
        states = scenario.dynamic_map_states.add()
        for signal, (x, y, z) in zip(near, points):
            lane_state = states.lane_states.add(lane=signal.lane, state=int(signal.state[window.start + step]))
            lane_state.stop_point.x, lane_state.stop_point.y, lane_state.stop_point.z = x, y, z


def _add_points(polyline: object, points: FloatArray, terrain: Terrain) -> None:
    add = polyline.add  # type: ignore[attr-defined]
    for x, y, z in zip(points[:, 0].tolist(), points[:, 1].tolist(), terrain.height(points).tolist()):
        add(x=x, y=y, z=z)


def _add_map(scenario: scenario_pb2.Scenario, world: WorldMap, terrain: Terrain) -> None:
    """Lanes keep their ids; the other features are numbered after them."""
    for lane in world.lanes.values():
        feature = scenario.map_features.add(id=lane.id).lane
        feature.speed_limit_mph = lane.limit
        feature.type = lane.subtype
        feature.interpolating = lane.interpolating
        feature.entry_lanes.extend(lane.entry)
        feature.exit_lanes.extend(lane.exit)
        for others, field in ((lane.left, feature.left_neighbors), (lane.right, feature.right_neighbors)):
            for other in others:
                field.add(
                    feature_id=other,
                    self_start_index=0,
                    self_end_index=len(lane.points) - 1,
                    neighbor_start_index=0,
                    neighbor_end_index=len(world.lanes[other].points) - 1,
                )
        _add_points(feature.polyline, lane.points, terrain)
    number = max(world.lanes, default=0)
    for line in world.lines:
        number += 1
        road_line = scenario.map_features.add(id=number).road_line
        road_line.type = line.subtype
        _add_points(road_line.polyline, line.points, terrain)
    for line in world.edges:
        number += 1
        road_edge = scenario.map_features.add(id=number).road_edge
        road_edge.type = line.subtype
        _add_points(road_edge.polyline, line.points, terrain)
    for polygon in world.crosswalks:
        number += 1
        _add_points(scenario.map_features.add(id=number).crosswalk.polygon, polygon, terrain)
    for sign in world.stop_signs:
        number += 1
        stop = scenario.map_features.add(id=number).stop_sign
        stop.lane.extend(sign.lanes)
        stop.position.x, stop.position.y = sign.position
        stop.position.z = float(terrain.height(sign.position))
