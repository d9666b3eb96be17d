"""Scenes from a store, or directly from files of any format."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from data.completeness import Origin, Remarks
from data.errors import UserError, warn_once
from data.files import at_once, checksum
from data.formats.catalogue import AUTO, FORMATS
from data.formats.reader import Reading
from data.places import open_path
from data.scene import Scene
from data.sources import Shard, find_shards, shard_content
from data.store import SceneStore, is_store
from data.tfrecord import BrokenRecord, read_records
from data.womd import RecordError, parse_scenario


class SceneSource(Protocol):
    """Scenes in a fixed order, with access by scenario id; can be sent to worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Scene: ...

    def __iter__(self) -> Iterator[Scene]: ...

    @property
    def ids(self) -> list[str]: ...

    @property
    def origin(self) -> Origin:
        """The files they come from, and which of their records are missing."""
        ...

    def get(self, scenario_id: str) -> Scene:
        """The scene with this id; KeyError if there is none."""
        ...


class RecordFiles:
    """TFRecord files as a ``SceneSource``. Opening reads every record once for the ids.

    The bytes of all records stay in memory (0.7 MB each for WOMD), so this is for up to a few thousand scenarios;
    for more use the store that ``tokenize`` writes.

    Raises:
        UserError: a broken record, naming file and record, or a scenario id that occurs twice.
    """

    def __init__(self, shards: list[Shard]) -> None:
        self._records: list[tuple[str, int, bytes]] = []
        self.ids: list[str] = []
        self.origin = Origin(tuple(shard.name for shard in shards))
        remarks = Remarks()
        for shard in shards:
            for index, record in enumerate(read_records(shard.url)):
                if isinstance(record, BrokenRecord):
                    raise UserError(f"{shard.url}: record {index}: {record.reason}")
                self._records.append((shard.url, index, record))
                self.ids.append(str(self._parsed(len(self.ids), remarks).scenario_id))
        if not self.ids:
            raise UserError(f"{shards[0].url}: no records")
        for line in remarks.lines(
            shards[0].url if len(shards) == 1 else f"{shards[0].url} and {len(shards) - 1} more"
        ):
            warn_once(line)
        self._by_id = {scenario_id: index for index, scenario_id in enumerate(self.ids)}
        if len(self._by_id) != len(self.ids):
            twice = next(value for value in self.ids if self.ids.count(value) > 1)
            raise UserError(f"{shards[0].url}: scenario {twice} occurs more than once")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Scene:
        return self._parsed(index)

    def _parsed(self, index: int, remarks: Remarks | None = None) -> Scene:
        url, number, record = self._records[index]
        try:
            return parse_scenario(record, remarks=remarks)
        except RecordError as error:
            raise UserError(f"{url}: record {number}: {error}") from error

    def __iter__(self) -> Iterator[Scene]:
        return (self[index] for index in range(len(self)))

    def get(self, scenario_id: str) -> Scene:
        return self[self._by_id[scenario_id]]


class ReadScenes:
    """Files of formats other than WOMD as a ``SceneSource``: all scenes are read at once and stay in memory.

    Raises:
        UserError: a record that cannot be used, no scene at all, or a scenario id that occurs twice.
    """

    def __init__(self, shards: list[Shard]) -> None:
        self._scenes: list[Scene] = []
        self.origin = Origin()
        remarks = Remarks()
        for shard in shards:
            for where, result in FORMATS[shard.format].read(shard.url, Reading(), remarks):
                if isinstance(result, RecordError):
                    raise UserError(f"{shard.url}: record {where}: {result}")
                self._scenes.append(result)
        if not self._scenes:
            raise UserError(f"{shards[0].url}: no scenes, or too few agents in each; tokenize has options for that")
        for line in remarks.lines(shards[0].url):
            warn_once(line)
        self._by_id = {str(scene.scenario_id): index for index, scene in enumerate(self._scenes)}
        if len(self._by_id) != len(self._scenes):
            raise UserError(f"{shards[0].url}: a scenario id occurs more than once")

    def __len__(self) -> int:
        return len(self._scenes)

    def __getitem__(self, index: int) -> Scene:
        return self._scenes[index]

    def __iter__(self) -> Iterator[Scene]:
        return iter(self._scenes)

    @property
    def ids(self) -> list[str]:
        return list(self._by_id)

    def get(self, scenario_id: str) -> Scene:
        return self._scenes[self._by_id[scenario_id]]


def open_scenes(path: str | Path, split: str | None = None) -> SceneSource:
    """Open a store folder, or files of any format by file, glob, folder or URL (see ``data.sources.find_shards``).

    Raises:
        UserError: nothing there, or a broken record.
    """
    root = open_path(path)
    for folder in [root, *([root / split] if split else [])]:
        if is_store(folder):
            return SceneStore(folder)
    shards = find_shards(str(path), split, AUTO)
    return RecordFiles(shards) if FORMATS[shards[0].format].numbered else ReadScenes(shards)


def content_digest(scenarios: str) -> str:
    """Digest of the content of a store or of records, independent of their path and times."""
    folder = open_path(scenarios)
    if is_store(folder):
        files = sorted(folder.glob("*.parquet"), key=str)
        parts = [f"{file.name}:{digest}" for file, digest in zip(files, at_once(checksum, files), strict=True)]
    else:
        parts = at_once(shard_content, find_shards(scenarios, format=AUTO))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
