"""What an episode holds, what is learnt from, and that padding is not part of either."""

from __future__ import annotations

import copy
import dataclasses
import math
import time
from functools import partial

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from data.scene import AgentType, MapKind
from models.policy import Policy, PolicyConfig
from pipeline.execution.devices import Clock
from pipeline.selfplay.anchor import ReferenceScorer
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.learner import Learner
from pipeline.selfplay.ppo import Shard, minibatches
from pipeline.selfplay.rollout import Executed, Rollout, Scorer, act, collect, drive, finish, start
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import feature_sizes
from pipeline.simulator.reward import RewardConfig
from pipeline.simulator.world import World, build_world, stack_worlds, with_empty_agent
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW
from tests.pipeline.simulator.test_observation import garbage
from tests.pipeline.simulator.test_step import arcs
from tests.scenes import Mover, hand_made

PLAIN = PPOConfig(minibatch=256, beta=0.0)


def collected(policy, vocabulary, world, config: PPOConfig = PLAIN, score: Scorer | None = None) -> Rollout:
    uniform = torch.rand(42, *world.types.shape, generator=torch.Generator().manual_seed(9))
    return collect(policy, Simulator(vocabulary, VIEW), world, score, config, uniform)


@pytest.mark.parametrize("value", [5.0, math.nan])
def test_garbage_in_padding_changes_no_episode_and_no_loss(policy, vocabulary, value: float) -> None:
    scenes = [random_scene(0), random_scene(1, agents=2), random_scene(2, agents=4)]
    batch = stack_worlds([build_world(scene, vocabulary, VIEW.road_segments) for scene in scenes])
    clean = collected(policy, vocabulary, batch)
    dirty = collected(policy, vocabulary, garbage(batch, value))
    assert clean.transitions == 40 * (6 + 2 + 4)
    for name, total in clean.sums.items():
        assert torch.equal(total, dirty.sums[name]), name
    for name, tensor in vars(clean.observations).items():
        assert torch.equal(tensor, getattr(dirty.observations, name)), name
    for name in ("actions", "logprobs", "values", "rewards"):
        assert torch.equal(getattr(clean, name), getattr(dirty, name)), name


@pytest.mark.parametrize("vehicles_only", [False, True])
def test_garbage_in_padding_changes_no_anchored_loss(policy, vocabulary, reference, vehicles_only: bool) -> None:
    """Numbers, token ids, types and flags of empty slots: not what the reference says, not a step of learning."""
    scenes = [random_scene(0), random_scene(1, agents=2), random_scene(2, agents=4)]
    batch = stack_worlds([build_world(scene, vocabulary, VIEW.road_segments) for scene in scenes])
    empty = ~batch.exists
    assert int(empty.sum()) == 6
    generator = torch.Generator().manual_seed(11)

    def spoilt(tensor: Tensor, most: int) -> Tensor:
        other = torch.randint(most, tensor.shape, generator=generator).to(tensor.dtype)
        return torch.where(empty.view(*empty.shape, *(1,) * (tensor.dim() - 2)), other, tensor)

    dirty = dataclasses.replace(
        garbage(batch, 7.0),
        types=spoilt(batch.types, 3),
        moves=spoilt(batch.moves, 2),
        history_ids=spoilt(batch.history_ids, vocabulary.size),
        log_ids=spoilt(batch.log_ids, vocabulary.size),
        history_valid=spoilt(batch.history_valid, 2),
        log_valid=spoilt(batch.log_valid, 2),
    )
    assert not torch.equal(dirty.history_ids, batch.history_ids)
    config = PPOConfig(minibatch=128, epochs=2, beta=0.5, alpha=0.01, vehicles_only=vehicles_only)
    found = []
    for world in (batch, dirty):
        score = partial(ReferenceScorer(reference, scenes.__getitem__).scores, range(3), world)
        episode = collected(policy, vocabulary, world, config, score)
        student = copy.deepcopy(policy).train()
        learner = Learner(Fabric(accelerator="cpu", devices=1), student, config)
        torch.manual_seed(0)
        figures = learner.update(episode, torch.Generator().manual_seed(0))
        found.append((episode, figures, student.state_dict()))
    (clean, figures, weights), (other, same, moved) = found
    assert clean.covered.any()
    assert figures["kl"] > 0
    assert torch.equal(clean.rewards, other.rewards)
    assert clean.log_reference is not None
    assert other.log_reference is not None
    assert torch.equal(clean.log_reference, other.log_reference)
    assert figures == same
    for name, weight in weights.items():
        assert torch.equal(weight, moved[name]), name
    # And there was a step.
    assert any(not torch.equal(weight, policy.state_dict()[name]) for name, weight in weights.items())


