"""The scenes that self-play draws from: which worlds an update has, and building them in time."""

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

from data.scene import Scene
from data.store import SceneStore
from data.vocabulary import Vocabulary
from pipeline.execution.parallel import prepare_worker
from pipeline.simulator.world import World, build_world

__all__ = ["Schedule", "WorldPool"]


@dataclass(frozen=True)
class Schedule:
    """Which scene is in which slot at an update: a function of the update's number alone.

    Scenes come from one random order of all after the other. Slots are refilled in turn, ``turnover`` of them at
    each update, so that big pools can be prepared while updates go on.

    Args:
        pool: number of scenes. slots: worlds simulated at once. turnover: slots refilled at each update. seed: of
            the orders.
    """

    pool: int
    slots: int
    turnover: int
    seed: int

    def names(self, update: int) -> list[int]:
        """[slots] numbers of scenes."""
        refilled = update * self.turnover
        places = []
        for slot in range(self.slots):
            # The last refill up to now that met this slot, or the first filling.
            last = slot + self.slots * ((refilled - 1 - slot) // self.slots) if refilled > slot else None
            places.append(slot if last is None else self.slots + last)
        orders = {place // self.pool for place in places}
        order = {number: self._order(number) for number in orders}
        return [order[place // self.pool][place % self.pool] for place in places]

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
    """Builds worlds when they are first needed, or ahead of that in other processes, and keeps the latest.

    Args:
        store: of the scenes. rows: [pool] of the store's scenes; worlds are named by their place here.
        vocabulary: of the tokens, on the CPU. view_size: road segments that agents see.
        capacity: worlds kept. workers: processes that build; 0 builds in this one.
    """

    def __init__(
        self,
        store: SceneStore,
        rows: Sequence[int],
        vocabulary: Vocabulary,
        view_size: int,
        capacity: int,
        workers: int,
    ) -> None:
        self._store, self._rows = store, rows
        self._vocabulary, self._view_size = vocabulary, view_size
        self._capacity = capacity
        self._worlds: OrderedDict[int, World] = OrderedDict()
        self._coming: dict[int, Future[bytes]] = {}
        self._processes: ProcessPoolExecutor | None = None
        if workers:
            self._builder = _Builder(store.folder, pickle.dumps(vocabulary), view_size)
            # Fresh processes: forking one with threads of torch may deadlock.
            self._processes = ProcessPoolExecutor(
                workers, multiprocessing.get_context("spawn"), prepare_worker, (os.getpid(),)
            )

    def __len__(self) -> int:
        return len(self._rows)

    def scene(self, name: int) -> Scene:
        """The scene of a world."""
        return self._store[self._rows[name]]

    def prepare(self, names: Sequence[int]) -> None:
        """Start building worlds that will be needed."""
        if self._processes is None:
            return
        for name in names:
            if name not in self._worlds and name not in self._coming:
                self._coming[name] = self._processes.submit(_build, self._builder, self._rows[name])

    def take(self, names: Sequence[int]) -> list[World]:
        """Worlds [1, ...] of some names, built now where they are not ready."""
        self.prepare(names)
        worlds = []
        for name in names:
            if name in self._coming:
                self._worlds[name] = pickle.loads(self._coming.pop(name).result())
            elif name not in self._worlds:
                self._worlds[name] = build_world(self.scene(name), self._vocabulary, self._view_size)
            self._worlds.move_to_end(name)
            worlds.append(self._worlds[name])
        while len(self._worlds) > max(self._capacity, len(set(names))):
            self._worlds.popitem(last=False)
        return worlds

    def close(self) -> None:
        """Let the other processes go."""
        if self._processes is not None:
            self._processes.shutdown(wait=True, cancel_futures=True)
