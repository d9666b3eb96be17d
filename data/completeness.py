"""What the names of shards say: which split they are of, which of them are missing, and what a whole split holds.

Waymo names a shard ``validation.tfrecord-00003-of-00150``; other programs write ``val-00003-of-00150.tfrecord`` or
``val_00003_of_00150.tfrecord``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from data.errors import UserError
from data.remarks import Remarks

__all__ = [
    "DUPLICATE",
    "SPLITS",
    "Origin",
    "Rejected",
    "Series",
    "allow_partial",
    "check_whole",
    "folder_split",
    "inherited",
    "partial_allowed",
    "series_of",
    "shard_split",
    "some",
    "split_base",
]

SPLITS = ("training", "validation", "testing")
# Scenarios of WOMD by split and number of shards. Sources differ by a few (also 44,102 of validation and 44,926 of
# testing): these are the smaller numbers, so that no complete copy is called incomplete.
_OFFICIAL = {("training", 1000): 486_995, ("validation", 150): 44_097, ("testing", 150): 44_920}
# Code of a rejected record whose scenario occurs before.
DUPLICATE = "duplicate"
# Inherited by the processes that do the work.
_PARTIAL = "SPACER_PARTIAL"

_VARIANTS = r"(?:_interactive|_20s)?"
_FOLDER = re.compile(rf"(?:training|validation|testing){_VARIANTS}")
_LABEL = re.compile(
    rf"(?:(?<![a-z])(training|validation|testing)|^(train|valid|val|test))(?![a-z])({_VARIANTS})", re.IGNORECASE
)
_LONG = {"train": "training", "val": "validation", "valid": "validation", "test": "testing"}
_NUMBERED = re.compile(
    r"(?P<stem>.*?)(?P<mark>[-_.])(?P<index>\d{1,6})(?P<of>[-_]of[-_])(?P<total>\d{1,6})(?P<rest>(?!\d).*)",
    re.IGNORECASE,
)
# What may follow the numbers. Programs that copy files append to a name while they do, or to make it a new one.
_REST = re.compile(r"(.*\.tfrecords?)?(\.gz)?", re.IGNORECASE)
_UNFINISHED = re.compile(
    r".*\.(gstmp|part|partial|crdownload|download|opdownload|filepart|incomplete|te?mp|aria2)", re.IGNORECASE
)


def allow_partial() -> None:
    """From now on, in this process and those that it starts, a split may lack shards."""
    os.environ[_PARTIAL] = "1"


def partial_allowed() -> bool:
    return bool(os.environ.get(_PARTIAL))


def inherited() -> dict[str, str]:
    """What processes of other machines must find in their environment to allow what this one allows."""
    return {_PARTIAL: os.environ[_PARTIAL]} if _PARTIAL in os.environ else {}


def _all(name: str) -> bool:
    return True


def some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def folder_split(name: str) -> str | None:
    """The split that a folder is named after, None for any other name."""
    return name if _FOLDER.fullmatch(name) else None


def shard_split(name: str) -> str | None:
    """The split that a file's name tells, such as ``validation_interactive``; None where it tells none, or two."""
    found = set()
    for full, short, variant in _LABEL.findall(name):
        word = (full or short).lower()
        found.add(_LONG.get(word, word) + variant.lower())
    return found.pop() if len(found) == 1 else None


def split_base(label: str) -> str:
    """``validation`` for ``validation_interactive``."""
    return label.partition("_")[0]


@dataclass(frozen=True)
class Series:
    """Numbered shards that belong together.

    Attributes:
        label: the split, or what names begin with where they tell none. total: of how many shards.
        there: names of those that are there, by index.
    """

    label: str
    total: int
    there: dict[int, str]

    def missing(self, wanted: Callable[[str], bool] = _all) -> list[str]:
        """Names of the missing shards, as far as they are wanted."""
        match = _NUMBERED.fullmatch(next(iter(self.there.values())))
        assert match is not None
        stem, rest, width = (
            match["stem"] + match["mark"],
            f"{match['of']}{match['total']}{match['rest']}",
            len(match["index"]),
        )
        names = (f"{stem}{index:0{width}d}{rest}" for index in range(self.total) if index not in self.there)
        return [name for name in names if wanted(name)]

    @property
    def official(self) -> int | None:
        """How many scenarios all of its shards hold, if they are those of WOMD."""
        return _OFFICIAL.get((self.label, self.total))