def test_an_episode_is_made_of_its_decisions(policy, vocabulary) -> None:
    """Log-probabilities are those of the policy, and the reward of the reference is alpha times its own."""
    batch = stack_worlds([build_world(random_scene(seed), vocabulary, VIEW.road_segments) for seed in (0, 3)])
    fixed = torch.randn(vocabulary.size, generator=torch.Generator().manual_seed(1)).mul(9).log_softmax(-1)
    calls = []

    def score(driven: Executed) -> Tensor:
        calls.append((driven.tokens.shape, driven.poses.shape, driven.present.shape))
        return fixed.expand(driven.tokens.shape[-1], len(driven.agent_index[0]), -1)

    plain = collected(policy, vocabulary, batch, PLAIN, score)
    paid = collected(policy, vocabulary, batch, dataclasses.replace(PLAIN, alpha=0.1), score)
    assert calls[0] == ((2, 6, 40), (2, 6, 41, 3), (2, 6, 41))
    with torch.no_grad():
        logits, value = policy(*(vars(plain.observations)[name] for name in vars(plain.observations)))
    log_prob = logits.log_softmax(-1).gather(-1, plain.actions.flatten()[:, None]).view_as(plain.actions)
    torch.testing.assert_close(plain.logprobs, log_prob, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.values[:-1].flatten(), value, atol=1e-5, rtol=0)
    assert torch.equal(paid.actions, plain.actions)
    expected = 0.1 * fixed[plain.actions].clamp(min=-20.0)
    torch.testing.assert_close(paid.rewards - plain.rewards, expected, atol=1e-5, rtol=0)
    assert plain.covered.all()


def test_parked_agents_are_driven_but_not_all_learnt_from(policy, vocabulary) -> None:
    scene = hand_made([Mover(speed=4.0), Mover(x=30.0), Mover(x=60.0), Mover(x=90.0, speed=3.0), Mover(x=120.0)])
    batch = stack_worlds([build_world(scene, vocabulary, VIEW.road_segments)] * 30)
    whole = collected(policy, vocabulary, batch)
    part = collected(policy, vocabulary, batch, dataclasses.replace(PLAIN, parked_share=0.4))
    assert whole.agent_steps == part.agent_steps == whole.transitions == 40 * 150
    assert 40 * (60 + 22) < part.transitions < 40 * (60 + 50)
    none = collected(policy, vocabulary, batch, dataclasses.replace(PLAIN, parked_share=0.0))
    moving = batch.moves[batch.exists].nonzero().flatten()
    assert torch.equal(none.learnt, moving)
    assert torch.equal(none.actions, whole.actions)
    # Of the same agents goals are hidden or not.
    uniform = torch.rand(42, *batch.types.shape, generator=torch.Generator().manual_seed(9))
    hidden = (uniform[-2] < 0.4)[batch.exists]
    parked = ~batch.moves[batch.exists]
    learnt = torch.zeros_like(parked).index_fill(0, part.learnt % len(parked), True)
    for kind in (hidden, ~hidden):
        assert 0 < int(learnt[parked & kind].sum()) < int((parked & kind).sum())
    shard = Shard(Fabric(accelerator="cpu", devices=1), none)
    rows, real = shard.rows(torch.arange(shard.transitions).unsqueeze(0))
    assert bool(real.all())
    assert torch.equal(rows[0], (torch.arange(40)[:, None] * 150 + moving).flatten())
    for name, total in whole.sums.items():
        assert torch.equal(total, none.sums[name]), name


