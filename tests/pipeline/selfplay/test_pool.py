"""Which scenes an update has, and that worlds built elsewhere are the same."""

from __future__ import annotations

import dataclasses
import errno
import shutil
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from data import road, road_grid, tokenizer
from data.errors import UserError
from data.receipts import SUMS
from data.scene import Scene, map_tensors
from data.store import SceneStore, shard_name, write_shard
from pipeline.execution import result_cache
from pipeline.selfplay import packed
from pipeline.selfplay import pool as pool_module
from pipeline.selfplay.config import PPOConfig, SelfPlayConfig
from pipeline.selfplay.pool import Schedule, WorldPool, choose_scenes, held_out_scenes
from pipeline.selfplay.training import _fingerprint, _seed_of
from pipeline.simulator import world as world_module
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import ObservationConfig
from pipeline.simulator.world import World, build_world, stack_worlds
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


CPU = torch.device("cpu")


def test_worlds_built_elsewhere_are_the_same(store, vocabulary) -> None:
    here = WorldPool(store, [3, 1, 0], vocabulary, 8, capacity=2, workers=0, device=CPU)
    there = WorldPool(store, [3, 1, 0], vocabulary, 8, capacity=2, workers=1, device=CPU)
    try:
        there.prepare([0, 1])
        for names in ([0, 1, 2], [1, 0, 1], [2, 2]):
            pairs = zip(tensors(here.take(names)), tensors(there.take(names)), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
        assert len(here) == 3
        assert here.resident is None
        assert here.scene(0).scenario_id == store[3].scenario_id
    finally:
        there.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_worlds_of_a_resident_pool_are_those_built_one_by_one(store, vocabulary, workers) -> None:
    pool = WorldPool(store, [3, 1, 0], vocabulary, 8, capacity=3, workers=workers, device=CPU, empty_agent=True)
    taken = pool.take([2, 0, 2, 1])
    alone = stack_worlds([build_world(store[row], vocabulary, 8) for row in (0, 3, 0, 1)])
    assert not taken.exists[:, -1].any()
    for name in ("pose", "exists", "goal", "log", "history_ids", "stop_line", "red", "bounded"):
        mine, other = getattr(taken, name), getattr(alone, name)
        assert torch.equal(mine[:, : other.shape[1]] if mine.dim() > 1 else mine, other), name
    controlled, hidden = taken.exists, torch.zeros_like(taken.exists)
    seen = []
    for world, who in ((taken, controlled), (alone, alone.exists)):
        simulator = Simulator(vocabulary, ObservationConfig(road_segments=8))
        simulator.reset(world, who, hidden[:, : world.types.shape[1]])
        rewards, events = simulator.step(torch.ones_like(world.types))
        seen.append((simulator.observe(), [value[who] for value in [*rewards.values(), *vars(events).values()]]))
    (mine, happened), (other, alike) = seen
    for name, value in vars(mine).items():
        expected = getattr(other, name)
        # Segments come in the order of the lists, whose length depends on the batch.
        if name.startswith("road"):
            value, expected = value.float().sort(1).values, expected.float().sort(1).values
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(happened, alike, strict=True))


