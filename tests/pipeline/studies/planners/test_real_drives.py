"""Real scenes: what people drove scores full marks, and their logs run into an AV that brakes."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import torch

from data.scene import Scene, until_now
from data.scenes_source import open_scenes
from data.tokenizer import scene_origin
from pipeline.studies.planners.drive_record import Drive, logged_drive
from pipeline.studies.planners.interface import Mission, Situation
from pipeline.studies.planners.manoeuvres import MANOEUVRES, find_follower
from pipeline.studies.planners.reactivity import measure
from pipeline.studies.planners.route import Route
from pipeline.studies.planners.scores import SCORE_NAMES, score_drives


def driven_route(drive: Drive) -> Route:
    """Where the AV drove, a point a metre."""
    path = drive.ego_pose[0, :, :2].double().numpy()
    point = [path[0]]
    for place in path:
        if np.linalg.norm(place - point[-1]) > 1.0:
            point.append(place)
    if len(point) < 3:
        heading = float(drive.ego_pose[0, 0, 2])
        point = [path[0] + ahead * np.array([np.cos(heading), np.sin(heading)]) for ahead in (0.0, 1.0, 2.0)]
    line = np.stack(point)
    step = np.gradient(line, axis=0)
    distance = np.concatenate(([0.0], np.cumsum(np.linalg.norm(np.diff(line, axis=0), axis=1))))
    return Route(line, np.unwrap(np.arctan2(step[:, 1], step[:, 0])), distance, np.zeros(len(line)))


def now(drive: Drive) -> Situation:
    return Situation(
        step=0,
        pose=drive.pose[0, :, 0].double().numpy(),
        velocity=drive.velocity[0, :, 0].double().numpy(),
        size=drive.sizes[:, :2].double().numpy(),
        type=np.zeros(len(drive.sizes), dtype=np.int64),
        present=drive.present[0, :, 0].numpy(),
        acceleration=0.0,
        yaw_rate=0.0,
        stop_line=np.zeros((0, 3)),
        red=np.zeros(0, dtype=np.bool_),
    )


def braking(scene: Scene, drive: Drive, origin: torch.Tensor, route: Route) -> Drive:
    mission = Mission(until_now(scene), origin.double().numpy(), drive.ego, route, np.zeros((80, 3)))
    plan = MANOEUVRES["hard_brake"](mission).plan(now(drive))
    pose = drive.pose.clone()
    pose[0, drive.ego, 1:] = torch.from_numpy(plan.pose).float()  # type: ignore[union-attr]
    return dataclasses.replace(drive, pose=pose)


def test_logs_score_one_and_their_followers_do_not_mind_a_braking_av(womd) -> None:
    rear_ends, comforts = [], []
    for scene in itertools.islice(open_scenes(womd, "validation"), 13):
        origin = scene_origin(scene)
        drive = logged_drive(scene, origin)
        route = driven_route(drive)
        values = score_drives(drive, scene, origin, route).values
        assert all(values[name].tolist() == [1.0] for name in SCORE_NAMES), scene.scenario_id
        follower = find_follower(scene, origin)
        if follower is not None:
            brakes = braking(scene, drive, origin, route)
            result = score_drives(brakes, scene, origin, route)
            rear_ends.append(float(measure(brakes, result.collisions, follower).false_rear_end))
            comforts.append(float(result.values["comfort"]))
    assert len(rear_ends) > 2
    assert np.mean(rear_ends) > 0.5
    assert np.mean(comforts) < 0.5
