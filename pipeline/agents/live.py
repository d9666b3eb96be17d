"""Agents in a simulator of your own, with a map of any size and people who come and go.

    traffic = LiveTraffic(open_agent(Path("policy.ckpt")), road, seed=0)
    while True:
        [pose] = traffic.step([moment])  # the next traffic.steps steps of 0.1 s of those that it drives
        pose[~moment.driven] = ...       # of the others, such as the AV
        moment = moment.after(pose)      # or made anew, with others in it

A ``Drive`` (``agent.py``) is a fixed cast for 8 s in a scene of some hundred metres. Here drives are started again
every second, and when somebody comes or goes, from the last second of everybody and the map around them; agents far
from each other are in drives of their own. ``docs/embedding.md`` has a whole program.

Shape legend: W worlds, A agents, s steps of 0.1 s in a decision.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.assembly import assemble_agents
from data.errors import UserError
from data.nearby import feature_boxes, features_near, keep_features
from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, Lights, RoadMap, Scene, generator_for, until_now
from data.tokenizer import scene_origin
from data.wire import STATE_FIELDS
from pipeline.agents.agent import Agent, Drive

_HISTORY = CURRENT_INDEX + 1
_PLANE, _HEADING, _VELOCITY = slice(0, 2), 6, slice(7, 9)
# The map is kept so far around agents, metres, and as far as they get before it is cut again. The reference looks
# for its neighbours within 100 m, and these know a few of 20 m each.
_SIGHT = 200.0
# Agents farther apart along x or y than this may be in different drives, metres; each also has those around its own
# agents: the reference sees others within 60 m, the policy within 50 m.
_TILE, _AROUND = 400.0, 100.0


@dataclass(frozen=True)
class Moment:
    """Everybody who is there now, with the last second.

    Attributes:
        ids: [A] whole numbers, the same for the same agent. types: [A] of ``AgentType``.
        states: [A, 11, 9] 0.1 s apart, the last one now: x, y, z of the box centre, length, width, height (metres),
            heading (radians), velocity x and y (m/s), as ``data.wire.STATE_FIELDS``. Coordinates are rounded to
            float32: have the map within some 10 km of its origin.
        valid: [A, 11] bool, false before it came; true now. driven: [A] bool, those that the agent drives.
        lights: signals in these 11 steps, if there are any.
    """

    ids: NDArray[np.int64]
    types: NDArray[np.int64]
    states: NDArray[np.float64]
    valid: NDArray[np.bool_]
    driven: NDArray[np.bool_]
    lights: Lights | None = None

    def __post_init__(self) -> None:
        agents = len(self.ids)
        wanted = {"types": (agents,), "states": (agents, _HISTORY, len(STATE_FIELDS)), "driven": (agents,)}
        for name, shape in (wanted | {"valid": (agents, _HISTORY)}).items():
            if getattr(self, name).shape != shape:
                raise UserError(f"{name} has the shape {getattr(self, name).shape}, expected {shape}: a row an id")
        if not agents or not self.valid[:, -1].all() or len(set(self.ids.tolist())) < agents:
            raise UserError("a moment holds those who are there now, at least one, each once; leave out the others")
        bad = (~np.isfinite(self.states).all(-1) & self.valid).any(-1)
        if bad.any():
            raise UserError(f"a state of agent {self.ids[bad][0]} is no number; set the poses of those not driven")

    @classmethod
    def of_scene(cls, scene: Scene, driven: NDArray[np.bool_]) -> Moment:
        """The current step of a scene; ``driven`` [A] of its simulated agents, in order."""
        scene = until_now(scene)
        agents, rows = scene.agents, scene.simulated
        parts = (agents.position, agents.size, agents.heading.unsqueeze(-1), agents.velocity)
        return cls(
            ids=agents.id[rows].numpy(),
            types=agents.type[rows].numpy(),
            states=torch.cat([part[rows] for part in parts], dim=-1).double().numpy(),
            valid=agents.valid[rows].numpy(),
            driven=driven,
            lights=scene.lights,
        )

    def of(self, rows: NDArray[np.int64]) -> Moment:
        """The moment of some agents alone."""
        parts = {name: getattr(self, name)[rows] for name in ("ids", "types", "states", "valid", "driven")}
        return dataclasses.replace(self, **parts)

    def after(self, pose: NDArray[np.float64]) -> Moment:
        """The moment after steps to poses [A, s, 3] (x, y, heading); heights, sizes and lights stay as they are."""
        states = np.repeat(self.states[:, -1:], 1 + pose.shape[1], axis=1)
        states[:, 1:, _PLANE], states[:, 1:, _HEADING] = pose[..., :2], pose[..., 2]
        states[:, 1:, _VELOCITY] = np.diff(states[..., _PLANE], axis=1) / STEP_SECONDS
        there = np.ones(pose.shape[:2], dtype=bool)
        return dataclasses.replace(
            self,
            states=np.concatenate((self.states, states[:, 1:]), axis=1)[:, -_HISTORY:],
            valid=np.concatenate((self.valid, there), axis=1)[:, -_HISTORY:],
        )


class LiveTraffic:
    """An agent that drives in worlds which go on, all worlds at once.

    What an agent draws depends on the seed, its world, its id and how often it has decided, and not on who else is
    there. So the same calls give the same motion.

    Args:
        agent: the policy or the reference, as of ``open_agent``. road: the map of all worlds, of any extent; the
            features near agents are used, whole. seed: of all draws.
        renew_seconds: how long a drive lasts, at most 8. The policy needs no longer memory; the reference knows 3 s
            of a drive, and lights as they were at its start.

    Attributes:
        steps: of 0.1 s in a decision.
    """

    def __init__(self, agent: Agent, road: RoadMap, seed: int = 0, renew_seconds: float = 1.0) -> None:
        self.steps = agent.token_steps
        self._lasting = round(renew_seconds / STEP_SECONDS)
        if not self.steps <= self._lasting <= FUTURE_STEPS:
            low, high = self.steps * STEP_SECONDS, FUTURE_STEPS * STEP_SECONDS
            raise UserError(f"renew_seconds is {renew_seconds}; it must be from {low:g} to {high:g}")
        self._agent, self._road, self._seed, self._boxes = agent, road, seed, feature_boxes(road)
        self._draws: dict[tuple[int, int], torch.Generator] = {}
        self._cast: list[list[tuple[int, bool]]] = []
        self._drive: Drive | None = None
        self._parts: list[_Part] = []
        self._origin = torch.zeros(0, 2)  # of the parts
        self._driven_steps = 0

    def scene(self, moment: Moment, seconds: float = FUTURE_STEPS * STEP_SECONDS) -> Scene:
        """The moment as a scene, with the map around it and where velocities lead in ``seconds``.

        ``agent.rollouts`` of it are whole futures of 8 s of everybody.
        """
        # Which one is the AV changes nothing.
        agents = assemble_agents(
            ids=moment.ids.tolist(),
            types=moment.types.tolist(),
            states=np.where(moment.valid[..., None], moment.states, 0.0).astype(np.float32),
            valid=moment.valid.copy(),
            sdc=0,
            to_predict=(),
            of_interest=(),
        )
        reach = _SIGHT + seconds * agents.velocity[:, -1].norm(dim=-1)
        near = features_near(self._boxes, agents.position[:, -1, :2], reach)
        return Scene(
            scenario_id="live",
            timestamp=STEP_SECONDS * torch.arange(_HISTORY, dtype=torch.float64),
            agents=agents,
            map=keep_features(self._road, near),
            lights=moment.lights or _no_lights(),
        )

    def step(self, moments: Sequence[Moment]) -> list[NDArray[np.float64]]:
        """Where everybody goes next, decided for all at once from what has happened by now.

        Args:
            moments: of the W worlds, each ``steps`` steps after that of the last call.

        Returns:
            For each world [A, s, 3] poses (x, y in metres, heading in radians) after each of the next steps, in the
            order of ``ids``; NaN for those that are not driven.
        """
        cast = [list(zip(moment.ids.tolist(), moment.driven.tolist())) for moment in moments]
        uniform = self._uniform(cast)
        if cast != self._cast or self._driven_steps + self.steps > self._lasting:
            self._start(moments)
            self._cast, self._driven_steps = cast, 0
        elif self._drive is not None:
            self._drive.observe(*self._happened(moments))
        self._driven_steps += self.steps
        result = [np.full((len(moment.ids), self.steps, 3), np.nan) for moment in moments]
        if self._drive is not None:
            drawn = _padded([uniform[part.world][part.rows] for part in self._parts])
            moved, _ = self._drive.step(drawn.to(self._agent.device))
            moved = moved.cpu().double()
            moved[..., :2] += self._origin.double()[:, None, None]
            for part, pose in zip(self._parts, moved.numpy()):
                result[part.world][part.rows[part.own]] = pose[: len(part.rows)][part.own]
        return result

    def _start(self, moments: Sequence[Moment]) -> None:
        """Drives of all worlds from their last second on."""
        self._parts = [part for world, moment in enumerate(moments) for part in _divided(world, moment)]
        if not self._parts:
            self._drive = None
            return
        here = [moments[part.world].of(part.rows) for part in self._parts]
        scenes = [self.scene(moment, self._lasting * STEP_SECONDS) for moment in here]
        self._origin = torch.stack([scene_origin(scene) for scene in scenes])
        prepared = self._agent.prepare_briefly(*scenes)
        own = _padded([torch.from_numpy(part.own) for part in self._parts])
        self._drive = self._agent.start(prepared, 1, own)

    def _happened(self, moments: Sequence[Moment]) -> tuple[Tensor, None, Tensor]:
        """Arguments of ``Drive.observe``: what was done since the last decision."""
        last = [torch.from_numpy(moments[part.world].states[part.rows, -self.steps :]) for part in self._parts]
        pose = _padded([torch.cat((part[..., _PLANE], part[..., _HEADING, None]), dim=-1) for part in last])
        pose[..., :2] -= self._origin.double()[:, None, None]
        velocity = _padded([part[:, -1, _VELOCITY] for part in last])
        return pose.float().to(self._agent.device), None, velocity.float().to(self._agent.device)

    def _uniform(self, cast: list[list[tuple[int, bool]]]) -> list[Tensor]:
        """[A] numbers in [0, 1) for each world, each of its agent's own generator."""
        result = [torch.zeros(len(people)) for people in cast]
        for world, people in enumerate(cast):
            for row, (name, driven) in enumerate(people):
                if driven:
                    key = (world, name)
                    if key not in self._draws:
                        self._draws[key] = generator_for(self._seed, f"live/{world}/{name}")
                    result[world][row] = torch.rand((), generator=self._draws[key])
        return result


