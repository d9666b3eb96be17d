"""Progress of every stage on stderr: one line that moves on a terminal, a new line now and then in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TextIO, TypeVar

from tqdm import tqdm

from pipeline.execution.console import is_quiet

__all__ = ["bar", "track"]

ItemT = TypeVar("ItemT")

# A pipe or log file gets a line every half minute instead of ten a second.
_LOG_INTERVAL_SECONDS = 30.0


class _Lines:
    """What tqdm writes, as lines: a log file wants no carriage returns."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if line := text.strip("\r\n "):
            self._stream.write(f"{line}\n")
        return len(text)

    def flush(self) -> None:
        self._stream.flush()


def bar(description: str, total: int, unit: str, initial: int = 0) -> tqdm:
    """A progress bar with rate and remaining time; to be used as a context manager.

    Args:
        description: name of the stage. total: units in all. unit: what is counted, with a leading space.
        initial: units done by an earlier, interrupted run; they do not enter the rate.
    """
    interactive = sys.stderr.isatty()
    return tqdm(
        desc=description,
        total=total,
        initial=initial,
        unit=unit,
        dynamic_ncols=interactive,
        mininterval=0.1 if interactive else _LOG_INTERVAL_SECONDS,
        file=sys.stderr if interactive else _Lines(sys.stderr),
        ascii=None if interactive else True,
        leave=True,
        disable=is_quiet(),
        smoothing=0.05,
    )


def track(items: Iterable[ItemT], description: str, total: int, unit: str) -> Iterator[ItemT]:
    """Yield the items and advance a bar by one for each."""
    with bar(description, total, unit) as progress:
        for item in items:
            yield item
            progress.update()
