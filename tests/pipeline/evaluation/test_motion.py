"""How agents move beside the log: against plain loops, and what must hold whatever the scene."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from scipy.signal import savgol_coeffs
from torch import Tensor

from data.geometry import rotate
from data.scene import CURRENT_INDEX, AgentType, Scene
from data.vocabulary import Vocabulary
from pipeline.evaluation.motion import FIGURES, SECONDS, motion_figures, motion_intervals, motion_sums
from pipeline.evaluation.statistics import rate, ratio_intervals
from pipeline.simulator.world import build_world
from tests.models.scenes import random_scene
from tests.scenes import Mover, hand_made
from tests.transformations import move

RATIOS = (*(f"speed_ratio_{second}s" for second in SECONDS), "progress_ratio")
# Agents 2 and 3 of these scenes are missing for a while and at the end.
SEEDS = (0, 3, 8)


def log_of(scene: Scene) -> Tensor:
    """[1, A, 80, 4] what was recorded of the simulated agents; nonsense where nothing was."""
    agents, future = scene.agents, slice(CURRENT_INDEX + 1, None)
    states = torch.cat((agents.position, agents.heading[..., None]), dim=-1)[scene.simulated, future]
    return torch.where(agents.valid[scene.simulated, future, None], states, 7e4).unsqueeze(0)


def start_of(scene: Scene) -> Tensor:
    """[1, A, 1, 4] where the simulated agents are now."""
    agents = scene.agents
    now = torch.cat((agents.position, agents.heading[..., None]), dim=-1)[scene.simulated, CURRENT_INDEX]
    return now[None, :, None]


def figures(scene: Scene, states: Tensor) -> dict[str, float]:
    return motion_figures([motion_sums(scene, scene.agents.id[scene.simulated], states)])


def hidden(scene: Scene, agent: int, first: int) -> Scene:
    """The scene with an agent missing from a step on, where the record says NaN."""
    agents = scene.agents
    valid, position = agents.valid.clone(), agents.position.clone()
    valid[agent, first:] = False
    position[agent, first:] = math.nan
    return dataclasses.replace(scene, agents=dataclasses.replace(agents, valid=valid, position=position))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_log_is_as_fast_as_itself(seed: int) -> None:
    scene = hidden(random_scene(seed, agents=8), 4, 50)
    found = figures(scene, log_of(scene).expand(3, -1, -1, -1))
    assert set(found) == set(FIGURES)
    for name in RATIOS:
        assert found[name] == pytest.approx(1.0, abs=1e-12), name
    for name in ("standing", "progress_m", "jerk_mps3"):
        assert found[name] == pytest.approx(found[f"log_{name}"], abs=1e-12), name
    assert found["progress_m"] > 5


def test_shares_of_the_log_are_the_logs() -> None:
    """Of four that move one has stopped, one creeps and one is a little too fast to stand; the fifth is parked."""
    speeds = (5.0, 5.0, 0.51, 0.49, 0.0)
    scene = hand_made([Mover(x=30.0 * number, speed=speed) for number, speed in enumerate(speeds)])
    position = scene.agents.position.clone()
    position[1, 40:, :2] = position[1, 40, :2]
    scene = dataclasses.replace(scene, agents=dataclasses.replace(scene.agents, position=position))
    found = figures(scene, log_of(scene))
    assert found["log_standing"] == found["standing"] == 0.5
    assert found["log_progress_m"] == pytest.approx((40.0 + 15.0 + 8 * 0.51 + 8 * 0.49) / 4, rel=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_who_stands_has_no_speed(seed: int) -> None:
    scene = random_scene(seed, agents=8)
    found = figures(scene, start_of(scene).expand(2, -1, 80, -1))
    assert {found[name] for name in (*RATIOS, "progress_m")} == {0.0}
    assert found["jerk_mps3"] == pytest.approx(0.0, abs=1e-6)
    assert found["standing"] == 1.0
    assert found["log_standing"] < 0.5


@pytest.mark.parametrize("seed", SEEDS)
def test_double_speed_is_twice_the_log(seed: int) -> None:
    scene = random_scene(seed, agents=8)
    known = figures(scene, log_of(scene))
    found = figures(scene, start_of(scene) + 2 * (log_of(scene) - start_of(scene)))
    for name in RATIOS:
        assert found[name] == pytest.approx(2.0, rel=1e-3), name
    assert found["jerk_mps3"] == pytest.approx(2 * known["jerk_mps3"], rel=1e-2)


@pytest.mark.parametrize("angle", [0.7, math.pi / 2, -2.4])
def test_figures_do_not_depend_on_the_frame(angle: float) -> None:
    """Positions are float32, 700 m away after the turn; jerk is what rounding disturbs most."""
    offset = (-300.0, 650.0)
    scene = random_scene(5, agents=8)
    states = start_of(scene) + torch.linspace(0.4, 1.3, 3).view(3, 1, 1, 1) * (log_of(scene) - start_of(scene))
    turned = states.clone()
    plane = states[..., :2].double()
    turned[..., :2] = (rotate(plane, torch.full_like(plane[..., 0], angle)) + torch.tensor(offset)).float()
    before, after = figures(scene, states), figures(move(scene, angle, offset), turned)
    for name, value in before.items():
        assert after[name] == pytest.approx(value, rel=1e-2, abs=1e-2 if "jerk" in name else 1e-4), name


def test_who_is_missing_in_the_log_counts_on_neither_side() -> None:
    """Agent 0 is recorded for 3 s: it counts after 2 s, and whatever it does later changes nothing."""
    scene = random_scene(1, agents=6)
    short = hidden(scene, 0, CURRENT_INDEX + 31)
    states = log_of(scene)
    states[0, 0, 30:, :2] += 50.0 * torch.arange(50)[:, None]
    ids = scene.agents.id[scene.simulated]
    whole, part = motion_sums(scene, ids, states), motion_sums(short, ids, states)
    assert part["speed_2s"] == pytest.approx(whole["speed_2s"])
    assert part["agents"] == whole["agents"]
    assert part["agents_8s"] == whole["agents_8s"] - 1
    # Windows of 15 positions among 31, instead of 81.
    assert part["windows"] == whole["windows"] - 67 + 17
    found = motion_figures([part])
    for name in RATIOS:
        assert found[name] == pytest.approx(1.0), name
    assert found["jerk_mps3"] == pytest.approx(found["log_jerk_mps3"])
    assert motion_figures([whole])["speed_ratio_8s"] > 2


def test_agents_that_move_are_those_of_the_world(vocabulary: Vocabulary) -> None:
    """Whatever parked ones do, and in whatever order the agents are named."""
    still = [Mover(x=20.0 * number, y=30.0, speed=speed) for number, speed in enumerate((0.0, 0.024, 0.026, 3.0))]
    scene = hand_made(still)
    moves = build_world(scene, vocabulary, 8).moves[0]
    assert moves.tolist() == [False, False, True, True]
    ids, states = scene.agents.id[scene.simulated], log_of(scene)
    sums = motion_sums(scene, ids, states)
    assert sums["agents"] == 2
    assert sums["log_progress"] == pytest.approx(8 * 3.026, rel=1e-3)
    wild = states + torch.where(moves, 0.0, 1.0).view(1, -1, 1, 1) * torch.randn(1, 4, 80, 4)
    order = torch.tensor([2, 0, 3, 1])
    assert motion_sums(scene, ids[order], wild[:, order]) == sums


def test_types_that_do_not_count_are_left_out() -> None:
    scene = random_scene(2, agents=8)
    ids, states = scene.agents.id[scene.simulated], log_of(scene)
    every = motion_sums(scene, ids, states)
    vehicle, others = AgentType.VEHICLE, (AgentType.PEDESTRIAN, AgentType.CYCLIST, AgentType.OTHER)
    parts = [motion_sums(scene, ids, states, types) for types in ((vehicle,), others)]
    assert all(part["agents"] for part in parts)
    for name, value in every.items():
        assert parts[0][name] + parts[1][name] == pytest.approx(value), name


def test_sums_are_those_of_plain_loops() -> None:
    """Jerk by scipy's filter in every window."""
    scene = random_scene(6, agents=7)
    generator = torch.Generator().manual_seed(2)
    states = log_of(scene) + torch.randn(3, len(log_of(scene)[0]), 80, 4, generator=generator).cumsum(2) * 0.02
    agents = scene.agents
    kernel = savgol_coeffs(15, 3, deriv=3, delta=0.1, use="dot")
    expected = dict.fromkeys(("speed_4s", "standing", "progress", "jerk", "agents_8s", "agents", "windows"), 0.0)
    for row, agent in enumerate(scene.simulated.nonzero().flatten().tolist()):
        valid = agents.valid[agent, CURRENT_INDEX:].tolist()
        seen = agents.position[agent, agents.valid[agent]]
        if float((seen[-1, :2] - agents.position[agent, CURRENT_INDEX, :2]).norm()) <= 0.2:
            continue
        expected["agents"] += 1
        expected["agents_8s"] += valid[80] and valid[79]
        expected["windows"] += sum(all(valid[first : first + 15]) for first in range(67))
        for rollout in range(3):
            path = torch.cat(
                (agents.position[agent, CURRENT_INDEX, :2][None], states[rollout, row, :, :2])
            ).double()
            step = [math.dist(path[t], path[t - 1]) for t in range(1, 81)]
            expected["speed_4s"] += (valid[40] and valid[39]) * step[39] / 0.1 / 3
            expected["standing"] += (valid[80] and valid[79] and step[79] < 0.05) / 3
            expected["progress"] += sum(step[t - 1] for t in range(1, 81) if valid[t] and valid[t - 1]) / 3
            for first in range(67):
                if all(valid[first : first + 15]):
                    x, y = (float(path[first : first + 15, axis] @ kernel) for axis in (0, 1))
                    expected["jerk"] += math.hypot(x, y) / 3
    found = motion_sums(scene, agents.id[scene.simulated], states)
    assert expected["agents_8s"] < expected["agents"]
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-3), name


