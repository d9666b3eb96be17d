"""What holds for every kind: who is simulated, level 0, determinism, and that agents can do with what they see."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.scene import Scene, generator_for, map_tensors, until_now
from data.scenes_source import open_scenes
from models.reference.agent import ReferenceAgent
from pipeline.agents.agent import Agent
from pipeline.agents.baselines import ConstantVelocity
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.studies.robustness.spoiling import CLEAN, KINDS, Condition, Levels, conditions, spoil
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy

HARSHEST = [Condition(name, min(kind.limit, 45.0)) for name, kind in KINDS.items()]
ids = pytest.mark.parametrize("condition", HARSHEST, ids=lambda condition: condition.kind)


def same(first: Scene, second: Scene) -> bool:
    for part in ("agents", "map", "lights"):
        a, b = getattr(first, part), getattr(second, part)
        if not all(torch.equal(getattr(a, f.name), getattr(b, f.name)) for f in dataclasses.fields(a)):
            return False
    return True


@ids
def test_who_must_be_simulated_stays(condition: Condition) -> None:
    for seed in range(4):
        scene = random_scene(seed, agents=12)
        before = map_tensors(scene, torch.clone)
        seen = spoil(scene, condition, seed=1)
        assert torch.equal(seen.simulated, scene.simulated)
        for name in ("id", "type", "is_sdc", "to_predict", "of_interest"):
            assert torch.equal(getattr(seen.agents, name), getattr(scene.agents, name))
        assert torch.equal(seen.timestamp, scene.timestamp)
        assert seen.scenario_id == scene.scenario_id
        for name in ("position", "heading", "velocity", "size", "valid"):
            assert torch.equal(getattr(seen.agents, name)[:, 11:], getattr(scene.agents, name)[:, 11:])
        assert same(scene, before), "the scene itself is not written to"
        assert not same(seen, scene)


@ids
def test_level_0_is_the_scene_itself(condition: Condition) -> None:
    scene = random_scene(0)
    assert spoil(scene, Condition(condition.kind, 0.0), seed=1) is scene
    assert spoil(scene, Condition(CLEAN, 0.0), seed=1) is scene


@ids
def test_a_function_of_seed_and_scenario_alone(condition: Condition) -> None:
    scene = random_scene(3)
    condition = dataclasses.replace(condition, level=condition.level / 2)
    torch.manual_seed(0)
    first = spoil(scene, condition, seed=1)
    torch.manual_seed(77)
    spoil(random_scene(9), condition, seed=1)
    assert same(first, spoil(scene, condition, seed=1))
    # What nobody is shown has no influence.
    assert same(until_now(first), spoil(until_now(scene), condition, seed=1))
    if condition.kind in ("late_detection", "latency"):
        return  # nothing is drawn
    renamed = [dataclasses.replace(scene, scenario_id=f"another {number}") for number in range(5)]
    assert not all(same(first, spoil(other, condition, seed=1)) for other in renamed)
    assert not all(same(first, spoil(scene, condition, seed=seed)) for seed in range(2, 7))


def test_errors_have_nothing_to_do_with_the_rollouts_randomness() -> None:
    scene = random_scene(3)
    plain = torch.randn(6, 11, 2, generator=generator_for(1, str(scene.scenario_id)))
    error = (spoil(scene, Condition("position_noise", 1.0), 1).agents.position - scene.agents.position)[:, :11, :2]
    seen = scene.agents.valid[:, :11] & ~scene.agents.is_sdc[:, None]
    assert float((error - plain)[seen].abs().mean()) > 0.3


@pytest.fixture(scope="module")
def agents() -> dict[str, Agent]:
    model = make_model(2)
    return {
        "constant_velocity": ConstantVelocity(),
        "reference": ReferenceDriver(ReferenceAgent(model)),
        "policy": PolicyAgent(make_policy(model.vocabulary), model.vocabulary, VIEW),
    }


@ids
def test_agents_run_on_what_they_see(condition: Condition, agents: dict[str, Agent]) -> None:
    scene = random_scene(8)
    seen = spoil(scene, condition, seed=1)
    for agent in agents.values():
        states = agent.rollouts(seen, 2, 0)
        assert states.shape == (2, int(scene.simulated.sum()), 80, 4)
        assert bool(states.isfinite().all())
        assert float(states[..., 3].abs().max()) <= math.pi


@pytest.mark.parametrize("name", ["constant_velocity", "reference", "policy"])
def test_rollouts_start_where_the_spoilt_state_is(name: str, agents: dict[str, Agent]) -> None:
    scene = random_scene(8)
    seen = spoil(scene, Condition("position_bias", 60.0), seed=1)
    first = agents[name].rollouts(seen, 2, 0)[:, :, 0, :2]
    believed, true = (s.agents.position[s.simulated, 10, :2] for s in (seen, scene))
    assert float((first - believed).norm(dim=-1).max()) < 3.0, "a tenth of a second of motion"
    moved = (believed - true).norm(dim=-1) > 10.0
    assert int(moved.sum()) >= 3
    assert float((first - true).norm(dim=-1)[:, moved].min()) > 5.0


@pytest.mark.womd
@ids
def test_agents_run_on_real_scenes(condition: Condition, womd: Path, agents: dict[str, Agent]) -> None:
    scene = open_scenes(womd / "validation")[0]
    seen = spoil(scene, condition, seed=1)
    assert torch.equal(seen.simulated, scene.simulated)
    for agent in agents.values():
        assert bool(agent.rollouts(seen, 1, 0).isfinite().all())


def test_which_conditions() -> None:
    few = Levels(**{name: [] for name in KINDS} | {"latency": [0.3, 0.1, 0.3], "dropped_map": [1.0]})
    assert conditions(few, []) == [
        Condition(CLEAN, 0.0),
        Condition("latency", 0.1),
        Condition("latency", 0.3),
        Condition("dropped_map", 1.0),
    ]
    assert conditions(few, ["dropped_map"]) == [Condition(CLEAN, 0.0), Condition("dropped_map", 1.0)]
    assert {condition.kind for condition in conditions(Levels(), [])} == {CLEAN, *KINDS}


def test_bad_levels_are_named() -> None:
    with pytest.raises(UserError, match=r"--levels.latency 1.5: expected numbers above 0 and up to 1 \(s\)"):
        Levels(latency=[0.1, 1.5])
    for level in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match=r"--levels.heading_bias .*up to 180 \(deg\)"):
            Levels(heading_bias=[level])
    with pytest.raises(UserError, match=r"--kinds latencies: .*did you mean latency\?"):
        conditions(Levels(), ["latencies"])
