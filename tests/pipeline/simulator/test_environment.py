"""Gymnasium's own checker, and what it does not check of many agents at once."""

from __future__ import annotations

import warnings
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from data.errors import UserError
from pipeline.simulator.environment import DrivingEnv, DrivingVectorEnv
from pipeline.simulator.reward import RewardConfig
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW
from tests.pipeline.simulator.test_step import arcs
from tests.scenes import Mover, hand_made


@pytest.fixture(scope="module")
def scenes():
    return [random_scene(0), random_scene(1, agents=2), random_scene(2, agents=4)]


def test_gymnasiums_checker_passes(scenes, vocabulary) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Numbers have no bounds but what a scene allows.
        warnings.filterwarnings("ignore", message=".*infinity.*")
        warnings.filterwarnings("ignore", message=".*Not able to test alternative render modes.*")
        env = DrivingEnv(scenes, vocabulary, VIEW)
        check_env(env, skip_render_check=True)


class Slot(gymnasium.Env):
    """One slot of the vector environment, the others standing still: for a checker that knows single ones."""

    metadata = {"render_modes": []}  # noqa: RUF012

    def __init__(self, env: DrivingVectorEnv) -> None:
        self._env = env
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        seen, info = self._env.reset(seed=seed)
        return self._first(seen), {"scenario_id": str(info["scenario_id"][0])}

    def step(self, action):
        actions = np.zeros(self._env.num_envs, dtype=np.int64)
        actions[0] = action
        seen, reward, terminated, truncated, info = self._env.step(actions)
        last = info["final_obs"][0] if truncated[0] else self._first(seen)
        return last, float(reward[0]), bool(terminated[0]), bool(truncated[0]), {}

    def _first(self, seen):
        return {name: np.int64(value[0]) if value.ndim == 1 else value[0] for name, value in seen.items()}


def test_gymnasiums_checker_passes_for_a_slot_of_many(scenes, vocabulary) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*infinity.*")
        warnings.filterwarnings("ignore", message=".*Not able to test alternative render modes.*")
        check_env(Slot(DrivingVectorEnv(scenes, vocabulary, worlds=2, agents=6, view=VIEW)), skip_render_check=True)


def test_gymnasiums_wrappers_count_episodes(scenes, vocabulary) -> None:
    """Of 8 s each, with what was earned in them; resetting at the boundary loses no step and counts none twice."""
    env = RecordEpisodeStatistics(DrivingVectorEnv(scenes, vocabulary, worlds=2, agents=6, view=VIEW))
    env.reset(seed=3)
    rng = np.random.default_rng(0)
    earned = np.zeros(12)
    for number in range(1, 81):
        _, reward, _, truncated, info = env.step(rng.integers(20, size=12))
        earned += reward
        assert truncated.all() == ("episode" in info) == (number % 40 == 0)
        if truncated.all():
            assert info["episode"]["l"].tolist() == [40] * 12
            np.testing.assert_allclose(info["episode"]["r"], earned, atol=1e-4)
            earned[:] = 0


def rollout(env: DrivingVectorEnv, seed: int, count: int) -> list[Any]:
    seen, info = env.reset(seed=seed)
    rng = np.random.default_rng(seed)
    steps: list[Any] = [(seen, np.zeros(env.num_envs), False, False, info)]
    for _ in range(count):
        steps.append(env.step(rng.integers(20, size=env.num_envs)))
    return steps


def test_many_agents_at_once(scenes, vocabulary) -> None:
    """Spaces, slots, truncation at 8 s and only there, and what was seen at the end."""
    env = DrivingVectorEnv(scenes, vocabulary, worlds=2, agents=6, view=VIEW)
    assert env.num_envs == 12
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    steps = rollout(env, 3, 85)
    for number, (seen, reward, terminated, truncated, info) in enumerate(steps):
        assert env.observation_space.contains(seen)
        if number == 0:
            active = info["active"]
            assert 4 <= int(active.sum()) <= 12
            continue
        assert reward.shape == terminated.shape == truncated.shape == (12,)
        assert not terminated.any()
        assert truncated.all() == (number % 40 == 0)
        assert truncated.any() == truncated.all()
        assert (reward[~active] == 0).all()
        if truncated.all():
            assert set(info["final_obs"][0]) == set(seen)
            assert not np.array_equal(info["final_obs"][0]["ego"], seen["ego"][0])
            active = info["active"]
        assert (seen["ego"][~active] == 0).all()
        assert (np.abs(seen["ego"][active]).sum(-1) > 0).all()


