"""A stretch of a co-simulation as a ``Scene``, for whatever looks at scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import shapely
from numpy.typing import NDArray

from data.scene import CURRENT_INDEX, STEP_SECONDS, Scene
from data.traffic.motion import Motion
from data.traffic.protos import Terrain, to_scenario
from data.traffic.signals import SignalLane
from data.traffic.window import Cast, Window
from data.womd import parse_scenario
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.session import Frame

__all__ = ["snapshot"]

_FLAT = Terrain(origin=(0.0, 0.0), level=0.0, slope=(0.0, 0.0), wave=0.0, direction=(1.0, 0.0), length=1.0)
# Around what is seen the map is not cut, metres.
_EVERYWHERE = 1e5


def snapshot(area: Area, frames: Sequence[Frame]) -> Scene:
    """The scene that the recorder of generated traffic would write of these 11 frames, the last one being now: all
    who are there, as SUMO has them (the recorder smooths over the future, which nobody knows here), on flat ground.

    Raises:
        ValueError: not 11 frames, or nobody is there now.
    """
    if len(frames) != CURRENT_INDEX + 1:
        raise ValueError(f"{len(frames)} frames, expected {CURRENT_INDEX + 1}")
    pose = np.stack([frame.pose for frame in frames], axis=1)
    present = np.stack([frame.present for frame in frames], axis=1)
    here = np.flatnonzero(present[:, -1])
    if not len(here):
        raise ValueError("nobody is there at the last frame")
    signals = np.stack([frame.signals for frame in frames], axis=1)
    cast = Cast(
        users=area.users,
        motion=Motion(pose[..., :2], pose[..., 2], _velocity(pose, present), present),
        signals=tuple(SignalLane(link.lane, link.stop_point, row) for link, row in zip(area.links, signals)),
        road=shapely.Point(),
        sight=shapely.Point(),
        map=area.map,
    )
    window = Window(start=0, agents=here, valid=present[here], av=0, targets=(), interest=())
    name = f"cosimulation/{area.name}"
    scenario = to_scenario(name, window, cast, _FLAT, _EVERYWHERE, with_future=False)
    return parse_scenario(scenario.SerializeToString(deterministic=True))


def _velocity(pose: NDArray[np.float64], present: NDArray[np.bool_]) -> NDArray[np.float64]:
    """[A, T, 2] over the step before, zero for who was not there."""
    step = np.diff(pose[..., :2], axis=1, prepend=pose[:, :1, :2]) / STEP_SECONDS
    known = present & np.concatenate((present[:, :1], present[:, :-1]), axis=1)
    return np.where(known[..., None], step, 0.0)
