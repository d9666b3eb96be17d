"""Where files are: a path of this machine, or a URL of any storage that fsspec opens, with the same methods.

universal_pathlib gives a URL the interface of ``pathlib``; what it lacks for safe writing is here.
"""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any, cast

from data.errors import UserError

__all__ = ["is_remote", "place", "publish"]

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(://|::)")
_LOCAL = frozenset({"file", "local"})
# On these an upload appears when it is complete, and a rename is a copy.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "abfs", "az", "adl", "oci", "oss", "memory"})


def _protocols(path: Any) -> frozenset[str]:
    protocol = path.fs.protocol
    return frozenset((protocol,) if isinstance(protocol, str) else protocol)


def place(name: str | Path) -> Path:
    """An absolute path of this machine, or that of a URL. Both are called ``Path``, since both act like one.

    ``~`` and ``~user`` at the beginning are home folders.

    Raises:
        UserError: a kind of URL that cannot be opened.
    """
    if not isinstance(name, str) and is_remote(name):
        return name
    local = os.path.expanduser(name)
    if not _URL.match(local):
        return Path(local).absolute()
    # Where there are no URLs, as for the metric alone, it need not be installed.
    from upath import UPath

    try:
        with warnings.catch_warnings():
            # Of kinds that universal_pathlib does not know one by one, such as a user's own.
            warnings.simplefilter("ignore", UserWarning)
            found = UPath(name)
        on_disk = bool(_protocols(found) & _LOCAL)
    except (ValueError, ImportError) as error:
        raise UserError(f"{name}: cannot open this kind of URL: {error}") from error
    return Path(found.path) if on_disk else cast(Path, found)


def is_remote(path: Path) -> bool:
    """Whether a place is that of a URL."""
    return not isinstance(path, Path)


def publish(source: Path, target: Path) -> None:
    """Copy a finished local file to a URL, where it appears when it is complete."""
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
