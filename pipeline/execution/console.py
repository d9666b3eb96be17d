"""What is said on stderr besides errors and warnings. --quiet turns it off, --log keeps it in a file."""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, TextIO, TypeVar

from tqdm import tqdm

from data.errors import UserError

# Inherited by the processes that do the work.
_QUIET = "SPACER_QUIET"
# A pipe or log file gets a line of progress every half minute instead of ten a second.
_LOG_INTERVAL_SECONDS = 30.0

ItemT = TypeVar("ItemT")


def be_quiet() -> None:
    """From now on, in this process and those that it starts."""
    os.environ[_QUIET] = "1"


def is_quiet() -> bool:
    return bool(os.environ.get(_QUIET))


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Quiet for a while: for work whose parts are of no interest to whoever watches the whole."""
    before = os.environ.get(_QUIET)
    os.environ[_QUIET] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_QUIET]
        else:
            os.environ[_QUIET] = before


def say(text: str) -> None:
    """A line for whoever is watching."""
    if not is_quiet():
        print(text, file=sys.stderr, flush=True)


class _Copied:
    """A stream whose finished lines also go to a file, with the time before them.

    A progress bar writes its line again and again behind carriage returns; the file gets what it ended as.
    """

    def __init__(self, stream: TextIO, file: IO[str]) -> None:
        self._stream, self._file, self._line = stream, file, ""

    def write(self, text: str) -> int:
        self._line += text
        while "\n" in self._line:
            line, _, self._line = self._line.partition("\n")
            shown = line.rstrip("\r").rpartition("\r")[2].strip()
            if shown:
                # Without a buffer: processes that write to the same file do not mix their lines.
                self._file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shown}\n")
                self._file.flush()
        self._line = self._line.rpartition("\r")[2] if self._line.endswith("\r") else self._line[-4096:]
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def logged(path: Path) -> Iterator[None]:
    """Keep in a file, behind what it holds already, what is said on stderr.

    Raises:
        UserError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--log {path}: {error.strerror or error}") from error
    before = sys.stderr
    with file:
        sys.stderr = _Copied(before, file)
        try:
            yield
        finally:
            sys.stderr = before


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
