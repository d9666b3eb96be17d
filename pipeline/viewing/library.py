"""All scenarios and rollouts that a viewer was given, found in the background while it already serves."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from data.errors import UserError
from data.scene import Scene
from pipeline.viewing.shelves import Outline, Place, RolloutShelf, Shelf
from submission.protos import Rollouts

_MOST_DEFECTS = 100


@dataclass(frozen=True)
class Filter:
    """What is wanted; empty wants everything.

    Attributes:
        text: part of the id. least_agents: to be simulated.
        kinds: that must be there: ``vehicle``, ``pedestrian``, ``cyclist``.
        lights: whether there must be (True) or must not be (False) signals.
        rollouts: only scenarios that have some.
        least_score, most_score: realism, where scores are known.
        sort: ``file``, ``id``, ``agents`` or ``score`` (lowest first).
    """

    text: str = ""
    least_agents: int = 0
    kinds: Sequence[str] = ()
    lights: bool | None = None
    rollouts: bool = False
    least_score: float | None = None
    most_score: float | None = None
    sort: str = "file"


@dataclass(frozen=True)
class Page:
    """Part of what a filter lets through.

    Attributes:
        rows: of the list. matching: how many there are in all.
        found: scenarios known by now. complete: whether that is all.
        defects: what could not be read.
    """

    rows: list[dict[str, Any]]
    matching: int
    found: int
    complete: bool
    defects: list[str]


class Catalogue:
    """Scenarios by id, with their rollouts by name of the shelf.

    Args:
        shelf: of scenarios. rollouts: shelves with different names. scores: realism by scenario id.
    """

    def __init__(
        self, shelf: Shelf, rollouts: Sequence[RolloutShelf] = (), scores: Mapping[str, float] | None = None
    ) -> None:
        self._shelf, self._rollouts, self._scores = shelf, {one.name: one for one in rollouts}, dict(scores or {})
        # What is known by now, under the lock.
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._outlines: dict[str, Outline] = {}
        self._keys: dict[str, tuple[str, int]] = {}
        self._rollout_places: dict[str, dict[str, Place]] = {}
        self._defects: list[str] = []
        self._complete = False

    def start(self) -> threading.Thread:
        """Find everything, in a thread that ends with ``stop`` or the process."""
        thread = threading.Thread(target=self.find, name="catalogue", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        self._stop.set()

    def find(self) -> None:
        """Find everything, now."""
        for found in self._shelf.find():
            if self._stop.is_set():
                return
            if found.outline is None:
                self._add_defect(found.defect or "unreadable")
                continue
            name = found.outline.scenario_id
            with self._lock:
                twice = name in self._keys
                if not twice:
                    self._outlines[name], self._keys[name] = found.outline, found.key
            if twice:
                self._add_defect(f"scenario {name} occurs more than once; the first one is shown")
        for shelf in self._rollouts.values():
            self._find_rollouts(shelf)
        with self._lock:
            self._complete = True

    def _find_rollouts(self, shelf: RolloutShelf) -> None:
        strangers = 0
        try:
            for name, place in shelf.find():
                if self._stop.is_set():
                    return
                with self._lock:
                    known = name in self._keys
                    if known:
                        self._rollout_places.setdefault(name, {})[shelf.name] = place
                strangers += not known
        except UserError as error:
            self._add_defect(str(error))
        except OSError as error:
            self._add_defect(f"{error.filename or shelf.name}: {error.strerror or error}")
        if strangers:
            self._add_defect(f"{shelf.name}: {strangers} scenarios that are not among those given")

    def _add_defect(self, text: str) -> None:
        with self._lock:
            if len(self._defects) < _MOST_DEFECTS:
                self._defects.append(text)

    def page(self, wanted: Filter, first: int, count: int) -> Page:
        """Rows ``first`` to ``first + count`` of what the filter lets through."""
        with self._lock:
            names = [name for name in self._outlines if self._matches(name, wanted)]
            ordered = self._sorted(names, wanted.sort)
            rows = [self._row(name) for name in ordered[first : first + count]]
            return Page(rows, len(names), len(self._keys), self._complete, list(self._defects))

    def _matches(self, name: str, wanted: Filter) -> bool:
        outline, score = self._outlines[name], self._scores.get(name)
        counts = {"vehicle": outline.vehicles, "pedestrian": outline.pedestrians, "cyclist": outline.cyclists}
        return (
            wanted.text in name
            and outline.agents >= wanted.least_agents
            and all(counts.get(kind, 0) for kind in wanted.kinds)
            and (wanted.lights is None or wanted.lights == bool(outline.lights))
            and (not wanted.rollouts or name in self._rollout_places)
            and (wanted.least_score is None or (score is not None and score >= wanted.least_score))
            and (wanted.most_score is None or (score is not None and score <= wanted.most_score))
        )

    def _sorted(self, names: list[str], order: str) -> list[str]:
        if order == "id":
            return sorted(names)
        if order == "agents":
            return sorted(names, key=lambda name: -self._outlines[name].agents)
        if order == "score":
            return sorted(names, key=lambda name: self._scores.get(name, 2.0))
        return names

    def _row(self, name: str) -> dict[str, Any]:
        outline = self._outlines[name]
        return {
            "id": name,
            "agents": outline.agents,
            "vehicles": outline.vehicles,
            "pedestrians": outline.pedestrians,
            "cyclists": outline.cyclists,
            "lights": outline.lights,
            "future": outline.steps > 11,
            "rollouts": list(self._rollout_places.get(name, {})),
            "score": self._scores.get(name),
        }

    def scene(self, scenario_id: str) -> Scene:
        """A scenario.

        Raises:
            KeyError: not known (yet). UserError: it cannot be read.
        """
        with self._lock:
            key = self._keys[scenario_id]
        return self._shelf.scene(key)

    def rollouts(self, scenario_id: str) -> dict[str, Rollouts]:
        """Its rollouts by name of the shelf.

        Raises:
            UserError: they cannot be read.
        """
        with self._lock:
            places = dict(self._rollout_places.get(scenario_id, {}))
        return {name: self._rollouts[name].read(place) for name, place in places.items()}
