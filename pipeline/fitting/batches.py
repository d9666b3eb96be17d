"""Batches of scenes: read from the store, pruned, grouped by size, augmented and tokenised, all on the CPU.

In the loader's processes if it has any, so that a training step on a GPU launches none of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.batch import collate
from data.scene import CURRENT_INDEX, Scene
from data.store import SceneStore
from data.vocabulary import Vocabulary
from models.reference.augmentation import Draws, augment, draw_for, token_ranks
from models.reference.config import ReferenceConfig
from models.reference.inputs import collate_inputs, keep_agents
from models.reference.recording import Recording, prune_map, recording_inputs, recording_of
from pipeline.fitting.config import FitConfig

# Scenes are sorted by size within pools of this many batches: large enough that batches hold little padding,
# small enough that their composition still changes from epoch to epoch.
_POOL_BATCHES = 16


@dataclass(frozen=True)
class DrawnRecording:
    """A recording with the random numbers of its augmentation."""

    recording: Recording
    draws: Draws


@dataclass(frozen=True)
class SceneKey:
    """One scene of one step. A silent one fills the batch of a device that would have none; its loss is zero."""

    row: int
    step: int
    silent: bool


class RecordedScenes(Dataset[Any]):
    """Recordings of the scenes of a store, with at most ``max_agents`` agents and the map near them.

    Args:
        rows: indices of the scenes in the store.
        margin: see ``prune_map``; infinite to keep the whole map, for motion that may go anywhere.
    """

    def __init__(
        self,
        store: SceneStore,
        rows: Sequence[int],
        vocabulary: Vocabulary,
        model: ReferenceConfig,
        config: FitConfig,
        *,
        seed: int,
        margin: float,
    ) -> None:
        self._store, self._rows, self._vocabulary, self._model = store, rows, vocabulary.to("cpu"), model
        self._config, self._seed, self._margin = config, seed, margin
        self._cache: dict[int, Recording] = {}
        self.sizes = [min(store.infos[row].simulated, config.max_agents) for row in rows]

    def __len__(self) -> int:
        return len(self.sizes)

    def recording(self, index: int) -> Recording:
        """One scene (B = 1), not augmented."""
        if index in self._cache:
            return self._cache[index]
        recording = recording_of(collate([self.kept(self.whole(index))]))
        if math.isfinite(self._margin):
            inputs = recording_inputs(recording, self._vocabulary)
            pruned = prune_map(inputs, self._model, self._vocabulary.token_steps, self._margin)
            recording = dataclasses.replace(recording, pieces=pruned.pieces)
        if len(self._cache) < self._config.cache_scenes:
            self._cache[index] = recording
        return recording

    def whole(self, index: int) -> Scene:
        """One scene as the store has it."""
        return self._store[self._rows[index]]

    def kept(self, scene: Scene) -> Scene:
        """With at most ``max_agents`` agents."""
        until = CURRENT_INDEX + self._config.augment.time_shift
        return keep_agents(scene, self._config.max_agents, until)

    def __getitem__(self, key: SceneKey) -> Any:
        """A ``DrawnRecording``."""
        recording = self.recording(key.row)
        agents, steps = recording.valid.shape[1:]
        draws = draw_for(self._seed, key.step, key.row, agents, (steps - 1) // self._vocabulary.token_steps)
        if key.silent:
            recording = dataclasses.replace(recording, learnt=torch.zeros_like(recording.learnt))
        return DrawnRecording(recording, draws)

    def batch(self, scenes: Sequence[Any]) -> Any:
        """Augment and tokenise scenes together, padded to the largest; ``SceneInputs`` of ``DrawnRecording``."""
        drawn, config = collate_inputs(scenes), self._config.augment
        recording = augment(drawn.recording, drawn.draws, config)
        return recording_inputs(recording, self._vocabulary, token_ranks(drawn.draws, config))


class SizeBatchSampler(Sampler[list[int]]):
    """Endless batches of indices of similar size; batch ``t`` depends on (seed, t) alone.

    Args:
        sizes: one number for each scene, such as its agents; batches pad to the largest.
        batch_size: scenes in a batch; the last batch of an epoch may hold fewer.
        seed: of the order.
        start: index of the first batch, to resume a training.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int, seed: int, start: int = 0) -> None:
        if not len(sizes) or batch_size < 1:
            raise ValueError(f"{len(sizes)} scenes in batches of {batch_size}: nothing to sample")
        self._sizes = np.asarray(sizes)
        self._batch_size, self._seed, self._start = batch_size, seed, start
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
        while True:
            if epoch != step // self._epoch_length:
                epoch = step // self._epoch_length
                batches = self._epoch(epoch)
            yield batches[step % self._epoch_length]
            step += 1


class _DeviceBatches(Sampler[list[SceneKey]]):
    """The scenes of one device from the batches of all devices."""

    def __init__(self, batches: Iterable[list[int]], start: int, rank: int, devices: int) -> None:
        self._batches, self._start, self._rank, self._devices = batches, start, rank, devices

    def __iter__(self) -> Iterator[list[SceneKey]]:
        for step, rows in enumerate(self._batches, self._start):
            mine = rows[self._rank :: self._devices]
            yield [SceneKey(row, step, False) for row in mine] or [SceneKey(rows[0], step, True)]


def training_loader(
    scenes: RecordedScenes, config: FitConfig, *, seed: int, start: int, rank: int, devices: int, pinned: bool
) -> DataLoader[Any]:
    """Endless batches (``SceneInputs``) of one device, from step ``start`` on.

    Args:
        rank, devices: number of the device and of all; together they read the batches that one device would read.
        pinned: in memory from which CUDA copies without a wait.
    """
    batches = SizeBatchSampler(scenes.sizes, config.batch_size, seed, start=start)
    return DataLoader(
        scenes,
        batch_sampler=_DeviceBatches(batches, start, rank, devices),
        collate_fn=scenes.batch,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
        pin_memory=pinned,
    )
