"""Odd scenarios against what Waymo's code says of them (odd.json, by scripts/checks/official_scores.py)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from waymo_open_dataset.protos import scenario_pb2

from data.completeness import Remarks, rounding_error
from data.scene import Scene
from data.womd import RecordError, parse_scenario
from submission.protos import from_proto
from submission.realism import METRIC_FIELDS, load_config, prepare_scene, score, unscorable_reason
from tests.builders import scenario_proto
from tests.submission.realism.odd import CLEARED, COARSE, MENDED, ODD, REFUSED_RECORDS, UNSCORABLE, odd_scenario

OFFICIAL: dict[str, float | str] = json.loads((Path(__file__).parent / "odd.json").read_text())


def parsed(name: str) -> tuple[Scene, Remarks]:
    remarks = Remarks()
    return parse_scenario(odd_scenario(name)[0].SerializeToString(), need_future=True, remarks=remarks), remarks


def scored(name: str, scene: Scene | None = None) -> dict[str, float]:
    rollouts = from_proto(odd_scenario(name)[1], name)
    context = prepare_scene(parsed(name)[0] if scene is None else scene)
    result = score(context, rollouts.agent_id, rollouts.states, load_config("2025"))
    return {field: float(value) for field, value in result.values.items()}


@pytest.mark.parametrize("name", UNSCORABLE)
def test_nothing_is_scored_that_waymos_code_refuses(name: str) -> None:
    # Either an error of its own, or "nan".
    assert isinstance(OFFICIAL[name], str)
    scene, remarks = parsed(name)
    reason = unscorable_reason(scene)
    assert reason is not None
    assert reason.startswith(UNSCORABLE[name][1])
    assert not remarks.found
    if OFFICIAL[name] == "nan":
        assert math.isnan(scored(name)["metametric"])
    else:
        with pytest.raises(ValueError, match="scenario"):
            prepare_scene(scene)


@pytest.mark.parametrize("name", [*MENDED, *COARSE])
def test_nothing_is_lost_that_waymos_code_scores(name: str) -> None:
    values = scored(name)
    assert values["metametric"] == pytest.approx(OFFICIAL[name], abs=1e-6)
    assert all(math.isfinite(values[field]) for field in METRIC_FIELDS)
    scene, remarks = parsed(name)
    assert unscorable_reason(scene) is None
    kind = "rounding" if name in COARSE else MENDED[name][1]
    assert list(remarks.found) == ([] if kind is None else [kind])
    # Nothing behind a reader meets NaN.
    for part in (scene.agents, scene.map, scene.lights):
        for value in vars(part).values():
            assert bool(torch.isfinite(value).all())
    assert bool(torch.isfinite(scene.timestamp).all())


@pytest.mark.parametrize("name", REFUSED_RECORDS)
def test_what_the_metric_reads_must_be_finite(name: str) -> None:
    with pytest.raises(RecordError) as caught:
        parsed(name)
    assert caught.value.code == "not_finite"
    assert REFUSED_RECORDS[name][1] in str(caught.value)


def test_every_scenario_has_been_shown_to_waymos_code() -> None:
    assert list(OFFICIAL) == list(ODD)


@pytest.mark.parametrize("name", CLEARED)
def test_states_that_lie_nowhere_are_cleared(name: str) -> None:
    proto, _ = odd_scenario(name)
    scene, remarks = parsed(name)
    assert not remarks.found
    for state in proto.tracks[0].states:
        if not state.valid:
            state.Clear()
    cleared = parse_scenario(proto.SerializeToString())
    for part, value in vars(scene.agents).items():
        assert torch.equal(value, getattr(cleared.agents, part)), part
    assert scored(name) == scored(name, cleared)


def test_other_values_of_states_that_are_not_valid_are_kept() -> None:
    clean = parse_scenario(scenario_proto().SerializeToString())
    for name, part, column, steps in (
        ("invalid size", "size", 0, [2, 60]),
        ("invalid velocity", "velocity", 1, [2, 60]),
    ):
        scene, _ = parsed(name)
        expected = getattr(clean.agents, part).clone()
        expected[0, steps, column] = 0.0
        assert torch.equal(getattr(scene.agents, part), expected)
        assert torch.equal(scene.agents.position, clean.agents.position)
        assert (~scene.agents.valid[0]).nonzero().flatten().tolist() == steps


@pytest.mark.parametrize(
    ("step", "neighbours", "expected"),
    [(40, (39, 41), 0.2), (0, (0, 1), 0.1), (90, (89, 90), 0.1)],
)
def test_velocities_are_differences_of_positions(step: int, neighbours: tuple[int, int], expected: float) -> None:
    proto = scenario_proto()
    proto.tracks[0].states[step].velocity_x = math.nan
    proto.tracks[0].states[neighbours[1]].center_x += 0.3
    scene = parse_scenario(proto.SerializeToString())
    x = [proto.tracks[0].states[at].center_x for at in neighbours]
    assert float(scene.agents.velocity[0, step, 0]) == pytest.approx((x[1] - x[0]) / expected, abs=0.01)
    assert float(scene.agents.velocity[0, step, 1]) == 0.0


@pytest.mark.parametrize(("seen", "expected"), [((10,), 0.0), ((10, 11), 7.0), ((9, 10), 7.0), ((8, 10, 12), 0.0)])
def test_only_valid_neighbours_give_a_velocity(seen: tuple[int, ...], expected: float) -> None:
    proto = scenario_proto()
    for step, state in enumerate(proto.tracks[2].states):
        if step not in seen:
            state.valid = False
    proto.tracks[2].states[10].velocity_y = math.inf
    velocity = parse_scenario(proto.SerializeToString()).agents.velocity[2, 10].tolist()
    assert velocity == pytest.approx([expected, 0.0], abs=0.01)


def test_lights_without_a_place_are_not_observed() -> None:
    scene, _ = parsed("some stop points")
    observed = scene.lights.observed[0]
    assert observed[2:20].all()
    assert not observed[20:30].any()
    assert observed[30:].all()
    assert not scene.lights.state[0, 20:30].any()


def test_the_size_of_the_rounding_is_that_of_float32() -> None:
    for name in COARSE:
        proto, _ = odd_scenario(name)
        exact = np.array([state.center_x for track in proto.tracks for state in track.states if state.valid])
        worst = np.abs(exact - exact.astype(np.float32).astype(np.float64)).max()
        _, remarks = parsed(name)
        most = remarks.found["rounding"]["most"]
        assert rounding_error(most) / 2 < worst <= rounding_error(most)
        (line,) = remarks.lines("file")
        assert f"float32 rounds by up to {rounding_error(most):.2g} m" in line


@pytest.mark.parametrize(("metres", "said"), [(250_000.0, False), (263_000.0, True), (-263_000.0, True)])
def test_coordinates_are_coarse_from_a_centimetre_on(metres: float, said: bool) -> None:
    def far_point(proto: scenario_pb2.Scenario) -> None:
        proto.map_features[3].crosswalk.polygon[0].y = metres

    def far_state(proto: scenario_pb2.Scenario) -> None:
        proto.tracks[2].states[80].center_x = metres

    def far_invalid(proto: scenario_pb2.Scenario) -> None:
        far_state(proto)
        proto.tracks[2].states[80].valid = False

    changes: list[tuple[Callable[[scenario_pb2.Scenario], None], bool]] = [
        (far_point, said),
        (far_state, said),
        (far_invalid, False),
    ]
    for change, expected in changes:
        proto = scenario_proto()
        change(proto)
        remarks = Remarks()
        parse_scenario(proto.SerializeToString(), remarks=remarks)
        assert ("rounding" in remarks.found) == expected


def test_remarks_of_shards_add_up() -> None:
    first, second = Remarks(), Remarks()
    for number in range(3):
        first.add("rounding", f"a{number}", most=3e5 + number)
    second.add("rounding", "b0", most=5e6)
    second.add("velocity", "b1")
    second.add("rounding", "b2", most=4e6)
    first.merge(json.loads(json.dumps(second.found)))
    rounding, velocity = first.lines("all")
    assert rounding.startswith(
        "all: 5 scenarios have coordinates of up to 5,000,000 m, which float32 rounds by up to"
    )
    assert "0.25 m" in rounding
    assert rounding.endswith("(a0, a1, a2)")
    assert velocity.startswith("all: 1 scenarios have velocities that are NaN or infinite")
