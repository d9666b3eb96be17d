"""Command ``sumo``: a policy, or a reference, drives vehicles inside SUMO, beside SUMO's own model."""

from __future__ import annotations

import dataclasses
import signal
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from data.errors import UserError
from data.files import read_json, remove_leftovers, sha256_of, write_json
from data.scene import CURRENT_INDEX, STEP_SECONDS, Agents, Scene
from data.traffic.sumo import SumoError, require_sumo
from models.sampling import SamplingConfig
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.drawing.films import write_sheet, write_video
from pipeline.drawing.raster import Panel, SceneRaster, panel_frame
from pipeline.execution.console import bar
from pipeline.execution.devices import Count, find_devices
from pipeline.execution.engine import run_tasks, worker_count
from pipeline.execution.processes import ProcessDied, run_isolated
from pipeline.execution.result_cache import keep_settings
from pipeline.studies.cosimulation.area import Area, build_area
from pipeline.studies.cosimulation.drive import Drive, DriveConfig, drive
from pipeline.studies.cosimulation.drivers import agent_driver, replay_driver, straight_driver
from pipeline.studies.cosimulation.measuring import COUNTS, LABELS, cosimulation_table, measure, summarise
from pipeline.studies.cosimulation.setting import motion_in, signals_of

_RESULT, _SETTINGS, _WORLDS = "cosimulation.json", "settings.json", "worlds"
_VIDEO, _SHEET = "world.mp4", "world.png"
# Networks in a row that SUMO may refuse.
_MOST_ATTEMPTS = 8
# How SUMO's native code ends when it crashes. A process that is killed for lack of memory gets no other network.
_CRASHES = (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS)
# The least warm-up: a second of history, and time for vehicles to be there at all.
_LEAST_WARM_UP = 5.0


@dataclass(frozen=True)
class CosimulationConfig:
    """Worlds in which a policy drives among SUMO's vehicles.

    Args:
        worlds: generated road networks with their traffic.
        seconds: that the policy drives in each.
        warm_up: seconds that SUMO drives alone before.
        share: of the motor vehicles that the policy takes over; SUMO keeps the others, and all cyclists and
            pedestrians.
        temperature: divides the policy's logits; below 1 sharpens.
        top_k: the policy draws among its k likeliest tokens; 0 among all.
        top_p: the policy draws among the likeliest tokens that together have this probability; 1 among all.
        film: number of the world of which a video and a contact sheet are made; -1 for none.
        workers: processes; 0 for one per core; they share the GPUs. Results do not depend on it.
        device: of policy and reference: cpu, cuda, cuda:N, mps, or auto for a GPU where there is one.
        devices: GPUs among whose processes the worlds are dealt out; auto for all of this machine.
    """

    worlds: int = 6
    seconds: float = 30.0
    warm_up: float = 60.0
    share: float = 0.5
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    film: int = 0
    workers: int = 0
    device: str = "auto"
    devices: Count = "auto"

    def __post_init__(self) -> None:
        if self.worlds < 1:
            raise UserError(f"--worlds {self.worlds}: expected 1 or more")
        if self.seconds < 1:
            raise UserError(f"--seconds {self.seconds}: expected 1 or more")
        if self.warm_up < _LEAST_WARM_UP:
            raise UserError(f"--warm_up {self.warm_up}: expected {_LEAST_WARM_UP:g} s or more")
        if not 0 < self.share <= 1:
            raise UserError(f"--share {self.share}: expected a number above 0 and up to 1")
        if not -1 <= self.film < self.worlds:
            raise UserError(f"--film {self.film}: expected one of the {self.worlds} worlds, from 0 on, or -1")


@dataclass(frozen=True)
class _Task:
    """One world."""

    config: CosimulationConfig
    policy: Path
    reference: Path | None
    out: Path
    seed: int
    world: int

    @property
    def result(self) -> Path:
        return self.out / _WORLDS / f"{self.world:04d}.json"

    @property
    def draft(self) -> Path:
        return self.out / _WORLDS / f".{self.world:04d}.draft"


