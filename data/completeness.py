"""Completeness of data: split and number in the names of shards, missing shards, rejected and repaired records.

Waymo names a shard ``validation.tfrecord-00003-of-00150``; other programs write ``val-00003-of-00150.tfrecord`` or
``val_00003_of_00150.tfrecord``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from data.errors import UserError

SPLITS = ("training", "validation", "testing")
# Scenarios of WOMD by split and number of shards. Sources differ by a few (also 44,102 of validation and 44,926 of
# testing). These are the smaller numbers, so that every complete copy counts as complete.
_OFFICIAL = {("training", 1000): 486_995, ("validation", 150): 44_097, ("testing", 150): 44_920}
# Code of a rejected record whose scenario occurred earlier.
DUPLICATE = "duplicate"
# An environment variable, so that worker processes inherit it.
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
# What may follow the numbers. Programs that copy files append to a name meanwhile, or to avoid an existing name.
_REST = re.compile(r"(.*\.(tfrecords?|binproto))?(\.gz)?", re.IGNORECASE)
_UNFINISHED = re.compile(
    r".*\.(gstmp|part|partial|crdownload|download|opdownload|filepart|incomplete|te?mp|aria2)", re.IGNORECASE
)

# Number of scenarios that are named.
_EXAMPLES = 3
_TEXTS = {
    "rounding": "coordinates of up to {most:,.0f} m, which float32 rounds by up to {error:.2g} m, here as in "
    "Waymo's metric: likelihoods of speeds and accelerations fall; move the scenes nearer to the origin",
    "degrees": "headings of up to {most:.4g}, so perhaps in degrees; expected radians",
    "velocity": "velocities that are NaN or infinite in valid states; differences of positions are taken instead",
    "size": "sizes that are NaN or infinite in valid states; those at the current step are taken instead",
    "state": "positions that are NaN or infinite of agents that are not simulated; such states count as not valid",
    "speed_limit": "speed limits that are NaN, infinite or negative; they count as none",
    "timestamp": "timestamps that are NaN or infinite; steps of 0.1 s are taken instead",
    "step": "timestamps that are not 0.1 s apart, so perhaps another rate than 10 Hz; their states are taken to be "
    "0.1 s apart, as in Waymo's metric",
    "stop_point": "stop points of lights that are NaN or infinite; the lights count as not observed there",
    "map_point": "map points that are NaN or infinite in features other than road edges; the points are left out",
    "chosen_agents": "no agents to predict named by their source; up to eight were chosen as WOMD does",
    "derived_edges": "no road edges in their source; derived ones (subtype 0) stand for them",
    "no_road_edges": "no road edges",
    "no_lights": "no traffic lights",
    "no_crosswalks": "no crosswalks",
    "no_heights": "no heights in their map; it counts as flat at 0 m",
    "objects_left_out": "cones, barriers and other objects that do not move by themselves; {items} were left out",
    "features_left_out": "map features of kinds that WOMD does not have, or without points; {items} were left out",
    "windows_left_out": "too few agents at the current step (--windows.agents); these windows were left out",
    "resampled": "another rate than 10 Hz; states between two samples were interpolated",
    "turned_box": "an AV whose box is wider than long; length and width were exchanged",
}
# Kinds of remarks that say what other formats than WOMD lack, and what was made up for it.
_OTHER_FORMATS = tuple(_TEXTS)[tuple(_TEXTS).index("chosen_agents") :]


def allow_partial() -> None:
    """Accept splits with missing shards, in this process and in those that it starts."""
    os.environ[_PARTIAL] = "1"


def partial_allowed() -> bool:
    return bool(os.environ.get(_PARTIAL))


def inherited() -> dict[str, str]:
    """Environment variables that processes on other machines need to accept the same."""
    return {_PARTIAL: os.environ[_PARTIAL]} if _PARTIAL in os.environ else {}


def _all(name: str) -> bool:
    return True


def some(names: Sequence[str]) -> str:
    """The first three names and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def folder_split(name: str) -> str | None:
    """The split that a folder is named after, None for any other name."""
    return name if _FOLDER.fullmatch(name) else None


def shard_split(name: str) -> str | None:
    """The split in a file name, such as ``validation_interactive``; None if there is none, or more than one."""
    splits = set()
    for full, short, variant in _LABEL.findall(name):
        word = (full or short).lower()
        splits.add(_LONG.get(word, word) + variant.lower())
    return splits.pop() if len(splits) == 1 else None


def split_base(label: str) -> str:
    """``validation`` for ``validation_interactive``."""
    return label.partition("_")[0]


@dataclass(frozen=True)
class Series:
    """Numbered shards that belong together.

    Attributes:
        label: the split, or the beginning of the names if they contain none. total: number of shards in the set.
        there: names of the existing shards by index.
    """

    label: str
    total: int
    there: dict[int, str]

    def missing(self, wanted: Callable[[str], bool] = _all) -> list[str]:
        """Names of the missing shards for which ``wanted`` is true."""
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
        """Number of scenarios of the whole set if it is one of WOMD, else None."""
        return _OFFICIAL.get((self.label, self.total))


