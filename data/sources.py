"""Where records come from: a folder laid out as Waymo's bucket, a glob, a file or a URL, to a list of shards."""

from __future__ import annotations

import fnmatch
import glob
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data.completeness import SPLITS, check_whole, folder_split, shard_split, split_base
from data.errors import UserError
from data.places import is_remote, place
from data.tfrecord import BrokenRecord, read_records
from data.womd import RecordError, parse_scenario

__all__ = ["SPLITS", "Shard", "check_apart", "find_shards"]

# Waymo's bucket keeps splits below this folder; a copy of part of it may start at any level.
_PREFIXES = ("", "scenario/", "uncompressed/scenario/")
_MAGIC = re.compile(r"[*?\[]")
_RECORD_FILE = re.compile(r"[^.].*tfrecord.*|tfrecord.*")


@dataclass(frozen=True)
class Shard:
    """One TFRecord file: its URL for fsspec, and what tells it apart without reading it (``data.checksums``)."""

    url: str
    fingerprint: str

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.url.rsplit("/", 1)[-1]


def _fingerprint(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """Name and size of a file, and of remote ones the version as their filesystem reports it, best by content.

    Local files have no version here: their times change when they are touched or copied (``data.checksums``).
    """
    info = filesystem.info(path)
    name = f"{path.rsplit('/', 1)[-1]}:{info.get('size')}"
    if isinstance(filesystem, LocalFileSystem):
        return name
    versions = (info.get(key) for key in ("md5Hash", "etag", "ETag", "mtime", "updated", "created"))
    return f"{name}:{next((value for value in versions if value is not None), '')}"


def _opened(data: str) -> tuple[fsspec.AbstractFileSystem, str]:
    found = place(data)
    if not is_remote(found):
        return LocalFileSystem(), str(found)
    filesystem, path = fsspec.core.url_to_fs(data)
    return filesystem, path


def _check_reachable(data: str, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    """fsspec says of storage that cannot be reached, or not be read, that nothing is there.

    Raises:
        UserError: why it cannot be looked at.
    """
    if isinstance(filesystem, LocalFileSystem):
        return
    silent = logging.root.manager.disable
    # The clients of some stores log a traceback of what the error says in a line.
    logging.disable(logging.CRITICAL)
    try:
        filesystem.info(path)
    except (FileNotFoundError, NotADirectoryError, NotImplementedError):
        # A glob, or nothing, as is said later.
        return
    except Exception as error:
        # Every store has errors of its own, of no common kind.
        raise UserError(
            f"{data}: cannot be read: {' '.join(str(error).split()) or type(error).__name__}"
        ) from error
    finally:
        logging.disable(silent)


def _leads_nowhere(filesystem: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether a path is a link to something that is not there, or to itself."""
    return isinstance(filesystem, LocalFileSystem) and os.path.islink(path) and not os.path.exists(path)


def _broken_link(filesystem: fsspec.AbstractFileSystem, path: str) -> UserError:
    target = f" to {os.readlink(path)}" if isinstance(filesystem, LocalFileSystem) else ""
    return UserError(f"{path}: a link{target} that leads nowhere; mend or remove it")


def _record_files(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    """TFRecord files of a folder, those behind links included; hidden files are none."""
    if not filesystem.isdir(folder):
        if _leads_nowhere(filesystem, folder):
            raise _broken_link(filesystem, folder)
        return []
    found = []
    for info in filesystem.ls(folder, detail=True):
        path = info["name"]
        if not _RECORD_FILE.fullmatch(path.rsplit("/", 1)[-1]) or info["type"] == "directory":
            continue
        # A link is neither file nor folder by its own type.
        if info["type"] == "file" or filesystem.isfile(path):
            found.append(path)
        elif _leads_nowhere(filesystem, path):
            raise _broken_link(filesystem, path)
        elif not filesystem.isdir(path):
            raise UserError(f"{path}: neither a file nor a folder; move or remove it")
    return found


def _globbed(filesystem: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Files that a glob matches; folders on the way that exist are taken by their names, brackets and all."""
    parts, known = path.split("/"), 0
    while known < len(parts) - 1 and filesystem.exists("/".join(parts[: known + 1]) or "/"):
        known += 1
    pattern = "/".join([*map(glob.escape, parts[:known]), *parts[known:]])
    # fsspec does not follow links to folders of this machine.
    local = isinstance(filesystem, LocalFileSystem)
    names = glob.glob(pattern, recursive=True) if local else filesystem.glob(pattern)
    for name in names:
        if _leads_nowhere(filesystem, name):
            raise _broken_link(filesystem, name)
    return [name for name in names if filesystem.isfile(name)]


def _label(path: str) -> str | None:
    """The split that the names of a file and its folder tell.

    Raises:
        UserError: they tell different ones.
    """
    place = PurePosixPath(path)
    own, home = shard_split(place.name), folder_split(place.parent.name)
    if own and home and split_base(own) != split_base(home):
        raise UserError(f"{path}: named as a shard of {own}, in a folder named {home}; move or rename it")
    return own or home


def _of_split(data: str, files: Sequence[str], split: str | None) -> list[str]:
    """Those of ``files`` that belong to a split.

    Raises:
        UserError: none does, several splits where one is wanted, or a file of which it cannot be told.
    """
    labels = {file: _label(file) for file in files}
    named = sorted({label for label in labels.values() if label})
    if split is None:
        if len(named) > 1:
            raise UserError(f"{data}: shards of {' and '.join(named)}; name those of one, by a folder or a glob")
        return list(files)
    if not named:
        return list(files)
    of_it = [label for label in named if split_base(label) == split]
    label = split if split in of_it else of_it[0] if len(of_it) == 1 else None
    if label is None:
        raise UserError(f"{data}: no shards of {split}: names and folders say {' and '.join(named)}")
    for file, other in labels.items():
        if other is None or (other != label and folder_split(PurePosixPath(file).parent.name)):
            raise UserError(f"{file}: not a shard of {label} by its name, among others that are; move or rename it")
    return [file for file in files if labels[file] == label]


def _check_kind(url: str) -> None:
    """Of files that are of another kind, that is what a user must know first.

    Raises:
        UserError: the first record of a file is no scenario.
    """
    record = next(iter(read_records(url)), None)
    try:
        if isinstance(record, BrokenRecord):
            raise UserError(f"{url}: record 0: {record.reason}")
        if record is not None:
            parse_scenario(record)
    except RecordError as error:
        raise UserError(f"{url}: record 0: {error}") from error


def find_shards(data: str, split: str | None = None) -> list[Shard]:
    """List the TFRecord shards that ``data`` names, sorted by name. Links are followed.

    A path that exists is that path; anything else with ``*``, ``?`` or ``[`` is a glob. Names and folders tell
    splits apart. Where names tell of how many a shard is one, all must be there that ``data`` asks for: of a folder
    the whole, of a glob what it can match, or a single file. ``data.completeness.allow_partial`` allows less.

    Args:
        data: a TFRecord file, a glob of them, a folder of them, or a folder laid out as Waymo's bucket
            (``training/``, ``validation/``, ``testing/``, also under ``uncompressed/scenario/``); a local path or
            a URL that fsspec opens.
        split: which split of such a folder. Without it, the folder itself must hold the files, of one split.

    Raises:
        UserError: nothing there, an unknown protocol, no permission, a link that leads nowhere, another split,
            shards that are missing or there twice.
    """
    try:
        filesystem, path = _opened(data)
        _check_reachable(data, filesystem, path)
        looked = data
        wanted: Callable[[str], object] = bool
        if filesystem.isfile(path):
            files = [path]
            wanted = PurePosixPath(path).name.__eq__
        elif _MAGIC.search(path) and not filesystem.isdir(path) and not _leads_nowhere(filesystem, path):
            files = _globbed(filesystem, path)
            wanted = re.compile(fnmatch.translate(PurePosixPath(path).name)).fullmatch
        else:
            root = path.rstrip("/")
            tails = [f"{prefix}{split}" for prefix in _PREFIXES] if split else []
            candidates = [f"{root}/{tail}" for tail in tails] + [root]
            looked = f"{data} (looked in {', '.join([*(tail + '/' for tail in tails), './'])})"
            files = next(filter(None, (_record_files(filesystem, folder) for folder in candidates)), [])
        if not files:
            raise UserError(f"{looked}: no TFRecord files; expected names such as training.tfrecord-00000-of-01000")
        files = sorted(_of_split(data, files, split))
        names = [PurePosixPath(file).name for file in files]
        try:
            check_whole(data, names, "download them", lambda name: bool(wanted(name)))
        except UserError:
            _check_kind(filesystem.unstrip_protocol(files[0]))
            raise
        return [Shard(filesystem.unstrip_protocol(file), _fingerprint(filesystem, file)) for file in files]
    except (ValueError, ImportError) as error:
        raise UserError(f"{data}: cannot open this kind of URL: {error}") from error
    except OSError as error:
        raise UserError(f"{data}: {error.strerror or error}") from error


def check_apart(data: str) -> None:
    """Refuse data of which a file would be in two splits; what files hold is compared once it is read.

    Raises:
        UserError: a file in two splits, or as ``find_shards``.
    """
    owners: dict[str, str] = {}
    for split in SPLITS:
        for shard in find_shards(data, split):
            local = place(shard.url)
            file = shard.url if is_remote(local) else os.path.realpath(local)
            if file in owners:
                raise UserError(
                    f"{shard.url}: in {owners[file]} and in {split}; put splits into folders training, validation "
                    "and testing, or begin the names of files with that of their split"
                )
            owners[file] = split
