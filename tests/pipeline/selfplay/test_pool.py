"""Which scenes an update has, and that worlds built elsewhere are the same."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from data.scene import map_tensors
from data.store import SceneStore, shard_name, write_shard
from pipeline.selfplay.config import PPOConfig, SelfPlayConfig
from pipeline.selfplay.pool import Schedule, WorldPool, choose_scenes, held_out_scenes
from pipeline.selfplay.training import _fingerprint, _seed_of
from pipeline.simulator.world import World
from tests.models.scenes import random_scene


@given(
    pool=st.integers(1, 20),
    slots=st.integers(1, 12),
    turnover=st.integers(1, 12),
    updates=st.integers(1, 30),
    seed=st.integers(0, 99),
)
def test_slots_are_refilled_in_turn_from_orders_of_all(pool, slots, turnover, updates, seed) -> None:
    """Against a loop that really refills."""
    schedule = Schedule(pool, slots, min(turnover, slots), seed)
    stream: list[int] = []
    number = 0
    while len(stream) < slots + updates * slots:
        order = schedule._order(number)
        assert sorted(order) == list(range(pool))
        stream += order
        number += 1
    names, place = stream[:slots], slots
    position = 0
    for update in range(updates):
        assert schedule.scene_index(update) == names
        for _ in range(schedule.turnover):
            names = [*names[:position], stream[place], *names[position + 1 :]]
            position, place = (position + 1) % slots, place + 1


def test_every_scene_is_used_as_often_as_another() -> None:
    schedule = Schedule(10, 4, 4, 7)
    used = Counter(name for update in range(50) for name in schedule.scene_index(update))
    assert set(used.values()) == {20}
    assert schedule.scene_index(3) != Schedule(10, 4, 4, 8).scene_index(3)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> SceneStore:
    folder: Path = tmp_path_factory.mktemp("store")
    scenes = [random_scene(seed, agents=agents) for seed, agents in ((0, 6), (1, 4), (2, 5), (3, 3))]
    write_shard(folder / shard_name("training", 0, 1), scenes)
    return SceneStore(folder)


def tensors(world: World) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(world, keep)
    return found


def test_worlds_built_elsewhere_are_the_same(store, vocabulary) -> None:
    here = WorldPool(store, [3, 1, 0], vocabulary, 8, capacity=2, workers=0)
    there = WorldPool(store, [3, 1, 0], vocabulary, 8, capacity=2, workers=1)
    try:
        there.prepare([0, 1])
        for names in ([0, 1, 2], [1, 0, 1], [2, 2]):
            for one, two in zip(here.take(names), there.take(names), strict=True):
                assert all(torch.equal(a, b) for a, b in zip(tensors(one), tensors(two), strict=True))
        assert len(here) == 3
        assert here.scene(0).scenario_id == store[3].scenario_id
    finally:
        there.close()


def test_only_the_latest_worlds_are_kept(store, vocabulary) -> None:
    pool = WorldPool(store, [0, 1, 2, 3], vocabulary, 8, capacity=2, workers=0)
    kept = pool.take([0, 1])
    # The first comes first again, and is used after the second: that one has to go.
    assert pool.take([0])[0] is kept[0]
    pool.take([2])
    assert pool.take([0])[0] is kept[0]
    assert pool.take([1])[0] is not kept[1]
    # What one update needs is never dropped within it.
    assert len(pool.take([0, 1, 2, 3])) == 4


def test_scenes_are_spread_over_the_store(store, tmp_path: Path) -> None:
    """Those with too many agents are left out; held out are scenes from the middle of equal parts."""
    assert choose_scenes(store, SelfPlayConfig(pool=2, max_agents=6)) == [0, 2]
    assert choose_scenes(store, SelfPlayConfig(pool=2, max_agents=5)) == [1, 2]
    assert choose_scenes(store, SelfPlayConfig(pool=0, max_agents=5)) == [1, 2, 3]
    with pytest.raises(UserError, match="raise --max_agents"):
        choose_scenes(store, SelfPlayConfig(max_agents=2))
    others, reference = SceneStore(store.folder), tmp_path / "reference.ckpt"
    others.infos = []
    torch.save({"kind": "reference"}, reference)
    held = held_out_scenes(store.folder, SelfPlayConfig(evaluate_every=1, evaluate_scenes=2), others, reference)
    assert [scene.scenario_id for scene in held] == [store[1].scenario_id, store[3].scenario_id]
    assert held_out_scenes(store.folder, SelfPlayConfig(evaluate_every=0), others, reference) == []
    assert held_out_scenes(None, SelfPlayConfig(evaluate_every=1), others, reference) == []
    with pytest.raises(UserError, match="are in"):
        held_out_scenes(store.folder, SelfPlayConfig(evaluate_every=1), store, reference)


def test_what_a_training_computes_decides_whether_it_goes_on(store, tmp_path: Path) -> None:
    """Content, seed and settings; not where files lie, nor how many processes help."""
    reference, moved = tmp_path / "reference.ckpt", tmp_path / "moved.ckpt"
    for path in (reference, moved):
        path.write_bytes(b"weights")
    config = SelfPlayConfig()
    known = _fingerprint(config, 0, reference, store, [])
    same = dataclasses.replace(config, workers=3, tensorboard=False, checkpoint_every=9)
    assert _fingerprint(same, 0, moved, store, []) == known
    others = [
        _fingerprint(dataclasses.replace(config, ppo=PPOConfig(beta=0.2)), 0, reference, store, []),
        _fingerprint(dataclasses.replace(config, worlds=25), 0, reference, store, []),
        _fingerprint(config, 1, reference, store, []),
        _fingerprint(config, 0, reference, store, [store[0]]),
    ]
    reference.write_bytes(b"other weights")
    others.append(_fingerprint(config, 0, reference, store, []))
    assert len({known, *others}) == 6
    seeds = {_seed_of(*key) for key in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)
