"""Features of a map from names and points, with the numbers that WOMD gives them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from data.assembly import Say, assemble_map
from data.scene import LinkKind, MapKind, RoadMap

Doubles = NDArray[np.float64]

# Ids of tracks are int32 in submissions.
_LARGEST_ID = 2**31 - 1


def numbered(names: Iterable[object]) -> dict[str, int]:
    """A number for each name: itself where it is a plain number, else one above all others, in order."""
    texts = list(dict.fromkeys(map(str, names)))
    result = {text: int(text) for text in texts if _is_number(text)}
    following = max(result.values(), default=-1) + 1
    for text in texts:
        if text not in result:
            result[text] = following
            following += 1
    return result


def _is_number(text: str) -> bool:
    plain = text.isascii() and text.isdecimal() and len(text) <= 10
    return plain and str(int(text)) == text and int(text) <= _LARGEST_ID


class MapParts:
    """Collects features; ``build`` makes the map."""

    def __init__(self) -> None:
        self._points: list[Doubles] = []
        self._ids: list[int] = []
        self._kinds: list[int] = []
        self._subtypes: list[int] = []
        self._limits: list[float] = []
        self._interpolating: list[bool] = []
        self._links: list[tuple[int, int, int]] = []

    def add(
        self,
        number: int,
        kind: MapKind,
        points: Doubles,
        subtype: int = 0,
        limit: float = 0.0,
        interpolating: bool = False,
        links: Sequence[tuple[LinkKind, int]] = (),
    ) -> None:
        """Add a feature.

        Args:
            number: its id. points: [N, 3] metres. subtype: of its kind, as in map.proto. limit: of speed, mph.
            links: kinds and ids of other features.
        """
        self._links.extend((len(self._ids), int(relation), target) for relation, target in links)
        self._points.append(points)
        self._ids.append(number)
        self._kinds.append(int(kind))
        self._subtypes.append(subtype)
        self._limits.append(limit)
        self._interpolating.append(interpolating)

    def build(self, say: Say) -> RoadMap:
        """The map. Raises ``RecordError`` as ``assemble_map``."""
        with np.errstate(over="ignore", invalid="ignore"):
            point = np.concatenate([np.zeros((0, 3)), *self._points]).astype(np.float32)
        return assemble_map(
            point=point,
            owner=np.repeat(np.arange(len(self._points)), [len(points) for points in self._points]),
            ids=self._ids,
            kinds=self._kinds,
            subtypes=self._subtypes,
            limits=self._limits,
            interpolating=self._interpolating,
            links=self._links,
            say=say,
        )
