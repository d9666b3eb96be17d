"""What is learnt where the best is known: arms, an anchor that wins or gives way, and what theory says of beta."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor

from models.policy import BEYOND, Policy, PolicyConfig
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.learner import Learner
from pipeline.selfplay.rollout import Executed, Rollout, act, collect
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import Observation, feature_sizes
from pipeline.simulator.reward import RewardConfig
from pipeline.simulator.world import build_world, stack_worlds
from tests.pipeline.conftest import VIEW
from tests.scenes import Mover, hand_made


def episode_of(reward: Tensor, logits: Tensor, action: Tensor, reference: Tensor | None, agents: int) -> Rollout:
    """Independent single decisions: every transition sees the same."""
    count = action.numel()
    observation = Observation(
        ego=torch.ones(count, 6),
        neighbour=torch.zeros(count, 1, 6),
        neighbour_seen=torch.zeros(count, 1, dtype=torch.bool),
        road=torch.zeros(count, 1, 13),
        road_seen=torch.zeros(count, 1, dtype=torch.bool),
        type=torch.zeros(count, dtype=torch.int64),
        motion=torch.zeros(count, 3),
        beyond=torch.zeros(count, BEYOND),
    )
    return Rollout(
        observations=observation,
        actions=action,
        logprobs=logits.log_softmax(-1).expand(*action.shape, -1).gather(-1, action.unsqueeze(-1)).squeeze(-1),
        values=torch.zeros(len(action) + 1, agents),
        rewards=reward,
        log_reference=None if reference is None else reference.expand(*action.shape, -1),
        covered=torch.ones_like(action, dtype=torch.bool),
        learnt=torch.arange(agents),
        agents=agents,
        sums={},
        seconds={},
    )


def play_bandit(
    config: PPOConfig, worth: Tensor, reference: Tensor | None, rounds: int
) -> tuple[Tensor, list[dict]]:
    """Probabilities of the arms that are learnt, and the figures of every update."""
    torch.manual_seed(0)
    net = PolicyConfig(embedding=8, hidden=8, dropout=0.0, per_type=False, inertia=False)
    policy = Policy(net, (6, 6, 13), torch.zeros(3, len(worth), 3))
    learner = Learner(Fabric(accelerator="cpu", devices=1), policy, config)
    generator = torch.Generator().manual_seed(0)
    figures = []
    for _ in range(rounds):
        with torch.no_grad():
            logits, _ = policy(*_constant(1))
        action = torch.multinomial(logits[0].softmax(-1), 512, replacement=True, generator=generator).view(8, 64)
        episode = episode_of(worth[action], logits[0], action, reference, 64)
        figures.append(learner.update(episode, generator))
    with torch.no_grad():
        return policy(*_constant(1))[0][0].softmax(-1), figures


def _constant(count: int) -> tuple[Tensor, ...]:
    observation = episode_of(
        torch.zeros(1, count), torch.zeros(2), torch.zeros(1, count, dtype=torch.int64), None, count
    ).observations
    return tuple(vars(observation).values())


def test_a_two_armed_bandit_is_learnt() -> None:
    config = PPOConfig(minibatch=128, learning_rate=3e-3, beta=0.0, gamma=0.0, gae_lambda=0.0)
    chance, figures = play_bandit(config, torch.tensor([0.0, 1.0]), None, 40)
    assert float(chance[1]) > 0.97
    assert figures[0]["entropy"] == pytest.approx(math.log(2), abs=0.1)
    assert figures[0]["kl"] == figures[-1]["kl"] == 0


def test_a_strong_anchor_wins_and_a_weak_one_gives_way() -> None:
    """All that is earned is arm 1, which the reference takes one time in ten."""
    reference = torch.tensor([0.9, 0.1]).log()
    worth = torch.tensor([0.0, 1.0])
    config = PPOConfig(minibatch=128, learning_rate=3e-3, gamma=0.0, gae_lambda=0.0)
    shares = []
    for beta in (100.0, 1.0, 0.01):
        chance, _ = play_bandit(dataclasses.replace(config, beta=beta), worth, reference, 40)
        shares.append(float(chance[1]))
    assert shares[0] == pytest.approx(0.1, abs=0.03)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.9


def test_without_reward_the_kl_to_the_anchor_falls() -> None:
    reference = torch.tensor([3.0, 0.0, -2.0, 1.0, 0.5]).log_softmax(-1)
    config = PPOConfig(minibatch=128, learning_rate=3e-3, beta=5.0)
    chance, figures = play_bandit(config, torch.zeros(5), reference, 30)
    kl = [row["kl"] for row in figures]
    assert kl[0] > 0.5
    assert kl[-1] < 0.02
    torch.testing.assert_close(chance, reference.exp(), atol=0.08, rtol=0)


@pytest.mark.parametrize("beta", [1.5, 3.0, 8.0])
def test_two_arms_settle_where_theory_says(beta: float) -> None:
    """Where the loss is stationary, log pi - log pi_ref is the normalised advantage over beta, up to a constant.

    Of two arms worth 0 and 1 the normalised advantages differ by 1 / sqrt(p (1 - p)). (Below a beta of about 1.1
    there is no such place: as one arm wins, normalising makes the little that is left worth ever more.)
    """
    reference = torch.tensor([0.8, 0.2]).log()
    config = PPOConfig(
        minibatch=512, epochs=1, learning_rate=2e-3, beta=beta, entropy_weight=0.0, gamma=0.0, gae_lambda=0.0
    )
    chance, _ = play_bandit(config, torch.tensor([0.0, 1.0]), reference, 300)

    def excess(p: float) -> float:
        return math.log(p / (1 - p)) - math.log(0.2 / 0.8) - 1 / (beta * math.sqrt(p * (1 - p)))

    low, high = 0.2, 0.9
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) < 0 else (low, middle)
    assert float(chance[1]) == pytest.approx(low, abs=0.02)


@pytest.mark.parametrize("beta", [3.0, 8.0])
def test_in_a_scene_beta_moves_the_policy_as_theory_says(vocabulary, beta: float) -> None:
    """Paid the reference's log-likelihood alone, the policy sharpens it by a power that theory gives.

    With q the reference, s the standard deviation of log q under the policy: pi is proportional to
    q ** (1 + 1 / (beta s)). The rewards come from driving in a scene, whose states must not matter.
    """
    scene = hand_made([Mover(), Mover(x=30.0), Mover(x=60.0)])
    world = stack_worlds([build_world(scene, vocabulary, VIEW.road_segments)] * 3)
    generator = torch.Generator().manual_seed(1)
    log_q = (0.8 * torch.randn(vocabulary.size, generator=generator)).log_softmax(-1)
    reward = RewardConfig(goal=0.0, collision=0.0, off_road=0.0, red_light=0.0)
    config = PPOConfig(
        minibatch=400,
        epochs=2,
        learning_rate=3e-3,
        final_rate=0.05,
        beta=beta,
        alpha=1.0,
        entropy_weight=0.0,
        gamma=0.0,
        gae_lambda=0.0,
    )
    torch.manual_seed(0)
    net = PolicyConfig(embedding=8, hidden=16, dropout=0.0, per_type=False, inertia=False)
    policy = Policy(net, feature_sizes(VIEW), vocabulary.ends)
    learner = Learner(Fabric(accelerator="cpu", devices=1), policy, config)

    def score(driven: Executed) -> Tensor:
        return log_q.expand(driven.tokens.shape[-1], len(driven.agent_index[0]), -1)

    rounds = 80
    for number in range(rounds):
        uniform = torch.rand(42, *world.types.shape, generator=generator)
        episode = collect(policy.eval(), Simulator(vocabulary, VIEW, reward), world, score, config, uniform)
        policy.train()
        learner.update(episode, generator, number / rounds)
    with torch.no_grad():
        logits, _ = act(policy, episode.observations)
    found = logits.softmax(-1).mean(0)
    power = 1.0
    for _ in range(200):
        chance = (power * log_q).softmax(-1)
        spread = ((chance * log_q.square()).sum() - (chance * log_q).sum().square()).sqrt()
        power = 0.5 * power + 0.5 * (1 + 1 / (beta * float(spread)))
    distance = float((found - chance).abs().sum() / 2)
    assert distance < 0.06
    # And it is neither the reference nor what pays best.
    assert float((log_q.exp() - chance).abs().sum() / 2) > 2 * distance
    assert float(chance.max()) < 0.9
