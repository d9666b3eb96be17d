"""Waymo's own metric on a few scenarios, as judge of ours. TensorFlow is imported here, in a process of its own."""

from __future__ import annotations

import contextlib
import math
import random
from dataclasses import dataclass
from functools import partial
from typing import Any

from data.errors import UserError
from data.scene import Scene
from data.scenes_source import open_scenes
from pipeline.execution.processes import run_isolated
from submission.protos import file_messages, rollout_files
from submission.realism import METRIC_FIELDS

_YEARS = ("2025", "2024")


@dataclass(frozen=True)
class _Job:
    scene: Scene
    message: Any
    metric: str


def scenario_proto(scene: Scene) -> Any:
    """A ``Scenario`` proto with all that Waymo's metric reads: tracks, map, lights.

    Coordinates are the scene's float32 values, to which the metric rounds them anyway.
    """
    from waymo_open_dataset.protos import scenario_pb2

    from data.scene import CURRENT_INDEX, MapKind

    agents, road, lights = scene.agents, scene.map, scene.lights
    scenario = scenario_pb2.Scenario(
        scenario_id=str(scene.scenario_id),
        timestamps_seconds=scene.timestamp.tolist(),
        current_time_index=CURRENT_INDEX,
        sdc_track_index=int(agents.is_sdc.nonzero()[0]),
    )
    for row in range(len(agents.id)):
        track = scenario.tracks.add(id=int(agents.id[row]), object_type=int(agents.type[row]))
        columns = zip(
            agents.position[row].tolist(),
            agents.heading[row].tolist(),
            agents.velocity[row].tolist(),
            agents.size[row].tolist(),
            agents.valid[row].tolist(),
            strict=True,
        )
        for (x, y, z), heading, (vx, vy), (length, width, height), valid in columns:
            track.states.add(
                center_x=x, center_y=y, center_z=z, heading=heading, velocity_x=vx, velocity_y=vy,
                length=length, width=width, height=height, valid=valid,
            )  # fmt: skip
    for row in agents.to_predict.nonzero().flatten().tolist():
        scenario.tracks_to_predict.add(track_index=row)
    for index in range(len(road.kind)):
        name = MapKind(int(road.kind[index])).name.lower()
        if name not in ("lane", "road_edge"):
            continue
        feature = getattr(scenario.map_features.add(id=int(road.feature_id[index])), name)
        feature.type = int(road.subtype[index])
        for x, y, z in road.point[road.point_feature == index].tolist():
            feature.polyline.add(x=x, y=y, z=z)
    for step in range(scene.num_steps if len(lights.lane_id) else 0):
        dynamic = scenario.dynamic_map_states.add()
        for row in lights.observed[:, step].nonzero().flatten().tolist():
            state = dynamic.lane_states.add(lane=int(lights.lane_id[row]), state=int(lights.state[row, step]))
            state.stop_point.x, state.stop_point.y, state.stop_point.z = lights.stop_point[row, step].tolist()
    return scenario


def score_officially(scenario: Any, message: Any, metric: str) -> dict[str, float]:
    """Fields of ``SimAgentMetrics`` by Waymo's code.

    Args:
        scenario: proto. message: ``ScenarioRollouts``. metric: 2025, 2024 or a textproto file.
    """
    from google.protobuf import text_format
    from waymo_open_dataset.protos import sim_agents_metrics_pb2
    from waymo_open_dataset.wdl_limited.sim_agents_metrics import metrics

    from submission.realism.config import config_path

    config = sim_agents_metrics_pb2.SimAgentMetricsConfig()
    text_format.Parse(config_path(metric).read_text(), config)
    result = metrics.compute_scenario_metrics_for_bundle(config, scenario, message)
    return {name: float(getattr(result, name)) for name in METRIC_FIELDS}


def _judge(job: _Job) -> dict[str, float] | str:
    """Its figures, or why it has none."""
    scenario = scenario_proto(job.scene)
    try:
        values = score_officially(scenario, job.message, job.metric)
    # TensorFlow's errors have no common class of their own, and any of them is a refusal.
    except Exception as error:
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    odd = next((name for name, value in values.items() if not math.isfinite(value)), None)
    return values if odd is None else f"{odd} is {values[odd]}"


def _find(rollouts: str, wanted: set[str]) -> dict[str, Any]:
    """Messages by id, as far as files can be read: those that cannot have been named before."""
    found = {}
    for file in rollout_files(rollouts):
        with contextlib.suppress(UserError):
            for message, _ in file_messages(file):
                if message.scenario_id in wanted:
                    found[message.scenario_id] = message
    return found


def largest_differences(config: Any, scenarios: str, rollouts: str, scored: list[dict[str, Any]], seed: int) -> Any:
    """Compare our figures with Waymo's on a random sample of scenarios.

    Args:
        config: of the evaluation. scenarios, rollouts: as given to it.
        scored: its rows. seed: of the sample.

    Returns:
        The sampled ids; for every field the largest absolute difference; and by id why Waymo's code has no figures
        of those that it refuses.

    Raises:
        UserError: a metric that Waymo's code does not compute.
    """
    if config.ttc_all_types or config.metric_name not in _YEARS:
        raise UserError("--official compares the 2025 and 2024 metrics as Waymo's code computes them, nothing else")
    count = min(config.official_scenarios, len(scored))
    sample = random.Random(seed).sample(scored, count)
    source = open_scenes(scenarios)
    messages = _find(rollouts, {row["scenario_id"] for row in sample})
    differences, refused = dict.fromkeys(METRIC_FIELDS, 0.0), dict[str, str]()
    for row in sample:
        name = row["scenario_id"]
        job = _Job(source.get(name), messages[name], config.metric_name)
        official = run_isolated(partial(_judge, job)).value
        if isinstance(official, str):
            refused[name] = official
            continue
        for field in METRIC_FIELDS:
            differences[field] = max(differences[field], abs(row["values"][field] - official[field]))
    return {"scenarios": [row["scenario_id"] for row in sample], "differences": differences, "refused": refused}
