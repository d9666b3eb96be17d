"""Against scores that Waymo's own code gave to fixed rollouts of real scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from data.scene import Scene
from data.scenes_source import open_scenes
from submission.protos import read_rollouts
from submission.realism import load_config, prepare_scene, score

_FEATURE_NAMES = {
    "collision": "collision_per_step",
    "offroad": "offroad_per_step",
    "traffic_light_violation": "traffic_light_violation_per_step",
    "displacement": "average_displacement_error",
}
# Rounding of sums in another order, metres and seconds; float32 coordinates of 8 km are 0.0005 m apart.
_FEATURE_TOLERANCE = {"distance_to_nearest_object": 5e-4, "distance_to_road_edge": 5e-4, "time_to_collision": 5e-6}


@pytest.fixture(scope="module")
def oracle(womd: Path) -> Path:
    folder = womd.parent / "oracle"
    if not folder.is_dir():
        pytest.skip(f"no official scores at {folder}: equality with Waymo's metric on real scenes not tested")
    return folder


@pytest.fixture(scope="module")
def scenes(womd: Path) -> dict[str, Scene]:
    source = open_scenes(womd / "validation")
    return {name: source.get(name) for name in source.ids}


@pytest.mark.womd
@pytest.mark.parametrize("kind", ["six", "cv32", "lognoise32"])
def test_equals_official_scores(oracle: Path, scenes: dict[str, Scene], kind: str) -> None:
    files = sorted((oracle / kind).glob("*.rollouts.binproto"))
    assert files
    configs = {year: load_config(year) for year in ("2025", "2024")}
    for file in files:
        (rollouts,) = read_rollouts(file)
        context = prepare_scene(scenes[rollouts.scenario_id])
        official = json.loads(file.with_name(f"{rollouts.scenario_id}.json").read_text())
        for year, config in configs.items():
            found = score(context, rollouts.agent_id, rollouts.states, config).values
            for name, value in official[year].items():
                limit = 0.0 if name.endswith("_rate") else 2e-6 if "displacement" in name else 1e-6
                assert abs(float(found[name]) - value) <= limit, (rollouts.scenario_id, year, name)


@pytest.mark.womd
@pytest.mark.parametrize("kind", ["cv32", "lognoise32"])
def test_equals_official_features(oracle: Path, scenes: dict[str, Scene], kind: str) -> None:
    for file in sorted((oracle / kind).glob("*.rollouts.binproto")):
        (rollouts,) = read_rollouts(file)
        context = prepare_scene(scenes[rollouts.scenario_id])
        result = score(context, rollouts.agent_id, rollouts.states, load_config("2025"))
        with np.load(file.with_name(f"{rollouts.scenario_id}.features.npz")) as official:
            for prefix, features in (("log", context.log_features), ("sim", result.features)):
                for name, tensor in vars(features).items():
                    expected = official[f"{prefix}_{_FEATURE_NAMES.get(name, name)}"]
                    if expected.dtype == bool:
                        assert np.array_equal(tensor.numpy(), expected), (prefix, name)
                    else:
                        tolerance = _FEATURE_TOLERANCE.get(name, 2e-6)
                        assert np.allclose(tensor.numpy(), expected, rtol=0, atol=tolerance, equal_nan=True), (
                            prefix,
                            name,
                        )


@pytest.mark.womd
def test_order_of_agents_and_of_rollouts_does_not_matter(oracle: Path, scenes: dict[str, Scene]) -> None:
    file = sorted((oracle / "six").glob("*.rollouts.binproto"))[0]
    (rollouts,) = read_rollouts(file)
    context = prepare_scene(scenes[rollouts.scenario_id])
    config = load_config("2025")
    generator = torch.Generator().manual_seed(0)
    agents = torch.randperm(len(rollouts.agent_id), generator=generator)
    order = torch.randperm(len(rollouts.states), generator=generator)
    one = score(context, rollouts.agent_id, rollouts.states, config).values
    two = score(context, rollouts.agent_id[agents], rollouts.states[order][:, agents], config).values
    for name, value in one.items():
        assert float(value) == pytest.approx(float(two[name]), abs=1e-6), name
