"""One world driven once: warm up, take over, decide and move, record."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.scene import CURRENT_INDEX, Scene
from data.traffic.sumo import SumoError, front_point
from pipeline.simulator.events import collisions
from pipeline.simulator.step import Motion
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.drivers import Driver
from pipeline.studies.cosimulation.session import Brake, Frame, Session, open_session, speed_between
from pipeline.studies.cosimulation.setting import Setting, build_setting, snapshot

__all__ = ["Drive", "DriveConfig", "drive"]


# Whose front is this near to where a street ends is not taken over, metres.
_WORLDS_END = 3.0


@dataclass(frozen=True)
class DriveConfig:
    """How long and with whom.

    Args:
        steps: of 0.1 s that are driven. warm_up: steps before. share: of the vehicles that are taken over.
        seed: draws who they are.
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
    """Rows of the vehicles that are taken over, all of them there for a second and not about to leave the world."""
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
    """Run a world from its beginning; who is taken over does not depend on the driver.

    Args:
        area: the world. config: how long and with whom. driver: of the taken vehicles; None leaves them to SUMO.

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
        wheel = _Wheel(session, area, setting, driver, _choose(area, recent, config))
        frames = [frame for _ in range(config.steps) for frame in [wheel.step(before)]]
    return wheel.result(scene, tuple(recent), frames)


class _Wheel:
    """Steps a session with a driver, and notes what happens."""

    def __init__(
        self, session: Session, area: Area, setting: Setting, driver: Driver | None, taken: NDArray[np.int64]
    ) -> None:
        self._session, self._area, self._setting, self._driver = session, area, setting, driver
        self._taken = taken
        self._moved = np.zeros(len(area.users), dtype=bool)
        self._moved[taken] = True
        self._driven = [] if driver is None else taken.tolist()
        # Of the last decision: poses [n, steps, 3], and whose they are.
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
        moments = self._setting.moments(list(recent))
        world = self._setting.world_at(moments)
        taken = torch.tensor(self._driven)
        collided = torch.zeros_like(moments.present[:, -1])
        if self._decision:
            last = slice(-driver.steps, None)
            motion = Motion(
                start=moments.pose[None, :, -1 - driver.steps],
                pose=moments.pose[None, :, last],
                present=moments.present[None, :, last],
                first_step=0,
            )
            who = (torch.zeros_like(taken), taken)
            collided = collisions(world, motion, driver.box_scale, who)[0]
        state = self._setting.state_at(moments, collided, driver.steps, driver.history)
        plan = driver.drive(world, state, taken, self._decision).double()
        plan[..., :2] += self._setting.origin
        self._plan, self._planned = plan.numpy(), list(self._driven)
        self._decision += 1
        for row in self._driven:
            self._session.lead_on(row, float(self._exits.random()))

    def _put(self, wanted: dict[int, NDArray[np.float64]], recent: deque[Frame]) -> dict[int, NDArray[np.float64]]:
        """Move vehicles to where they are wanted, and take out those that leave the world."""
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
        """All that was noted."""
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
