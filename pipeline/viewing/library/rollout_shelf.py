"""Where rollouts lie, in files of messages or inside a submission archive, and reading one of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from data.errors import UserError
from submission.archive import locate_rollouts
from submission.members import open_members, read_at
from submission.protos import Rollouts, from_proto, parse_rollouts, rollout_files

__all__ = ["RolloutShelf"]


@dataclass(frozen=True)
class _Place:
    file: Path
    offset: int
    length: int


class RolloutShelf:
    """Rollouts at a path or URL: a file, folder or glob of messages, or an archive.

    Args:
        name: what the viewer calls them. path: where they are.

    Raises:
        UserError: nothing there.
    """

    def __init__(self, name: str, path: str) -> None:
        self.name = name
        self._files = rollout_files(path)

    def find(self) -> Iterator[tuple[str, Any]]:
        """Scenario ids and keys, one by one.

        Raises:
            UserError: a damaged file; what was found before it can be read.
        """
        for file in self._files:
            for member in open_members(file):
                for offset, payload in locate_rollouts(member.handle, member.where, member.size):
                    message = parse_rollouts(payload, member.where)
                    yield message.scenario_id, _Place(file, member.offset + offset, len(payload))

    def read(self, key: Any) -> Rollouts:
        """The rollouts of a key.

        Raises:
            UserError: damaged or gone, or not all joint scenes have the same objects.
        """
        spot = cast(_Place, key)
        try:
            payload = read_at(spot.file, spot.offset, spot.length)
        except OSError as error:
            raise UserError(f"{spot.file}: {error.strerror or error}") from error
        return from_proto(parse_rollouts(payload, str(spot.file)), str(spot.file))
