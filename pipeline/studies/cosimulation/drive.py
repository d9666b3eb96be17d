"""One world driven once: warm up, take over, decide and move, record."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.scene import CURRENT_INDEX, Scene, generator_for, map_tensors
from data.tokenizer import scene_origin
from data.traffic.sumo import SumoError, front_point
from pipeline.agents.agent import Agent
from pipeline.agents.agent import Drive as AgentDrive
from pipeline.agents.baselines import ReplayDrive, StraightDrive
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.simulator.world import World
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.session import Brake, Frame, Session, open_session, speed_between
from pipeline.studies.cosimulation.setting import Setting, build_setting, snapshot

# Vehicles whose front is this near to the end of a street are not taken over, metres.
_WORLDS_END = 3.0


@dataclass(frozen=True)
class Driver:
    """Decides for all taken vehicles at once.

    Attributes:
        start: a drive from a world at the moment of take-over; [A] bool are the vehicles that are taken. Or an
            agent that knows scenes alone: it starts again every second, since users come and go.
        steps: of 0.1 s in a decision. history: earlier decisions that it wants to know.
        uniform: [D, A] random numbers of its decisions, if it draws any. device: of its drives.
    """

    start: Callable[[World, Tensor], AgentDrive] | Agent
    steps: int
    history: int = 0
    uniform: Tensor | None = None
    device: torch.device | str = "cpu"


def policy_driver(agent: PolicyAgent, seed: int, name: str, users: int, decisions: int) -> Driver:
    """Tokens of a policy, executed as they are. Goals are never shown.

    Args:
        agent: the policy. seed, name: of the random numbers; name is that of the world.
        users: A in this world. decisions: that it will be asked for.
    """
    uniform = torch.rand(decisions, users, generator=generator_for(seed, name))

    def start(world: World, taken: Tensor) -> AgentDrive:
        return agent.start(map_tensors(world, lambda tensor: tensor.to(agent.device)), 1, taken)

    return Driver(start, agent.token_steps, agent.view.history, uniform, agent.device)


def scene_driver(agent: Agent, seed: int, name: str, users: int, decisions: int) -> Driver:
    """Any agent, such as the reference; arguments as ``policy_driver``. It sees the last second as a scene."""
    uniform = torch.rand(decisions, users, generator=generator_for(seed, name))
    return Driver(agent, agent.token_steps, uniform=uniform)


def straight_driver(steps: int) -> Driver:
    """Straight on at the speed of the moment of take-over, whatever comes: a yardstick."""
    return Driver(lambda world, taken: StraightDrive(world.pose, world.velocity, steps), steps)


def replay_driver(pose: Tensor, present: Tensor, steps: int) -> Driver:
    """Where SUMO itself drove the same vehicles: tells what being moved from outside costs, before any policy.

    Args:
        pose: [A, T + 1, 3] from the moment of take-over on. present: [A, T + 1] bool. steps: of a decision.
    """
    return Driver(lambda world, taken: ReplayDrive(pose[None, :, 1:], present[None, :, 1:], steps), steps)


@dataclass(frozen=True)
class DriveConfig:
    """How long, and how many vehicles are taken over.

    Args:
        steps: of 0.1 s that are driven. warm_up: steps before. share: fraction of the vehicles that are taken over.
        seed: draws these vehicles.
    """

    steps: int
    warm_up: int
    share: float
    seed: int


@dataclass(frozen=True)
class Drive:
    """What happened from the moment of take-over on, over T steps; A users, N taken, S signalled lanes.

    Attributes:
        setting: positions are minus its origin. scene: the moment of take-over, with a second of history.
        taken: [N] int64 rows. pose: [A, T + 1, 3] float32, zero where absent. present: [A, T + 1] bool.
        signals: [S, T + 1] int64. before: the frames up to take-over, the last one included.
        brakes: hard brakings of vehicles that SUMO drives. sumo_collisions: pairs of rows that SUMO says collided,
            at each step. left: rows taken that drove out of the world. lost: rows taken that SUMO removed.
            deviation: m between where taken vehicles were put and where SUMO then had them, at most.
    """

    setting: Setting
    scene: Scene
    taken: Tensor
    pose: Tensor
    present: Tensor
    signals: Tensor
    before: tuple[Frame, ...]
    brakes: tuple[Brake, ...]
    sumo_collisions: tuple[frozenset[tuple[int, int]], ...]
    left: frozenset[int]
    lost: frozenset[int]
    deviation: float


def _choose(area: Area, frames: list[Frame], config: DriveConfig) -> NDArray[np.int64]:
    """Rows of the vehicles that are taken over: there for a second, and not about to leave the world."""
    there = np.stack([frame.present for frame in frames]).all(axis=0)
    front = front_point(frames[-1].pose, area.lengths)
    inside = shapely.distance(shapely.points(front), area.caps) > _WORLDS_END
    candidates = np.flatnonzero(there & area.motorised & inside)
    wanted = round(config.share * len(candidates))
    if not wanted:
        raise SumoError(f"nobody to take over of {len(candidates)} vehicles")
    rng = np.random.default_rng(np.random.SeedSequence([config.seed, *area.name.encode()]))
    return np.sort(rng.choice(candidates, size=wanted, replace=False))


def drive(area: Area, config: DriveConfig, driver: Driver | None) -> Drive:
    """Run a world from its beginning; the vehicles that are taken over do not depend on the driver.

    Args:
        area: the world. config: how long, and how many vehicles are taken over.
        driver: of the taken vehicles; None leaves them to SUMO.

    Raises:
        SumoError: SUMO gave up, or there is nobody to take over. UserError: SUMO cannot be loaded.
    """
    steps = driver.steps if driver else 1
    remembered = max(CURRENT_INDEX, (driver.history + 1) * steps if driver else 0) + 1
    with open_session(area) as session:
        before: deque[Frame] = deque(maxlen=remembered)
        for step in range(config.warm_up):
            session.step()
            if step >= config.warm_up - remembered:
                before.append(session.frame())
        if len(before) < remembered:
            raise SumoError(f"a warm-up of {config.warm_up} steps, expected {remembered} or more")
        recent = list(before)[-CURRENT_INDEX - 1 :]
        scene = snapshot(area, recent)
        setting = build_setting(area, scene)
        takeover = _Takeover(session, area, setting, driver, _choose(area, recent, config))
        frames = [frame for _ in range(config.steps) for frame in [takeover.step(before)]]
    return takeover.result(scene, tuple(recent), frames)


class _Takeover:
    """Steps a session in which a driver has taken vehicles over, and records what happens."""

    def __init__(
        self, session: Session, area: Area, setting: Setting, driver: Driver | None, taken: NDArray[np.int64]
    ) -> None:
        self._session, self._area, self._setting, self._driver = session, area, setting, driver
        self._taken = taken
        self._moved = np.zeros(len(area.users), dtype=bool)
        self._moved[taken] = True
        self._driven = [] if driver is None else taken.tolist()
        self._drive: AgentDrive | None = None
        # Of a scene that an agent was started in: the rows of its agents, and its origin.
        self._rows: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
        self._scene_origin = torch.zeros(2)
        # Of the last decision: poses [n, steps, 3], and the rows of their vehicles.
        self._plan: NDArray[np.float64] = np.zeros((0, 0, 3))
        self._planned: list[int] = []
        self._steps, self._decision = 0, 0
        self._left: set[int] = set()
        self._lost: set[int] = set()
        self._brakes: list[Brake] = []
        self._collisions: list[frozenset[tuple[int, int]]] = []
        self._deviation = 0.0
        self._exits = np.random.default_rng(len(area.name))

    def step(self, recent: deque[Frame]) -> Frame:
        """The frame after one more step; ``recent`` frames get it too."""
        driver, session = self._driver, self._session
        put: dict[int, NDArray[np.float64]] = {}
        if driver is not None:
            phase = self._steps % driver.steps
            if phase == 0 and self._driven:
                self._decide(driver, recent)
            put = self._put({row: self._plan[index, phase] for index, row in enumerate(self._planned)}, recent)
        session.step()
        self._steps += 1
        frame = self._with(session.frame(), put)
        self._brakes += session.brakes(self._moved)
        self._collisions.append(frozenset(session.collisions()))
        recent.append(frame)
        return frame

    def _decide(self, driver: Driver, recent: deque[Frame]) -> None:
        uniform = torch.zeros(1, len(self._moved))
        if driver.uniform is not None:
            uniform = driver.uniform[self._decision].unsqueeze(0)
        if isinstance(driver.start, Agent):
            plan = self._decide_in_scene(driver.start, list(recent)[-CURRENT_INDEX - 1 :], uniform)
        else:
            plan = self._decide_in_world(driver, driver.start, recent, uniform)
        self._plan, self._planned = plan.numpy(), list(self._driven)
        self._decision += 1
        for row in self._driven:
            self._session.lead_on(row, float(self._exits.random()))

    def _decide_in_world(
        self,
        driver: Driver,
        start: Callable[[World, Tensor], AgentDrive],
        recent: deque[Frame],
        uniform: Tensor,
    ) -> Tensor:
        """[n, s, 3] global poses of the driven vehicles, NaN where one is absent."""
        setting, steps = self._setting, driver.steps
        moments = setting.moments(list(recent))
        if self._drive is None:
            self._drive = start(setting.world_at(moments, steps, driver.history), torch.from_numpy(self._moved))
        else:
            last = slice(-steps, None)
            seen = (
                moments.pose[None, :, last],
                moments.present[None, :, last],
                setting.velocity(moments),
                moments.red.unsqueeze(0),
            )
            self._drive.observe(*(tensor.to(driver.device) for tensor in seen))
        pose, present = (tensor.cpu() for tensor in self._drive.step(uniform.to(driver.device)))
        plan = torch.where(present.unsqueeze(-1), pose, torch.nan)[0, self._driven].double()
        plan[..., :2] += setting.origin
        return plan

    def _decide_in_scene(self, agent: Agent, recent: list[Frame], uniform: Tensor) -> Tensor:
        """The same of an agent that is started again every second, and when somebody whom it knows has left."""
        now, steps = recent[-1], agent.token_steps
        renewed = self._decision % max(1, CURRENT_INDEX // steps) == 0
        if self._drive is None or renewed or not now.present[self._rows].all():
            scene = snapshot(self._area, recent)
            self._rows, self._scene_origin = np.flatnonzero(now.present), scene_origin(scene)
            self._drive = agent.start(agent.prepare(scene), 1, torch.from_numpy(self._moved[self._rows]))
        else:
            pose = torch.from_numpy(np.stack([frame.pose[self._rows] for frame in recent[-steps:]], axis=1))
            pose[..., :2] -= self._scene_origin.double()
            self._drive.observe(pose.float().unsqueeze(0).to(agent.device))
        pose, present = (tensor.cpu() for tensor in self._drive.step(uniform[:, self._rows].to(agent.device)))
        index = np.searchsorted(self._rows, self._driven)
        plan = torch.where(present.unsqueeze(-1), pose, torch.nan)[0, index].double()
        plan[..., :2] += self._scene_origin.double()
        return plan

    def _put(self, wanted: dict[int, NDArray[np.float64]], recent: deque[Frame]) -> dict[int, NDArray[np.float64]]:
        """Move vehicles to their planned poses, and remove those that leave the world."""
        now, before = recent[-1], recent[-2]
        put = {}
        for row, pose in wanted.items():
            if row not in self._driven:
                continue
            if np.isnan(pose).any() or self._leaves(row, now.pose[row], pose):
                self._session.remove(row)
                self._driven.remove(row)
                self._left.add(row)
                continue
            self._session.move(row, pose, speed_between(before.pose[row], now.pose[row]))
            put[row] = pose
        return put

    def _leaves(self, row: int, before: NDArray[np.float64], after: NDArray[np.float64]) -> bool:
        """Whether its front crosses the line at which the street ends."""
        length = self._area.lengths[row]
        path = shapely.LineString([front_point(before, length), front_point(after, length)])
        return bool(shapely.intersects(path, self._area.caps))

    def _with(self, frame: Frame, put: dict[int, NDArray[np.float64]]) -> Frame:
        """The frame with vehicles exactly where they were put; SUMO's own numbers differ by a rounding."""
        pose = frame.pose.copy()
        for row, wanted in put.items():
            if not frame.present[row]:
                self._driven.remove(row)
                self._lost.add(row)
                continue
            self._deviation = max(self._deviation, float(np.hypot(*(pose[row, :2] - wanted[:2]))))
            pose[row] = wanted
        return Frame(pose, frame.present, frame.signals)

    def result(self, scene: Scene, before: tuple[Frame, ...], frames: list[Frame]) -> Drive:
        """All that was recorded."""
        moments = self._setting.moments([before[-1], *frames])
        if self._driver is None:
            end = moments.present[self._taken, -1]
            self._left = {row for row, still in zip(self._taken.tolist(), end.tolist()) if not still}
        return Drive(
            setting=self._setting,
            scene=scene,
            taken=torch.from_numpy(self._taken),
            pose=moments.pose,
            present=moments.present,
            signals=torch.from_numpy(np.stack([f.signals for f in (before[-1], *frames)], axis=1)),
            before=before,
            brakes=tuple(self._brakes),
            sumo_collisions=tuple(self._collisions),
            left=frozenset(self._left),
            lost=frozenset(self._lost),
            deviation=self._deviation,
        )
