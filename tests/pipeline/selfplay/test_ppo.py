"""The loss against direct computation, gradients by finite differences, and learning where the best is known."""

from __future__ import annotations

import copy
import dataclasses
import math
from functools import partial

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from models.policy import Policy, PolicyConfig
from pipeline.selfplay.anchor import Anchor
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.episode import Driven, Episode, Scorer, act, collect
from pipeline.selfplay.judges import score_all
from pipeline.selfplay.observation import Observation, feature_sizes
from pipeline.selfplay.ppo import Minibatch, advantages, anchor_kl, exact_kl, policy_loss, update
from pipeline.selfplay.reward import RewardConfig
from pipeline.selfplay.worlds import build_world, stack_worlds
from tests.models.scenes import random_scene
from tests.pipeline.selfplay.conftest import VIEW
from tests.pipeline.selfplay.test_observation import garbage
from tests.scenes import Mover, hand_made

PLAIN = PPOConfig(minibatch=256, beta=0.0)


def random_batch(count: int = 12, actions: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "logits": 2 * normal(count, actions),
        "value": normal(count),
        "action": torch.randint(actions, (count,), generator=generator),
        "old_log_prob": -1.5 + 0.3 * normal(count),
        "advantage": 3 + 2 * normal(count),
        "target": normal(count),
        "reference": (2 * normal(count, actions)).log_softmax(-1),
        "covered": torch.arange(count) % 4 != 0,
    }


