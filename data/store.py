"""The scene store: Parquet shards with one row group per scene, and random access by index or scenario id.

The footer of a shard holds an index (ids, sizes, why a scene cannot be scored), so that opening a store reads no
scene. The bytes depend on the scenes and the names of their source files only, not on times or host names.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.completeness import Origin, Rejected, Remarks, check_whole, some
from data.errors import UserError
from data.files import atomic_path
from data.places import is_remote, open_path
from data.scene import Scene, recording_id
from data.scene_codec import COLUMN_ENCODING, SCHEMA, decode_row, encode_row

_FORMAT_KEY, _INDEX_KEY, _NOTES_KEY = b"spacer.format", b"spacer.index", b"spacer.notes"
_FORMAT = b"1"
_SUFFIX = ".scenes.parquet"
_SHARD = re.compile(rf"(.+)-\d{{5}}-of-\d{{5}}{re.escape(_SUFFIX)}")
_COMPRESSION_LEVEL = 9
# The footer of an open shard of 500 scenes takes 13 MB; opening it again takes 15 ms.
_OPEN_FILES = 8
# Errors of reading a row of a Parquet file whose columns are not those of a scene.
_DAMAGED = (pa.ArrowException, OSError, LookupError, TypeError, AttributeError, ValueError, OverflowError)


@dataclass(frozen=True)
class SceneInfo:
    """Index entry of a scene."""

    scenario_id: str
    steps: int
    agents: int
    simulated: int
    points: int
    unscorable_reason: str | None


def _info(scene: Scene) -> SceneInfo:
    return SceneInfo(
        scenario_id=str(scene.scenario_id),
        steps=scene.num_steps,
        agents=len(scene.agents.id),
        simulated=int(scene.simulated.sum()),
        points=len(scene.map.point),
        unscorable_reason=scene.unscorable_reason,
    )


def shard_name(split: str, index: int, count: int) -> str:
    return f"{split}-{index:05d}-of-{count:05d}{_SUFFIX}"


def is_store(path: Path) -> bool:
    """Whether a folder or URL holds shards of a scene store."""
    return bool(store_kinds(path))


def store_kinds(folder: Path) -> set[str]:
    """The prefixes of the names of a folder's shards, which are splits."""
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    return {match[1] for name in names if (match := _SHARD.fullmatch(name))}


def write_shard(path: Path, scenes: Iterable[Scene], origin: Callable[[], Origin] = Origin) -> list[SceneInfo]:
    """Write one shard atomically, streaming.

    Args:
        path: of the shard. scenes: iterated once. origin: called after all scenes are written.

    Returns:
        The shard's index.
    """
    infos: list[SceneInfo] = []
    with (
        atomic_path(path) as temporary,
        # Open files instead of paths, here and below: Arrow's own file systems fail in a process that has loaded
        # TensorFlow, which contains another Arrow.
        temporary.open("wb") as file,
        pq.ParquetWriter(
            file,
            SCHEMA,
            compression="zstd",
            compression_level=_COMPRESSION_LEVEL,
            use_dictionary=False,
            column_encoding=COLUMN_ENCODING,
            write_statistics=False,
        ) as writer,
    ):
        for scene in scenes:
            writer.write_batch(encode_row(scene), row_group_size=1)
            infos.append(_info(scene))
        index = json.dumps([asdict(info) for info in infos], separators=(",", ":"))
        writer.add_key_value_metadata(
            {
                _FORMAT_KEY.decode(): _FORMAT.decode(),
                _INDEX_KEY.decode(): index,
                _NOTES_KEY.decode(): json.dumps(asdict(origin()), separators=(",", ":")),
            }
        )
    return infos


