"""Networks and demand: all layouts and kinds of road user, roundabouts, lanes and signals in WOMD's terms."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import shapely
import sumolib

from data.scene import LightState
from data.traffic.demand import BICYCLE, BUS, CAR, MOTORCYCLE, PEDESTRIAN, TRUCK, build_demand
from data.traffic.network import build_network
from data.traffic.roadmap import build_map
from data.traffic.roundabout import with_roundabouts
from data.traffic.signals import STOP_STATES, signal_lanes
from data.traffic.simulate import simulate
from data.traffic.skeleton import LAYOUTS, CrossSection, Node, Skeleton, Street, draw_skeleton
from data.traffic.sumo import SumoError, run_tool
from data.traffic.surface import build_surface, lane_class
from data.traffic.world import WorldTask, generate_world

SECTION = CrossSection(1, 3.4, 0.0, 0.0, 0.0, 2.0, 11.0, 1)


def crossing(streets: int, kind: str = "priority", section: CrossSection = SECTION) -> Skeleton:
    """Straight streets that meet at one node."""
    nodes = {"c": Node(0.0, 0.0, kind)}
    for arm in range(streets):
        angle = 2 * math.pi * arm / streets
        nodes[f"n{arm}"] = Node(100 * math.cos(angle), 100 * math.sin(angle))
    roads = tuple(Street("c", f"n{arm}", section) for arm in range(streets))
    return Skeleton("test", nodes, roads, frozenset(nodes) - {"c"})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_build(layout: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    skeleton = draw_skeleton(rng, layout, tmp_path)
    assert skeleton.fringe
    net = sumolib.net.readNet(str(build_network(rng, skeleton, tmp_path)), withInternal=True)
    kinds = Counter(lane_class(lane) for edge in net.getEdges(withInternal=False) for lane in edge.getLanes())
    assert kinds["driving"] > 10
    assert kinds["sidewalk"] > 10
    assert set(kinds) <= {"driving", "bike", "sidewalk", "parking", "median"}
    users = build_demand(rng, net, 600.0, tmp_path).users.values()
    assert {user.kind for user in users} == {CAR, TRUCK, BUS, MOTORCYCLE, BICYCLE, PEDESTRIAN}
    for user in users:
        assert user.kind.length[0] <= user.length <= user.kind.length[1]


def test_same_seed_same_network(tmp_path: Path) -> None:
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        rng = np.random.default_rng(8)
        path = build_network(rng, draw_skeleton(rng, "random", tmp_path / folder), tmp_path / folder)
        # The first lines hold the date and the command.
        files.append(path.read_text().split("-->", 1)[1])
    assert files[0] == files[1]


def test_parked_vehicles_stand_in_their_strips(tmp_path: Path) -> None:
    nodes = {"a": Node(0.0, 0.0), "b": Node(200.0, 0.0)}
    section = CrossSection(1, 3.4, 0.0, 0.0, 2.5, 2.0, 11.0, 1)
    net_file = build_network(
        np.random.default_rng(0),
        Skeleton("test", nodes, (Street("a", "b", section),), frozenset(nodes)),
        tmp_path,
    )
    net = sumolib.net.readNet(str(net_file), withInternal=True)
    parked = build_demand(np.random.default_rng(0), net, 1.0, tmp_path).parked
    assert len(parked) > 10
    for vehicle in parked:
        # Right-hand traffic: the eastbound strip lies south of the centre line, behind one lane.
        side = -1 if abs(vehicle.heading) < 0.5 else 1
        assert side * vehicle.y == pytest.approx(3.4 + 1.25, abs=0.35)


@pytest.mark.parametrize("arms", [3, 4])
def test_roundabout_runs_counter_clockwise_around_an_island(arms: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    skeleton = with_roundabouts(rng, crossing(arms), 1.0)
    assert "c" not in skeleton.nodes
    ring = [street for street in skeleton.streets if street.one_way]
    assert len(ring) == arms
    for street in ring:
        a, b = skeleton.nodes[street.a], skeleton.nodes[street.b]
        assert a.x * b.y - a.y * b.x > 0
        for x, y in street.shape:
            assert math.hypot(x, y) == pytest.approx(math.hypot(a.x, a.y))
    net = sumolib.net.readNet(str(build_network(rng, skeleton, tmp_path)), withInternal=True)
    assert len(net.getRoundabouts()) == 1
    surface = build_surface(net, shared=False)
    assert not surface.road.contains(shapely.Point(0, 0)), "the island is no road"
    world = build_map(rng, net, surface)
    assert any(np.hypot(*line.points.T).max() < 20 for line in world.edges), "the island has an edge of its own"


def test_a_small_crossing_keeps_its_kind() -> None:
    two = with_roundabouts(np.random.default_rng(0), crossing(2), 1.0)
    assert two.nodes.keys() == crossing(2).nodes.keys()


def test_vehicles_obey_the_signals_of_their_lane(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    section = CrossSection(2, 3.4, 0.0, 1.6, 0.0, 2.0, 13.0, 3)
    network = build_network(rng, crossing(4, "traffic_light", section), tmp_path)
    net = sumolib.net.readNet(str(network), withInternal=True)
    demand = build_demand(rng, net, 160.0, tmp_path)
    record = simulate(network, demand, 100, 1500, seed=1)
    world = build_map(rng, net, build_surface(net, shared=False))
    crossings: Counter[bool] = Counter()
    shown: set[int] = set()
    for signal in signal_lanes(net, world, record.signals):
        start, following = world.lanes[signal.lane].points[:2]
        direction = (following - start) / np.linalg.norm(following - start)
        relative = record.front - signal.stop_point
        along, across = relative @ direction, relative @ np.array([-direction[1], direction[0]])
        facing = np.cos(record.heading - math.atan2(direction[1], direction[0])) > 0.9
        passes = (along[:, :-1] < 0) & (along[:, 1:] >= 0) & (np.abs(across[:, 1:]) < 0.9) & facing[:, 1:]
        crossings.update(np.isin(signal.state[1:], STOP_STATES)[np.nonzero(passes)[1]].tolist())
        shown |= set(signal.state.tolist())
    assert crossings[False] > 30
    # Bicycles beside a turning lane may pass within reach of its signal.
    assert crossings[True] <= 0.03 * crossings[False]
    assert {LightState.STOP, LightState.GO, LightState.CAUTION} <= shown


def test_world_depends_on_nothing_but_its_task(tmp_path: Path) -> None:
    task = WorldTask(seed=11, split="training", world=2, first=0, scenes=1, radius=100.0, warm_up=10.0)
    first, counts = generate_world(task, tmp_path)
    generate_world(WorldTask(12, "training", 1, 0, 1, 100.0, 10.0), tmp_path)
    second, again = generate_world(task, tmp_path)
    assert first == second
    assert counts == again
    assert counts["scenes"] == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_refusing_tool_is_an_error_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(SumoError, match="netconvert failed"):
        run_tool("netconvert", ["--node-files", "missing.xml"], tmp_path)