def series_of(names: Iterable[str]) -> list[Series]:
    """The series among the names of shards of one split; names without numbers belong to none.

    Raises:
        UserError: an unfinished download, a shard that is there twice or beyond the count, or two counts.
    """
    found: dict[str, Series] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if _UNFINISHED.fullmatch(name) or (match is not None and not _REST.fullmatch(match["rest"])):
            raise UserError(f"{name}: not the name of a finished shard; finish its download, rename or remove it")
        if match is None:
            continue
        label, index, total = shard_split(name) or match["stem"], int(match["index"]), int(match["total"])
        series = found.setdefault(label, Series(label, total, {}))
        if series.total != total:
            other = next(iter(series.there.values()))
            raise UserError(f"{name}: one of {total} shards, but {other} is one of {series.total}; keep one set")
        if index >= total:
            raise UserError(f"{name}: beyond the {total} shards, which count from 0; rename or remove it")
        if index in series.there:
            raise UserError(f"{name}: the same shard as {series.there[index]}; remove one of them")
        series.there[index] = name
    return list(found.values())


class Rejected(NamedTuple):
    """A record that was seen and could not be used: its file and number there, a short code, and why."""

    file: str
    record: str
    code: str
    reason: str


@dataclass(frozen=True)
class Origin:
    """Where the scenarios of a source come from, and what did not come along.

    Attributes:
        files: names of the shards that were read. rejected: records of these that are not in the source.
        remarks: what was put right or is coarse in those that are.
    """

    files: tuple[str, ...] = ()
    rejected: tuple[Rejected, ...] = ()
    remarks: Remarks = field(default_factory=Remarks)

    def __add__(self, other: Origin) -> Origin:
        remarks = Remarks()
        remarks.merge(self.remarks.found)
        remarks.merge(other.remarks.found)
        return Origin(self.files + other.files, self.rejected + other.rejected, remarks)

    @property
    def lost(self) -> list[Rejected]:
        """Rejected records whose scenario is lacking; that of a duplicate is there."""
        return [row for row in self.rejected if row.code != DUPLICATE]

    @property
    def rejection(self) -> str:
        """What was rejected in words, empty where nothing is lacking by it."""
        if not self.lost:
            return ""
        first, count = self.lost[0], len(self.lost)
        records = "1 record was" if count == 1 else f"{count} records were"
        return f"{records} rejected at ingest ({first.file}: record {first.record}: {first.reason})"

    @property
    def _incomplete(self) -> list[tuple[Series, list[str]]]:
        pairs = [(series, series.missing()) for series in series_of(self.files)]
        return [(series, missing) for series, missing in pairs if missing]

    @property
    def absence(self) -> str:
        """Which shards are missing in words, empty where all are there or names do not tell."""
        return "; ".join(
            f"{len(missing)} of {series.total} shards of {series.label} are missing ({some(missing)})"
            for series, missing in self._incomplete
        )

    def shortage(self, count: int) -> str:
        """In words, that ``count`` scenarios are fewer than the split of WOMD has, empty if they are not."""
        whole = next((series.official for series in series_of(self.files) if series.official), None)
        if whole is None or count >= whole:
            return ""
        return f"{count} of the {whole} scenarios that this split of WOMD has"

    def figures(self) -> dict[str, int]:
        """Numbers of what did not come along; empty if nothing is known to be lacking."""
        absent = sum(len(missing) for _, missing in self._incomplete)
        return {
            **({"missing_shards": absent} if absent else {}),
            **({"rejected": len(self.rejected)} if self.rejected else {}),
        }


def check_whole(where: str, names: Iterable[str], mend: str, wanted: Callable[[str], bool] = _all) -> None:
    """Refuse a part of a split, unless it is allowed.

    Args:
        where: the names are from. names: of shards. mend: what to do if some are missing.
        wanted: whether a shard of some name has to be there.

    Raises:
        UserError: shards are missing, or as ``series_of``.
    """
    for series in series_of(names):
        missing = series.missing(wanted)
        if missing and not partial_allowed():
            raise UserError(
                f"{where}: {len(missing)} of {series.total} shards of {series.label} are missing: "
                f"{some(missing)}; {mend}, or go on with the {len(series.there)} that are there with --partial"
            )