@dataclass(frozen=True)
class _Part:
    """A world's agents that are near each other, as one scene.

    Attributes:
        world: its number. rows: [n] of the agents of the moment. own: [n] bool, those that are driven here.
    """

    world: int
    rows: NDArray[np.int64]
    own: NDArray[np.bool_]


def _divided(world: int, moment: Moment) -> list[_Part]:
    """Parts that together drive all driven agents, each in one of them."""
    position, driven = moment.states[:, -1, _PLANE], moment.driven
    if not driven.any():
        return []
    tile = ((position - position[driven].min(0)) // _TILE).astype(np.int64)
    parts = []
    for one in np.unique(tile[driven], axis=0):
        own = driven & (tile == one).all(-1)
        low, high = position[own].min(0) - _AROUND, position[own].max(0) + _AROUND
        rows = np.flatnonzero(((low <= position) & (position <= high)).all(-1))
        parts.append(_Part(world, rows, own[rows]))
    return parts


def _no_lights() -> Lights:
    numbers = torch.zeros(0, _HISTORY, dtype=torch.int64)
    return Lights(numbers[:, 0], numbers, torch.zeros(0, _HISTORY, 3), numbers > 0)


def _padded(parts: Sequence[Tensor]) -> Tensor:
    """Tensors [A_i, ...] as one [W, A, ...], zero where there is nobody."""
    return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
