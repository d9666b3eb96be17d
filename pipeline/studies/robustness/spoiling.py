"""Inputs as imperfect sensors and maps give them; their kinds, units, and the levels at which they are tried.

Tracks have noise on poses, velocities and sizes, and steps that are missing or late; maps lack features, and
signals are in another state.

The function of every kind takes a single scene, a level in natural units and a generator, and returns the scene as
an agent sees it. Steps after the current one stay as recorded, since no agent sees them. Agents that are valid at
the current step stay valid: which agents are simulated is not the sensors' to decide. The AV knows itself and is
left alone. One number is drawn for every place whatever the level: a higher level is more of the same error.

Shape legend: A agents, F features, P points, L links, S signals, H = 11 steps of history.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from data.errors import UserError, expected
from data.geometry import wrap_angle
from data.nearby import keep_features
from data.scene import CURRENT_INDEX, STEP_SECONDS, Agents, LightState, Scene, generator_for

_HISTORY = CURRENT_INDEX + 1


def _with_agents(scene: Scene, **changes: Tensor) -> Scene:
    return dataclasses.replace(scene, agents=dataclasses.replace(scene.agents, **changes))


def _seen(agents: Agents) -> Tensor:
    """[A, H] bool: states that come from sensors."""
    return agents.valid[:, :_HISTORY] & ~agents.is_sdc.unsqueeze(-1)


def _drawn(agents: Agents, generator: torch.Generator, *dims: int, constant: bool) -> Tensor:
    """[A, H, *dims] standard normal numbers, new at every step, or constant for each track."""
    count = len(agents.id)
    numbers = torch.randn(count, 1 if constant else _HISTORY, *dims, generator=generator)
    return numbers.expand(count, _HISTORY, *dims)


def _move(scene: Scene, metres: float, generator: torch.Generator, constant: bool) -> Scene:
    agents = scene.agents
    shift = metres * _drawn(agents, generator, 2, constant=constant)
    position = agents.position.clone()
    position[:, :_HISTORY, :2] += torch.where(_seen(agents).unsqueeze(-1), shift, 0.0)
    return _with_agents(scene, position=position)


def position_noise(scene: Scene, metres: float, generator: torch.Generator) -> Scene:
    """x and y of every state off by independent normal errors of this standard deviation each."""
    return _move(scene, metres, generator, constant=False)


def position_bias(scene: Scene, metres: float, generator: torch.Generator) -> Scene:
    """x and y of a whole track off by one normal error of this standard deviation each."""
    return _move(scene, metres, generator, constant=True)


def _turn(scene: Scene, degrees: float, generator: torch.Generator, constant: bool) -> Scene:
    agents = scene.agents
    angle = math.radians(degrees) * _drawn(agents, generator, constant=constant)
    heading = agents.heading.clone()
    before = heading[:, :_HISTORY]
    heading[:, :_HISTORY] = torch.where(_seen(agents), wrap_angle(before + angle), before)
    return _with_agents(scene, heading=heading)


def heading_noise(scene: Scene, degrees: float, generator: torch.Generator) -> Scene:
    """Heading of every state off by an independent normal error; wrapped to [-pi, pi)."""
    return _turn(scene, degrees, generator, constant=False)


def heading_bias(scene: Scene, degrees: float, generator: torch.Generator) -> Scene:
    """Headings of a whole track off by one normal error; wrapped to [-pi, pi)."""
    return _turn(scene, degrees, generator, constant=True)


def velocity_noise(scene: Scene, speed: float, generator: torch.Generator) -> Scene:
    """Both components (m/s) of every velocity off by independent normal errors of this standard deviation."""
    agents = scene.agents
    error = speed * _drawn(agents, generator, 2, constant=False)
    velocity = agents.velocity.clone()
    velocity[:, :_HISTORY] += torch.where(_seen(agents).unsqueeze(-1), error, 0.0)
    return _with_agents(scene, velocity=velocity)


def size_noise(scene: Scene, sigma: float, generator: torch.Generator) -> Scene:
    """Length, width and height of a whole track times exp(e), e normal of this standard deviation, one for each.

    A box keeps a positive size, and its logarithm is off by ``sigma``: 0.1 is an error of about a tenth.
    """
    agents = scene.agents
    factor = (sigma * _drawn(agents, generator, 3, constant=True)).exp()
    size = agents.size.clone()
    size[:, :_HISTORY] *= torch.where(_seen(agents).unsqueeze(-1), factor, 1.0)
    return _with_agents(scene, size=size)


def _without(scene: Scene, lost: Tensor) -> Scene:
    """The scene without the states of ``lost`` [A, H]; nothing of them is left behind."""
    agents = scene.agents

    def cleared(tensor: Tensor) -> Tensor:
        result = tensor.clone()
        result[:, :_HISTORY][lost] = 0
        return result

    names = ("position", "heading", "velocity", "size", "valid")
    return _with_agents(scene, **{name: cleared(getattr(agents, name)) for name in names})


def drop_detections(scene: Scene, fraction: float, generator: torch.Generator) -> Scene:
    """Every state before the current step is missing with this probability, independently."""
    agents = scene.agents
    lost = (torch.rand(len(agents.id), _HISTORY, generator=generator) < fraction) & _seen(agents)
    lost[:, CURRENT_INDEX] = False
    return _without(scene, lost)


def shorten_history(scene: Scene, seconds: float, generator: torch.Generator) -> Scene:
    """Late detection: the first so many seconds of the one-second history are missing for everybody.

    With 1 s nothing but the current state is left.
    """
    lost = _seen(scene.agents).clone()
    lost[:, min(_steps(seconds), CURRENT_INDEX) :] = False
    return _without(scene, lost)


def delay(scene: Scene, seconds: float, generator: torch.Generator) -> Scene:
    """Latency: nothing newer than this is known, and tracks are carried on from there to the current step.

    What is carried on keeps velocity, heading, height and size. A track that was first seen within this time stays
    as it was recorded, since nothing else is known of it, and the steps at which a track is valid stay.
    """
    agents = scene.agents
    newest = max(0, CURRENT_INDEX - _steps(seconds))
    step = torch.arange(_HISTORY)
    known = agents.valid[:, : newest + 1]
    last = torch.where(known, step[: newest + 1], -1).amax(-1)  # [A]
    stale = _seen(agents) & (step > newest) & (last >= 0).unsqueeze(-1)  # [A, H]
    row, at = torch.arange(len(last)), last.clamp(min=0)
    elapsed = STEP_SECONDS * (step - at.unsqueeze(-1))  # [A, H]
    position = agents.position[row, at].unsqueeze(1).repeat(1, _HISTORY, 1)
    position[..., :2] += elapsed.unsqueeze(-1) * agents.velocity[row, at].unsqueeze(1)

    def replaced(tensor: Tensor, carried: Tensor) -> Tensor:
        result = tensor.clone()
        result[:, :_HISTORY][stale] = carried[stale]
        return result

    def kept(tensor: Tensor) -> Tensor:
        value = tensor[row, at].unsqueeze(1)
        return value.expand(-1, _HISTORY, *value.shape[2:])

    return _with_agents(
        scene,
        position=replaced(agents.position, position),
        heading=replaced(agents.heading, kept(agents.heading)),
        velocity=replaced(agents.velocity, kept(agents.velocity)),
        size=replaced(agents.size, kept(agents.size)),
    )


def _steps(seconds: float) -> int:
    return round(seconds / STEP_SECONDS)


# What each state is taken for: who should stop goes, who may go stops. Colours are confused, arrows are not.
SWAPPED = {
    LightState.UNKNOWN: LightState.STOP,
    LightState.ARROW_STOP: LightState.ARROW_GO,
    LightState.ARROW_CAUTION: LightState.ARROW_GO,
    LightState.ARROW_GO: LightState.ARROW_STOP,
    LightState.STOP: LightState.GO,
    LightState.CAUTION: LightState.GO,
    LightState.GO: LightState.STOP,
    LightState.FLASHING_STOP: LightState.FLASHING_CAUTION,
    LightState.FLASHING_CAUTION: LightState.FLASHING_STOP,
}


def _some(count: int, fraction: float, generator: torch.Generator) -> Tensor:
    """[count] bool: this fraction of them, to the nearest whole number, at random."""
    selected = torch.zeros(count, dtype=torch.bool)
    selected[torch.randperm(count, generator=generator)[: int(fraction * count + 0.5)]] = True
    return selected


def drop_map(scene: Scene, fraction: float, generator: torch.Generator) -> Scene:
    """This fraction of the map's features (lanes, lines, edges and all others alike) is missing, but never all.

    A signal stays, though its lane may be gone.
    """
    count = len(scene.map.kind)
    lost = _some(count, fraction, generator)
    if bool(lost.all()):
        lost[:1] = False
    return dataclasses.replace(scene, map=keep_features(scene.map, ~lost))


def _show(scene: Scene, fraction: float, generator: torch.Generator, table: Tensor) -> Scene:
    """The scene with this fraction of its signals in the states that ``table`` gives for theirs."""
    lights = scene.lights
    selected = _some(len(lights.lane_id), fraction, generator).unsqueeze(-1)
    state = lights.state.clone()
    shown, observed = state[:, :_HISTORY], lights.observed[:, :_HISTORY]
    state[:, :_HISTORY] = torch.where(selected & observed, table[shown], shown)
    return dataclasses.replace(scene, lights=dataclasses.replace(lights, state=state))


def swap_lights(scene: Scene, fraction: float, generator: torch.Generator) -> Scene:
    """This fraction of the signals shows the wrong state of ``SWAPPED`` whenever it is observed up to now."""
    table = torch.tensor([int(SWAPPED[state]) for state in LightState])
    return _show(scene, fraction, generator, table)


def hide_lights(scene: Scene, fraction: float, generator: torch.Generator) -> Scene:
    """Of this fraction of the signals it is seen that they are there, but not what they show."""
    return _show(scene, fraction, generator, torch.full((len(LightState),), int(LightState.UNKNOWN)))


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
    "position_noise": Kind(position_noise, "m", 100.0, "position noise"),
    "position_bias": Kind(position_bias, "m", 100.0, "position bias"),
    "heading_noise": Kind(heading_noise, "deg", 180.0, "heading noise"),
    "heading_bias": Kind(heading_bias, "deg", 180.0, "heading bias"),
    "velocity_noise": Kind(velocity_noise, "m/s", 100.0, "velocity noise"),
    "size_noise": Kind(size_noise, "share", 1.0, "size noise"),
    "dropped_detections": Kind(drop_detections, "share", 1.0, "dropped detections"),
    "late_detection": Kind(shorten_history, "s", 1.0, "late detection"),
    "latency": Kind(delay, "s", 1.0, "latency"),
    "dropped_map": Kind(drop_map, "share", 1.0, "dropped map"),
    "wrong_lights": Kind(swap_lights, "share", 1.0, "wrong lights"),
    "unknown_lights": Kind(hide_lights, "share", 1.0, "unknown lights"),
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
