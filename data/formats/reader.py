"""What a reader of a format does: which files are its own, and their records as ``Scene``s or reasons.

A further format is one file beside this one that makes a ``Format``, and its line in ``data.formats.catalogue``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import fsspec

from data.assembly import RecordError
from data.completeness import Remarks
from data.errors import UserError
from data.scene import NUM_STEPS, Scene

# No file of a single recording is near this; a hundred times the longest scenario of WOMD.
_MAX_FILE_BYTES = 1 << 30


@dataclass(frozen=True)
class WindowConfig:
    """How recordings longer than a scenario are divided (formats other than WOMD).

    Args:
        stride: steps of 0.1 s between the beginnings of windows of 91 steps; 80 lets no future overlap another.
        agents: windows with fewer agents than this at their current step are left out, and counted.
    """

    stride: int = NUM_STEPS - 11
    agents: int = 2

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise UserError(f"--windows.{name} {value}: expected 1 or more")


@dataclass(frozen=True)
class Reading:
    """What is asked of a reader: whether 80 steps of future are needed, and how recordings are divided."""

    need_future: bool = False
    windows: WindowConfig = WindowConfig()


class Item(NamedTuple):
    """A record of a file: where in the file it is, and the scene or the reason why there is none."""

    where: str
    result: Scene | RecordError


@dataclass(frozen=True)
class Format:
    """One format of scenarios.

    Attributes:
        name: value of ``--format``. title: of its files, in messages. names: those of its files in a folder.
        example: such a name. heads: whether the first bytes of a file may be those of this format.
        read: records of a file (path or URL) in order; remarks receives what was repaired, derived or left out.
            Raises OSError if the file cannot be opened.
        numbered: names say how many files a split has, and all must be there.
        batch: files that one shard of a store holds.
        nested: files may be in folders of the given one.
    """

    name: str
    title: str
    names: re.Pattern[str]
    example: str
    heads: Callable[[bytes], bool]
    read: Callable[[str, Reading, Remarks], Iterator[Item]]
    numbered: bool = False
    batch: int = 64
    nested: bool = False


def read_whole(url: str) -> bytes:
    """All bytes of a file that holds one recording.

    Raises:
        RecordError: empty, or too long to be one. OSError: it cannot be opened.
    """
    with fsspec.open(url, "rb") as file:
        content: bytes = file.read(_MAX_FILE_BYTES + 1)
    if not content:
        raise RecordError("record", "empty (0 bytes): download it again, or remove it")
    if len(content) > _MAX_FILE_BYTES:
        raise RecordError("record", f"longer than {_MAX_FILE_BYTES} bytes, which no recording is")
    return content
