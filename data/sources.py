"""Where records come from: a folder laid out as Waymo's bucket, a glob, a file or a URL, to a list of shards."""

from __future__ import annotations

import re
from dataclasses import dataclass

import fsspec
from fsspec.implementations.local import LocalFileSystem

from data.errors import UserError

__all__ = ["SPLITS", "Shard", "find_shards"]

SPLITS = ("training", "validation", "testing")
# Waymo's bucket keeps splits below this folder; a copy of part of it may start at any level.
_PREFIXES = ("", "scenario/", "uncompressed/scenario/")
_MAGIC = re.compile(r"[*?\[]")
_RECORD_FILE = re.compile(r".*tfrecord[^/]*")


@dataclass(frozen=True)
class Shard:
    """One TFRecord file: its URL for fsspec, and what tells it apart without reading it (``data.checksums``)."""

    url: str
    fingerprint: str


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


def _record_files(filesystem: fsspec.AbstractFileSystem, folder: str) -> list[str]:
    if not filesystem.isdir(folder):
        return []
    files = [info["name"] for info in filesystem.ls(folder, detail=True) if info["type"] == "file"]
    return [file for file in files if _RECORD_FILE.fullmatch(file.rsplit("/", 1)[-1])]


def find_shards(data: str, split: str | None = None) -> list[Shard]:
    """List the TFRecord shards that ``data`` names, sorted by name.

    Args:
        data: a TFRecord file, a glob of them, a folder of them, or a folder laid out as Waymo's bucket
            (``training/``, ``validation/``, ``testing/``, also under ``uncompressed/scenario/``); a local path or
            a URL that fsspec opens.
        split: which split of such a folder. Without it, the folder itself must hold the files.

    Raises:
        UserError: nothing there, an unknown protocol, or no permission.
    """
    try:
        filesystem, path = fsspec.core.url_to_fs(data)
        if _MAGIC.search(path):
            files = [file for file in filesystem.glob(path) if filesystem.isfile(file)]
            looked = data
        elif filesystem.isfile(path):
            files, looked = [path], data
        else:
            root = path.rstrip("/")
            tails = [f"{prefix}{split}" for prefix in _PREFIXES] if split else []
            candidates = [f"{root}/{tail}" for tail in tails] + [root]
            looked = f"{data} (looked in {', '.join([*(tail + '/' for tail in tails), './'])})"
            files = next(filter(None, (_record_files(filesystem, folder) for folder in candidates)), [])
        if not files:
            raise UserError(f"{looked}: no TFRecord files; expected names such as training.tfrecord-00000-of-01000")
        return [Shard(filesystem.unstrip_protocol(file), _fingerprint(filesystem, file)) for file in sorted(files)]
    except (ValueError, ImportError) as error:
        raise UserError(f"{data}: cannot open this kind of URL: {error}") from error
    except OSError as error:
        raise UserError(f"{data}: {error.strerror or error}") from error