def test_only_the_latest_worlds_are_kept(store, vocabulary, monkeypatch) -> None:
    built = []

    def build(scene, *arguments):
        built.append(str(scene.scenario_id))
        return build_world(scene, *arguments)

    monkeypatch.setattr(pool_module, "build_world", build)
    pool = WorldPool(store, [0, 1, 2, 3], vocabulary, 8, capacity=2, workers=0, device=CPU)
    ids = [str(store[row].scenario_id) for row in range(4)]
    pool.take([0, 1])
    # The first comes first again, and is used after the second: that one has to go.
    pool.take([0])
    pool.take([2])
    pool.take([0])
    assert built == ids[:3]
    pool.take([1])
    assert built == [*ids[:3], ids[1]]
    # What one update needs is never dropped within it.
    assert len(pool.take([0, 1, 2, 3]).exists) == 4


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
    known = _fingerprint(config, 0, [reference], store, [])
    same = dataclasses.replace(config, workers=3, tensorboard=False, checkpoint_every=9)
    assert _fingerprint(same, 0, [moved], store, []) == known
    others = [
        _fingerprint(dataclasses.replace(config, ppo=PPOConfig(beta=0.2)), 0, [reference], store, []),
        _fingerprint(dataclasses.replace(config, worlds=25), 0, [reference], store, []),
        _fingerprint(config, 1, [reference], store, []),
        _fingerprint(config, 0, [reference], store, [store[0]]),
    ]
    reference.write_bytes(b"other weights")
    others.append(_fingerprint(config, 0, [reference], store, []))
    assert len({known, *others}) == 6
    seeds = {_seed_of(*key) for key in [(0, 0, "a"), (1, 0, "a"), (0, 1, "a"), (0, 0, "b")]}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.fixture
def summed(tmp_path, store) -> SceneStore:
    """A store of its own, with the checksums that ``tokenize`` writes."""
    folder = tmp_path / "store"
    shutil.copytree(store.folder, folder)
    (folder / SUMS).write_text("some\n")
    return SceneStore(folder)


def test_built_worlds_are_read_by_the_next_training(summed, vocabulary, monkeypatch, capsys) -> None:
    def pool(rows: list[int], view_size: int = 8) -> list[Tensor]:
        found = WorldPool(summed, rows, vocabulary, view_size, capacity=4, workers=0, device=CPU).resident
        assert found is not None
        return tensors(found)

    built: list[int] = []
    real = pool_module.build_world

    def counted(scene: Scene, *given: Any) -> World:
        built.append(1)
        return real(scene, *given)

    monkeypatch.setattr(pool_module, "build_world", counted)
    first = pool([3, 1, 0])
    assert len(built) == 3
    assert all(torch.equal(a, b) for a, b in zip(first, pool([3, 1, 0]), strict=True))
    assert len(built) == 3
    for other in ([3, 1], [3, 1, 0], [1, 3, 0]):
        before = len(built)
        pool(other)
        assert len(built) == before + len(other)
    pool([1, 3, 0], 9)
    # Another version of the store.
    (summed.folder / SUMS).write_text("others\n")
    before = len(built)
    pool([1, 3, 0], 9)
    assert len(built) == before + 3
    (kept,) = (summed.folder / packed.FOLDER).iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    again = pool([1, 3, 0], 9)
    assert len(built) == before + 6
    assert "damaged; the worlds are built again" in capsys.readouterr().err
    assert all(torch.equal(a, b) for a, b in zip(again, pool([1, 3, 0], 9), strict=True))
    assert len(built) == before + 6


def test_a_store_that_cannot_be_written_trains_all_the_same(summed, vocabulary, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(packed, "atomic_write", full)
    pool = WorldPool(summed, [0, 1], vocabulary, 8, capacity=4, workers=0, device=CPU)
    assert pool.resident is not None
    assert len(pool.resident.types) == 2
    assert "built worlds are not kept (No space left on device)" in capsys.readouterr().err


def test_code_that_builds_worlds_decides_whether_they_are_read(summed, vocabulary, monkeypatch) -> None:
    """An edit of any module that a world is made by makes the file stale."""
    key = partial(packed._key, summed, [0, 1], vocabulary, 8)
    before = key()
    assert key() == before
    parsed = result_cache._parsed
    for module in (world_module, road, road_grid, tokenizer):
        edited = Path(str(module.__file__))

        def as_edited(path: Path, edited: Path = edited) -> tuple[str, frozenset[str]]:
            digest, imported = parsed(path)
            return ("edited" if path == edited else digest), imported

        with monkeypatch.context() as patch:
            patch.setattr(result_cache, "_parsed", as_edited)
            result_cache.code_version.cache_clear()
            assert key() != before
        result_cache.code_version.cache_clear()
