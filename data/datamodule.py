"""Batches of scenes for training: grouped by size, padded together, in an order that is a function of the seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import numpy as np
from torch.utils.data import DataLoader, Dataset, Sampler

from data.batch import collate
from data.scene import Scene
from data.store import SceneStore

__all__ = ["SceneDataModule", "SizeBatchSampler"]

# Scenes are sorted by size within pools of this many batches: large enough that batches hold little padding,
# small enough that their composition still changes from epoch to epoch.
_POOL_BATCHES = 16


class SizeBatchSampler(Sampler[list[int]]):
    """Endless batches of indices of similar size; batch ``t`` depends on (seed, t) alone.

    Args:
        sizes: one number for each scene, what padding costs (agents, or points).
        batch_size: scenes in a batch; the last batch of an epoch may hold fewer.
        seed: of the order.
        start: number of the first batch, for going on after an interruption.
        stop: number of the batch before which to end; None for no end.
    """

    def __init__(
        self, sizes: Sequence[int], batch_size: int, seed: int, start: int = 0, stop: int | None = None
    ) -> None:
        if not len(sizes) or batch_size < 1:
            raise ValueError(f"{len(sizes)} scenes in batches of {batch_size}: nothing to sample")
        self._sizes = np.asarray(sizes)
        self._batch_size, self._seed, self._start, self._stop = batch_size, seed, start, stop
        self._epoch_length = -(-len(sizes) // batch_size)

    def _epoch(self, epoch: int) -> list[list[int]]:
        generator = np.random.default_rng([self._seed, epoch])
        order = generator.permutation(len(self._sizes))
        pool = self._batch_size * _POOL_BATCHES
        batches: list[list[int]] = []
        for first in range(0, len(order), pool):
            members = order[first : first + pool]
            members = members[np.argsort(self._sizes[members], kind="stable")]
            batches += [
                members[i : i + self._batch_size].tolist() for i in range(0, len(members), self._batch_size)
            ]
        return [batches[i] for i in generator.permutation(len(batches))]

    def __iter__(self) -> Iterator[list[int]]:
        step, epoch, batches = self._start, -1, []
        while self._stop is None or step < self._stop:
            if epoch != step // self._epoch_length:
                epoch = step // self._epoch_length
                batches = self._epoch(epoch)
            yield batches[step % self._epoch_length]
            step += 1

    def __len__(self) -> int:
        if self._stop is None:
            raise TypeError("an endless sampler has no length")
        return max(0, self._stop - self._start)


class _SceneDataset(Dataset[Scene]):
    """A store as a map-style dataset."""

    def __init__(self, store: SceneStore) -> None:
        self._store = store

    def __len__(self) -> int:
        return len(self._store)

    def __getitem__(self, index: int) -> Scene:
        return self._store[index]


class SceneDataModule(lightning.LightningDataModule):
    """Training batches from one store and validation batches, in stored order, from another.

    Args:
        training: store folder of the training split.
        validation: store folder of the validation split, or None.
        batch_size: scenes in a batch.
        seed: of the order of training batches.
        start, stop: first and last training step (see ``SizeBatchSampler``).
        multiple: padded sizes are multiples of this.
        workers: loader processes; 0 loads in the training process.
        prepare: turns a list of scenes into what the model takes; default is ``data.batch.collate``.
    """

    def __init__(
        self,
        training: Path,
        validation: Path | None,
        *,
        batch_size: int,
        seed: int,
        start: int = 0,
        stop: int | None = None,
        multiple: int = 8,
        workers: int = 0,
        prepare: Callable[[list[Scene]], Any] | None = None,
    ) -> None:
        super().__init__()
        self.training = SceneStore(training)
        self.validation = None if validation is None else SceneStore(validation)
        self._batch_size, self._workers = batch_size, workers
        self._prepare = prepare or partial(collate, multiple=multiple)
        self._sampler = SizeBatchSampler(
            [info.agents for info in self.training.infos], batch_size, seed, start, stop
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(
            _SceneDataset(self.training),
            batch_sampler=self._sampler,
            collate_fn=self._prepare,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        if self.validation is None:
            return []
        return DataLoader(
            _SceneDataset(self.validation),
            batch_size=self._batch_size,
            collate_fn=self._prepare,
            num_workers=self._workers,
        )
