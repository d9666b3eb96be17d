"""Counting against brute force and hand-made drives."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import shapely
import torch

from data.geometry import box_corners
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.drive import Drive
from pipeline.studies.cosimulation.measuring import COUNTS, measure
from pipeline.studies.cosimulation.session import Brake


def _polygons(drive: Drive, step: int) -> np.ndarray:
    size = drive.world.size[0]
    pose = drive.pose[:, step].double()
    return shapely.polygons(box_corners(pose[:, :2], pose[:, 2], size[:, 0], size[:, 1]).numpy())


def test_collisions_are_those_of_polygons(area: Area, straight: Drive) -> None:
    """Constant velocity runs into things, so there is something to count."""
    taken = set(straight.taken.tolist())
    from_start: set[frozenset[int]] = set()
    ended: set[frozenset[int]] = set()
    found: set[frozenset[int]] = set()
    for step in range(straight.pose.shape[1]):
        boxes, there = _polygons(straight, step), straight.present[:, step].numpy()
        rows = np.flatnonzero(there)
        tree = shapely.STRtree(boxes[rows])
        first, second = tree.query(boxes[rows], predicate="intersects")
        now = {frozenset((int(rows[a]), int(rows[b]))) for a, b in zip(first, second) if a != b}
        now = {
            pair for pair in now if pair & taken and shapely.area(shapely.intersection(*boxes[list(pair)])) > 1e-6
        }
        if step == 0:
            from_start = now
        ended |= from_start - now
        found |= {pair for pair in now if pair not in from_start or pair in ended}
    counts = measure(area, straight)
    assert counts["collisions"] == len(found)
    assert counts["collided_vehicles"] == len({row for pair in found for row in pair if row in taken})
    kinds = ("taken", "sumo", "parked", "cyclist", "pedestrian")
    assert sum(counts[f"collisions_{kind}"] for kind in kinds) == counts["collisions"]
    parked = len(area.demand.users)
    assert counts["collisions_parked"] == sum(max(pair) >= parked for pair in found)


def test_sumo_itself_drives_well(area: Area, own: Drive) -> None:
    counts = measure(area, own)
    assert set(counts) == set(COUNTS)
    assert counts["collisions"] == counts["offroad_vehicles"] == counts["wrong_way_seconds"] == 0
    assert counts["vehicles"] == len(own.taken)
    taken = own.taken
    both = own.present[taken, 1:] & own.present[taken, :-1]
    assert counts["seconds"] == pytest.approx(0.1 * float(both.sum()))
    assert counts["metres"] > 0


def _shifted(drive: Drive, metres: float, from_step: int) -> Drive:
    """Taken vehicles jump sideways."""
    pose = drive.pose.clone()
    heading = pose[drive.taken, from_step:, 2]
    side = torch.stack((-heading.sin(), heading.cos()), dim=-1)
    pose[drive.taken, from_step:, :2] += metres * side
    return dataclasses.replace(drive, pose=pose)


def test_who_drives_beside_the_road_is_off_it(area: Area, own: Drive) -> None:
    off = measure(area, _shifted(own, -14.0, 5))
    assert off["offroad_vehicles"] > 0.6 * off["vehicles"]
    assert off["offroad_seconds"] <= 0.1 * (own.pose.shape[1] - 5) * off["vehicles"] + 1e-9
    # From the very start it is nobody's fault.
    assert measure(area, _shifted(own, -14.0, 0))["offroad_vehicles"] < off["offroad_vehicles"]


def test_who_turns_round_drives_against_traffic(area: Area, own: Drive) -> None:
    pose = own.pose.clone()
    pose[own.taken, 5:, 2] += np.pi
    turned = measure(area, dataclasses.replace(own, pose=pose))
    assert turned["wrong_way_seconds"] > 0.5 * turned["seconds"]


@pytest.mark.parametrize(("state", "wanted"), [(4, 1), (6, 0)])
def test_a_stop_point_passed_on_red_counts(area: Area, own: Drive, state: int, wanted: int) -> None:
    line = own.world.stop_line[0, 0]
    steps = own.pose.shape[1]
    way = torch.linspace(-4, 4, steps)
    pose, present = own.pose.clone(), torch.zeros_like(own.present)
    row = int(own.taken[0])
    present[row] = True
    pose[row, :, 0], pose[row, :, 1] = line[0] + way * line[2].cos(), line[1] + way * line[2].sin()
    pose[row, :, 2] = line[2]
    signals = torch.full_like(own.signals, state)
    counts = measure(area, dataclasses.replace(own, pose=pose, present=present, signals=signals))
    # Lanes for different turns begin at one stop point: a vehicle passes it once.
    assert counts["red_lights"] == wanted


def test_brakes_and_collisions_in_sumos_terms(area: Area, own: Drive) -> None:
    mine, other = int(own.taken[0]), next(row for row in range(99) if row not in own.taken.tolist())
    said = (frozenset({(mine, other)}), frozenset({(other, mine)}), frozenset({(other, other + 1)}))
    counts = measure(
        area,
        dataclasses.replace(own, brakes=(Brake(other, mine), Brake(other, -1)), sumo_collisions=said),
    )
    assert counts["hard_brakes"] == 2
    assert counts["hard_brakes_behind_taken"] == 1
    # Once, however often and whoever is called the collider; others are nobody's here.
    assert counts["sumo_says_collisions"] == 1 if other + 1 not in own.taken.tolist() else 2
