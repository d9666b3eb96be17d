"""A running world as the simulator and as agents know it.

Shape legend: A users, S signalled lanes, T steps of 0.1 s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.geometry import wrap_angle
from data.road import edge_segments, no_segments
from data.road_grid import as_batch, single_cell
from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, Lights, Scene
from data.traffic.motion import Motion
from data.traffic.protos import Terrain, to_scenario
from data.traffic.signals import SignalLane
from data.traffic.window import Cast, Window
from data.vocabulary import type_index
from data.womd import parse_scenario
from pipeline.simulator.world import World
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.session import Frame


def stacked(frames: Sequence[Frame]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Global poses [A, T, 3] and presence [A, T] of T frames."""
    return np.stack([frame.pose for frame in frames], axis=1), np.stack([frame.present for frame in frames], axis=1)


def signals_of(area: Area, state: Tensor) -> Lights:
    """The area's signals, all observed; state: [S, T]."""
    stops = torch.tensor(np.array([(*link.stop_point, 0.0) for link in area.links]).reshape(-1, 1, 3)).float()
    return Lights(
        lane_id=torch.tensor([link.lane for link in area.links], dtype=torch.int64),
        state=state,
        stop_point=stops.expand(-1, state.shape[1], -1),
        observed=torch.ones_like(state, dtype=torch.bool),
    )


def motion_in(world: World, frames: Sequence[Frame]) -> tuple[Tensor, Tensor]:
    """Poses [A, T, 3] float32 minus the world's origin, zero where absent, and presence [A, T] of T frames."""
    pose, present = map(torch.from_numpy, stacked(frames))
    pose[..., :2] -= world.origin[0]
    return torch.where(present.unsqueeze(-1), pose, 0.0).float(), present


def _stop_lines(area: Area, origin: Tensor) -> Tensor:
    """[S, 3] stop points and headings of their lanes."""
    rows = []
    for link in area.links:
        begin, following = area.map.lanes[link.lane].points[:2]
        along = following - begin
        rows.append((*link.stop_point, np.arctan2(along[1], along[0])))
    lines = torch.tensor(np.array(rows, dtype=np.float64).reshape(-1, 3))
    lines[:, :2] -= origin
    lines[:, 2] = wrap_angle(lines[:, 2])
    return lines.float()


def area_world(area: Area, scene: Scene) -> World:
    """What of an area does not change: the road's edges, the stop lines and the boxes. No light is red.

    Args:
        area: with A users. scene: a moment of it, whose map and ground are used.
    """
    users, count = area.users, len(area.users)
    middle = (scene.map.point[:, :2].amin(0) + scene.map.point[:, :2].amax(0)) / 2
    # Whole metres, which float32 holds exactly: what is taken off here is put on again elsewhere.
    origin = middle.round()
    size = torch.tensor([[user.length, user.width, user.height] for user in users]).view(1, -1, 3)
    pose, vector = torch.zeros(1, count, 3), torch.zeros(1, count, 2)
    nothing, signals = torch.zeros(1, count, dtype=torch.bool), len(area.links)
    dark, lit = torch.zeros(1, signals, dtype=torch.bool), torch.ones(1, signals, dtype=torch.bool)
    lines, nowhere = edge_segments(scene, origin), no_segments()
    edges, edge_grid = as_batch(lines, single_cell(lines))
    road, road_grid = as_batch(nowhere, single_cell(nowhere))
    return World(
        origin=origin.unsqueeze(0),
        types=type_index(torch.tensor([user.kind.track_type for user in users])).unsqueeze(0),
        size=size,
        # The ground is flat and at zero (``snapshot``).
        height=size[..., 2] / 2,
        exists=~nothing,
        pose=pose,
        velocity=vector,
        goal=vector,
        moves=nothing,
        log=torch.zeros(1, count, FUTURE_STEPS, 3),
        log_valid=torch.zeros(1, count, FUTURE_STEPS, dtype=torch.bool),
        log_ids=torch.zeros(1, count, 0, dtype=torch.int64),
        history_ids=torch.zeros(1, count, 0, dtype=torch.int64),
        history_valid=torch.zeros(1, count, 0, dtype=torch.bool),
        history_poses=pose.unsqueeze(2),
        stop_line=_stop_lines(area, origin.double()).unsqueeze(0),
        red=dark.unsqueeze(-1),
        light_now=dark,
        light_known=lit,
        light_valid=lit,
        bounded=torch.tensor([len(edges.kind) > 1]),
        edges=edges,
        edge_grid=edge_grid,
        road=road,
        road_grid=road_grid,
    )


_FLAT = Terrain(origin=(0.0, 0.0), level=0.0, slope=(0.0, 0.0), wave=0.0, direction=(1.0, 0.0), length=1.0)
# Around what is seen the map is not cut, metres.
_EVERYWHERE = 1e5


def snapshot(area: Area, frames: Sequence[Frame]) -> Scene:
    """The scene that the recorder of generated traffic would write of these 11 frames, the last one being now: all
    who are there, as SUMO has them (the recorder smooths over the future, which is not known here), on flat ground.

    Raises:
        ValueError: not 11 frames, or no user is there now.
    """
    if len(frames) != CURRENT_INDEX + 1:
        raise ValueError(f"{len(frames)} frames, expected {CURRENT_INDEX + 1}")
    pose, present = stacked(frames)
    here = np.flatnonzero(present[:, -1])
    if not len(here):
        raise ValueError("no user is there at the last frame")
    signals = np.stack([frame.signals for frame in frames], axis=1)
    cast = Cast(
        users=area.users,
        motion=Motion(pose[..., :2], pose[..., 2], recent_velocity(pose, present, area.fastest), present),
        signals=tuple(SignalLane(link.lane, link.stop_point, row) for link, row in zip(area.links, signals)),
        road=shapely.Point(),
        sight=shapely.Point(),
        map=area.map,
    )
    window = Window(start=0, agents=here, valid=present[here], av=0, targets=(), interest=())
    name = f"cosimulation/{area.name}"
    scenario = to_scenario(name, window, cast, _FLAT, _EVERYWHERE, with_future=False)
    return parse_scenario(scenario.SerializeToString(deterministic=True))


def recent_velocity(
    pose: NDArray[np.float64], present: NDArray[np.bool_], fastest: NDArray[np.float64]
) -> NDArray[np.float64]:
    """[A, T, 2] over the step before; zero for users that were not there or that SUMO set down elsewhere.

    Args:
        pose: [A, T, 3]. present: [A, T]. fastest: [A] m/s that no user exceeds.
    """
    step = np.diff(pose[..., :2], axis=1, prepend=pose[:, :1, :2]) / STEP_SECONDS
    known = present & np.concatenate((present[:, :1], present[:, :-1]), axis=1)
    known &= np.linalg.norm(step, axis=-1) <= fastest[:, None]
    return np.where(known[..., None], step, 0.0)