def series_of(names: Iterable[str]) -> list[Series]:
    """Group the names of shards of one split into series; names without numbers are skipped.

    Raises:
        UserError: an unfinished download, a shard that occurs twice or is beyond the total, or two totals.
    """
    by_label: dict[str, Series] = {}
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if _UNFINISHED.fullmatch(name) or (match is not None and not _REST.fullmatch(match["rest"])):
            raise UserError(f"{name}: not the name of a complete shard; finish its download, rename or remove it")
        if match is None:
            continue
        label, index, total = shard_split(name) or match["stem"], int(match["index"]), int(match["total"])
        series = by_label.setdefault(label, Series(label, total, {}))
        if series.total != total:
            other = next(iter(series.there.values()))
            raise UserError(f"{name}: one of {total} shards, but {other} is one of {series.total}; keep one set")
        if index >= total:
            raise UserError(f"{name}: beyond the {total} shards, which count from 0; rename or remove it")
        if index in series.there:
            raise UserError(f"{name}: the same shard as {series.there[index]}; remove one of them")
        series.there[index] = name
    return list(by_label.values())


class Rejected(NamedTuple):
    """A record that could not be used: its file, its number in the file, a short code, and the reason."""

    file: str
    record: str
    code: str
    reason: str


@dataclass
class Remarks:
    """What readers repaired or found to be of low precision, counted over a shard or a dataset.

    Attributes:
        found: by kind: number of scenarios, the first ids, the largest coordinate in metres, and (where things are
            counted) their number.
    """

    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, kind: str, scenario_id: str, most: float = 0.0, items: int = 0) -> None:
        """Count a scenario once under a kind, and the things in it that the remark is about."""
        row = {"count": 1, "ids": [scenario_id], "most": most}
        self.merge({kind: {**row, "items": items} if items else row})

    def merge(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Add the counts of other shards."""
        for kind, row in found.items():
            own = self.found.setdefault(kind, {"count": 0, "ids": [], "most": 0.0})
            own["count"] += row["count"]
            own["ids"] = [*own["ids"], *row["ids"]][:_EXAMPLES]
            own["most"] = max(own["most"], row["most"])
            if "items" in row:
                own["items"] = own.get("items", 0) + row["items"]

    def figures(self) -> dict[str, int]:
        """Numbers of scenarios (or of things left out) for what formats other than WOMD lack; empty for WOMD."""
        return {
            kind: self.found[kind].get("items", self.found[kind]["count"])
            for kind in _OTHER_FORMATS
            if kind in self.found
        }

    def lines(self, where: str) -> list[str]:
        """One line per kind."""
        texts = []
        for kind, row in self.found.items():
            most = row["most"]
            text = _TEXTS[kind].format(most=most, error=rounding_error(most), items=row.get("items", 0))
            texts.append(f"{where}: {row['count']} scenarios have {text} ({', '.join(row['ids'])})")
        return texts


def rounding_error(coordinate: float) -> float:
    """Largest rounding error of float32 at a coordinate, metres."""
    return float(np.spacing(np.float32(coordinate))) / 2


@dataclass(frozen=True)
class Origin:
    """The files that the scenarios of a source come from, and what is missing from them.

    Attributes:
        files: names of the shards that were read. rejected: records of these that are not in the source.
        remarks: what was repaired, or is of low precision, in those that are.
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
        """Rejected records whose scenario is missing; that of a duplicate is not."""
        return [row for row in self.rejected if row.code != DUPLICATE]

    @property
    def rejection(self) -> str:
        """A sentence about the rejected records, empty if no scenario is missing because of them."""
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
        """A sentence about the missing shards, empty if all exist or the names have no numbers."""
        return "; ".join(
            f"{len(missing)} of {series.total} shards of {series.label} are missing ({some(missing)})"
            for series, missing in self._incomplete
        )

    def shortage(self, count: int) -> str:
        """A phrase if ``count`` scenarios are fewer than the split of WOMD has, else empty."""
        whole = next((series.official for series in series_of(self.files) if series.official), None)
        if whole is None or count >= whole:
            return ""
        return f"{count} of the {whole} scenarios that this split of WOMD has"

    def figures(self) -> dict[str, int]:
        """Numbers of missing shards and rejected records; empty if both are zero."""
        absent = sum(len(missing) for _, missing in self._incomplete)
        return {
            **({"missing_shards": absent} if absent else {}),
            **({"rejected": len(self.rejected)} if self.rejected else {}),
        }


def check_whole(where: str, names: Iterable[str], advice: str, wanted: Callable[[str], bool] = _all) -> None:
    """Refuse a split with missing shards, unless ``allow_partial`` was called.

    Args:
        where: path or URL of the shards. names: of shards. advice: what to do if some are missing.
        wanted: whether the shard of a name is required.

    Raises:
        UserError: shards are missing, or as ``series_of``.
    """
    for series in series_of(names):
        missing = series.missing(wanted)
        if missing and not partial_allowed():
            raise UserError(
                f"{where}: {len(missing)} of {series.total} shards of {series.label} are missing: "
                f"{some(missing)}; {advice}, or use the {len(series.there)} existing ones with --partial"
            )