def loss_of(batch: dict[str, Tensor], config: PPOConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, with advantages normalised as they are for a single device."""
    rest = {name: tensor for name, tensor in batch.items() if name not in ("logits", "value", "advantage")}
    advantage = batch["advantage"]
    normalised = (advantage - advantage.mean()) / advantage.std(unbiased=False)
    known = max(1, int(batch["covered"].sum()))
    minibatch = Minibatch(**rest, advantage=normalised, count=len(advantage), covered_count=known)
    return policy_loss(batch["logits"], batch["value"], minibatch, config, config.beta)


def by_hand(batch: dict[str, Tensor], config: PPOConfig) -> dict[str, float]:
    """The loss as a loop over transitions and tokens, in plain Python."""
    count = len(batch["logits"])
    advantage = batch["advantage"].tolist()
    mean = sum(advantage) / count
    deviation = math.sqrt(sum((a - mean) ** 2 for a in advantage) / count)
    surrogate = entropy = value_loss = kl = clipped = 0.0
    covered = 0
    for row in range(count):
        weights = [math.exp(x) for x in batch["logits"][row].tolist()]
        chance = [w / sum(weights) for w in weights]
        ratio = chance[int(batch["action"][row])] / math.exp(float(batch["old_log_prob"][row]))
        normal = (advantage[row] - mean) / deviation
        if normal > 0:
            surrogate += min(ratio, 1 + config.clip) * normal
        else:
            surrogate += max(ratio, 1 - config.clip) * normal
        clipped += abs(ratio - 1) > config.clip
        entropy -= sum(p * math.log(p) for p in chance)
        value_loss += 0.5 * (float(batch["value"][row]) - float(batch["target"][row])) ** 2
        if batch["covered"][row]:
            covered += 1
            other = batch["reference"][row].tolist()
            if config.kl == "reverse":
                kl += sum(p * (math.log(p) - q) for p, q in zip(chance, other))
            else:
                kl += sum(math.exp(q) * (q - math.log(p)) for p, q in zip(chance, other))
    parts = {
        "surrogate": surrogate / count,
        "value_loss": value_loss / count,
        "entropy": entropy / count,
        "kl": kl / covered,
        "clip_fraction": clipped / count,
    }
    parts["loss"] = (
        -config.surrogate_weight * parts["surrogate"]
        + config.value_weight * parts["value_loss"]
        - config.entropy_weight * parts["entropy"]
        + config.beta * parts["kl"]
    )
    return parts


@pytest.mark.parametrize(("kl", "surrogate"), [("reverse", 1.0), ("forward", 1.0), ("reverse", 0.0)])
def test_loss_is_that_of_a_slow_loop(kl: str, surrogate: float) -> None:
    config = PPOConfig(beta=0.3, entropy_weight=0.05, kl=kl, surrogate_weight=surrogate)
    batch = {name: t.float() if t.is_floating_point() else t for name, t in random_batch().items()}
    loss, parts = loss_of(batch, config)
    expected = by_hand(random_batch(), config)
    assert float(loss) == pytest.approx(expected.pop("loss"), abs=1e-5)
    assert {name: float(part) for name, part in parts.items()} == pytest.approx(expected, abs=1e-5)
    assert 0 < expected["clip_fraction"] < 1


def test_what_is_not_covered_has_no_kl() -> None:
    batch = random_batch()
    loss, _ = loss_of(batch, PPOConfig())
    for nonsense in (math.nan, -math.inf, 7.0):
        other = batch | {"reference": batch["reference"].masked_fill(~batch["covered"][:, None], nonsense)}
        assert torch.equal(loss_of(other, PPOConfig())[0], loss)
    bare = loss_of(batch | {"covered": torch.zeros(12, dtype=torch.bool)}, PPOConfig())[1]
    assert float(bare["kl"]) == 0


def test_kl_and_its_gradient() -> None:
    batch = random_batch()
    logits, reference = batch["logits"].requires_grad_(), batch["reference"]
    assert torch.autograd.gradcheck(lambda x: exact_kl(x.log_softmax(-1), reference), (logits,))
    kl = exact_kl(logits.log_softmax(-1), reference)
    chance = logits.detach().softmax(-1)
    direct = torch.distributions.kl_divergence(
        torch.distributions.Categorical(probs=chance), torch.distributions.Categorical(logits=reference)
    )
    torch.testing.assert_close(kl.detach(), direct)
    # d KL / d logit_k = p_k (log p_k - log q_k - KL).
    expected = chance * (chance.log() - reference - direct[:, None])
    torch.testing.assert_close(torch.autograd.grad(kl.sum(), logits)[0], expected)
    assert float(exact_kl(reference, reference).abs().max()) < 1e-12


def test_forward_kl_and_its_gradient() -> None:
    batch = random_batch()
    logits, reference = batch["logits"].requires_grad_(), batch["reference"]
    kl = anchor_kl(logits.log_softmax(-1), reference, "forward")
    chance = logits.detach().softmax(-1)
    direct = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=reference), torch.distributions.Categorical(probs=chance)
    )
    torch.testing.assert_close(kl.detach(), direct)
    # d KL / d logit_k = p_k - q_k: cross-entropy's.
    torch.testing.assert_close(torch.autograd.grad(kl.sum(), logits)[0], chance - reference.exp())


def test_gradient_of_the_loss_by_finite_differences() -> None:
    batch = random_batch()
    config = PPOConfig(beta=0.5, entropy_weight=0.1)
    logits, value = batch["logits"][:, :4].float(), batch["value"].float()
    batch["action"] = batch["action"] % 4
    batch["reference"] = batch["reference"][:, :4].log_softmax(-1)

    def loss(x: Tensor, v: Tensor) -> Tensor:
        return loss_of(batch | {"logits": x, "value": v}, config)[0]

    x, v = logits.clone().requires_grad_(), value.clone().requires_grad_()
    gradient, worth = torch.autograd.grad(loss(x, v), (x, v))
    for row in range(4):
        for column in range(4):
            step = torch.zeros_like(logits)
            step[row, column] = 1e-2
            slope = (loss(logits + step, value) - loss(logits - step, value)) / 2e-2
            assert float(slope) == pytest.approx(float(gradient[row, column]), abs=2e-3)
    torch.testing.assert_close(worth, config.value_weight * (value - batch["target"].float()) / 12)


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_advantages_are_those_of_a_slow_loop(gamma: float, lam: float) -> None:
    reward, value = torch.randn(9, 4, dtype=torch.float64), torch.randn(10, 4, dtype=torch.float64)
    found = advantages(reward, value, gamma, lam)
    for agent in range(4):
        for start in range(9):
            total = 0.0
            for step in range(start, 9):
                delta = reward[step, agent] + gamma * value[step + 1, agent] - value[step, agent]
                total += (gamma * lam) ** (step - start) * float(delta)
            assert float(found[start, agent]) == pytest.approx(total, abs=1e-9)
    if lam == 1.0:
        # Without discount: what is still to come, and the bootstrap, less what was expected.
        torch.testing.assert_close(found, reward.flip(0).cumsum(0).flip(0) + value[-1] - value[:-1])


def episode_of(reward: Tensor, logits: Tensor, action: Tensor, reference: Tensor | None, agents: int) -> Episode:
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
    )
    return Episode(
        observation=observation,
        action=action,
        log_prob=logits.log_softmax(-1).expand(*action.shape, -1).gather(-1, action.unsqueeze(-1)).squeeze(-1),
        value=torch.zeros(len(action) + 1, agents),
        reward=reward,
        reference=None if reference is None else reference.expand(*action.shape, -1),
        covered=torch.ones_like(action, dtype=torch.bool),
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
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate)
    fabric = Fabric(accelerator="cpu", devices=1)
    generator = torch.Generator().manual_seed(0)
    figures = []
    for _ in range(rounds):
        with torch.no_grad():
            logits, _ = policy(*_constant(1))
        action = torch.multinomial(logits[0].softmax(-1), 512, replacement=True, generator=generator).view(8, 64)
        episode = episode_of(worth[action], logits[0], action, reference, 64)
        figures.append(update(fabric, policy, optimizer, episode, config, generator))
    with torch.no_grad():
        return policy(*_constant(1))[0][0].softmax(-1), figures


def _constant(count: int) -> tuple[Tensor, ...]:
    observation = episode_of(
        torch.zeros(1, count), torch.zeros(2), torch.zeros(1, count, dtype=torch.int64), None, count
    ).observation
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


def collected(policy, vocabulary, world, config: PPOConfig = PLAIN, score: Scorer | None = None) -> Episode:
    uniform = torch.rand(42, *world.types.shape, generator=torch.Generator().manual_seed(9))
    return collect(policy, world, vocabulary, score, config, RewardConfig(), VIEW, uniform)


@pytest.mark.parametrize("value", [5.0, math.nan])
def test_garbage_in_padding_changes_no_episode_and_no_loss(policy, vocabulary, value: float) -> None:
    scenes = [random_scene(0), random_scene(1, agents=2), random_scene(2, agents=4)]
    batch = stack_worlds([build_world(scene, vocabulary, VIEW.road_segments) for scene in scenes])
    clean = collected(policy, vocabulary, batch)
    dirty = collected(policy, vocabulary, garbage(batch, value))
    assert clean.transitions == 40 * (6 + 2 + 4)
    for name, total in clean.sums.items():
        assert torch.equal(total, dirty.sums[name]), name
    for name, tensor in vars(clean.observation).items():
        assert torch.equal(tensor, getattr(dirty.observation, name)), name
    for name in ("action", "log_prob", "value", "reward"):
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
        history_valid=spoilt(batch.history_valid, 2),
        log_valid=spoilt(batch.log_valid, 2),
    )
    assert not torch.equal(dirty.history_ids, batch.history_ids)
    config = PPOConfig(minibatch=128, epochs=2, beta=0.5, alpha=0.01, vehicles_only=vehicles_only)
    found = []
    for world in (batch, dirty):
        score = partial(score_all, Anchor(reference, scenes.__getitem__), range(3), world)
        episode = collected(policy, vocabulary, world, config, score)
        student = copy.deepcopy(policy).train()
        optimizer = torch.optim.Adam(student.parameters(), lr=1e-3)
        fabric = Fabric(accelerator="cpu", devices=1)
        torch.manual_seed(0)
        figures = update(fabric, student, optimizer, episode, config, torch.Generator().manual_seed(0))
        found.append((episode, figures, student.state_dict()))
    (clean, figures, weights), (other, same, moved) = found
    assert clean.covered.any()
    assert figures["kl"] > 0
    assert torch.equal(clean.reward, other.reward)
    assert clean.reference is not None
    assert other.reference is not None
    assert torch.equal(clean.reference, other.reference)
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

    def score(driven: Driven) -> Tensor:
        calls.append((driven.tokens.shape, driven.poses.shape, driven.present.shape))
        return fixed.expand(driven.tokens.shape[-1], len(driven.who[0]), -1)

    plain = collected(policy, vocabulary, batch, PLAIN, score)
    paid = collected(policy, vocabulary, batch, dataclasses.replace(PLAIN, alpha=0.1), score)
    assert calls[0] == ((2, 6, 40), (2, 6, 41, 3), (2, 6, 41))
    with torch.no_grad():
        logits, value = policy(*(vars(plain.observation)[name] for name in vars(plain.observation)))
    log_prob = logits.log_softmax(-1).gather(-1, plain.action.flatten()[:, None]).view_as(plain.action)
    torch.testing.assert_close(plain.log_prob, log_prob, atol=1e-5, rtol=0)
    torch.testing.assert_close(plain.value[:-1].flatten(), value, atol=1e-5, rtol=0)
    assert torch.equal(paid.action, plain.action)
    expected = 0.1 * fixed[plain.action].clamp(min=-20.0)
    torch.testing.assert_close(paid.reward - plain.reward, expected, atol=1e-5, rtol=0)
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
    assert torch.equal(none.action, whole.action[:, moving])
    assert torch.equal(none.value, whole.value[:, moving])
    rows = (torch.arange(40)[:, None] * 150 + moving).flatten()
    assert torch.equal(none.observation.ego, whole.observation.ego[rows])
    for name, total in whole.sums.items():
        assert torch.equal(total, none.sums[name]), name


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
    figures = update(
        Fabric(accelerator="cpu", devices=1),
        spy,
        torch.optim.Adam(spy.parameters()),
        episode,
        config,
        torch.Generator().manual_seed(0),
    )
    assert sizes == [120, 120] * 3
    assert all(math.isfinite(value) for value in figures.values())


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
    optimizer, fabric = torch.optim.Adam(policy.parameters()), Fabric(accelerator="cpu", devices=1)

    def score(driven: Driven) -> Tensor:
        return log_q.expand(driven.tokens.shape[-1], len(driven.who[0]), -1)

    rounds = 80
    for number in range(rounds):
        uniform = torch.rand(42, *world.types.shape, generator=generator)
        episode = collect(policy.eval(), world, vocabulary, score, config, reward, VIEW, uniform)
        update(fabric, policy.train(), optimizer, episode, config, generator, number / rounds)
    with torch.no_grad():
        logits, _ = act(policy, episode.observation)
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
