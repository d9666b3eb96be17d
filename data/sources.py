"""Listing the files of scenarios of a folder laid out as Waymo's bucket, a glob, a file or a URL."""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import logging
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data.completeness import SPLITS, check_whole, folder_split, shard_split, some, split_base
from data.errors import UserError
from data.files import checksum
from data.formats.catalogue import FORMATS, candidates, format_of
from data.formats.reader import Format
from data.places import is_remote, open_path
from data.tfrecord import HEAD, BrokenRecord, read_records
from data.womd import RecordError, parse_scenario

# Waymo's bucket has the splits in the last of these folders; a partial copy may start at any level.
_PREFIXES = ("", "scenario/", "uncompressed/scenario/")
_MAGIC = re.compile(r"[*?\[]")
_SUFFIXES = (".tfrecord", ".tfrecords")
# Files of a folder whose first bytes are read; a spoilt one may be among them.
_LOOKED_AT = 8


@dataclass(frozen=True)
class Shard:
    """One file: its URL for fsspec, what identifies it without reading it (``_fingerprint``), and its format."""

    url: str
    fingerprint: str
    format: str = "womd"

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


def shard_content(shard: Shard) -> str:
    """Name, size and checksum of a file; of a URL name, size, and the version that its storage reports."""
    path = open_path(shard.url)
    return shard.fingerprint if is_remote(path) else f"{shard.fingerprint}:{checksum(path)}"


def _fingerprint(filesystem: fsspec.AbstractFileSystem, path: str) -> str:
    """Name and size of a file, and of a remote one the version that its file system reports, a checksum first.

    Local files have no version here, because their times change when they are touched or copied.
    """
    info = filesystem.info(path)
    name = f"{path.rsplit('/', 1)[-1]}:{info.get('size')}"
    if isinstance(filesystem, LocalFileSystem):
        return name
    versions = (info.get(key) for key in ("md5Hash", "etag", "ETag", "mtime", "updated", "created"))
    return f"{name}:{next((value for value in versions if value is not None), '')}"


def _opened(data: str) -> tuple[fsspec.AbstractFileSystem, str]:
    local = open_path(data)
    if not is_remote(local):
        return LocalFileSystem(), str(local)
    filesystem, path = fsspec.core.url_to_fs(data)
    return filesystem, path


