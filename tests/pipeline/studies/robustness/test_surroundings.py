"""Maps without some of their features, lights in other states: against plain loops."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from data.nearby import keep_features
from data.scene import LightState, LinkKind, Scene
from data.womd import parse_scenario
from pipeline.studies.robustness.spoiling import SWAPPED, drop_map, hide_lights, swap_lights
from tests.builders import scenario_proto
from tests.models.scenes import random_scene

HISTORY = 11


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def scene() -> Scene:
    """Eight features (ids 100 to 107) with links between them, and one to a feature that is not there."""
    made = random_scene(5)
    road = dataclasses.replace(
        made.map,
        link_source=torch.tensor([0, 0, 3, 5, 7]),
        link_kind=torch.tensor([int(kind) for kind in LinkKind]),
        link_target=torch.tensor([103, 999, 100, 107, 100]),
        speed_limit=torch.arange(8.0),
    )
    return dataclasses.replace(made, map=road)


def test_a_map_of_some_features(scene: Scene) -> None:
    kept = [0, 2, 5, 7]
    mask = torch.zeros(8, dtype=torch.bool)
    mask[kept] = True
    old, new = scene.map, keep_features(scene.map, mask)
    assert new.feature_id.tolist() == [100, 102, 105, 107]
    assert new.speed_limit.tolist() == [0, 2, 5, 7]
    for row, feature in enumerate(kept):
        assert torch.equal(new.point[new.point_feature == row], old.point[old.point_feature == feature])
        for name in ("kind", "subtype", "interpolating"):
            assert getattr(new, name)[row] == getattr(old, name)[feature]
    assert len(new.point) == sum(int((old.point_feature == feature).sum()) for feature in kept)
    assert bool((new.point_feature.diff() >= 0).all()), "points of a feature stay together"
    # 100 -> 103 and 103 -> 100 lost an end; 100 -> 999 never had one.
    links = list(zip(new.link_source.tolist(), new.link_kind.tolist(), new.link_target.tolist(), strict=True))
    assert links == [(0, 2, 999), (2, 4, 107), (3, 5, 100)]


@pytest.mark.parametrize(("share", "left"), [(0.1, 7), (0.25, 6), (0.5, 4), (0.9, 1), (1.0, 1)])
def test_so_many_features_are_left(scene: Scene, share: float, left: int) -> None:
    after = drop_map(scene, share, generator())
    assert len(after.map.kind) == left
    assert set(after.map.feature_id.tolist()) < set(scene.map.feature_id.tolist())
    assert set(after.map.point_feature.tolist()) == set(range(left))
    assert after.agents is scene.agents
    assert after.lights is scene.lights, "a signal stays though its lane may be gone"


def test_features_that_are_lost_stay_lost_at_higher_levels(scene: Scene) -> None:
    left = [set(drop_map(scene, share, generator()).map.feature_id.tolist()) for share in (0.25, 0.5, 0.75)]
    assert left[0] > left[1] > left[2]
    other = {tuple(drop_map(scene, 0.5, generator(seed)).map.feature_id.tolist()) for seed in range(9)}
    assert len(other) > 3, "which ones is drawn"


def test_every_state_is_taken_for_another() -> None:
    assert set(SWAPPED) == set(LightState)
    assert all(shown != meant for meant, shown in SWAPPED.items())
    for red, green in ((LightState.STOP, LightState.GO), (LightState.ARROW_STOP, LightState.ARROW_GO)):
        assert (SWAPPED[red], SWAPPED[green]) == (green, red)


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize(("share", "count"), [(0.2, 0), (0.5, 1), (1.0, 2)])
def test_only_so_many_signals_change_and_only_where_they_were_seen(
    scene: Scene, share: float, count: int, hide: bool
) -> None:
    after = (hide_lights if hide else swap_lights)(scene, share, generator())
    old, new = scene.lights, after.lights
    assert after.map is scene.map
    assert after.agents is scene.agents
    for name in ("lane_id", "stop_point", "observed"):
        assert torch.equal(getattr(old, name), getattr(new, name))
    changed = [row for row in range(2) if not torch.equal(old.state[row], new.state[row])]
    assert len(changed) == count
    for row in range(2):
        for step in range(91):
            meant, shown = int(old.state[row, step]), int(new.state[row, step])
            if row in changed and step < HISTORY and bool(old.observed[row, step]):
                assert shown == (0 if hide else int(SWAPPED[LightState(meant)]))
            else:
                assert shown == meant


def test_a_scene_without_map_or_lights() -> None:
    bare = parse_scenario(scenario_proto(with_map=False, with_lights=False).SerializeToString())
    for function in (drop_map, swap_lights, hide_lights):
        after = function(bare, 1.0, generator())
        assert not len(after.map.kind)
        assert not len(after.lights.lane_id)
