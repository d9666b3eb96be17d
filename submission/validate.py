"""Validation of a submission archive as the server does it, without extracting it."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any

from google.protobuf.message import DecodeError
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from data.errors import UserError
from data.scenes_source import SceneSource
from data.tfrecord import HEAD, other_kind
from submission.checks import examine, official_defect
from submission.members import MAX_SHARD_BYTES
from submission.metadata import metadata_defects, metadata_suspicions
from submission.protos import Wire, scenario_rollouts_messages
from submission.suspicion import Suspicion, Tally

# An archive with unwrapped headings has a million defects; all are counted, this many are kept.
MAX_LISTED = 100_000

_GZIP_MAGIC = b"\x1f\x8b"
# The pattern of the tutorial, with the count, to notice missing shards.
_NAME = re.compile(r".*\.binproto(-(?P<index>\d{5})-of-(?P<count>\d{5}))?")
# Larger members end the validation.
_MAX_SKIPPED_BYTES = 10 * MAX_SHARD_BYTES
_BLOCK = 1 << 20
# A tar ends with two empty blocks of 512 bytes; programs fill the rest of a record with more of them.
_TAR_END = bytes(1024)
_MAX_PADDING = 16 * _BLOCK
_MAX_EMPTY_READS = 8
_FIELDS = pb.SimAgentsChallengeSubmission.DESCRIPTOR.fields_by_number


@dataclass
class Verdict:
    """Result of the validation.

    Attributes:
        count: number of defects. defects: the first ``MAX_LISTED`` of them, one line each.
        suspected: number of suspicions. suspicions: the first ``MAX_LISTED`` of them. kinds: all of them by kind.
        scenarios: number of messages. accepted: number of scenarios that Waymo's validator accepts.
        shards: names of the files in the archive.
    """

    count: int = 0
    defects: list[str] = field(default_factory=list)
    suspected: int = 0
    suspicions: list[str] = field(default_factory=list)
    kinds: Tally = field(default_factory=Tally)
    scenarios: int = 0
    accepted: int = 0
    shards: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """Count a defect and keep it as one printable line, up to ``MAX_LISTED``."""
        self.count += 1
        if self.count <= MAX_LISTED:
            self.defects.append(_printable(text))

    def suspect(self, where: str, suspicion: Suspicion) -> None:
        """The same for a suspicion."""
        self.suspected += 1
        self.kinds.add(_printable(where), suspicion)
        if self.suspected <= MAX_LISTED:
            self.suspicions.append(_printable(f"{where}: {suspicion}"))


def _printable(text: str) -> str:
    """Replace line breaks and control characters, since names come from the archive."""
    return "".join(c if c.isprintable() else "?" for c in text)


def validate_archive(
    archive: Path,
    source: SceneSource,
    advance: Callable[[int], object],
    others: Mapping[str, Collection[str]] | None = None,
) -> Verdict:
    """Check an archive against the set of evaluated scenarios, with one scenario in memory at a time.

    Args:
        archive: the file. source: the evaluated scenarios. advance: called with 1 after every scenario.
        others: ids of other sets by name, such as other splits, to explain scenarios that are not in ``source``.

    Raises:
        UserError: the file cannot be opened.
    """
    inspection = _Inspection(source, advance)
    verdict = inspection.verdict
    try:
        with archive.open("rb") as file:
            magic = file.read(len(_GZIP_MAGIC))
            file.seek(0)
            if magic == _GZIP_MAGIC:
                inspection.read(archive.name, file)
            else:
                head = file.read(HEAD)
                kind = _kind(head, "a gzip file") or "not a gzip file"
                verdict.add(
                    f"{archive.name}: {'a plain .tar' if _is_plain_tar(file) else kind}; the server wants a .tar.gz"
                )
                return verdict
    except OSError as error:
        raise UserError(f"{archive}: {error.strerror or error}") from error
    _check_names(verdict)
    _check_foreign(inspection, archive.name, others or {})
    for name in source.ids:
        if name not in inspection.seen:
            verdict.add(f"{archive.name}: scenario {name} is missing")
    return verdict


def _check_foreign(inspection: _Inspection, archive: str, others: Mapping[str, Collection[str]]) -> None:
    """Report scenarios that are not in the evaluated set; usually all are of another split."""
    foreign = inspection.foreign
    for name, ids in others.items():
        count = len(foreign.intersection(ids))
        if count:
            inspection.verdict.add(f"{archive}: {count} scenarios are those of {name}: the wrong split")
    if foreign and not inspection.seen:
        inspection.verdict.add(
            f"{archive}: none of its {len(foreign)} scenarios is in the evaluated set: another split?"
        )


def _kind(head: bytes, expected: str) -> str | None:
    """The kind of a file by its first bytes, without advice that is about downloaded data."""
    kind = other_kind(head, expected)
    return None if kind is None else kind.partition(": ")[0]


def _is_plain_tar(file: IO[bytes]) -> bool:
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:"):
            return True
    except tarfile.TarError:
        return False


class _Unpacked:
    """The decompressed archive as a stream that keeps its first and last bytes.

    ``tarfile`` skips a member by reading up to its declared size, which may be 2^70 bytes. So repeated reads after
    the end raise EOFError.
    """

    def __init__(self, file: gzip.GzipFile) -> None:
        self._file = file
        self._empty = 0
        self.head = self.end = b""

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._empty += not data
        if self._empty > _MAX_EMPTY_READS:
            raise EOFError("the archive ends inside its last member")
        self.head += data[: HEAD - len(self.head)]
        self.end = (self.end + data)[-len(_TAR_END) :]
        return data


@dataclass
class _Inspection:
    """One pass over an archive.

    Attributes:
        seen: ids of the scenarios so far. foreign: of those that are not in the set.
        head: name and metadata of the first shard.
    """

    source: SceneSource
    advance: Callable[[int], object]
    verdict: Verdict = field(default_factory=Verdict)
    seen: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    head: tuple[str, Any] | None = None

    def __post_init__(self) -> None:
        self._known = set(self.source.ids)

    def read(self, name: str, file: IO[bytes]) -> None:
        """Check all members, then the end of the archive, its length and its checksum."""
        stream = None
        try:
            with gzip.GzipFile(fileobj=file, mode="rb") as packed:
                stream = _Unpacked(packed)
                for tar, member in _members(stream):
                    self._member(tar, member)
                self._end(name, stream)
        except _Bomb as error:
            self.verdict.add(f"{name}: {error}")
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            kind = _kind(stream.head, "a tar") if stream and stream.head and not self.verdict.shards else None
            if kind is None or kind.startswith("a tar archive"):
                kind = f"damaged or truncated: {' '.join(str(error).split())}"
            else:
                kind = f"inside the gzip: {kind}"
            self.verdict.add(f"{name}: {kind}")

    def _end(self, name: str, stream: _Unpacked) -> None:
        # gzip compares length and checksum when its last byte is read.
        padding = 0
        while data := stream.read(_BLOCK):
            padding += len(data)
            if padding > _MAX_PADDING:
                self.verdict.add(f"{name}: data after the end of the tar")
                return
        if stream.end != _TAR_END:
            self.verdict.add(f"{name}: damaged or truncated: the tar has no end, or data after it")

    def _member(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        name = member.name
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            self.verdict.add(f"{name}: path leads out of the archive")
            return
        if member.isdir():
            return
        if not member.isreg():
            self.verdict.add(f"{name}: not a regular file (a link or a device)")
            return
        self.verdict.shards.append(path.name)
        if not _NAME.fullmatch(path.name):
            self.verdict.add(f"{name}: expected a name such as submission.binproto-00000-of-00150")
        if member.size >= MAX_SHARD_BYTES:
            self.verdict.add(
                f"{name}: {member.size / 1e6:.0f} MB, expected less than {MAX_SHARD_BYTES / 1e6:.0f}; not read"
            )
            if member.size > _MAX_SKIPPED_BYTES:
                raise _Bomb(f"{name} declares {member.size / 1e9:.0f} GB: the rest was not checked")
            return
        others: list[Wire] | None = None
        try:
            for message, fields in _messages(tar, member):
                others = fields
                self._scenario(message, name)
                self.advance(1)
        except _Unreadable as error:
            self.verdict.add(str(error))
            return
        # Shards of metadata alone are what the tutorial writes where it has more shards than scenarios.
        if others is not None:
            self._metadata(others, name)

    def _metadata(self, fields: list[Wire], name: str) -> None:
        if not fields:
            self.verdict.add(f"{name}: holds no metadata, so it is no submission: pack its rollouts with `package`")
            return
        counts = Counter(wire.number for wire in fields)
        for number, count in sorted(counts.items()):
            known = _FIELDS.get(number)
            if known is None:
                self.verdict.add(f"{name}: unknown field {number}")
            elif count > 1 and not known.is_repeated:
                self.verdict.add(f"{name}: {known.name} occurs {count} times")
        try:
            head = pb.SimAgentsChallengeSubmission.FromString(b"".join(wire.encode() for wire in fields))
        except DecodeError:
            self.verdict.add(f"{name}: metadata is not readable")
            return
        for text in metadata_defects(head):
            self.verdict.add(f"{name}: {text}")
        if self.head is None:
            self.head = (name, head)
            for suspicion in metadata_suspicions(head):
                self.verdict.suspect(name, suspicion)
        elif head != self.head[1]:
            self.verdict.add(f"{name}: metadata differs from that of {self.head[0]}")

    def _scenario(self, message: Any, where: str) -> None:
        self.verdict.scenarios += 1
        name = message.scenario_id
        where = f"{where}: scenario {name or '(no id)'}"
        if name not in self._known:
            self.verdict.add(f"{where} is not in the evaluated set")
            self.foreign.add(name)
            return
        again = name in self.seen
        if again:
            self.verdict.add(f"{where} occurs more than once")
        self.seen.add(name)
        scene = self.source.get(name)
        findings = examine(message, scene)
        for text in findings.defects:
            self.verdict.add(f"{where}: {text}")
        for suspicion in findings.suspicions:
            self.verdict.suspect(where, suspicion)
        refusal = official_defect(message, scene)
        if refusal is not None:
            self.verdict.add(f"{where}: refused by Waymo's validator: {refusal}")
        elif not again:
            self.verdict.accepted += 1


class _Bomb(Exception):
    """A member that would take long to skip."""


class _Unreadable(Exception):
    """A shard that is not a message; the text says why."""


@contextlib.contextmanager
def _header() -> Iterator[None]:
    """Turn the ValueError of invalid numbers in a header into an error of the archive."""
    try:
        yield
    except ValueError as error:
        raise tarfile.ReadError(f"bad header ({error})") from error


def _members(stream: _Unpacked) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    """Members in order; each must be read before the next."""
    with _header():
        tar = tarfile.open(fileobj=stream, mode="r|", bufsize=_BLOCK)  # type: ignore[call-overload]  # noqa: SIM115
    with tar:
        while True:
            with _header():
                member = tar.next()
            if member is None:
                return
            yield tar, member


def _messages(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[tuple[Any, list[Wire]]]:
    """Rollouts of a member; errors of the member become ``_Unreadable``."""
    handle = tar.extractfile(member)
    assert isinstance(handle, io.BufferedReader)
    head = handle.peek(HEAD)[:HEAD]
    try:
        yield from scenario_rollouts_messages(handle, member.name, member.size)
    except UserError as error:
        kind = _kind(head, "a shard")
        if kind is None or kind.startswith("rollouts"):
            raise _Unreadable(str(error)) from error
        raise _Unreadable(f"{member.name}: {kind}: leave it out of the archive") from error


def _check_names(verdict: Verdict) -> None:
    if not verdict.shards:
        verdict.add("the archive holds no files")
        return
    for name, times in sorted(Counter(verdict.shards).items()):
        if times > 1:
            verdict.add(f"{name} occurs {times} times")
    matches = [match for name in verdict.shards if (match := _NAME.fullmatch(name)) and match["count"]]
    counts = {int(match["count"]) for match in matches}
    if len(counts) > 1:
        verdict.add(f"shard names disagree on the number of shards: {sorted(counts)}")
    elif counts:
        count, numbers = counts.pop(), {int(match["index"]) for match in matches}
        for index in sorted(set(range(count)) - numbers):
            verdict.add(f"shard {index:05d} of {count:05d} is missing")
        for index in sorted(numbers - set(range(count))):
            verdict.add(f"shard {index:05d} of {count:05d} is beyond the count")
        if len(matches) < len(verdict.shards):
            verdict.add(f"only {len(matches)} of {len(verdict.shards)} files are numbered")