def test_what_the_reference_says_of_those_learnt_from_is_kept(policy, vocabulary) -> None:
    """For each decision and agent other numbers; parked agents are left out."""
    scene = hand_made([Mover(speed=4.0), Mover(x=30.0), Mover(x=60.0), Mover(x=90.0, speed=3.0), Mover(x=120.0)])
    world = build_world(scene, vocabulary, VIEW.road_segments)
    said: list[Tensor] = []

    def score(driven: Executed) -> Tensor:
        shape = (driven.tokens.shape[-1], len(driven.agent_index[0]), vocabulary.size)
        said.append(torch.randn(shape, generator=torch.Generator().manual_seed(1)).log_softmax(-1))
        said[-1][7, 3] = math.nan
        return said[-1]

    episode = collected(policy, vocabulary, world, dataclasses.replace(PLAIN, parked_share=0.0), score)
    assert world.moves[0, :5].tolist() == [True, False, False, True, False]
    assert episode.log_reference is not None
    assert episode.learnt.tolist() == [0, 3]
    shard = Shard(Fabric(accelerator="cpu", devices=1), episode)
    (batch,) = minibatches(shard, episode, torch.zeros(40, 5), 80, torch.Generator().manual_seed(0))
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    decision, agent = order // 2, torch.tensor([0, 3])[order % 2]
    assert batch.log_reference is not None
    assert torch.equal(batch.log_reference[batch.covered], said[0][decision, agent][batch.covered])
    assert torch.stack((decision, agent), 1)[~batch.covered].tolist() == [[7, 3]]
    assert collected(policy, vocabulary, world).log_reference is None


def test_every_transition_is_used_once_an_epoch(policy, vocabulary) -> None:
    batch = build_world(random_scene(0), vocabulary, VIEW.road_segments)
    episode = collected(policy, vocabulary, batch)
    sizes = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = Policy(PolicyConfig(dropout=0.0), feature_sizes(VIEW), vocabulary.ends)

        def forward(self, *seen: Tensor) -> tuple[Tensor, Tensor]:
            sizes.append(len(seen[0]))
            result: tuple[Tensor, Tensor] = self.net(*seen)
            return result

    spy = Spy()
    config = PPOConfig(minibatch=100, epochs=3, beta=0.0)
    learner = Learner(Fabric(accelerator="cpu", devices=1), spy, config)
    figures = learner.update(episode, torch.Generator().manual_seed(0))
    assert sizes == [120, 120] * 3
    assert all(math.isfinite(value) for value in figures.values())


