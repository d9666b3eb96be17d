"""Where scenarios and rollouts are, known without keeping them.

A scenario is a line of what it holds, and is read again when it is shown. Rollouts are in files of messages or
inside a submission archive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from google.protobuf.message import DecodeError

from data.completeness import Remarks
from data.errors import UserError, warn_once
from data.places import open_path
from data.scene import CURRENT_INDEX, AgentType, Scene
from data.sources import find_shards
from data.store import SceneStore, is_store
from data.tfrecord import BrokenRecord, locate_records, read_record_at
from data.wire import decode_states, scenario_class
from data.womd import RecordError, parse_scenario
from submission.archive import locate_rollouts
from submission.members import open_members, read_at
from submission.protos import Rollouts, from_proto, parse_rollouts, rollout_files


@dataclass(frozen=True)
class Outline:
    """What is listed of a scenario.

    Attributes:
        scenario_id: of it. steps: recorded. vehicles, pedestrians, cyclists, others: to be simulated.
        lights: lanes with a signal.
    """

    scenario_id: str
    steps: int
    vehicles: int
    pedestrians: int
    cyclists: int
    others: int
    lights: int

    @property
    def agents(self) -> int:
        return self.vehicles + self.pedestrians + self.cyclists + self.others


@dataclass(frozen=True)
class Found:
    """A scenario, or why something that should be one cannot be read. ``key`` finds it again on its shelf."""

    outline: Outline | None
    key: tuple[str, int]
    defect: str | None = None


class Shelf(Protocol):
    """Scenarios of one place."""

    def find(self) -> Iterator[Found]:
        """All of them, one by one."""
        ...

    def scene(self, key: tuple[str, int]) -> Scene:
        """One of them.

        Raises:
            UserError: it cannot be read.
        """
        ...


def _counted(scenario_id: str, steps: int, types: list[int], lights: int) -> Outline:
    named = (AgentType.VEHICLE, AgentType.PEDESTRIAN, AgentType.CYCLIST)
    vehicles, pedestrians, cyclists = (types.count(kind) for kind in named)
    others = len(types) - vehicles - pedestrians - cyclists
    return Outline(scenario_id, steps, vehicles, pedestrians, cyclists, others, lights)


class StoreShelf:
    """An ingested store."""

    def __init__(self, folder: Path) -> None:
        self._store = SceneStore(folder)

    def find(self) -> Iterator[Found]:
        for index, info in enumerate(self._store.infos):
            key = (str(self._store.folder), index)
            try:
                scene = self._store[index]
            except UserError as error:
                yield Found(None, key, str(error))
                continue
            types = scene.agents.type[scene.simulated].tolist()
            yield Found(_counted(info.scenario_id, info.steps, types, len(scene.lights.lane_id)), key)

    def scene(self, key: tuple[str, int]) -> Scene:
        return self._store[key[1]]


class RecordShelf:
    """TFRecord files."""

    def __init__(self, path: str) -> None:
        self._urls = [shard.url for shard in find_shards(path)]

    def find(self) -> Iterator[Found]:
        for url in self._urls:
            try:
                for number, (offset, record) in enumerate(locate_records(url)):
                    yield self._found(url, number, offset, record)
            except OSError as error:
                yield Found(None, (url, 0), f"{url}: {error.strerror or error}")

    def _found(self, url: str, number: int, offset: int, record: bytes | BrokenRecord) -> Found:
        where = f"{url}: record {number}"
        if isinstance(record, BrokenRecord):
            return Found(None, (url, offset), f"{where}: {record.reason}")
        try:
            return Found(_outline(record), (url, offset))
        except (DecodeError, RecordError, IndexError) as error:
            return Found(None, (url, offset), f"{where}: {str(error).splitlines()[0]}")

    def scene(self, key: tuple[str, int]) -> Scene:
        url, offset = key
        try:
            record = read_record_at(url, offset)
            if isinstance(record, BrokenRecord):
                raise UserError(f"{url}: {record.reason}")
            remarks = Remarks()
            scene = parse_scenario(record, remarks=remarks)
        except OSError as error:
            raise UserError(f"{url}: {error.strerror or error}") from error
        except RecordError as error:
            raise UserError(f"{url}: {error}") from error
        for line in remarks.lines(url):
            warn_once(line)
        return scene


def _outline(record: bytes) -> Outline:
    """Read no more of a record than a line of a list needs: a fiftieth of the time.

    Raises:
        RecordError, DecodeError, IndexError: not a scenario.
    """
    proto = scenario_class().FromString(record)
    name = proto.scenario_id
    if not isinstance(name, str) or not name or not name.isprintable():
        raise RecordError("scenario_id", "scenario_id is empty or not printable")
    _, valid = decode_states([track.states[CURRENT_INDEX] for track in proto.tracks])
    types = [track.object_type for track, there in zip(proto.tracks, valid.tolist(), strict=True) if there]
    lanes = {light.lane for step in proto.dynamic_map_states for light in step.lane_states}
    return _counted(name, len(proto.timestamps_seconds), types, len(lanes))


def open_shelf(path: str) -> Shelf:
    """Scenarios at a path, glob or URL.

    Raises:
        UserError: nothing there.
    """
    folder = open_path(path)
    return StoreShelf(folder) if is_store(folder) else RecordShelf(path)


# File, offset and length of rollouts.
Place = tuple[Path, int, int]


class RolloutShelf:
    """Rollouts at a path or URL: a file, folder or glob of messages, or an archive.

    Args:
        name: what the viewer calls them. path: where they are.

    Raises:
        UserError: nothing there.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self._files = rollout_files(path)

    def find(self) -> Iterator[tuple[str, Place]]:
        """Scenario ids and places, one by one.

        Raises:
            UserError: a damaged file; what was found before it can be read.
        """
        for file in self._files:
            for member in open_members(file):
                for offset, payload in locate_rollouts(member.handle, member.where, member.size):
                    message = parse_rollouts(payload, member.where)
                    yield message.scenario_id, (file, member.offset + offset, len(payload))

    def read(self, place: Place) -> Rollouts:
        """The rollouts of a place.

        Raises:
            UserError: damaged or gone, or not all joint scenes have the same objects.
        """
        file = place[0]
        try:
            payload = read_at(*place)
        except OSError as error:
            raise UserError(f"{file}: {error.strerror or error}") from error
        return from_proto(parse_rollouts(payload, str(file)), str(file))
