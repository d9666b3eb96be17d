"""A drive: what happened in a scene while a planner drove its AV, for as many planners as were tried.

Shape legend: P drives of the same scene, A agents (``scene.simulated``, in order), T the 81 steps of 0.1 s from the
current one on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from data.scene import CURRENT_INDEX, FUTURE_STEPS, STEP_SECONDS, Scene

DRIVE_STEPS = FUTURE_STEPS + 1


@dataclass(frozen=True)
class Drive:
    """P drives of one scene.

    Attributes:
        pose: [P, A, T, 3] float32 x, y, heading in metres from the scene's origin and radians; step 0 is the
            scenario's current step and the same in all drives.
        present: [P, A, T] bool; the AV is always there.
        ego: row of the AV. sizes: [A, 3] length, width, height, metres. heights: [A] z of the box centre at step 0.
    """

    pose: Tensor
    present: Tensor
    ego: int
    sizes: Tensor
    heights: Tensor

    def __post_init__(self) -> None:
        count = len(self.sizes)
        drives = len(self.pose)
        if self.pose.shape != (drives, count, DRIVE_STEPS, 3) or self.present.shape != self.pose.shape[:3]:
            raise ValueError(f"drives of {count} agents: poses {self.pose.shape}, presence {self.present.shape}")
        if not bool(self.present[:, self.ego].all()):
            raise ValueError("the AV of a drive is absent at some step")

    @property
    def ego_pose(self) -> Tensor:
        """[P, T, 3]"""
        return self.pose[:, self.ego]

    @property
    def others(self) -> Tensor:
        """[P, A, T] bool: present, and not the AV."""
        others = self.present.clone()
        others[:, self.ego] = False
        return others

    @property
    def velocity(self) -> Tensor:
        """[P, A, T, 2] m/s by central differences; one-sided beside absence, zero if absent on both sides."""
        here = self.present
        step = (self.pose[:, :, 1:, :2] - self.pose[:, :, :-1, :2]) / STEP_SECONDS
        step = step * (here[:, :, 1:] & here[:, :, :-1]).unsqueeze(-1)
        known = (here[:, :, 1:] & here[:, :, :-1]).to(step.dtype)
        pad = torch.nn.functional.pad
        total = pad(step, (0, 0, 1, 0)) + pad(step, (0, 0, 0, 1))
        return total / (pad(known, (1, 0)) + pad(known, (0, 1))).clamp(min=1.0).unsqueeze(-1)


def logged_drive(scene: Scene, origin: Tensor) -> Drive:
    """The recording as a single drive; the AV stays where it was last seen while it is not recorded.

    Args:
        scene: single, with its future. origin: [2], ``data.tokenizer.scene_origin``.

    Raises:
        ValueError: the future is not recorded, or no AV at the current step.
    """
    if not scene.has_future:
        raise ValueError(f"scene {scene.scenario_id}: {scene.unscorable_reason}")
    agents, simulated = scene.agents, scene.simulated
    ego = agents.is_sdc[simulated].nonzero().flatten().tolist()
    if len(ego) != 1:
        raise ValueError(f"scene {scene.scenario_id}: {len(ego)} AVs at the current step, expected one")
    steps = slice(CURRENT_INDEX, CURRENT_INDEX + DRIVE_STEPS)
    place = agents.position[simulated, steps, :2] - origin
    pose = torch.cat((place, agents.heading[simulated, steps].unsqueeze(-1)), dim=-1)
    present = agents.valid[simulated, steps].clone()
    row = ego[0]
    last = torch.where(present[row], torch.arange(DRIVE_STEPS), 0).cummax(0).values
    pose[row], present[row] = pose[row, last], True
    return Drive(
        pose=pose.unsqueeze(0),
        present=present.unsqueeze(0),
        ego=row,
        sizes=agents.size[simulated, CURRENT_INDEX],
        heights=agents.position[simulated, CURRENT_INDEX, 2],
    )
