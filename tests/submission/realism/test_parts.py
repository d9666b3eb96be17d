"""Parts of the metric against brute force written straight from its description."""

from __future__ import annotations

import math

import numpy as np
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.scene import LightState, MapKind, RoadMap
from data.womd import parse_scenario
from submission.realism import COMPONENTS, load_config, prepare_scene, score
from submission.realism.config import BUCKETS, Component, Histogram, config_path, parse_config
from submission.realism.estimators import log_likelihoods
from submission.realism.objects import Boxes, nearest_object_distance, time_to_collision
from submission.realism.red_light import prepare_signals, violations
from submission.realism.road_edge import prepare_edges, signed_distance
from submission.realism.score import buckets
from tests.builders import scenario_proto
from tests.scenes import Mover, Signal, hand_made

SHIPPED = config_path("2025").read_text()


def edge_map(polylines: list[np.ndarray]) -> RoadMap:
    """A map of road edges alone."""
    points = torch.from_numpy(np.concatenate(polylines).astype(np.float32))
    owner = torch.cat([torch.full((len(line),), index) for index, line in enumerate(polylines)])
    count = len(polylines)
    nothing = torch.zeros(0, dtype=torch.int64)
    return RoadMap(
        point=points,
        point_feature=owner,
        feature_id=torch.arange(count),
        kind=torch.full((count,), int(MapKind.ROAD_EDGE)),
        subtype=torch.ones(count, dtype=torch.int64),
        speed_limit=torch.zeros(count),
        interpolating=torch.zeros(count, dtype=torch.bool),
        link_source=nothing,
        link_kind=nothing,
        link_target=nothing,
    )


