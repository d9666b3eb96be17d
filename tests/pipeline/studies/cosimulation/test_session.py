"""SUMO while it runs: what is read is what the recorder reads, and who is put somewhere is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from data.traffic.signals import STOP_STATES
from data.traffic.sumo import SumoError, box_pose, simulate
from pipeline.studies.cosimulation.area import Area
from pipeline.studies.cosimulation.session import open_session

WARM_UP, STEPS = 100, 11


def test_frames_are_what_the_recorder_of_generated_traffic_records(area: Area) -> None:
    record = simulate(area.network, area.demand, WARM_UP, STEPS, area.sumo_seed)
    with open_session(area) as session:
        for _ in range(WARM_UP):
            session.step()
        frames = []
        for _ in range(STEPS):
            session.step()
            frames.append(session.frame())
    rows = [area.rows[name] for name in record.names]
    count = len(area.demand.users)
    for step, frame in enumerate(frames):
        there = ~np.isnan(record.front[:, step, 0])
        assert set(np.flatnonzero(frame.present[:count])) == {rows[index] for index in np.flatnonzero(there)}
        wanted = box_pose(record.front[there, step], np.zeros(there.sum()), np.zeros(there.sum()))
        mine = frame.pose[np.array(rows)[there]]
        heading = record.heading[there, step]
        ahead = area.lengths[np.array(rows)[there], None] / 2 * np.stack((np.cos(heading), np.sin(heading)), -1)
        np.testing.assert_allclose(mine[:, :2] + ahead, wanted[:, :2], atol=1e-9)
        np.testing.assert_allclose(np.cos(mine[:, 2] - heading), 1.0, atol=1e-12)
        for link, state in zip(area.links, frame.signals):
            letter = record.signals[link.controller][step][link.index]
            assert (state in STOP_STATES) == (letter in "ru")
    assert frames[0].present[count:].all(), "the parked ones are always there"


def test_a_vehicle_is_where_it_was_put(area: Area) -> None:
    rng = np.random.default_rng(0)
    with open_session(area) as session:
        for _ in range(WARM_UP):
            session.step()
        frame = session.frame()
        rows = np.flatnonzero(frame.present & area.motorised)[:6]
        poses = frame.pose[rows]
        for _ in range(10):
            poses = poses + np.column_stack((rng.normal(0, 0.3, (len(rows), 2)), rng.normal(0, 0.05, len(rows))))
            for row, pose in zip(rows, poses):
                session.move(int(row), pose, 3.0)
            session.step()
            frame = session.frame()
            assert frame.present[rows].all()
            assert np.abs(frame.pose[rows, :2] - poses[:, :2]).max() < 0.01
            assert np.cos(frame.pose[rows, 2] - poses[:, 2]).min() > 1 - 1e-9
        session.remove(int(rows[0]))
        session.step()
        assert not session.frame().present[rows[0]]


def test_a_wall_makes_followers_brake(area: Area) -> None:
    with open_session(area) as session:
        for _ in range(WARM_UP):
            session.step()
        before = session.frame()
        session.step()
        frame = session.frame()
        speed = np.hypot(*(frame.pose[:, :2] - before.pose[:, :2]).T) * 10
        fast = np.flatnonzero(frame.present & before.present & area.motorised & (speed > 5))
        assert len(fast) > 3
        moved = np.zeros(len(area.users), dtype=bool)
        moved[fast[::2]] = True
        braked = []
        for _ in range(30):
            for row in np.flatnonzero(moved):
                session.move(int(row), frame.pose[row], 0.0)  # stops dead, as no vehicle can
            session.step()
            braked += session.brakes(moved)
    assert not {brake.row for brake in braked} & set(np.flatnonzero(moved)), "those moved do not count"
    for brake in braked:
        assert area.motorised[brake.row]


def test_an_unknown_network_is_an_error_of_sumo(area: Area) -> None:
    lost = dataclasses.replace(area, network=Path("/nowhere/world.net.xml"))
    with pytest.raises(SumoError, match="simulation failed"), open_session(lost):
        pass