def _check_reachable(data: str, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    """Storage that cannot be reached or read looks empty to fsspec.

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


def _is_broken_link(filesystem: fsspec.AbstractFileSystem, path: str) -> bool:
    """Whether a path is a link to a missing file, or to itself."""
    return isinstance(filesystem, LocalFileSystem) and os.path.islink(path) and not os.path.exists(path)


def _broken_link(filesystem: fsspec.AbstractFileSystem, path: str) -> UserError:
    target = f" to {os.readlink(path)}" if isinstance(filesystem, LocalFileSystem) else ""
    return UserError(f"{path}: a broken link{target}; repair or remove it")


def _head(filesystem: fsspec.AbstractFileSystem, path: str) -> bytes:
    with filesystem.open(path, "rb") as file:
        head: bytes = file.read(HEAD)
    return head


def _found_files(
    filesystem: fsspec.AbstractFileSystem, folders: Sequence[str], allowed: Sequence[Format]
) -> tuple[Format, list[str]] | None:
    """The files of the first folder that has any, of one format; TFRecords, if there are several.

    Raises:
        UserError: files of several other formats.
    """
    for folder in folders:
        found: list[tuple[Format, list[str]]] = []
        for item in allowed:
            files = _record_files(filesystem, folder, item)
            # Names such as *.json say little, so one of the first files must look like one of the format.
            told = item.numbered or len(allowed) == 1
            if files and (told or any(item.heads(_head(filesystem, file)) for file in sorted(files)[:_LOOKED_AT])):
                found.append((item, files))
            if files and item.numbered:
                break
        if len(found) > 1:
            names = " and ".join(item.name for item, _ in found)
            raise UserError(f"{folder}: files of {names}; say which with --format, or keep each in its own folder")
        if found:
            return found[0]
    return None


def _record_files(filesystem: fsspec.AbstractFileSystem, folder: str, wanted: Format) -> list[str]:
    """Files of a format in a folder; links are followed, hidden files are skipped."""
    if not filesystem.isdir(folder):
        if _is_broken_link(filesystem, folder):
            raise _broken_link(filesystem, folder)
        return []
    files = []
    for info in filesystem.ls(folder, detail=True):
        path = info["name"]
        if wanted.nested and filesystem.isdir(path) and not path.rsplit("/", 1)[-1].startswith("."):
            files += _record_files(filesystem, path, replace(wanted, nested=False))
            continue
        if not wanted.names.fullmatch(path.rsplit("/", 1)[-1]):
            continue
        # The type of a link is neither file nor directory.
        if info["type"] == "file" or filesystem.isfile(path):
            files.append(path)
        elif _is_broken_link(filesystem, path):
            raise _broken_link(filesystem, path)
        elif not filesystem.isdir(path):
            raise UserError(f"{path}: neither a file nor a folder; move or remove it")
        elif wanted.numbered and path.endswith(_SUFFIXES):
            raise UserError(f"{path}: a folder named as a file; give its files themselves, or rename or remove it")
    return files


def _check_there(data: str, filesystem: fsspec.AbstractFileSystem, path: str) -> None:
    """Name a path that does not exist, or the broken link on the way to it.

    Raises:
        UserError: it is not there.
    """
    for place in [*reversed(PurePosixPath(path).parents), PurePosixPath(path)]:
        if _is_broken_link(filesystem, str(place)):
            raise _broken_link(filesystem, str(place))
    if not _MAGIC.search(path) and not filesystem.exists(path):
        raise UserError(f"{data}: no such file or folder")


def _with_files(filesystem: fsspec.AbstractFileSystem, folder: str, wanted: Format) -> list[str]:
    """Names of the folders in a folder that hold files of a format."""
    found = []
    for info in filesystem.ls(folder, detail=True) if filesystem.isdir(folder) else []:
        path = info["name"].rstrip("/")
        with contextlib.suppress(UserError, OSError):
            if _record_files(filesystem, path, wanted):
                found.append(path.rsplit("/", 1)[-1])
    return sorted(found)


def _globbed(filesystem: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Files that a glob matches; existing parent folders are taken literally, with brackets in their names."""
    parts, known = path.split("/"), 0
    while known < len(parts) - 1 and filesystem.exists("/".join(parts[: known + 1]) or "/"):
        known += 1
    pattern = "/".join([*map(glob.escape, parts[:known]), *parts[known:]])
    # fsspec does not follow local links to folders.
    local = isinstance(filesystem, LocalFileSystem)
    names = glob.glob(pattern, recursive=True) if local else filesystem.glob(pattern)
    for name in names:
        if _is_broken_link(filesystem, name):
            raise _broken_link(filesystem, name)
    return [name for name in names if filesystem.isfile(name)]


def _label(path: str) -> str | None:
    """The split in the names of a file and its folder.

    Raises:
        UserError: they name different ones.
    """
    file = PurePosixPath(path)
    own, home = shard_split(file.name), folder_split(file.parent.name)
    if own and home and split_base(own) != split_base(home):
        raise UserError(f"{path}: named as a shard of {own}, in a folder named {home}; move or rename it")
    return own or home


def _of_split(data: str, files: Sequence[str], split: str | None) -> list[str]:
    """The files that belong to a split.

    Raises:
        UserError: there are none, there are several splits but one is needed, or the split of a file is unclear.
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
    """Report a wrong kind of file before anything else.

    Raises:
        UserError: the first record of a file is not a scenario.
    """
    record = next(iter(read_records(url)), None)
    try:
        if isinstance(record, BrokenRecord):
            raise UserError(f"{url}: record 0: {record.reason}")
        if record is not None:
            parse_scenario(record)
    except RecordError as error:
        raise UserError(f"{url}: record 0: {error}") from error


def find_shards(data: str, split: str | None = None, format: str = "womd") -> list[Shard]:
    """List the files of scenarios of ``data``, sorted by name. Links are followed.

    An existing path is taken literally; otherwise a path with ``*``, ``?`` or ``[`` is a glob. The split is read
    from names and folders. If names contain a total, all shards that ``data`` covers must exist: the whole set for
    a folder, what the pattern can match for a glob. ``data.completeness.allow_partial`` lifts this.

    Args:
        data: a TFRecord file, a glob of them, a folder of them, or a folder laid out as Waymo's bucket
            (``training/``, ``validation/``, ``testing/``, also under ``uncompressed/scenario/``); a local path or
            a URL that fsspec opens.
        split: of such a folder. Without it, the files must be in the folder itself and of one split.
        format: one of ``data.formats.catalogue``, or auto: by names, where these tell nothing by first bytes.

    Raises:
        UserError: no files, files of several formats, an unknown protocol, no permission, a broken link, another
            split, shards that are missing or duplicate.
    """
    allowed = candidates(format)
    try:
        filesystem, path = _opened(data)
        _check_reachable(data, filesystem, path)
        searched = data
        wanted: Callable[[str], object] = bool
        kind: Format | None = None
        hint = ""
        if filesystem.isfile(path):
            files = [path]
            wanted = PurePosixPath(path).name.__eq__
        elif _MAGIC.search(path) and not filesystem.isdir(path) and not _is_broken_link(filesystem, path):
            files = _globbed(filesystem, path)
            wanted = re.compile(fnmatch.translate(PurePosixPath(path).name)).fullmatch
        else:
            root = path.rstrip("/")
            tails = [f"{prefix}{split}" for prefix in _PREFIXES] if split else []
            folders = [f"{root}/{tail}" for tail in tails] + [root]
            searched = f"{data} (looked in {', '.join([*(tail + '/' for tail in tails), './'])})"
            kind, files = _found_files(filesystem, folders, allowed) or (None, [])
            if not files:
                others = [item for item in FORMATS.values() if item not in allowed]
                other = _found_files(filesystem, folders, others)
                hint = (
                    f"; tokenize reads the {len(other[1])} {other[0].title} files that are there" if other else ""
                )
        if not files:
            _check_there(data, filesystem, path)
            if inner := _with_files(filesystem, path, allowed[0]):
                hint = f"; there are some in its folders {some(inner)}: give one of them"
            expected = f"no {allowed[0].title} files; expected names such as {allowed[0].example}"
            raise UserError(f"{searched}: {expected}{hint}")
        files = sorted(_of_split(data, files, split))
        names = [PurePosixPath(file).name for file in files]
        kind = kind or format_of(names[0], lambda: _head(filesystem, files[0]), allowed)
        if not kind.numbered:
            return [
                Shard(filesystem.unstrip_protocol(file), _fingerprint(filesystem, file), kind.name)
                for file in files
            ]
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


def check_apart(data: str, format: str = "womd") -> None:
    """Refuse data with a file in two splits. The content of files is compared later, when they are read.

    Raises:
        UserError: a file in two splits, or as ``find_shards``.
    """
    owners: dict[str, str] = {}
    for split in SPLITS:
        for shard in find_shards(data, split, format):
            local = open_path(shard.url)
            file = shard.url if is_remote(local) else os.path.realpath(local)
            if file in owners:
                raise UserError(
                    f"{shard.url}: in {owners[file]} and in {split}; put splits into folders training, validation "
                    "and testing, or begin the names of files with that of their split"
                )
            owners[file] = split
