"""Every way in which inputs are spoilt, its unit, and at which levels it is tried."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from data.errors import UserError, expected
from data.scene import Scene, generator_for
from pipeline.studies.robustness import spoiling

CLEAN = "clean"


@dataclass(frozen=True)
class Kind:
    """A way to spoil a scene.

    Attributes:
        spoil: (scene, level, generator) to what is seen. unit: of the level.
        limit: highest level that means anything. title: for people.
    """

    spoil: Callable[[Scene, float, torch.Generator], Scene]
    unit: str
    limit: float
    title: str


KINDS: dict[str, Kind] = {
    "position_noise": Kind(spoiling.position_noise, "m", 100.0, "position noise"),
    "position_bias": Kind(spoiling.position_bias, "m", 100.0, "position bias"),
    "heading_noise": Kind(spoiling.heading_noise, "deg", 180.0, "heading noise"),
    "heading_bias": Kind(spoiling.heading_bias, "deg", 180.0, "heading bias"),
    "velocity_noise": Kind(spoiling.velocity_noise, "m/s", 100.0, "velocity noise"),
    "size_noise": Kind(spoiling.size_noise, "share", 1.0, "size noise"),
    "dropped_detections": Kind(spoiling.drop_detections, "share", 1.0, "dropped detections"),
    "late_detection": Kind(spoiling.shorten_history, "s", 1.0, "late detection"),
    "latency": Kind(spoiling.delay, "s", 1.0, "latency"),
    "dropped_map": Kind(spoiling.drop_map, "share", 1.0, "dropped map"),
    "wrong_lights": Kind(spoiling.swap_lights, "share", 1.0, "wrong lights"),
    "unknown_lights": Kind(spoiling.hide_lights, "share", 1.0, "unknown lights"),
}


@dataclass(frozen=True)
class Condition:
    """One kind at one level; ``CLEAN`` at level 0 for inputs as they were recorded."""

    kind: str
    level: float


@dataclass(frozen=True)
class Levels:
    """Levels of each kind; none leaves it out. Level 0, the scene as recorded, always belongs to it.

    Args:
        position_noise: standard deviation of x and of y, anew at every step, m.
        position_bias: the same, constant for each track, m.
        heading_noise: standard deviation of the heading, anew at every step, degrees.
        heading_bias: the same, constant for each track, degrees.
        velocity_noise: standard deviation of each component, anew at every step, m/s.
        size_noise: standard deviation of the logarithm of length, width and height, constant for each track.
        dropped_detections: share of the states before the current one that are missing.
        late_detection: seconds of the history, of one, that are missing at its beginning.
        latency: age of the newest state, which is carried on at constant velocity, s.
        dropped_map: share of the map's features that are missing.
        wrong_lights: share of the signals that show stop for go and go for stop.
        unknown_lights: share of the signals whose state is not known.
    """

    position_noise: list[float] = field(default_factory=lambda: [0.05, 0.15, 0.5])
    position_bias: list[float] = field(default_factory=lambda: [0.1, 0.3, 1.0])
    heading_noise: list[float] = field(default_factory=lambda: [1.0, 3.0, 10.0])
    heading_bias: list[float] = field(default_factory=lambda: [1.0, 3.0, 10.0])
    velocity_noise: list[float] = field(default_factory=lambda: [0.2, 0.5, 1.5])
    size_noise: list[float] = field(default_factory=lambda: [0.05, 0.1, 0.3])
    dropped_detections: list[float] = field(default_factory=lambda: [0.25, 0.5, 0.9])
    late_detection: list[float] = field(default_factory=lambda: [0.5, 0.8, 1.0])
    latency: list[float] = field(default_factory=lambda: [0.1, 0.3, 0.6])
    dropped_map: list[float] = field(default_factory=lambda: [0.1, 0.3, 0.6])
    wrong_lights: list[float] = field(default_factory=lambda: [0.5, 1.0])
    unknown_lights: list[float] = field(default_factory=lambda: [0.5, 1.0])

    def __post_init__(self) -> None:
        for name, kind in KINDS.items():
            for level in getattr(self, name):
                if not (math.isfinite(level) and 0 < level <= kind.limit):
                    most = f"{kind.limit:g} ({kind.unit})"
                    raise UserError(f"--levels.{name} {level:g}: expected numbers above 0 and up to {most}")


def conditions(levels: Levels, kinds: list[str]) -> list[Condition]:
    """What is tried, the clean scene first, levels ascending.

    Args:
        levels: of every kind. kinds: names of those that are wanted, all where none is given.

    Raises:
        UserError: a name that is no kind.
    """
    for name in kinds:
        if name not in KINDS:
            raise UserError(f"--kinds {name}: {expected(name, KINDS, 'some')}")
    names = [item.name for item in dataclasses.fields(levels) if not kinds or item.name in kinds]
    found = [Condition(name, level) for name in names for level in sorted(set(getattr(levels, name)))]
    return [Condition(CLEAN, 0.0), *found]


def spoil(scene: Scene, condition: Condition, seed: int) -> Scene:
    """A single scene as it is seen under a condition: a function of (scene, condition, seed) alone.

    Agents, their ids and their order, and who of them is simulated, are those of ``scene``. Level 0 gives the scene
    itself.
    """
    if condition.kind == CLEAN or condition.level == 0:
        return scene
    # Named after the kind: its errors have nothing to do with the rollouts' own randomness, nor with other kinds'.
    generator = generator_for(seed, f"{condition.kind}/{scene.scenario_id}")
    return KINDS[condition.kind].spoil(scene, condition.level, generator)
