"""The realism metric with 32 rollouts, compared with Waymo's code on one rollout in the same run.

Waymo's code computes the features of the log once and those of each rollout once, so its time for one rollout is
scaled by 33 / 2; the name of the row says so.
"""

from __future__ import annotations

import dataclasses
from functools import partial

import torch

from data.scene import Agents, Scene
from pipeline.agents.baselines import ConstantVelocity
from pipeline.bench.rows import Row, cpu_seconds, fresh, known_pair, load_scenes, peak_memory_mb
from submission.realism import load_config, prepare_scene, score

_ROLLOUTS = 32


def noisy_rollouts(scene: Scene, count: int) -> torch.Tensor:
    """Constant velocity with a random factor of speed for every agent and rollout."""
    states = ConstantVelocity().rollouts(scene, count, 0)
    generator = torch.Generator().manual_seed(0)
    start = scene.agents.position[scene.simulated, 10, :2][None, :, None]
    factor = 1 + 0.1 * torch.randn(count, states.shape[1], 1, 1, generator=generator)
    states[..., :2] = start + (states[..., :2] - start) * factor
    return states


def _ours(scene: Scene) -> tuple[float, float]:
    torch.set_num_threads(1)
    ids, states, config = scene.agents.id[scene.simulated], noisy_rollouts(scene, _ROLLOUTS), load_config("2025")
    # The first call initialises torch.
    score(prepare_scene(scene), ids, states[:1], config)
    return cpu_seconds(lambda: score(prepare_scene(scene), ids, states, config), repeats=5), peak_memory_mb()


def _official(scene: Scene) -> tuple[float, float]:
    # Imported here, since only this comparison needs Waymo's wheel.
    from pipeline.evaluation.official_metric import scenario_proto, score_officially
    from submission.protos import Rollouts, to_proto

    message = to_proto(Rollouts(str(scene.scenario_id), scene.agents.id[scene.simulated], noisy_rollouts(scene, 1)))
    scenario = scenario_proto(scene)
    once = cpu_seconds(lambda: score_officially(scenario, message, "2025"))
    return once * (_ROLLOUTS + 1) / 2, peak_memory_mb()


def larger_map(scene: Scene, times: int) -> Scene:
    """The scene with several copies of its map, 300 m apart."""
    road = scene.map
    count = len(road.kind)
    copies = torch.arange(times)
    shift = torch.tensor([300.0, 0.0, 0.0]) * copies.view(-1, 1, 1)

    def repeated(value: torch.Tensor) -> torch.Tensor:
        return value.repeat(times)

    features = {name: repeated(getattr(road, name)) for name in ("kind", "subtype", "speed_limit", "interpolating")}
    larger = dataclasses.replace(
        road,
        point=(road.point + shift).flatten(0, 1),
        point_feature=(road.point_feature + count * copies.unsqueeze(-1)).flatten(),
        feature_id=(road.feature_id + 1_000_000 * copies.unsqueeze(-1)).flatten(),
        **features,
    )
    return dataclasses.replace(scene, map=larger)


def _fewer_agents(scene: Scene, count: int) -> Scene:
    """The scene with at most ``count`` agents, evaluated ones first."""
    order = torch.argsort((~(scene.simulated & scene.evaluated)).int() + (~scene.simulated).int(), stable=True)
    kept = order[:count]
    agents = Agents(**{name: value[kept] for name, value in vars(scene.agents).items()})
    return dataclasses.replace(scene, agents=agents)


def _growth(scene: Scene, kind: str) -> list[Row]:
    """Time by number of rollouts and agents, and by size of the map."""
    config = load_config("2025")

    torch.set_num_threads(1)

    def seconds(scene: Scene, rollouts: int) -> float:
        ids, states = scene.agents.id[scene.simulated], noisy_rollouts(scene, rollouts)
        return cpu_seconds(lambda: score(prepare_scene(scene), ids, states, config), repeats=3)

    agents = int(scene.simulated.sum())
    seconds(scene, _ROLLOUTS)  # initialises torch
    base = seconds(scene, _ROLLOUTS)
    title = f"metric, growth, {kind}"
    rows = [Row(f"{title}, {agents} agents, {_ROLLOUTS} rollouts", base, "CPU s")]
    for rollouts in (8, 128):
        rows.append(Row(f"{title}, {rollouts} rollouts", seconds(scene, rollouts), "CPU s"))
    for count in (agents // 4, agents // 2):
        rows.append(Row(f"{title}, {count} agents", seconds(_fewer_agents(scene, count), _ROLLOUTS), "CPU s"))
    for times in (2, 4):
        rows.append(Row(f"{title}, map {times} times", seconds(larger_map(scene, times), _ROLLOUTS), "CPU s"))
    return rows


def bench() -> list[Row]:
    kind, scenes = load_scenes()
    pair, _ = known_pair(scenes)
    rows = []
    for scene in pair:
        seconds, memory = fresh(partial(_ours, scene))
        theirs, their_memory = fresh(partial(_official, scene))
        name = f"{_ROLLOUTS} rollouts, {kind}, {int(scene.simulated.sum())} agents; Waymo's code on 1, scaled"
        rows.append(Row(f"metric, {name}", seconds, "CPU s", theirs, theirs / seconds))
        rows.append(Row(f"metric, {name}", memory, "MB peak", their_memory, their_memory / memory))
    largest = max(pair, key=lambda scene: int(scene.simulated.sum()))
    rows += fresh(partial(_growth, largest, kind))
    return rows
