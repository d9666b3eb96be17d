"""The scenes that self-play draws from: which worlds an update simulates, and building them in time."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from data.errors import UserError
from data.scene import Scene, map_tensors
from data.store import SceneStore, check_disjoint, spread
from data.vocabulary import Vocabulary
from pipeline.agents.leaks import check_unseen
from pipeline.execution.engine import prepare_worker
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.selfplay.packed import packed_worlds
from pipeline.simulator.world import World, build_world, choose_worlds, stack_worlds, with_empty_agent


def choose_scenes(store: SceneStore, config: SelfPlayConfig) -> list[int]:
    """Rows of the scenes to draw from, spread over the store."""
    usable = [index for index, info in enumerate(store.infos) if info.simulated <= config.max_agents]
    if not usable:
        raise UserError(f"{store.folder}: no scene with at most {config.max_agents} agents; raise --max_agents")
    count = min(config.pool or len(usable), len(usable))
    return [usable[index * len(usable) // count] for index in range(count)]


def held_out_scenes(
    validation: Path | None, config: SelfPlayConfig, training: SceneStore, reference: Path
) -> list[Scene]:
    """Scenes of the evaluation, on none of which anything was trained."""
    if validation is None:
        return []
    store = SceneStore(validation)
    check_disjoint(training, store)
    check_unseen(reference, validation, store.ids)
    if not config.evaluate_every:
        return []
    return [store[row] for row in spread(len(store), config.evaluate_scenes)]


@dataclass(frozen=True)
class Schedule:
    """Which scene is in which slot at an update: a function of the update's number alone.

    Scenes come in random orders of the whole pool, one after the other. Slots are refilled in turn, ``turnover`` of
    them at each update, so that the worlds of big pools are built while updates go on.

    Args:
        pool: number of scenes. slots: worlds simulated at once. turnover: slots refilled at each update. seed: of
            the orders.
    """

    pool: int
    slots: int
    turnover: int
    seed: int

    def scene_index(self, update: int) -> list[int]:
        """[slots] indices of scenes in the pool."""
        refilled = update * self.turnover
        positions = []
        for slot in range(self.slots):
            # The last refill of this slot up to now, or the first filling.
            last = slot + self.slots * ((refilled - 1 - slot) // self.slots) if refilled > slot else None
            positions.append(slot if last is None else self.slots + last)
        orders = {position // self.pool for position in positions}
        order = {number: self._order(number) for number in orders}
        return [order[position // self.pool][position % self.pool] for position in positions]

    def _order(self, number: int) -> list[int]:
        return np.random.default_rng([self.seed, number]).permutation(self.pool).tolist()


@dataclass(frozen=True)
class _Builder:
    """What a worker needs to build worlds; ``words`` is the pickled vocabulary, so that this can be hashed."""

    folder: Path
    words: bytes
    view_size: int


@lru_cache(maxsize=1)
def _opened(builder: _Builder) -> tuple[SceneStore, Vocabulary]:
    return SceneStore(builder.folder), pickle.loads(builder.words)


def _build(builder: _Builder, row: int) -> bytes:
    """A pickled world: one message instead of a file handle for each of its tensors."""
    store, vocabulary = _opened(builder)
    return pickle.dumps(build_world(store[row], vocabulary, builder.view_size))


class WorldPool:
    """The worlds of the pool on the device of the training.

    A pool of no more than ``capacity`` worlds is built once, kept beside the store, and stays on the device: an
    update chooses its worlds by number. Of a larger one the worlds of an update are built when they are first
    needed, or ahead of time in other processes; the latest are kept on the host.

    Args:
        store: of the scenes. rows: [pool] rows of the store; a scene's index is its place in them.
        vocabulary: of the tokens, on the CPU. view_size: road segments that agents see.
        capacity: worlds kept. workers: processes that build; 0 builds in this one. device: of the training.
        empty_agent: end every world of a resident pool with an agent that does not exist.

    Attributes:
        resident: all worlds, in the order of the pool; None for a pool that is too large.
    """

    def __init__(
        self,
        store: SceneStore,
        rows: Sequence[int],
        vocabulary: Vocabulary,
        view_size: int,
        capacity: int,
        workers: int,
        device: torch.device,
        empty_agent: bool = False,
    ) -> None:
        self._store, self._rows = store, rows
        self._vocabulary, self._view_size = vocabulary, view_size
        self._capacity, self._device = capacity, device
        self._worlds: OrderedDict[int, World] = OrderedDict()
        self._coming: dict[int, Future[bytes]] = {}
        self._processes: ProcessPoolExecutor | None = None
        if workers:
            self._builder = _Builder(store.folder, pickle.dumps(vocabulary), view_size)
            # Fresh processes: forking one with threads of torch may deadlock.
            self._processes = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), prepare_worker, (os.getpid(),)
            )
        self.resident: World | None = None
        if len(rows) <= capacity:
            try:
                whole = packed_worlds(store, rows, vocabulary, view_size, self._all)
            finally:
                self.close()
            self._worlds.clear()
            self.resident = self._moved(with_empty_agent(whole) if empty_agent else whole)

    def __len__(self) -> int:
        return len(self._rows)

    def scene(self, index: int) -> Scene:
        """The scene of an index."""
        return self._store[self._rows[index]]

    def prepare(self, scene_index: Sequence[int]) -> None:
        """Start to build worlds that will be needed."""
        if self._processes is None:
            return
        for index in scene_index:
            if index not in self._worlds and index not in self._coming:
                self._coming[index] = self._processes.submit(_build, self._builder, self._rows[index])

    def take(self, scene_index: Sequence[int]) -> World:
        """The worlds of some scenes as a batch on the device."""
        if self.resident is not None:
            return choose_worlds(self.resident, torch.tensor(scene_index).to(self._device, non_blocking=True))
        return self._moved(stack_worlds(self._built(scene_index)))

    def _all(self) -> World:
        return stack_worlds(self._built(range(len(self._rows))))

    def _built(self, scene_index: Sequence[int]) -> list[World]:
        """Worlds [1, ...] of some scenes, built now where they are not ready."""
        self.prepare(scene_index)
        worlds = []
        for index in scene_index:
            if index in self._coming:
                self._worlds[index] = pickle.loads(self._coming.pop(index).result())
            elif index not in self._worlds:
                self._worlds[index] = build_world(self.scene(index), self._vocabulary, self._view_size)
            self._worlds.move_to_end(index)
            worlds.append(self._worlds[index])
        while len(self._worlds) > max(self._capacity, len(set(scene_index))):
            self._worlds.popitem(last=False)
        return worlds

    def _moved(self, world: World) -> World:
        return map_tensors(world, lambda tensor: tensor.to(self._device, non_blocking=True))

    def close(self) -> None:
        """End the other processes."""
        if self._processes is not None:
            self._processes.shutdown(wait=True, cancel_futures=True)
            self._processes = None
