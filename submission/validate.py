"""Opening a submission archive as the server would and listing all that is wrong with it. Nothing is extracted."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from google.protobuf.message import DecodeError
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from data.errors import UserError
from data.scenes_source import SceneSource
from submission.checks import official_defect, required_ids, rollout_defects
from submission.metadata import metadata_defects
from submission.protos import Wire, encode_field, scenario_rollouts_messages

__all__ = ["Verdict", "validate_archive"]

_GZIP_MAGIC = b"\x1f\x8b"
# The tutorial's pattern; with a count, so that missing shards are noticed.
_NAME = re.compile(r".*\.binproto(-(?P<index>\d{5})-of-(?P<count>\d{5}))?")
_MAX_SHARD_BYTES = 500_000_000
_LENGTH = 2


@dataclass
class Verdict:
    """What was found.

    Attributes:
        defects: one line each, place first.
        scenarios: messages seen. accepted: those that Waymo's own validator accepts.
        shards: names of the files in the archive.
    """

    defects: list[str] = field(default_factory=list)
    scenarios: int = 0
    accepted: int = 0
    shards: list[str] = field(default_factory=list)


def validate_archive(archive: Path, source: SceneSource, advance: Callable[[int], None]) -> Verdict:
    """Check an archive against the set of scenarios it should cover.

    Args:
        archive: the file. source: the evaluated scenarios. advance: called after every scenario with 1.

    Raises:
        UserError: the file cannot be opened at all.
    """
    verdict = Verdict()
    try:
        with archive.open("rb") as file:
            magic = file.read(2)
    except OSError as error:
        raise UserError(f"{archive}: {error.strerror}") from error
    if magic != _GZIP_MAGIC:
        kind = "a plain .tar" if tarfile.is_tarfile(archive) else "not a gzip file"
        verdict.defects.append(f"{archive.name}: {kind}; the server wants a .tar.gz")
        return verdict
    seen: set[str] = set()
    known = set(source.ids)
    try:
        with tarfile.open(archive, mode="r|gz") as tar:
            for member in tar:
                for message, where in _messages(tar, member, verdict):
                    _check_scenario(message, where, source, known, seen, verdict)
                    advance(1)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        verdict.defects.append(f"{archive.name}: damaged or truncated: {' '.join(str(error).split())}")
    _check_names(verdict)
    verdict.defects += [f"{archive.name}: scenario {name} is missing" for name in source.ids if name not in seen]
    return verdict


def _messages(tar: tarfile.TarFile, member: tarfile.TarInfo, verdict: Verdict) -> Iterator[tuple[Any, str]]:
    """Rollouts of one member; what is wrong with the member itself goes to the verdict."""
    name = member.name
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        verdict.defects.append(f"{name}: path leads out of the archive")
        return
    if member.isdir():
        return
    if not member.isreg():
        verdict.defects.append(f"{name}: not a regular file (a link or a device)")
        return
    verdict.shards.append(path.name)
    if not _NAME.fullmatch(path.name):
        verdict.defects.append(f"{name}: expected a name such as submission.binproto-00000-of-00150")
    if member.size >= _MAX_SHARD_BYTES:
        verdict.defects.append(
            f"{name}: {member.size / 1e6:.0f} MB, expected less than {_MAX_SHARD_BYTES / 1e6:.0f}"
        )
    others: list[Wire] = []
    try:
        handle = tar.extractfile(member)
        assert handle is not None
        for message, fields in scenario_rollouts_messages(handle, name, member.size):
            others = fields
            yield message, name
    except UserError as error:
        verdict.defects.append(str(error))
        return
    verdict.defects += [f"{name}: {text}" for text in _metadata(others)]


def _metadata(fields: list[Wire]) -> list[str]:
    data = b"".join(
        encode_field(wire.number, wire.payload) if wire.kind == _LENGTH else _tag(wire) + wire.payload
        for wire in fields
    )
    try:
        return metadata_defects(pb.SimAgentsChallengeSubmission.FromString(data))
    except DecodeError:
        return ["metadata is not readable"]


def _tag(wire: Wire) -> bytes:
    # Field numbers of the message are below 16: one byte.
    return bytes([wire.number << 3 | wire.kind]) if wire.number < 16 else b""


def _check_scenario(
    message: Any, where: str, source: SceneSource, known: set[str], seen: set[str], verdict: Verdict
) -> None:
    verdict.scenarios += 1
    name = message.scenario_id
    place = f"{where}: scenario {name or '(no id)'}"
    if name not in known:
        verdict.defects.append(f"{place} is not in the evaluated set")
        return
    if name in seen:
        verdict.defects.append(f"{place} occurs more than once")
    seen.add(name)
    scene = source.get(name)
    verdict.defects += [f"{place}: {text}" for text in rollout_defects(message, required_ids(scene))]
    refusal = official_defect(message, scene)
    if refusal is None:
        verdict.accepted += 1
    else:
        verdict.defects.append(f"{place}: refused by Waymo's validator: {refusal}")


def _check_names(verdict: Verdict) -> None:
    if not verdict.shards:
        verdict.defects.append("the archive holds no files")
        return
    matches = [match for name in verdict.shards if (match := _NAME.fullmatch(name)) and match["count"]]
    counts = {int(match["count"]) for match in matches}
    if len(counts) > 1:
        verdict.defects.append(f"shard names disagree on the number of shards: {sorted(counts)}")
    elif counts:
        count = counts.pop()
        numbers = [int(match["index"]) for match in matches]
        verdict.defects += [
            f"shard {index:05d} of {count:05d} is missing" for index in range(count) if index not in numbers
        ]
        verdict.defects += [
            f"shard {index:05d} of {count:05d} is there {numbers.count(index)} times"
            for index in sorted(set(numbers))
            if numbers.count(index) > 1
        ]