def test_jerk_of_a_cubic_is_its_third_derivative() -> None:
    """0.1 t^3 along 3-4-5: 0.6 m/s^3; a scene without a future has no figures."""
    scene = hand_made([Mover(speed=2.0)])
    time = 0.1 * torch.arange(1, 81).double()
    states = start_of(scene).repeat(1, 1, 80, 1)
    states[..., :2] += ((0.1 * time**3)[:, None] * torch.tensor([0.6, 0.8])).float()
    assert figures(scene, states)["jerk_mps3"] == pytest.approx(0.6, abs=0.01)
    alone = random_scene(0, steps=CURRENT_INDEX + 1)
    assert figures(alone, start_of(alone).expand(2, -1, 80, -1)) == {}


def test_figures_of_scenes_are_ratios_of_sums() -> None:
    """Not means of ratios; with the intervals that ``rate`` gives for one figure alone."""
    scenes = [random_scene(seed, agents=4 + seed) for seed in range(6)]
    rows = [
        motion_sums(
            scene,
            scene.agents.id[scene.simulated],
            start_of(scene) + (0.3 + 0.1 * n) * (log_of(scene) - start_of(scene)),
        )
        for n, scene in enumerate(scenes)
    ]
    found, intervals = motion_figures(rows), motion_intervals(rows, seed=4)
    top, bottom = (torch.tensor([row[name] for row in rows]).double() for name in ("speed_8s", "log_speed_8s"))
    assert found["speed_ratio_8s"] == pytest.approx(float(top.sum() / bottom.sum()))
    expected = rate(top.numpy(), bottom.numpy(), seed=4)
    assert intervals["speed_ratio_8s"] == pytest.approx((expected.low, expected.high))
    assert intervals["speed_ratio_8s"][0] < found["speed_ratio_8s"] < intervals["speed_ratio_8s"][1]
    nothing = dict.fromkeys(rows[0], 0.0)
    assert motion_figures([*rows, nothing]) == found
    assert motion_figures([nothing]) == motion_intervals([nothing]) == {}
    bounds = ratio_intervals([rows[0], nothing, nothing, nothing], {"ratio": ("speed_8s", "log_speed_8s")})
    assert math.isfinite(bounds["ratio"][0])
