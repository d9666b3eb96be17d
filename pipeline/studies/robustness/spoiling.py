"""Inputs as imperfect sensors and maps give them.

Tracks have noise on poses, velocities and sizes, and steps that are missing or late; maps lack features, and
signals are in another state.

Every function takes a single scene, a level in natural units and a generator, and returns the scene as an agent
sees it. Steps after the current one stay as recorded, since no agent sees them. Agents that are valid at the
current step stay valid: which agents are simulated is not the sensors' to decide. The AV knows itself and is left
alone. One number is drawn for every place whatever the level, so that a higher level is more of the same error.

Shape legend: A agents, F features, P points, L links, S signals, H = 11 steps of history.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from data.geometry import wrap_angle
from data.nearby import keep_features
from data.scene import CURRENT_INDEX, STEP_SECONDS, Agents, LightState, Scene

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