def _drive_all(task: _Task, area: Area) -> dict[str, Drive]:
    """A world driven by everyone, from the same moment and with the same vehicles."""
    config = task.config
    sampling = SamplingConfig(config.temperature, config.top_k, config.top_p)
    agent = PolicyAgent.from_checkpoint(task.policy, sampling, config.device)
    steps = agent.token_steps
    decisions = -(-round(config.seconds / STEP_SECONDS) // steps)
    how = DriveConfig(decisions * steps, round(config.warm_up / STEP_SECONDS), config.share, task.seed)
    own = drive(area, how, None)
    drivers = {
        "replay": replay_driver(own.pose, own.present, own.world.origin[0], steps),
        "policy": agent_driver(area, agent, task.seed),
        "constant_velocity": straight_driver(area, steps),
    }
    if task.reference is not None:
        reference = ReferenceDriver.from_checkpoint(task.reference, sampling, config.device)
        drivers["reference"] = agent_driver(area, reference, task.seed)
    return {"sumo": own, **{name: drive(area, how, driver) for name, driver in drivers.items()}}


def _run_world(task: _Task) -> None:
    """Simulate and measure one world, and write what came of it. A network that SUMO refuses, or on which it
    crashes, is followed by another one."""
    refusals: list[str] = []
    while len(refusals) < _MOST_ATTEMPTS:
        attempt = len(refusals)
        try:
            refusal = run_isolated(partial(_attempt, task, attempt)).value
        except ProcessDied as error:
            if error.exit_code not in _CRASHES:
                raise
            refusal = f"SUMO crashed ({signal.Signals(-error.exit_code).name})"
        if refusal is None:
            write_json(task.result, {**read_json(task.draft), "refusals": refusals})
            task.draft.unlink()
            return
        refusals.append(refusal)
    raise UserError(
        f"world {task.world}, seed {task.seed}: SUMO refused {_MOST_ATTEMPTS} networks, last: {refusals[-1]}"
    )


def _attempt(task: _Task, attempt: int) -> str | None:
    """One network: writes the draft of the result, or says why SUMO refused it."""
    config = task.config
    seconds = config.warm_up + config.seconds + 1
    with tempfile.TemporaryDirectory() as folder:
        try:
            area = build_area(task.seed, task.world, attempt, seconds, Path(folder))
            drives = _drive_all(task, area)
        except SumoError as error:
            return str(error)
    if config.film == task.world:
        shown = {name: found for name, found in drives.items() if name != "replay"}
        write_pictures(area, shown, task.out / _VIDEO, task.out / _SHEET)
    write_json(
        task.draft,
        {
            "area": area.name,
            "largest_deviation_m": max(found.deviation for found in drives.values()),
            "drivers": {name: measure(area, found) for name, found in drives.items()},
        },
    )
    return None


def _finished(task: _Task) -> bool:
    """Whether a world is done; what is no result of this version is made again."""
    if not task.result.is_file():
        return False
    try:
        drivers = read_json(task.result)["drivers"]
        complete = all(set(sums) == set(COUNTS) for sums in drivers.values())
    except (ValueError, KeyError, TypeError, AttributeError):
        complete = False
    pictured = task.config.film != task.world or all((task.out / name).is_file() for name in (_VIDEO, _SHEET))
    return complete and pictured


def run_cosimulation(
    config: CosimulationConfig, *, policy: Path, out: Path, seed: int = 0, reference: Path | None = None
) -> dict[str, Any]:
    """Let a policy drive inside SUMO, and compare it with SUMO's own model on the same vehicles.

    Writes ``cosimulation.json``, ``worlds/NUMBER.json``, and a video and a contact sheet of one world. A run that
    was stopped goes on with the worlds that are missing.

    Args:
        config: how many worlds, for how long. policy: checkpoint of the policy. out: folder of the results.
        seed: of networks, traffic, choice of vehicles and tokens; the same seed gives the same results.
        reference: checkpoint of a reference that drives the same vehicles for comparison.

    Raises:
        UserError: SUMO is missing, no such checkpoint, or ``out`` holds results of other settings.
    """
    require_sumo()
    devices = find_devices(config.device, count=config.devices)
    config = dataclasses.replace(config, device=devices.name)
    PolicyAgent.from_checkpoint(policy)
    settings = {"seed": seed, "policy": sha256_of(policy), **dataclasses.asdict(config)}
    if reference is not None:
        ReferenceDriver.from_checkpoint(reference)
        settings["reference"] = sha256_of(reference)
        reference = reference.absolute()
    del settings["workers"], settings["devices"]
    out.mkdir(parents=True, exist_ok=True)
    keep_settings(out / _SETTINGS, settings, "results of a co-simulation")
    for folder in (out, out / _WORLDS):
        remove_leftovers(folder)
    tasks = [
        _Task(config, policy.absolute(), reference, out.absolute(), seed, world) for world in range(config.worlds)
    ]
    missing = [task for task in tasks if not _finished(task)]
    workers = worker_count(config.workers)
    devices.tell("sumo", processes=min(workers, max(1, len(missing))))
    with bar("sumo", len(tasks), " worlds", initial=len(tasks) - len(missing)) as progress:
        for _ in run_tasks(_run_world, missing, workers, gpus=devices.dealt):
            progress.update()
    found = [read_json(task.result) for task in tasks]
    summary = summarise([world["drivers"] for world in found], seed)
    deviation = max(world["largest_deviation_m"] for world in found)
    refused = sum(len(world["refusals"]) for world in found)
    write_json(
        out / _RESULT,
        {
            "settings": settings,
            "networks_refused": refused,
            "largest_deviation_m": deviation,
            "drivers": summary,
        },
    )
    print(cosimulation_table(summary))
    return {
        "worlds": len(found),
        "networks_refused": refused,
        "vehicles": summary["policy"]["sums"]["vehicles"],
        "largest_deviation_m": deviation,
        **{f"policy_{name}": rate["value"] for name, rate in summary["policy"].items() if name != "sums"},
    }


# Metres from the middle of a picture to its side.
_RADIUS = 50.0
_VIDEO_SIZE, _SHEET_SIZE = 480, 320
_SHEET_COLUMNS = 5


def drive_scene(area: Area, drive: Drive) -> Scene:
    """A drive with the second before it as a ``Scene`` of 11 + T steps, whose log it is; vehicles that were taken
    count as AVs."""
    behind = slice(1, None)
    before, there = motion_in(drive.world, drive.before)
    pose = torch.cat((before, drive.pose[:, behind]), dim=1)
    valid = torch.cat((there, drive.present[:, behind]), dim=1)
    steps, world = pose.shape[1], drive.world
    size, height = world.size[0], world.height[0]
    step = (pose[:, 1:, :2] - pose[:, :-1, :2]) / STEP_SECONDS
    known = (valid[:, 1:] & valid[:, :-1]).unsqueeze(-1)
    velocity = torch.nn.functional.pad(torch.where(known, step, 0.0), (0, 0, 1, 0))
    taken = torch.zeros(len(pose), dtype=torch.bool)
    taken[drive.taken] = True
    nothing = torch.zeros_like(taken)
    position = torch.cat((pose[..., :2] + world.origin[0], height.view(-1, 1, 1).expand(-1, steps, 1)), dim=-1)
    earlier = torch.from_numpy(np.stack([frame.signals for frame in drive.before], axis=1))
    state = torch.cat((earlier, drive.signals[:, behind]), dim=1)
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
            to_predict=nothing,
            of_interest=nothing,
        ),
        lights=signals_of(area, state),
    )


def _middle(drive: Drive) -> NDArray[np.float64]:
    """Where most taken vehicles come by, global."""
    place = drive.pose[drive.taken, :: round(1 / STEP_SECONDS), :2].flatten(0, 1)
    place = place[drive.present[drive.taken, :: round(1 / STEP_SECONDS)].flatten()]
    near = (torch.cdist(place, place) < 0.7 * _RADIUS).sum(-1)
    return (place[int(near.argmax())].double() + drive.world.origin[0]).numpy()


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
