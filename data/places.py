"""Paths that may be URLs of any storage that fsspec opens, through universal_pathlib, and safe writing to URLs."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any, cast

from data.errors import UserError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_LOCAL = frozenset({"file", "local"})
# Here an upload becomes visible when it is complete, and a rename would be a copy.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oci", "oss", "memory"})


def _protocols(path: Any) -> frozenset[str]:
    protocol = path.fs.protocol
    return frozenset((protocol,) if isinstance(protocol, str) else protocol)


def open_path(name: str | Path) -> Path:
    """An absolute local path, or a ``UPath`` (typed as ``Path``, whose interface it has) for a URL.

    ``~`` and ``~user`` at the beginning are expanded.

    Raises:
        UserError: a kind of URL that cannot be opened.
    """
    if not isinstance(name, str) and is_remote(name):
        return name
    local = os.path.expanduser(name)
    if not _URL.match(local):
        return Path(local).absolute()
    # Imported here, since it need not be installed where there are no URLs.
    from upath import UPath

    try:
        with warnings.catch_warnings():
            # universal_pathlib warns of protocols that it has no class for.
            warnings.simplefilter("ignore", UserWarning)
            path = UPath(name)
        on_disk = bool(_protocols(path) & _LOCAL)
    except (ValueError, ImportError) as error:
        raise UserError(f"{name}: cannot open this kind of URL: {error}") from error
    return Path(path.path) if on_disk else cast(Path, path)


def is_remote(path: Path) -> bool:
    """Whether a path of ``open_path`` is a URL."""
    return not isinstance(path, Path)


def publish(source: Path, target: Path) -> None:
    """Copy a finished local file to a URL; it becomes visible there when it is complete."""
    remote: Any = target
    storage, name = remote.fs, remote.path
    folder, _, last = name.rpartition("/")
    if folder:
        storage.makedirs(folder, exist_ok=True)
    if _protocols(remote) & _OBJECT_STORES:
        storage.put_file(str(source), name)
        return
    temporary = f"{folder}/.{last}.part"
    storage.put_file(str(source), temporary)
    storage.mv(temporary, name)
