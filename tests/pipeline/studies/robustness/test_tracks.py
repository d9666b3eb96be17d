"""Errors of sensors against the figures they are said to have, and what is missing against a plain loop."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from data.geometry import wrap_angle
from data.scene import Scene
from pipeline.studies.robustness import spoiling
from tests.models.scenes import random_scene
from tests.scenes import Mover, hand_made

NOW, HISTORY = 10, 11


def generator(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def crowd() -> Scene:
    """Enough agents that a standard deviation is known to a few per cent; near the origin, where nothing rounds."""
    return random_scene(1, agents=1500, origin=(0.0, 0.0))


def sensed(scene: Scene) -> Tensor:
    """[A, H] bool, written down anew: valid, and not the AV's."""
    return scene.agents.valid[:, :HISTORY] & ~scene.agents.is_sdc[:, None]


def steady(errors: Tensor, shown: Tensor) -> Tensor:
    """Errors [n, H, ...] of the tracks that are seen at every step."""
    return errors[shown.all(-1)]


@pytest.mark.parametrize("metres", [0.1, 2.0])
def test_position_noise_is_white_and_as_large_as_stated(crowd: Scene, metres: float) -> None:
    after = spoiling.position_noise(crowd, metres, generator()).agents.position
    error = steady((after - crowd.agents.position)[:, :HISTORY], sensed(crowd))
    assert torch.equal(error[..., 2], torch.zeros_like(error[..., 2])), "motion is planar"
    assert float(error[..., :2].std()) == pytest.approx(metres, rel=0.02)
    assert float(error[..., :2].mean()) == pytest.approx(0.0, abs=0.02 * metres)
    for lag in (1, 5):
        together = (error[:, lag:, :2] * error[:, :-lag, :2]).mean() / metres**2
        assert float(together) == pytest.approx(0.0, abs=0.03)
    assert float((error[..., 0] * error[..., 1]).mean()) == pytest.approx(0.0, abs=0.03 * metres**2)


def test_position_bias_is_constant_for_each_track(crowd: Scene) -> None:
    after = spoiling.position_bias(crowd, 0.7, generator()).agents.position
    error = (after - crowd.agents.position)[:, :HISTORY, :2]
    shown = sensed(crowd)
    whole = steady(error, shown)
    torch.testing.assert_close(whole, whole[:, :1].expand_as(whole), atol=1e-4, rtol=0)
    assert float(whole[:, 0].std()) == pytest.approx(0.7, rel=0.06)


@pytest.mark.parametrize(("function", "constant"), [(spoiling.heading_noise, False), (spoiling.heading_bias, True)])
def test_headings_are_off_by_so_many_degrees_and_stay_wrapped(crowd: Scene, function, constant: bool) -> None:
    after = function(crowd, 20.0, generator()).agents.heading
    assert float(after.min()) >= -math.pi
    assert float(after.max()) < math.pi
    error = steady(wrap_angle(after - crowd.agents.heading)[:, :HISTORY], sensed(crowd)).rad2deg()
    assert float(error.std()) == pytest.approx(20.0, rel=0.06 if constant else 0.02)
    spread = float((error - error[:, :1]).abs().max())
    assert spread < 1e-2 if constant else spread > 20


def test_a_heading_at_the_seam_is_wrapped() -> None:
    scene = hand_made([Mover(), *(Mover(x=9.0 * n, heading=math.pi - 1e-3) for n in range(1, 40))])
    after = spoiling.heading_noise(scene, 30.0, generator()).agents.heading[1:, :HISTORY]
    assert bool((after < 0).any()), "half of them cross the seam"
    assert float(after.max()) < math.pi


def test_velocities_and_sizes(crowd: Scene) -> None:
    after = spoiling.velocity_noise(crowd, 0.4, generator()).agents.velocity
    error = steady((after - crowd.agents.velocity)[:, :HISTORY], sensed(crowd))
    assert float(error.std()) == pytest.approx(0.4, rel=0.02)
    size = spoiling.size_noise(crowd, 0.2, generator()).agents.size
    assert bool((size[crowd.agents.valid] > 0).all())
    ratio = steady((size / crowd.agents.size).log()[:, :HISTORY], sensed(crowd))
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), atol=1e-5, rtol=0)
    assert float(ratio[:, 0].std()) == pytest.approx(0.2, rel=0.06)
    assert float((ratio[:, 0, 0] * ratio[:, 0, 1]).mean()) == pytest.approx(0.0, abs=0.01)


