"""Batches of recordings: read from the store, cut to what matters, and put together with what is drawn for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from data.batch import collate
from data.datamodule import SizeBatchSampler
from data.scene import CURRENT_INDEX
from data.store import SceneStore
from data.vocabulary import Vocabulary
from models.reference.augmentation import Draws, draw_for
from models.reference.config import ReferenceConfig
from models.reference.inputs import collate_inputs, keep_agents
from models.reference.pruning import prune_map
from models.reference.recording import Recording, recording_inputs, recording_of
from pipeline.fitting.config import FitConfig

__all__ = ["Batch", "RecordedScenes", "training_loader"]


@dataclass(frozen=True)
class Batch:
    """What a step of training reads."""

    recording: Recording
    draws: Draws


@dataclass(frozen=True)
class _Key:
    """One scene of one step; silent ones, which fill up the share of a device, teach nothing."""

    row: int
    step: int
    silent: bool


class RecordedScenes(Dataset[Batch]):
    """Recordings of the scenes of a store, with the agents and the map that matter.

    Args:
        rows: which scenes of the store. margin: see ``prune_map``.
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
        until = CURRENT_INDEX + self._config.augment.time_shift
        scene = keep_agents(self._store[self._rows[index]], self._config.max_agents, until)
        recording = recording_of(collate([scene]))
        inputs = recording_inputs(recording, self._vocabulary)
        pruned = prune_map(inputs, self._model, self._vocabulary.token_steps, self._margin)
        recording = dataclasses.replace(recording, pieces=pruned.pieces)
        if len(self._cache) < self._config.cache_scenes:
            self._cache[index] = recording
        return recording

    def __getitem__(self, key: _Key) -> Batch:
        recording = self.recording(key.row)
        agents, steps = recording.valid.shape[1:]
        draws = draw_for(self._seed, key.step, key.row, agents, (steps - 1) // self._vocabulary.token_steps)
        if key.silent:
            recording = dataclasses.replace(recording, learnt=torch.zeros_like(recording.learnt))
        return Batch(recording, draws)


class _Share(Sampler[list[_Key]]):
    """The share of one device in the batches of all."""

    def __init__(self, batches: Iterable[list[int]], start: int, rank: int, devices: int) -> None:
        self._batches, self._start, self._rank, self._devices = batches, start, rank, devices

    def __iter__(self) -> Iterator[list[_Key]]:
        for step, rows in enumerate(self._batches, self._start):
            mine = rows[self._rank :: self._devices]
            yield [_Key(row, step, False) for row in mine] or [_Key(rows[0], step, True)]


def training_loader(
    scenes: RecordedScenes, config: FitConfig, *, seed: int, start: int, rank: int, devices: int
) -> DataLoader[Batch]:
    """Endless batches of one device, from step ``start`` on.

    Args:
        rank, devices: which device of how many; together they see the batches of a single one.
    """
    batches = SizeBatchSampler(scenes.sizes, config.batch_size, seed, start=start)
    return DataLoader(
        scenes,
        batch_sampler=_Share(batches, start, rank, devices),
        collate_fn=collate_inputs,
        num_workers=config.workers,
        persistent_workers=config.workers > 0,
    )
