"""One world driven once: warm up, take over, decide and move, record."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.scene import CURRENT_INDEX, STEP_SECONDS, Scene
from data.traffic.sumo import SumoError, front_point
from pipeline.simulator.world import World
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.drivers import Driver
from pipeline.studies.cosimulation.session import Brake, Frame, Session, open_session
from pipeline.studies.cosimulation.setting import area_world, motion_in, snapshot

# Vehicles whose front is this near to the end of a street are not taken over, metres.
_WORLDS_END = 3.0


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
        world: positions are minus its origin. scene: the moment of take-over, with a second of history.
        taken: [N] int64 rows. pose: [A, T + 1, 3] float32, zero where absent. present: [A, T + 1] bool.
        signals: [S, T + 1] int64. before: the frames up to take-over, the last one included.
        brakes: hard brakings of vehicles that SUMO drives. sumo_collisions: pairs of rows that SUMO says collided,
            at each step. left: rows taken that drove out of the world. lost: rows taken that SUMO removed.
            deviation: m between where taken vehicles were put and where SUMO then had them, at most.
    """

    world: World
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


def _choose(area: Area, frames: Sequence[Frame], config: DriveConfig) -> NDArray[np.int64]:
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
    with open_session(area) as session:
        known = CURRENT_INDEX + 1
        recent: deque[Frame] = deque(maxlen=known)
        for step in range(config.warm_up):
            session.step()
            if step >= config.warm_up - known:
                recent.append(session.frame())
        if len(recent) < known:
            raise SumoError(f"a warm-up of {config.warm_up} steps, expected {known} or more")
        before = tuple(recent)
        scene = snapshot(area, before)
        takeover = _Takeover(session, area, scene, driver, _choose(area, before, config))
        frames = [frame for _ in range(config.steps) for frame in [takeover.step(recent)]]
    return takeover.result(scene, before, frames)


class _Takeover:
    """Steps a session in which a driver has taken vehicles over, and records what happens."""

    def __init__(
        self, session: Session, area: Area, scene: Scene, driver: Driver | None, taken: NDArray[np.int64]
    ) -> None:
        self._session, self._area, self._world = session, area, area_world(area, scene)
        self._taken = taken
        self._moved = np.zeros(len(area.users), dtype=bool)
        self._moved[taken] = True
        self._driven = [] if driver is None else taken.tolist()
        self._decide = driver.begin(scene.map) if driver else None
        self._decision_steps = driver.steps if driver else 1
        # Of the last decision: poses [n, steps, 3], and the rows of their vehicles.
        self._plan: NDArray[np.float64] = np.zeros((0, 0, 3))
        self._planned: list[int] = []
        self._steps = 0
        self._left: set[int] = set()
        self._lost: set[int] = set()
        self._brakes: list[Brake] = []
        self._collisions: list[frozenset[tuple[int, int]]] = []
        self._deviation = 0.0
        self._exits = np.random.default_rng(len(area.name))

    def step(self, recent: deque[Frame]) -> Frame:
        """The frame after one more step; ``recent`` frames get it too."""
        session, put = self._session, dict[int, NDArray[np.float64]]()
        if self._decide is not None:
            phase = self._steps % self._decision_steps
            if phase == 0 and self._driven:
                self._plan, self._planned = self._decide(list(recent), np.array(self._driven)), list(self._driven)
                for row in self._driven:
                    session.lead_on(row, float(self._exits.random()))
            put = self._put({row: self._plan[index, phase] for index, row in enumerate(self._planned)}, recent)
        session.step()
        self._steps += 1
        frame = self._with(session.frame(), put)
        self._brakes += session.brakes(self._moved)
        self._collisions.append(frozenset(session.collisions()))
        recent.append(frame)
        return frame

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
            moved = now.pose[row, :2] - before.pose[row, :2]
            self._session.move(row, pose, float(np.hypot(*moved)) / STEP_SECONDS)
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
        pose, present = motion_in(self._world, [before[-1], *frames])
        if self._decide is None:
            end = present[self._taken, -1]
            self._left = {row for row, still in zip(self._taken.tolist(), end.tolist()) if not still}
        return Drive(
            world=self._world,
            scene=scene,
            taken=torch.from_numpy(self._taken),
            pose=pose,
            present=present,
            signals=torch.from_numpy(np.stack([f.signals for f in (before[-1], *frames)], axis=1)),
            before=before,
            brakes=tuple(self._brakes),
            sumo_collisions=tuple(self._collisions),
            left=frozenset(self._left),
            lost=frozenset(self._lost),
            deviation=self._deviation,
        )