NOISE = {
    spoiling.position_noise: "position",
    spoiling.position_bias: "position",
    spoiling.heading_noise: "heading",
    spoiling.heading_bias: "heading",
    spoiling.velocity_noise: "velocity",
    spoiling.size_noise: "size",
}


@pytest.mark.parametrize("function", NOISE, ids=lambda function: function.__name__)
def test_what_no_sensor_gave_is_left_alone(function) -> None:
    scene = random_scene(4)
    after = function(scene, 0.5, generator())
    untouched = torch.ones_like(scene.agents.valid)
    untouched[:, :HISTORY] = ~sensed(scene)
    for field in dataclasses.fields(scene.agents):
        old, new = getattr(scene.agents, field.name), getattr(after.agents, field.name)
        if field.name != NOISE[function]:
            assert torch.equal(old, new), field.name
            continue
        assert torch.equal(old[untouched], new[untouched])
        changed = (old != new)[~untouched].view(int((~untouched).sum()), -1).any(-1)
        assert bool(changed.all()), "and everything else is off"


def test_a_higher_level_is_more_of_the_same(crowd: Scene) -> None:
    low, high = (spoiling.position_noise(crowd, level, generator()).agents.position for level in (0.5, 1.5))
    torch.testing.assert_close(3 * (low - crowd.agents.position), high - crowd.agents.position, atol=2e-4, rtol=0)
    few, many = (spoiling.drop_detections(crowd, level, generator()).agents.valid for level in (0.2, 0.6))
    assert bool((many <= few).all())


def test_dropped_detections(crowd: Scene) -> None:
    after = spoiling.drop_detections(crowd, 0.3, generator()).agents
    before, shown = crowd.agents, sensed(crowd)
    assert torch.equal(after.valid[:, NOW:], before.valid[:, NOW:])
    assert torch.equal(after.valid[before.is_sdc], before.valid[before.is_sdc])
    lost = (before.valid & ~after.valid)[:, :NOW]
    assert float(lost[shown[:, :NOW]].float().mean()) == pytest.approx(0.3, abs=0.02)
    gone = before.valid & ~after.valid
    for name in ("position", "heading", "velocity", "size"):
        old, new = getattr(before, name), getattr(after, name)
        assert not new[gone].any(), "nothing of a lost state is left"
        assert torch.equal(old[~gone], new[~gone])


@pytest.mark.parametrize(("seconds", "first"), [(0.1, 1), (0.3, 3), (0.5, 5), (1.0, 10)])
def test_late_tracks_begin_so_much_later(seconds: float, first: int) -> None:
    scene = random_scene(2)
    after = spoiling.shorten_history(scene, seconds, generator()).agents.valid
    for agent in range(len(after)):
        for step in range(after.shape[1]):
            kept = step >= first or bool(scene.agents.is_sdc[agent])
            assert bool(after[agent, step]) == (bool(scene.agents.valid[agent, step]) and kept)


@pytest.mark.parametrize("late", [1, 3, 7, 10])
def test_what_is_late_is_carried_on_from_where_it_was_last_seen(late: int) -> None:
    scene = random_scene(6)
    agents = scene.agents
    valid = agents.valid.clone()
    valid[4, 1:9] = False
    valid[5, 3:9] = False
    scene = dataclasses.replace(scene, agents=dataclasses.replace(agents, valid=valid))
    after = spoiling.delay(scene, late / 10, generator()).agents
    assert torch.equal(after.valid, valid)
    for agent in range(len(valid)):
        for step in range(valid.shape[1]):
            known = [s for s in range(NOW - late + 1) if valid[agent, s]]
            fresh = step > NOW or step <= NOW - late or not valid[agent, step]
            if fresh or not known or bool(agents.is_sdc[agent]):
                expected, at = agents.position[agent, step], step
            else:
                at = known[-1]
                ahead = 0.1 * (step - at) * agents.velocity[agent, at]
                expected = agents.position[agent, at] + torch.cat((ahead, torch.zeros(1)))
            torch.testing.assert_close(after.position[agent, step], expected, atol=1e-3, rtol=0)
            for name in ("heading", "velocity", "size"):
                assert torch.equal(getattr(after, name)[agent, step], getattr(agents, name)[agent, at]), name


def test_at_constant_velocity_latency_costs_nothing() -> None:
    scene = hand_made([Mover(), Mover(x=20.0, heading=0.5, speed=8.0)])
    after = spoiling.delay(scene, 0.5, generator()).agents.position
    torch.testing.assert_close(after, scene.agents.position, atol=1e-4, rtol=0)
