"""Networks and demand: all layouts and kinds of road user, roundabouts, lanes and signals in WOMD's terms."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
import shapely
import sumolib
from waymo_open_dataset.protos import map_pb2

from data.scene import LightState
from data.traffic import skeleton as skeleton_module
from data.traffic.demand import BICYCLE, BUS, CAR, MOTORCYCLE, PEDESTRIAN, TRUCK, build_demand
from data.traffic.network import build_network
from data.traffic.roadmap import build_map
from data.traffic.signals import STOP_STATES, signal_lanes
from data.traffic.skeleton import (
    LAYOUTS,
    CrossSection,
    Node,
    Skeleton,
    Street,
    _draw_section,
    _generate,
    _place,
    draw_skeleton,
    with_roundabouts,
)
from data.traffic.sumo import SumoError, run_tool, simulate
from data.traffic.surface import build_surface, is_driving_lane, lane_class
from data.traffic.world import WorldTask, generate_world

SECTION = CrossSection(1, 3.4, 0.0, 0.0, 0.0, 2.0, 11.0, 1)


def crossing(streets: int, kind: str = "priority", section: CrossSection = SECTION) -> Skeleton:
    """Straight streets that meet at one node."""
    nodes = {"c": Node(0.0, 0.0, kind)}
    for arm in range(streets):
        angle = 2 * math.pi * arm / streets
        nodes[f"n{arm}"] = Node(100 * math.cos(angle), 100 * math.sin(angle))
    roads = tuple(Street("c", f"n{arm}", section) for arm in range(streets))
    return Skeleton(nodes, roads)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_build(layout: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    skeleton = draw_skeleton(rng, layout, tmp_path)
    ends = Counter(name for street in skeleton.streets for name in (street.a, street.b))
    assert 1 in ends.values(), "a dead end"
    net = sumolib.net.readNet(str(build_network(rng, skeleton, tmp_path)), withInternal=True)
    kinds = Counter(lane_class(lane) for edge in net.getEdges(withInternal=False) for lane in edge.getLanes())
    assert kinds["driving"] > 10
    assert kinds["sidewalk"] > 10
    assert set(kinds) <= {"driving", "bike", "sidewalk", "parking", "median"}
    users = build_demand(rng, net, 600.0, tmp_path).users.values()
    assert {user.kind for user in users} == {CAR, TRUCK, BUS, MOTORCYCLE, BICYCLE, PEDESTRIAN}
    for user in users:
        assert user.kind.length[0] <= user.length <= user.kind.length[1]


def test_three_streets_are_a_junction_and_two_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for streets, is_junction in ((3, True), (2, False)):
        ends = {f"n{arm}": (150.0 * math.cos(2 * arm), 150.0 * math.sin(2 * arm)) for arm in range(streets)}
        layout = ({"c": (0.0, 0.0), **ends}, [("c", name) for name in ends])
        monkeypatch.setattr(skeleton_module, "_generate", lambda *arguments, layout=layout: layout)
        if is_junction:
            drawn = draw_skeleton(np.random.default_rng(0), "random", tmp_path)
            assert set(ends) < set(drawn.nodes)
        else:
            with pytest.raises(SumoError, match="without a junction"):
                draw_skeleton(np.random.default_rng(0), "random", tmp_path)


def test_same_seed_same_network(tmp_path: Path) -> None:
    files = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        rng = np.random.default_rng(8)
        path = build_network(rng, draw_skeleton(rng, "random", tmp_path / folder), tmp_path / folder)
        # The first lines hold the date and the command.
        files.append(path.read_text().split("-->", 1)[1])
    assert files[0] == files[1]


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> sumolib.net.Net:
    """Four arms with two lanes, a bicycle lane and a pavement each."""
    section = CrossSection(2, 3.4, 0.0, 1.6, 0.0, 2.0, 13.0, 3)
    folder = tmp_path_factory.mktemp("streets")
    path = build_network(np.random.default_rng(5), crossing(4, "priority", section), folder)
    return sumolib.net.readNet(str(path), withInternal=True)


def test_streets_are_as_full_at_the_start_as_the_density_says(streets: sumolib.net.Net, tmp_path: Path) -> None:
    metres = sum(
        lane.getLength()
        for edge in streets.getEdges(withInternal=False)
        for lane in edge.getLanes()
        if is_driving_lane(lane)
    )
    densities = []
    for seed in range(20):
        demand = build_demand(np.random.default_rng(seed), streets, 1.0, tmp_path)
        trips = ElementTree.parse(demand.routes).getroot().iter("trip")
        densities.append(sum(trip.attrib["departPos"] == "random_free" for trip in trips) / metres)
    # Whole vehicles, rounded down, of 0.003 to 0.011 a metre of lane.
    assert min(densities) > 0.003 - 1 / metres
    assert max(densities) <= 0.011
    assert max(densities) - min(densities) > 0.004


def test_drivers_and_walkers_differ_as_people_do(streets: sumolib.net.Net, tmp_path: Path) -> None:
    """Clipped normal distributions have the quantiles of normal ones, clipped."""
    demand = build_demand(np.random.default_rng(2), streets, 7000.0, tmp_path)
    routes = ElementTree.parse(demand.routes).getroot()
    kinds = [kind.attrib for kind in routes.iter("vType")]
    cars = [kind for kind in kinds if kind["vClass"] == "passenger"]
    walkers = [kind for kind in kinds if kind["vClass"] == "pedestrian"]
    assert min(len(cars), len(walkers)) > 200
    # Mean, spread, least and most, in SI units.
    for chosen, name, mean, spread, low, high in (
        (cars, "accel", 2.4, 0.3, 0.6, 3.5),
        (cars, "decel", 3.0, 0.5, 2.0, 4.5),
        (cars, "tau", 1.4, 0.3, 1.0, 2.2),
        (cars, "sigma", 0.25, 0.2, 0.0, 0.6),
        (cars, "minGap", 2.3, 0.6, 1.2, 4.0),
        (cars, "maxSpeed", 55.0, 8.25, 3.0, 60.0),
        (cars, "speedFactor", 1.0, 0.13, 0.65, 1.3),
        (cars, "minGapLat", 0.7, 0.15, 0.4, 1.2),
        (cars, "maxSpeedLat", 0.8, 0.15, 0.4, 1.2),
        (cars, "lcStrategic", 1.2, 0.3, 0.5, 2.0),
        (cars, "lcSpeedGain", 0.8, 0.4, 0.0, 2.0),
        (cars, "jmTimegapMinor", 2.0, 0.5, 1.2, 3.5),
        (walkers, "maxSpeed", 1.4, 0.25, 0.6, 3.2),
        (walkers, "jmCrossingGap", 10.0, 2.0, 6.0, 15.0),
    ):
        values = np.array([float(kind[name]) for kind in chosen])
        assert low <= values.min() <= values.max() <= high, name
        for share in (0.05, 0.5, 0.95):
            expected = float(np.clip(NormalDist(mean, spread).inv_cdf(share), low, high))
            assert np.quantile(values, share) == pytest.approx(expected, abs=0.4 * spread), (name, share)
    waits = [float(stop.attrib["duration"]) for stop in routes.iter("stop")]
    assert 3.0 <= min(waits) < 10.0
    assert 33.0 < max(waits) <= 40.0


def test_the_centre_line_is_painted_between_the_directions(streets: sumolib.net.Net) -> None:
    world = build_map(np.random.default_rng(0), streets, build_surface(streets, shared=False))
    double = map_pb2.RoadLine.TYPE_SOLID_DOUBLE_YELLOW
    lines = [line.points for line in world.lines if line.subtype == double]
    assert len(lines) == 4
    offset = np.array(streets.getLocationOffset())
    for points in lines:
        # Each arm lies on an axis through the node in the middle.
        x, y = np.abs(points - offset).T
        assert min(x.max(), y.max()) < 0.1


def test_turning_and_moving_a_layout_keeps_its_distances() -> None:
    points = {"a": (0.0, 0.0), "b": (120.0, 30.0), "c": (-40.0, 75.0), "d": (10.0, -90.0)}
    placed = _place(np.random.default_rng(7), points, dict.fromkeys(points, 2), jitter=0.0)
    assert math.dist(placed["a"], points["a"]) > 100
    for one in points:
        for other in points:
            expected = math.dist(points[one], points[other])
            assert math.dist(placed[one], placed[other]) == pytest.approx(expected, abs=1e-6)
    (ax, ay), (bx, by), (cx, cy) = (placed[name] for name in "abc")
    assert (bx - ax) * (cy - ay) - (by - ay) * (cx - ax) > 0, "turned, not mirrored"


def test_sections_have_the_lanes_and_limits_of_their_rank() -> None:
    lanes: dict[int, set[int]] = {1: set(), 2: set(), 3: set()}
    limits: dict[tuple[int, bool], set[int]] = {}
    for seed in range(300):
        for brisk in (False, True):
            section = _draw_section(np.random.default_rng(seed), brisk)
            lanes[section.priority].add(section.lanes)
            limits.setdefault((section.priority, brisk), set()).add(round(section.speed / skeleton_module.MPH))
            assert 3.2 <= section.lane_width <= 3.6 + 0.3 * (section.lanes == 1)
    assert lanes == {1: {1}, 2: {1, 2}, 3: {2, 3}}
    assert limits[3, False] == {35, 40, 45}
    assert limits[3, True] == {45, 50, 55}
    assert limits[2, False] == limits[2, True] == {25, 30, 35}
    assert limits[1, False] == limits[1, True] == {15, 25}


@pytest.mark.parametrize(
    ("layout", "ranges"),
    [
        ("grid", {"x-number": (2, 4), "y-number": (2, 3), "x-length": (85, 219), "y-length": (85, 219)}),
        ("spider", {"arm-number": (4, 6), "space-radius": (95, 169)}),
        ("random", {"iterations": (18, 29)}),
    ],
)
def test_layouts_are_as_large_as_towns(
    layout: str, ranges: dict[str, tuple[int, int]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What netgenerate is asked for: values of a range from one end to the other, and no others."""
    asked: list[dict[str, str]] = []
    for name in ("nod", "edg"):
        (tmp_path / f"plain.{name}.xml").write_text("<nothing/>")

    def note(tool: str, arguments: list[str], folder: Path) -> None:
        assert tool == "netgenerate"
        asked.append(dict(zip(arguments[1::2], arguments[2::2], strict=True)))

    monkeypatch.setattr(skeleton_module, "run_tool", note)
    for seed in range(300):
        _generate(np.random.default_rng(seed), layout, tmp_path)
    prefix = {"grid": "--grid", "spider": "--spider", "random": "--rand"}[layout]
    for name, (least, most) in ranges.items():
        values = [int(found[f"{prefix}.{name}"]) for found in asked]
        room = (most - least) // 20
        assert least <= min(values) <= least + room, name
        assert most - room <= max(values) <= most, name


def test_parked_vehicles_stand_in_their_strips(tmp_path: Path) -> None:
    nodes = {"a": Node(0.0, 0.0), "b": Node(200.0, 0.0)}
    section = CrossSection(1, 3.4, 0.0, 0.0, 2.5, 2.0, 11.0, 1)
    net_file = build_network(
        np.random.default_rng(0),
        Skeleton(nodes, (Street("a", "b", section),)),
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
    # Two lanes a way: one may change between them, but not at the crossing.
    between = {map_pb2.RoadLine.TYPE_BROKEN_SINGLE_WHITE, map_pb2.RoadLine.TYPE_SOLID_SINGLE_WHITE}
    assert between <= {line.subtype for line in world.lines}
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
