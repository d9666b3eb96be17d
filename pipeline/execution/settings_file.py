"""What a folder of results was made from, so that results of two settings are never mixed in it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import read_json, write_json

__all__ = ["keep_settings"]


def keep_settings(path: Path, settings: Mapping[str, Any], what: str) -> None:
    """Remember the settings of the folder that holds ``path``, or compare with those that it remembers.

    Args:
        path: the file. settings: plain values. what: the folder holds, for messages.

    Raises:
        UserError: the folder was made from others.
    """
    if not path.is_file():
        write_json(path, settings)
        return
    try:
        found = read_json(path)
    except ValueError as error:
        raise UserError(
            f"{path}: not JSON ({error}): run again with --fresh, which keeps what is there in replaced/"
        ) from error
    if found != settings:
        names = sorted(name for name in settings.keys() | found.keys() if found.get(name) != settings.get(name))
        raise UserError(
            f"{path.parent}: holds {what} with another {', '.join(names)}: start over with --fresh, "
            "which keeps it in replaced/, or give another folder"
        )
