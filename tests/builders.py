"""Hand-made scenarios as protos, for tests of readers and of everything behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from waymo_open_dataset.protos import map_pb2, scenario_pb2

from data.scene import NUM_STEPS

__all__ = ["scenario_proto"]


def _add_track(
    scenario: scenario_pb2.Scenario,
    track_id: int,
    kind: int,
    start: tuple[float, float],
    heading: float,
    speed: float,
    valid: Sequence[bool],
) -> None:
    track = scenario.tracks.add(id=track_id, object_type=kind)
    for step, is_valid in enumerate(valid):
        state = track.states.add(valid=is_valid)
        if is_valid:
            travelled = speed * 0.1 * step
            state.center_x = start[0] + travelled * math.cos(heading)
            state.center_y = start[1] + travelled * math.sin(heading)
            state.center_z = 1.5
            state.length, state.width, state.height = 4.5, 2.0, 1.6
            state.heading = heading
            state.velocity_x, state.velocity_y = speed * math.cos(heading), speed * math.sin(heading)


def scenario_proto(
    scenario_id: str = "0123456789abcdef",
    steps: int = NUM_STEPS,
    agents: int = 3,
    with_map: bool = True,
    with_lights: bool = True,
) -> scenario_pb2.Scenario:
    """A straight road along +x with vehicles behind one another, a pedestrian as every third agent."""
    scenario = scenario_pb2.Scenario(scenario_id=scenario_id, current_time_index=10, sdc_track_index=0)
    scenario.timestamps_seconds.extend(0.1 * step for step in range(steps))
    for index in range(agents):
        kind = 2 if index % 3 == 2 else 1
        seen = [index % 2 == 0 or 3 <= step < 88 for step in range(steps)]
        _add_track(scenario, 100 + 7 * index, kind, (4000.0 + 12.0 * index, -2500.0), 0.0, 5.0 + index, seen)
    scenario.tracks_to_predict.add(track_index=min(1, agents - 1))
    scenario.objects_of_interest.append(100)
    if with_map:
        lane = scenario.map_features.add(id=1).lane
        lane.type = map_pb2.LaneCenter.TYPE_SURFACE_STREET
        lane.speed_limit_mph = 25.0
        lane.exit_lanes.append(9)
        edges = []
        for feature_id, side in ((2, -4.0), (3, 4.0)):
            edge = scenario.map_features.add(id=feature_id).road_edge
            edge.type = map_pb2.RoadEdge.TYPE_ROAD_EDGE_BOUNDARY
            edges.append((edge, side))
        for index in range(60):
            x = 3980.0 + 2.0 * index
            lane.polyline.add(x=x, y=-2500.0, z=0.7)
            for edge, side in edges:
                # The road lies on the left of the polyline's direction.
                direction = x if side < 0 else 8000.0 - x + 78.0
                edge.polyline.add(x=direction, y=-2500.0 + side, z=0.7)
        crosswalk = scenario.map_features.add(id=4).crosswalk
        for x, y in ((0, -4), (3, -4), (3, 4), (0, 4)):
            crosswalk.polygon.add(x=4040.0 + x, y=-2500.0 + y, z=0.7)
        stop = scenario.map_features.add(id=5).stop_sign
        stop.lane.append(1)
        stop.position.x, stop.position.y, stop.position.z = 4038.0, -2504.0, 2.0
    if with_lights:
        for step in range(steps):
            dynamic = scenario.dynamic_map_states.add()
            if step >= 2:
                state = dynamic.lane_states.add(lane=1, state=4 if step < 40 else 6)
                state.stop_point.x, state.stop_point.y = 4038.0, -2500.0
    return scenario