def spread(total: int, count: int) -> list[int]:
    """``count`` indices spread over ``range(total)``, since neighbours in a shard may be similar."""
    count = min(count, total)
    return [(2 * index + 1) * total // (2 * count) for index in range(count)]


class SceneStore:
    """Read access to a folder of shards, in the order of shard names; can be pickled for worker processes.

    Attributes:
        origin: the files that the store was made from, and which of their records are missing, as far as known.

    Raises:
        UserError: no shards, missing shards, shards of several stores, or one that is damaged or of another format.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = open_path(folder)
        names = sorted(p.name for p in self.folder.iterdir()) if self.folder.is_dir() else []
        self._shards = [self.folder / name for name in names if _SHARD.fullmatch(name)]
        if not self._shards:
            raise UserError(f"{folder}: no scene store here (expected *.scenes.parquet shards); run tokenize first")
        kinds = sorted(store_kinds(self.folder))
        if len(kinds) > 1:
            raise UserError(f"{folder}: shards of several stores ({', '.join(kinds)}); keep each in its own folder")
        # A shard was deleted, or ``tokenize`` did not finish.
        check_whole(str(folder), [shard.name.removesuffix(_SUFFIX) for shard in self._shards], "run tokenize again")
        self.infos: list[SceneInfo] = []
        self._locations: list[tuple[int, int]] = []
        self.origin = Origin()
        for number, shard in enumerate(self._shards):
            infos, origin = _read_footer(shard)
            self.infos.extend(infos)
            self._locations.extend((number, row) for row in range(len(infos)))
            self.origin += origin
        self._files: OrderedDict[int, pq.ParquetFile] = OrderedDict()

    def __len__(self) -> int:
        return len(self.infos)

    def __getitem__(self, index: int) -> Scene:
        shard, row = self._locations[index]
        try:
            table = self._opened(shard).read_row_group(row, use_threads=False)
            return decode_row({name: table.column(name).chunk(0) for name in table.column_names})
        except _DAMAGED as error:
            raise UserError(
                f"{self._shards[shard]}: scene {row} is damaged ({_first_line(error)}); delete the folder "
                f"{self.folder} and run tokenize again"
            ) from error

    def _opened(self, shard: int) -> pq.ParquetFile:
        """An open shard; the least recently used ones are closed."""
        if shard not in self._files:
            self._files[shard] = _opened(self._shards[shard])
            while len(self._files) > _OPEN_FILES:
                self._files.popitem(last=False)
        self._files.move_to_end(shard)
        return self._files[shard]

    def __iter__(self) -> Iterator[Scene]:
        return (self[index] for index in range(len(self)))

    def __getstate__(self) -> dict[str, object]:
        # Another process opens the files again.
        return {**self.__dict__, "_files": OrderedDict()}

    @property
    def ids(self) -> list[str]:
        return [info.scenario_id for info in self.infos]

    @cached_property
    def _by_id(self) -> dict[str, int]:
        return {info.scenario_id: index for index, info in enumerate(self.infos)}

    def shards_of(self, scenario_id: str) -> list[str]:
        """Names, without their ending, of the shards that hold a scenario with this id."""
        rows = (
            shard
            for info, (shard, _) in zip(self.infos, self._locations, strict=True)
            if info.scenario_id == scenario_id
        )
        return [self._shards[shard].name.removesuffix(_SUFFIX) for shard in rows]

    def get(self, scenario_id: str) -> Scene:
        """The scene with this id; KeyError if there is none."""
        return self[self._by_id[scenario_id]]


def _opened(shard: Path) -> pq.ParquetFile:
    return pq.ParquetFile(shard.open("rb") if is_remote(shard) else pa.memory_map(str(shard)))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_footer(shard: Path) -> tuple[list[SceneInfo], Origin]:
    """Index and origin of a shard."""
    try:
        with shard.open("rb") as file:
            metadata = pq.read_metadata(file)
        values = metadata.metadata or {}
        if values.get(_FORMAT_KEY) != _FORMAT:
            raise UserError(f"{shard}: not a scene store shard of format {_FORMAT.decode()}; run tokenize again")
        infos = [SceneInfo(**item) for item in json.loads(values[_INDEX_KEY])]
        if len(infos) != metadata.num_row_groups:
            raise ValueError(f"{metadata.num_row_groups} row groups for {len(infos)} index entries")
        notes = json.loads(values[_NOTES_KEY])
        # Shards of earlier versions have no origin.
        rejected = [Rejected(*map(str, row)) for row in notes.get("rejected", [])]
        remarks = Remarks()
        remarks.merge(notes.get("remarks", {}).get("found", {}))
        return infos, Origin(tuple(map(str, notes.get("files", []))), tuple(rejected), remarks)
    except _DAMAGED as error:
        raise UserError(
            f"{shard}: damaged shard ({_first_line(error)}); delete the folder and run tokenize again"
        ) from error


def check_disjoint(one: SceneStore, other: SceneStore) -> None:
    """Refuse two stores, such as training and validation, that share scenarios or have windows of one recording.

    Raises:
        UserError: with both folders and the number of shared scenarios.
    """
    shared = sorted(set(one.ids).intersection(other.ids))
    what = "scenarios are"
    if not shared:
        recorded = set(map(recording_id, other.ids))
        shared = [name for name in one.ids if recording_id(name) in recorded]
        what = "scenarios are of recordings that are"
    if shared:
        raise UserError(
            f"{one.folder}: {len(shared)} of its {what} in {other.folder} too ({some(shared)}); scores "
            "on training scenarios mean nothing: give data whose splits share no scenario and no recording"
        )
