"""Drives of one world side by side, as a video and as a contact sheet; taken vehicles have the AV's colour."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from data.scene import CURRENT_INDEX, STEP_SECONDS, Agents, Lights, Scene
from pipeline.drawing.films import write_sheet, write_video
from pipeline.drawing.raster import Panel, SceneRaster, panel_frame
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.drive import Drive
from pipeline.studies.cosimulation.summary import LABELS

__all__ = ["drive_scene", "write_pictures"]

# Metres from the middle of a picture to its side.
_RADIUS = 50.0
_VIDEO_SIZE, _SHEET_SIZE = 480, 320
_SHEET_COLUMNS = 5


def drive_scene(area: Area, drive: Drive) -> Scene:
    """A drive with the second before it as a ``Scene`` of 11 + T steps, whose log it is; vehicles that were taken
    count as AVs."""
    behind = slice(1, None)
    before = drive.setting.moments(drive.before)
    pose = torch.cat((before.pose, drive.pose[:, behind]), dim=1)
    valid = torch.cat((before.present, drive.present[:, behind]), dim=1)
    steps, world = pose.shape[1], drive.setting.world
    size, height = world.size[0], world.height[0]
    step = (pose[:, 1:, :2] - pose[:, :-1, :2]) / STEP_SECONDS
    known = (valid[:, 1:] & valid[:, :-1]).unsqueeze(-1)
    velocity = torch.nn.functional.pad(torch.where(known, step, 0.0), (0, 0, 1, 0))
    taken = torch.zeros(len(pose), dtype=torch.bool)
    taken[drive.taken] = True
    nobody = torch.zeros_like(taken)
    position = torch.cat((pose[..., :2] + world.origin[0], height.view(-1, 1, 1).expand(-1, steps, 1)), dim=-1)
    earlier = torch.from_numpy(np.stack([frame.signals for frame in drive.before], axis=1))
    state = torch.cat((earlier, drive.signals[:, behind]), dim=1)
    stops = torch.tensor(np.array([(*link.stop_point, 0.0) for link in area.links]).reshape(-1, 1, 3)).float()
    return dataclasses.replace(
        drive.scene,
        timestamp=STEP_SECONDS * torch.arange(steps, dtype=torch.float64),
        agents=Agents(
            id=torch.arange(len(pose)) + 1,
            type=torch.tensor([user.kind.track_type for user in area.users]),
            position=position,
            heading=pose[..., 2],
            velocity=velocity,
            size=size.unsqueeze(1).expand(-1, steps, -1),
            valid=valid,
            is_sdc=taken,
            to_predict=nobody,
            of_interest=nobody,
        ),
        lights=Lights(
            lane_id=torch.tensor([link.lane for link in area.links], dtype=torch.int64),
            state=state,
            stop_point=stops.expand(-1, steps, -1),
            observed=torch.ones_like(state, dtype=torch.bool),
        ),
    )


def _middle(drive: Drive) -> NDArray[np.float64]:
    """Where most taken vehicles come by, global."""
    place = drive.pose[drive.taken, :: round(1 / STEP_SECONDS), :2].flatten(0, 1)
    place = place[drive.present[drive.taken, :: round(1 / STEP_SECONDS)].flatten()]
    near = (torch.cdist(place, place) < 0.7 * _RADIUS).sum(-1)
    return (place[int(near.argmax())].double() + drive.setting.origin).numpy()


def write_pictures(area: Area, drives: Mapping[str, Drive], video: Path, sheet: Path) -> None:
    """Write a video and a contact sheet of drives of one world.

    Args:
        area: the world. drives: by driver, that of ``sumo`` among them. video: MP4 file. sheet: PNG file.
    """
    centre = _middle(drives["sumo"])
    scenes = [drive_scene(area, drive) for drive in drives.values()]
    panels = [Panel(LABELS.get(name, name)) for name in drives]
    steps = scenes[0].num_steps
    rasters = [SceneRaster(scene, _VIDEO_SIZE, _RADIUS, centre) for scene in scenes]
    write_video(video, (panel_frame(rasters, panels, step) for step in range(steps)))
    last = (steps - 1 - CURRENT_INDEX) * STEP_SECONDS
    moments = np.linspace(0, last, _SHEET_COLUMNS).round(1).tolist()
    small = [SceneRaster(scene, _SHEET_SIZE, _RADIUS, centre) for scene in scenes]
    write_sheet(sheet, small, panels, moments)