def brute_force_distance(point: np.ndarray, polylines: list[np.ndarray]) -> float:
    """Signed distance of one point, segment by segment (wosac metric, map features).

    In float32 like the metric: at the seam of a closed edge two segments are equally near, on different sides.
    """
    longest = max(len(line) for line in polylines)
    best, result = math.inf, 0.0
    for line in polylines:
        closed = ((line[0] - line[-1]) ** 2).sum() < 1.0 and len(line) == longest
        direction = line[1:] - line[:-1]
        to_point = point - line[:-1]
        side = np.sign(to_point[:, 0] * direction[:, 1] - to_point[:, 1] * direction[:, 0])
        for index in range(len(direction)):
            d, p = direction[index], to_point[index]
            squared = d[0] * d[0] + d[1] * d[1]
            t = (p[0] * d[0] + p[1] * d[1]) / squared if squared else np.float32(0.0)
            x, y, z = p - d * np.clip(t, np.float32(0.0), np.float32(1.0))
            z = z * np.float32(3.0)
            rank = np.sqrt(x * x + y * y + z * z)
            if rank >= best:
                continue
            best, sign = rank, side[index]
            before = index - 1 if index else (len(direction) - 1 if closed else None)
            after = index + 1 if index + 1 < len(direction) else (0 if closed else None)
            for beyond, first, second in ((t < 0, before, index), (t > 1, index, after)):
                if beyond and first is not None and second is not None:
                    other = first if second == index else second
                    a, b = direction[first], direction[second]
                    left = a[0] * b[1] - a[1] * b[0] > 0
                    sign = max(sign, side[other]) if left else min(sign, side[other])
            result = float(sign * np.sqrt(x * x + y * y))
    return result


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_road_edge_equals_brute_force(seed: int) -> None:
    rng = np.random.default_rng(seed)
    polylines = []
    for _ in range(rng.integers(1, 5)):
        count = int(rng.integers(2, 12))
        # Two levels of road, steep pieces among them, and sometimes a closed edge.
        line = np.cumsum(rng.normal(scale=6, size=(count, 3)) * [1, 1, 0.3], axis=0)
        line += rng.uniform(-30, 30, 3) * [1, 1, 0] + [0, 0, rng.choice([0.0, 6.0])]
        if count > 3 and rng.random() < 0.4:
            line[-1] = line[0]
        polylines.append(line.astype(np.float32))
    points = (rng.uniform(-40, 40, size=(40, 3)) * [1, 1, 0.15]).astype(np.float32)
    found = signed_distance(torch.from_numpy(points), prepare_edges(edge_map(polylines)))
    expected = [brute_force_distance(point, polylines) for point in points]
    assert np.allclose(found.numpy(), expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_nearest_object_equals_shapely(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = 9
    position = torch.from_numpy(rng.uniform(-12, 12, size=(1, count, 1, 3)).astype(np.float32))
    heading = torch.from_numpy(rng.uniform(-3, 3, size=(1, count, 1)).astype(np.float32))
    size = torch.from_numpy(rng.uniform(0.5, 6, size=(count, 3)).astype(np.float32))
    boxes = Boxes(position, heading, size, torch.ones(count, 1, dtype=torch.bool))
    found = nearest_object_distance(boxes, count)[0, :, 0].numpy()
    shrink = 0.35 * size[:, :2].amin(1).double().numpy()
    cores = []
    for row in range(count):
        half = (size[row, :2].double().numpy() - 2 * shrink[row]) / 2
        box = shapely.affinity.rotate(
            shapely.box(*-half, *half), float(heading[0, row, 0]), (0, 0), use_radians=True
        )
        cores.append(shapely.affinity.translate(box, *position[0, row, 0, :2].double().tolist()))
    for row in range(count):
        gaps = [
            shapely.distance(cores[row], cores[other]) - shrink[row] - shrink[other]
            for other in range(count)
            if other != row
        ]
        overlapping = any(cores[row].intersects(cores[other]) for other in range(count) if other != row)
        if overlapping:
            assert found[row] < 0
        else:
            assert found[row] == pytest.approx(min(gaps), abs=1e-4)


@pytest.mark.parametrize(
    ("turn", "overlap", "followed"),
    [
        (0.0, 0.1, True),
        (0.0, -0.1, False),
        (9.9, 0.3, True),
        (10.1, 0.3, False),
        (10.1, 0.6, True),
        (-74.9, 0.6, True),
        (75.1, 0.6, False),
        (180.0, 0.6, False),
    ],
)
def test_who_follows_whom(turn: float, overlap: float, followed: bool) -> None:
    """At 10 m/s towards somebody at rest, turned by some degrees and reaching into the way by some metres."""
    angle = math.radians(turn)
    # Half extents of the other box along and across the way.
    along = 2.0 * abs(math.cos(angle)) + 1.0 * abs(math.sin(angle))
    across = 2.0 * abs(math.sin(angle)) + 1.0 * abs(math.cos(angle))
    position = torch.zeros(1, 2, 1, 3)
    position[0, 1, 0, :2] = torch.tensor([20.0, 1.0 + across - overlap])
    heading = torch.tensor([0.0, angle]).view(1, 2, 1)
    boxes = Boxes(
        position, heading, torch.tensor([[4.0, 2.0, 1.5]]).repeat(2, 1), torch.ones(2, 1, dtype=torch.bool)
    )
    speed = torch.tensor([10.0, 0.0]).view(1, 2, 1)
    found = float(time_to_collision(boxes, speed, 1, wrap_yaw=False))
    assert found == pytest.approx((20.0 - 2.0 - along) / 10.0 if followed else 5.0, abs=1e-5)


def component(bins: int = 5, **flags: bool) -> Component:
    return Component(Histogram(0.0, 10.0, bins, 0.1), 1.0, **flags)


def test_histogram_edges_outliers_and_nan() -> None:
    # Bins of 2: 0 and 1.99 fall in the first, 2 in the second, 10, 11 and NaN in the last.
    sim = torch.tensor([[[0.0, 1.99, 2.0, 10.0, 11.0, math.nan, -5.0, 5.0]]])
    log = torch.tensor([[0.5, 2.0, 4.0, 9.0, -1.0, 12.0, math.nan, 6.0]])
    counts = np.array([3, 1, 1, 0, 3])
    expected = np.log((counts + 0.1) / (counts + 0.1).sum())
    found = log_likelihoods([(log, sim, component(independent_timesteps=True))])[0]
    assert np.allclose(found[0].numpy(), expected[[0, 1, 2, 4, 0, 4, 4, 3]], atol=1e-6)
    dropped = log_likelihoods([(log, sim, component(independent_timesteps=True))], drop_nan=True)[0]
    fewer = counts - [0, 0, 0, 0, 1]
    assert float(dropped[0, 3]) == pytest.approx(math.log((fewer[4] + 0.1) / (fewer.sum() + 0.5)), abs=1e-6)


def test_grouping_of_samples() -> None:
    rng = np.random.default_rng(0)
    sim = torch.from_numpy(rng.uniform(0, 10, size=(7, 3, 4)).astype(np.float32))
    log = torch.from_numpy(rng.uniform(0, 10, size=(3, 4)).astype(np.float32))
    for independent in (False, True):
        for aggregate in (False, True):
            grouped = component(independent_timesteps=independent, aggregate_objects=aggregate)
            (found,) = log_likelihoods([(log, sim, grouped)])
            for agent in range(3):
                for step in range(4):
                    rows = slice(None) if aggregate else slice(agent, agent + 1)
                    columns = slice(None) if independent else slice(step, step + 1)
                    counts, _ = np.histogram(sim[:, rows, columns].numpy(), bins=5, range=(0, 10))
                    own = counts[int(log[agent, step] // 2)] + 0.1
                    expected = math.log(own / (counts.sum() + 0.5))
                    assert float(found[agent, step]) == pytest.approx(expected, abs=1e-6)


def test_red_light_is_seen_only_at_red() -> None:
    for state, expected in ((4, 1.0), (1, 1.0), (6, 0.0), (7, 0.0)):
        proto = scenario_proto(agents=1)
        for step, dynamic in enumerate(proto.dynamic_map_states):
            for lane_state in dynamic.lane_states:
                lane_state.state = state if step >= 2 else 0
        scene = parse_scenario(proto.SerializeToString())
        context = prepare_scene(scene)
        states = torch.zeros(2, 1, 80, 4)
        # Over the stop point at x = 4038, on the lane.
        states[..., 0] = torch.linspace(4010, 4060, 80)
        states[..., 1], states[..., 2] = -2500.0, 1.5
        result = score(context, scene.agents.id, states, load_config("2025"))
        assert float(result.values["simulated_traffic_light_violation_rate"]) == expected, state


@pytest.mark.parametrize(("points_beside", "seen"), [(11, True), (10, False)])
def test_only_the_longest_lane_has_no_phantom(points_beside: int, seen: bool) -> None:
    """A red light is run where the neighbouring lane ends: its phantom segment would be nearer than the own lane.

    The neighbour ends at (10, 0); the signal's lane has a point at (9, 1.5). The longest lane has 11 points.
    """
    last = points_beside - 1
    beside = [(10.0 - 10.0 * (last - index), 0.0) for index in range(points_beside)]
    own = [(9.0, 1.5), (30.0, 1.5), (60.0, 1.5)]
    elsewhere = [(1000.0 + index, 1000.0) for index in range(11)]
    signal = Signal(1, (10.5, 1.5), [LightState.STOP] * 91)
    lanes = [(MapKind.LANE, line) for line in (beside, own, elsewhere)]
    scene = hand_made([Mover()], lanes, [signal])
    scene.map.subtype[:] = 2
    position = torch.stack((torch.linspace(9.0, 11.57, 91), torch.full((91,), 0.3)), dim=-1).view(1, 1, 91, 2)
    found = violations(position, torch.ones(1, 91, dtype=torch.bool), prepare_signals(scene), 11)
    assert bool(found.any()) == seen


def test_weights_sum_to_one() -> None:
    for year in ("2025", "2024", "2025_scenario_gen"):
        assert sum(load_config(year).weights.values()) == pytest.approx(1.0, abs=1e-6)
    assert set(load_config("2025").weights) == set(COMPONENTS)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("linear_speed {\n histogram { min_val: 0 ", "^file: 2:"),
        ("speed { }", 'no field named "speed"'),
        ("linear_speed { kernel_density { } }", 'no field named "kernel_density"'),
        ("", "field linear_speed is missing"),
        (SHIPPED.replace("min_val: 0.0", "min_val: 90.0", 1), "linear_speed: expected min_val < max_val"),
        (SHIPPED.replace("num_bins: 10", "num_bins: -10", 1), "num_bins: expected a positive whole number"),
        (SHIPPED.replace("bernoulli", "histogram", 1), "expected the estimator bernoulli, found histogram"),
    ],
)
def test_bad_configurations(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_config(text, "file")
    with pytest.raises(UserError, match="cannot be read"):
        load_config("2031")


def test_the_objects_that_are_wrong_are_named() -> None:
    """Those of one list alone, not those of both."""
    scene = parse_scenario(scenario_proto(agents=3).SerializeToString())
    context = prepare_scene(scene)
    states = torch.zeros(2, 3, 80, 4)
    with pytest.raises(ValueError, match=r"wrong set of objects, first \[99, 114\]$"):
        score(context, torch.tensor([107, 100, 99]), states, load_config("2025"))


def test_buckets_are_weighted_means_of_their_likelihoods() -> None:
    config = load_config("2025")
    metrics = {f"{name}_likelihood": 0.1 + 0.05 * number for number, name in enumerate(COMPONENTS)}
    found = buckets({**metrics, "metametric": 0.77}, config)
    assert found.pop("realism_meta_metric") == 0.77
    assert set(found) == set(BUCKETS)
    for bucket, names in BUCKETS.items():
        weights = [config.weights[name] for name in names]
        mean = np.average([metrics[f"{name}_likelihood"] for name in names], weights=weights)
        assert found[bucket] == pytest.approx(mean)