def test_the_same_seed_gives_the_same_episode(scenes, vocabulary) -> None:
    env = DrivingVectorEnv(scenes, vocabulary, worlds=2, agents=6, view=VIEW)
    first, again = rollout(env, 5, 42), rollout(env, 5, 42)
    for one, two in zip(first, again, strict=True):
        for name in one[0]:
            assert np.array_equal(one[0][name], two[0][name]), name
        assert np.array_equal(one[1], two[1])
    assert not np.array_equal(rollout(env, 6, 1)[0][0]["ego"], first[0][0]["ego"])


def test_seen_data_are_not_reused(scenes, vocabulary) -> None:
    env = DrivingVectorEnv(scenes, vocabulary, worlds=1, agents=6, view=VIEW)
    seen, _ = env.reset(seed=0)
    before = {name: value.copy() for name, value in seen.items()}
    env.step(np.full(6, 3))
    assert all(np.array_equal(seen[name], before[name]) for name in seen)


def test_a_collision_is_reported_and_paid() -> None:
    """Two vehicles head on: standing still or going straight decides."""
    head_on = hand_made([Mover(speed=10.0), Mover(x=12.0, heading=np.pi, speed=10.0)])
    words = arcs()
    straight = int(torch.cdist(words.ends[0, :, :2], torch.tensor([[2.0, 0.0]])).argmin())
    env = DrivingVectorEnv([head_on], words, worlds=1, agents=3, reward=RewardConfig(collision=-0.5, goal=0.0))
    env.reset(seed=0)
    _, reward, _, _, info = env.step(np.array([straight, straight, 0]))
    assert reward.tolist() == [0.0, 0.0, 0.0]
    for _ in range(2):
        _, reward, _, _, info = env.step(np.array([straight, straight, 0]))
    assert info["collision"].tolist() == [True, True, False]
    assert reward.tolist() == [-0.5, -0.5, 0.0]


def test_only_the_av_is_driven() -> None:
    """Others replay the log: one who stands in the way of the AV's log is met if the AV keeps going."""
    scene = hand_made([Mover(speed=10.0), Mover(x=500.0, speed=3.0)])
    words = arcs()
    env = DrivingEnv([scene], words, reward=RewardConfig(goal=1.0))
    env.reset(seed=0)
    straight = int(torch.cdist(words.ends[0, :, :2], torch.tensor([[2.0, 0.0]])).argmin())
    earned, over = 0.0, False
    count = 0
    while not over:
        _, reward, terminated, over, _ = env.step(straight)
        assert not terminated
        earned += reward
        count += 1
    assert count == 40
    # It gets where the log ends, once.
    assert earned == pytest.approx(1.0)


def test_wrong_use_is_named(scenes, vocabulary) -> None:
    with pytest.raises(UserError, match="agents=6"):
        DrivingVectorEnv(scenes, vocabulary, agents=3)
    env = DrivingVectorEnv(scenes, vocabulary, worlds=2, agents=6, view=VIEW)
    with pytest.raises(UserError, match="call reset"):
        env.step(np.zeros(12))
    with pytest.raises(UserError, match="expected 2"):
        env.reset(options={"scenes": [0]})
    with pytest.raises(UserError, match="call reset"):
        DrivingEnv(scenes, vocabulary, VIEW).step(0)


def test_what_an_agent_starts_in_is_excused_until_it_ends_and_events_are_paid_once() -> None:
    """Out of one parked car, which is forgiven, and through another, paid when it begins."""
    scene = hand_made([Mover(speed=10.0), Mover(x=-2.0), Mover(x=40.0)])
    reward = RewardConfig(goal=0.0, collision=-0.5, per_event=True)
    env = DrivingVectorEnv([scene], arcs(), worlds=1, agents=3, reward=reward)
    env.reset(seed=0)
    earned, hit = np.zeros(3), []
    for _ in range(39):
        _, paid, _, _, info = env.step(np.array([1, 0, 0]))
        earned += paid
        hit.append(info["collision"].tolist())
    assert earned.tolist() == [-0.5, 0.0, -0.5]
    assert [number for number, flags in enumerate(hit) if flags[0]] == [18, 19, 20, 21]
    assert not any(flags[1] for flags in hit)