class Drivers(nn.Module):
    """Who moves goes straight on (token 1 of ``arcs``), who stands stands."""

    def forward(self, ego: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        moves = (ego[:, 0] > 0).long()
        return 60.0 * nn.functional.one_hot(moves, 3).float(), torch.zeros(len(ego))


def straight_on(
    world: World, reward: RewardConfig | None = None, config: PPOConfig = PLAIN, uniform: Tensor | None = None
) -> Rollout:
    """What happens in an episode of ``Drivers``."""
    if uniform is None:
        uniform = torch.full((42, *world.types.shape), 0.5)
    return collect(Drivers(), Simulator(arcs(), VIEW, reward), world, None, config, uniform)


def test_rates_are_of_those_whom_they_concern() -> None:
    """Collisions of all, the road and its lights of vehicles, goals of those who move."""
    edge = (MapKind.ROAD_EDGE, [(-60.0, -3.0), (200.0, -3.0)])
    movers = [
        Mover(speed=10.0),
        Mover(y=30.0),
        Mover(y=-20.0, kind=AgentType.PEDESTRIAN, speed=10.0),
        Mover(y=-40.0),
        Mover(x=30.0, y=60.0, speed=10.0, kind=AgentType.CYCLIST),
        Mover(x=50.0, y=60.0, kind=AgentType.PEDESTRIAN),
    ]
    world = build_world(hand_made(movers, [edge]), arcs(), 4)
    sums = straight_on(world, RewardConfig(forgive_start=False)).sums
    rates = {name: total.tolist() for name, total in sums.items() if name.endswith("_rate")}
    assert rates == {
        "collision_rate": [2, 6],
        "off_road_rate": [1, 3],
        "red_light_rate": [0, 3],
        "goal_rate": [3, 3],
    }
    assert sums["task_reward"][1] == 6
    assert sums["reward_goal"].tolist() == [3, 6]
    assert sums["reward_off_road"].tolist() == pytest.approx([-0.75 * 40, 6])
    # One that stands off the road from the start on is not to blame.
    assert straight_on(world).sums["off_road_rate"].tolist() == [0, 3]


def test_who_starts_in_a_collision_may_not_begin_another() -> None:
    """The first drives out of the second, which is forgiven, and later through the third, which is not."""
    movers = [Mover(speed=10.0), Mover(x=-2.0), Mover(x=40.0)]
    world = build_world(hand_made(movers), arcs(), 4)
    forgiven = straight_on(world, RewardConfig(goal=0.0))
    assert forgiven.sums["collision_rate"].tolist() == [2, 3]
    hit = forgiven.rewards < 0
    assert hit.any(0).tolist() == [True, False, True]
    # Boxes of 4 m meet between 36 m and 44 m, which takes decisions that end at 38 m to 44 m.
    assert hit[:, 0].nonzero().flatten().tolist() == [18, 19, 20, 21]
    once = straight_on(world, RewardConfig(goal=0.0, per_event=True))
    assert once.sums["reward_collision"].tolist() == pytest.approx([-1.5, 3])
    counted = straight_on(world, RewardConfig(goal=0.0, forgive_start=False))
    assert counted.sums["collision_rate"].tolist() == [3, 3]


def test_hidden_goals_are_drawn_with_numbers_of_their_own() -> None:
    world = build_world(hand_made([Mover(speed=10.0), Mover(y=9.0, speed=10.0)]), arcs(), 4)
    uniform = torch.full((42, 1, 2), 0.5)
    uniform[-2], uniform[-1] = torch.tensor([0.9, 0.1]), torch.tensor([0.1, 0.9])
    goals = straight_on(world, uniform=uniform).observations.ego.view(40, 2, -1)[..., 3]
    assert (goals[:, 1] == 0).all()
    assert float(goals[0, 0]) == pytest.approx(0.8)


def test_where_the_reference_has_no_opinion_nothing_is_paid_for_it(policy, vocabulary) -> None:
    """A row that is finite but for one token is no opinion either."""
    world = build_world(random_scene(0), vocabulary, VIEW.road_segments)
    fixed = torch.randn(vocabulary.size, generator=torch.Generator().manual_seed(1)).log_softmax(-1)

    def score(driven: Executed) -> Tensor:
        scores = fixed.expand(driven.tokens.shape[-1], len(driven.agent_index[0]), -1).clone()
        scores[:10, :, 3] = -math.inf
        scores[10:20] = math.nan
        return scores

    plain = collected(policy, vocabulary, world)
    paid = collected(policy, vocabulary, world, dataclasses.replace(PLAIN, alpha=0.1), score)
    assert not paid.covered[:20].any()
    assert paid.covered[20:].all()
    assert torch.equal(paid.rewards[:20], plain.rewards[:20])
    likelihood = fixed[paid.actions[20:]]
    torch.testing.assert_close(paid.rewards[20:] - plain.rewards[20:], 0.1 * likelihood, atol=1e-5, rtol=0)
    assert paid.sums["log_likelihood"].tolist() == pytest.approx([float(likelihood.sum()), 120], abs=1e-3)
    assert paid.sums["reference_coverage"].tolist() == [120, 240]
    assert paid.sums["reward_likelihood"].tolist() == pytest.approx([0.1 * float(likelihood.sum()), 6], abs=1e-3)


def test_what_the_reference_says_of_moving_agents_is_summed_alone(policy, vocabulary) -> None:
    """Of parked ones nothing; the KL of the actions is that over the vocabulary, on average."""
    scene = hand_made([Mover(speed=4.0), Mover(x=30.0), Mover(x=60.0), Mover(x=90.0, speed=3.0), Mover(x=120.0)])
    world = stack_worlds([build_world(scene, vocabulary, VIEW.road_segments)] * 20)
    fixed = torch.randn(vocabulary.size, generator=torch.Generator().manual_seed(1)).mul(2).log_softmax(-1)

    def score(driven: Executed) -> Tensor:
        scores = fixed.expand(driven.tokens.shape[-1], len(driven.agent_index[0]), -1).clone()
        scores[7, 3] = math.nan
        return scores

    episode = collected(policy, vocabulary, world, PLAIN, score)
    moving = world.moves[world.exists].nonzero().flatten()
    seen = torch.ones(40, len(moving), dtype=torch.bool)
    seen[7, 1] = False
    likelihood = fixed[episode.actions[:, moving]]
    total, count = episode.sums["log_likelihood_moving"].tolist()
    assert (total, count) == (pytest.approx(float(likelihood[seen].sum()), rel=1e-5), 40 * 40 - 1)
    total, count = episode.sums["kl_moving"].tolist()
    expected = (episode.logprobs[:, moving] - likelihood)[seen].sum()
    assert (total, count) == (pytest.approx(float(expected), rel=1e-5), 40 * 40 - 1)
    with torch.no_grad():
        log_policy = act(policy, episode.observations)[0].log_softmax(-1).view(40, -1, vocabulary.size)[:, moving]
    exact = (log_policy.exp() * (log_policy - fixed)).sum(-1)[seen]
    deviation = (log_policy.exp() * (log_policy - fixed).square()).sum(-1)[seen].sub(exact.square()).mean().sqrt()
    assert total / count == pytest.approx(float(exact.mean()), abs=4 * float(deviation) / count**0.5)


def test_laps_of_a_phase_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter((10.0, 11.0, 13.0, 17.0))
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    clock = Clock(torch.device("cpu"))
    for phase in ("simulation", "learning", "simulation"):
        clock.lap(phase)
    assert clock.seconds() == {"simulation": 5.0, "learning": 2.0}


def test_a_gpu_is_waited_for_only_when_seconds_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Events hold milliseconds, and none before the device is done."""
    moments = iter((10.0, 510.0, 1010.0, 4010.0))
    waited: list[object] = []

    class Event:
        def __init__(self, enable_timing: bool = False) -> None:
            assert enable_timing

        def record(self) -> None:
            assert not waited
            self.moment = next(moments)

        def elapsed_time(self, end: Event) -> float:
            assert waited
            return end.moment - self.moment

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: waited.append(True))
    clock = Clock(torch.device("cuda"))
    for phase in ("simulation", "learning", "simulation"):
        clock.lap(phase)
    assert clock.seconds() == {"simulation": 3.5, "learning": 0.5}


def test_slots_without_agents_change_nothing(policy, vocabulary) -> None:
    """Filled up for a CUDA graph, an update is the same."""
    scenes = [random_scene(seed, agents=count) for seed, count in ((0, 5), (1, 3))]
    plain = stack_worlds([build_world(scene, vocabulary, VIEW.road_segments) for scene in scenes])
    config = PPOConfig(minibatch=100, epochs=2, beta=0.5, parked_share=0.5)
    uniform = torch.rand(42, 2, 5, generator=torch.Generator().manual_seed(2))
    results = []
    for world, slots, draws in (
        (plain, 0, uniform),
        (with_empty_agent(plain), 20, nn.functional.pad(uniform, (0, 1))),
    ):
        begin = start(world, config, draws, slots)
        episode = drive(policy, Simulator(vocabulary, VIEW), world, begin)

        def score(driven: Executed) -> Tensor:
            logits, _ = act(policy, driven.observations)
            return (0.5 * logits).log_softmax(-1).unflatten(0, (40, -1))

        rollout = finish(world, begin, episode, score, config, draws, Clock(torch.device("cpu")))
        student = copy.deepcopy(policy)
        learner = Learner(Fabric(accelerator="cpu", devices=1), student, config)
        results.append((rollout, learner.update(rollout, torch.Generator().manual_seed(0)), student.state_dict()))
    (one, figures, weights), (other, alike, moved) = results
    assert other.actions.shape == (40, 20)
    assert torch.equal(one.actions, other.actions[:, :8])
    assert torch.equal(one.learnt, other.learnt)
    assert one.transitions == other.transitions
    assert one.agent_steps == other.agent_steps == 320
    for name, total in one.sums.items():
        torch.testing.assert_close(total, other.sums[name], atol=1e-6, rtol=1e-6)
    assert figures == pytest.approx(alike, abs=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, moved[name], atol=1e-5, rtol=0)


def test_features_are_kept_in_bfloat16_where_the_policy_computes_in_it(policy, vocabulary) -> None:
    world = build_world(random_scene(0), vocabulary, VIEW.road_segments)
    begin = start(world, PLAIN, torch.rand(42, *world.types.shape, generator=torch.Generator().manual_seed(2)))
    whole, small = (
        drive(policy, Simulator(vocabulary, VIEW), world, begin, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    for name, value in vars(whole.observations).items():
        kept = getattr(small.observations, name)
        assert torch.equal(value.to(kept.dtype), kept), name
        assert (kept.dtype == torch.bfloat16) == (name in ("ego", "neighbour", "road")), name
