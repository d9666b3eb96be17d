"""The loss against direct computation, gradients by finite differences, advantages against a slow loop."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from models.sampling import exact_kl
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.learner import Learner
from pipeline.selfplay.ppo import Minibatch, Scale, Shard, anchor_kl, gae, minibatches, ppo_loss
from pipeline.selfplay.rollout import Rollout
from pipeline.simulator.observation import Observation


def random_batch(count: int = 12, actions: int = 6) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "logits": 2 * normal(count, actions),
        "value": normal(count),
        "actions": torch.randint(actions, (count,), generator=generator),
        "logprobs": -1.5 + 0.3 * normal(count),
        "advantages": 3 + 2 * normal(count),
        "returns": normal(count),
        "log_reference": (2 * normal(count, actions)).log_softmax(-1),
        "covered": torch.arange(count) % 4 != 0,
    }


def descending(policy: torch.nn.Module, config: PPOConfig) -> Learner:
    """A learner by plain gradient descent, whose steps can be checked."""
    learner = Learner(Fabric(accelerator="cpu", devices=1), policy, config)
    learner.optimizer = torch.optim.SGD(policy.parameters(), lr=99.0)
    return learner


def loss_of(batch: dict[str, Tensor], config: PPOConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, with advantages normalised as they are for a single device."""
    rest = {name: tensor for name, tensor in batch.items() if name not in ("logits", "value", "advantages")}
    advantage = batch["advantages"]
    normalised = (advantage - advantage.mean()) / advantage.std(unbiased=False)
    known = max(1, int(batch["covered"].sum()))
    unseen = Observation(*[torch.zeros(0)] * 8)
    counts = {"count": torch.tensor(float(len(advantage))), "covered_count": torch.tensor(float(known))}
    real = torch.ones(len(advantage), dtype=torch.bool)
    minibatch = Minibatch(unseen, **rest, advantages=normalised, real=real, **counts)
    return ppo_loss(batch["logits"], batch["value"], minibatch, config, config.beta)


def by_hand(batch: dict[str, Tensor], config: PPOConfig) -> dict[str, float]:
    """The loss as a loop over transitions and tokens, in plain Python."""
    count = len(batch["logits"])
    advantage = batch["advantages"].tolist()
    mean = sum(advantage) / count
    deviation = math.sqrt(sum((a - mean) ** 2 for a in advantage) / count)
    surrogate = entropy = value_loss = kl = clipped = change = 0.0
    covered = 0
    for row in range(count):
        weights = [math.exp(x) for x in batch["logits"][row].tolist()]
        chance = [w / sum(weights) for w in weights]
        ratio = chance[int(batch["actions"][row])] / math.exp(float(batch["logprobs"][row]))
        normal = (advantage[row] - mean) / deviation
        if normal > 0:
            surrogate += min(ratio, 1 + config.clip) * normal
        else:
            surrogate += max(ratio, 1 - config.clip) * normal
        clipped += abs(ratio - 1) > config.clip
        change += ratio - 1 - math.log(ratio)
        entropy -= sum(p * math.log(p) for p in chance)
        value_loss += 0.5 * (float(batch["value"][row]) - float(batch["returns"][row])) ** 2
        if batch["covered"][row]:
            covered += 1
            other = batch["log_reference"][row].tolist()
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
        "policy_change": change / count,
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
        other = batch | {"log_reference": batch["log_reference"].masked_fill(~batch["covered"][:, None], nonsense)}
        assert torch.equal(loss_of(other, PPOConfig())[0], loss)
    bare = loss_of(batch | {"covered": torch.zeros(12, dtype=torch.bool)}, PPOConfig())[1]
    assert float(bare["kl"]) == 0


def test_kl_and_its_gradient() -> None:
    batch = random_batch()
    logits, reference = batch["logits"].requires_grad_(), batch["log_reference"]
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
    logits, reference = batch["logits"].requires_grad_(), batch["log_reference"]
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
    batch["actions"] = batch["actions"] % 4
    batch["log_reference"] = batch["log_reference"][:, :4].log_softmax(-1)

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
    torch.testing.assert_close(worth, config.value_weight * (value - batch["returns"].float()) / 12)


class Linear(nn.Module):
    """A policy whose logits are its weights times what it sees; the value is nothing."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())

    def forward(self, ego: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
        return ego @ self.weight, 0 * ego.sum(-1)


def partly_covered(agents: int, inputs: int, actions: int) -> Rollout:
    """Two decisions of agents of whom the reference knows every fifth."""
    generator = torch.Generator().manual_seed(4)
    count = 2 * agents
    nothing = torch.zeros(count, 0)
    seen = Observation(
        ego=torch.randn(count, inputs, generator=generator),
        neighbour=nothing,
        neighbour_seen=nothing,
        road=nothing,
        road_seen=nothing,
        type=nothing,
        motion=nothing,
        beyond=nothing,
    )
    return Rollout(
        observations=seen,
        actions=torch.randint(actions, (2, agents), generator=generator),
        logprobs=torch.full((2, agents), -math.log(actions)),
        values=torch.zeros(3, agents),
        rewards=torch.randn(2, agents, generator=generator),
        log_reference=(2 * torch.randn(2, agents, actions, generator=generator)).log_softmax(-1),
        covered=torch.arange(count).view(2, agents) % 5 == 0,
        learnt=torch.arange(agents),
        agents=agents,
        sums={},
        seconds={},
    )


@pytest.mark.parametrize("parts", [1, 3])
def test_an_update_divides_the_kl_by_what_is_covered(parts: int) -> None:
    """The figure, and the step it makes alone, against the gradient by hand: of the covered transitions' mean."""
    episode = partly_covered(agents=30, inputs=4, actions=6)
    assert episode.log_reference is not None
    first = torch.randn(4, 6, generator=torch.Generator().manual_seed(5))
    weight = first.double()
    rate, expected = 0.2, []
    for rows in torch.randperm(60, generator=torch.Generator().manual_seed(8)).tensor_split(parts):
        rows = rows[episode.covered.flatten()[rows]]
        assert 0 < len(rows) < 60 / parts / 2
        ego = episode.observations.ego[rows].double()
        reference = episode.log_reference.flatten(0, 1)[rows].double()
        log_policy = (ego @ weight).log_softmax(-1)
        kl = (log_policy.exp() * (log_policy - reference)).sum(-1)
        expected.append(float(kl.mean()))
        # d KL / d logit_k = p_k (log p_k - log q_k - KL).
        slope = log_policy.exp() * (log_policy - reference - kl[:, None])
        weight = weight - rate * ego.T @ slope / len(rows)
    policy = Linear(first)
    config = PPOConfig(
        epochs=1,
        minibatch=60 // parts,
        learning_rate=rate,
        surrogate_weight=0.0,
        value_weight=0.0,
        entropy_weight=0.0,
        gradient_clip=1e9,
        beta=1.0,
    )
    figures = descending(policy, config).update(episode, torch.Generator().manual_seed(8))
    assert figures["kl"] == pytest.approx(sum(expected) / parts, abs=1e-5)
    torch.testing.assert_close(policy.weight.detach().double(), weight, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("gamma", "lam"), [(0.99, 0.95), (1.0, 1.0), (0.9, 0.0)])
def test_advantages_are_those_of_a_slow_loop(gamma: float, lam: float) -> None:
    reward, value = torch.randn(9, 4, dtype=torch.float64), torch.randn(10, 4, dtype=torch.float64)
    found = gae(reward, value, gamma, lam)
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


class LinearActorCritic(nn.Module):
    """Logits and value, linear in what is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.3 * torch.randn(5, 4, generator=torch.Generator().manual_seed(4)))

    def forward(self, ego: Tensor, *_: Tensor) -> tuple[Tensor, Tensor]:
        out = ego @ self.weight
        return out[:, :3], out[:, 3]


def random_episode(decisions: int = 6, agents: int = 4) -> Rollout:
    """Of three tokens, partly covered."""
    generator = torch.Generator().manual_seed(8)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    rows = decisions * agents
    nothing = torch.zeros(rows, 0)
    return Rollout(
        observations=Observation(normal(rows, 5), *[nothing] * 7),
        actions=torch.randint(3, (decisions, agents), generator=generator),
        logprobs=-1.1 + 0.2 * normal(decisions, agents),
        values=normal(decisions + 1, agents),
        rewards=1 + normal(decisions, agents),
        log_reference=(2 * normal(decisions, agents, 3)).log_softmax(-1),
        covered=torch.rand(decisions, agents, generator=generator) < 0.6,
        learnt=torch.arange(agents),
        agents=agents,
        sums={},
        seconds={},
    )


def slow_advantages(episode: Rollout, config: PPOConfig) -> list[list[float]]:
    """Of every decision and agent, by the definition of the sum."""
    reward, value = episode.rewards.tolist(), episode.values.tolist()
    return [
        [
            sum(
                (config.gamma * config.gae_lambda) ** (later - start)
                * (reward[later][agent] + config.gamma * value[later + 1][agent] - value[later][agent])
                for later in range(start, len(reward))
            )
            for agent in range(len(reward[0]))
        ]
        for start in range(len(reward))
    ]


def updated(config: PPOConfig, share: float = 0.0) -> tuple[Tensor, dict[str, float]]:
    """How an update moves the weights by plain gradient descent, and its figures."""
    policy, episode = LinearActorCritic(), random_episode()
    before = policy.weight.detach().clone()
    figures = descending(policy, config).update(episode, torch.Generator().manual_seed(0), share)
    return policy.weight.detach() - before, figures


@pytest.mark.parametrize("share", [0.0, 0.5, 1.5])
def test_an_update_is_a_step_down_the_loss_written_out(share: float) -> None:
    """Advantages, targets of the value, normalisation, who is covered, and what changes over a training."""
    config = PPOConfig(
        epochs=1, minibatch=24, learning_rate=0.1, final_rate=0.2, gamma=0.9, gae_lambda=0.8, entropy_weight=0.05,
        gradient_clip=1e9, beta=0.4, beta_final=0.1,
    )  # fmt: skip
    moved, figures = updated(config, share)
    episode = random_episode()
    assert episode.log_reference is not None
    slow = torch.tensor(slow_advantages(episode, config), dtype=torch.float64).flatten()
    batch = {
        "value": torch.zeros(24, dtype=torch.float64),
        "actions": episode.actions.flatten(),
        "logprobs": episode.logprobs.double().flatten(),
        "advantages": slow,
        "returns": slow + episode.values[:-1].double().flatten(),
        "log_reference": episode.log_reference.double().flatten(0, 1),
        "covered": episode.covered.flatten(),
    }
    weight = LinearActorCritic().weight.detach().double()
    done = min(1.0, share)
    fixed = dataclasses.replace(config, beta=0.4 - 0.3 * done, beta_final=None)

    def loss(weight: Tensor) -> float:
        out = episode.observations.ego.double() @ weight
        return by_hand({**batch, "logits": out[:, :3], "value": out[:, 3]}, fixed)["loss"]

    gradient = torch.zeros_like(weight)
    for row in range(5):
        for column in range(4):
            step = torch.zeros_like(weight)
            step[row, column] = 1e-5
            gradient[row, column] = (loss(weight + step) - loss(weight - step)) / 2e-5
    rate = 0.1 * (1 - 0.8 * done)
    torch.testing.assert_close(moved.double(), -rate * gradient, atol=1e-5, rtol=1e-4)
    target = batch["returns"]
    assert figures["explained_variance"] == pytest.approx(1 - float(slow.var() / target.var()), abs=1e-5)
    out = episode.observations.ego.double() @ weight
    parts = by_hand({**batch, "logits": out[:, :3], "value": out[:, 3]}, fixed)
    parts.pop("loss")
    assert {name: figures[name] for name in parts} == pytest.approx(parts, abs=1e-5)


def test_an_update_of_no_training_is_one_at_its_beginning() -> None:
    config = PPOConfig(epochs=1, minibatch=24, learning_rate=0.1, final_rate=0.2, beta=0.4, beta_final=0.1)
    first, _ = updated(config, 0.0)
    policy, episode = LinearActorCritic(), random_episode()
    before = policy.weight.detach().clone()
    descending(policy, config).update(episode, torch.Generator().manual_seed(0))
    assert torch.equal(policy.weight.detach() - before, first)
    assert not torch.equal(first, updated(config, 1.0)[0])


def test_gradients_are_clipped_to_a_norm() -> None:
    moved, _ = updated(PPOConfig(epochs=1, minibatch=24, learning_rate=0.1, gradient_clip=0.01))
    assert float(moved.norm()) == pytest.approx(0.1 * 0.01, rel=1e-3)


def test_a_running_scale_divides_returns_and_advantages() -> None:
    """Deviations of the first update; then nine tenths of the old squares and one tenth of the new ones."""
    fabric = Fabric(accelerator="cpu", devices=1)
    rollout, scale = random_episode(5, 4), Scale()
    advantages = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    returns = advantages + rollout.values[:-1]
    scale.follow(fabric, rollout, advantages)
    first = float(returns.double().std(correction=0)), float(advantages.double().square().mean().sqrt())
    assert (scale.returns, scale.advantages) == pytest.approx(first)
    (batch,) = minibatches(Shard(fabric, rollout), rollout, advantages, 20, torch.Generator().manual_seed(0), scale)
    places = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(batch.advantages, advantages.flatten()[places] / first[1])
    torch.testing.assert_close(batch.returns, returns.flatten()[places] / first[0])
    scale.follow(fabric, rollout, 3 * advantages)
    second = float((3 * advantages + rollout.values[:-1]).double().std(correction=0)), 3 * first[1]
    mixed = [math.sqrt(0.9 * old**2 + 0.1 * new**2) for old, new in zip(first, second)]
    assert [scale.returns, scale.advantages] == pytest.approx(mixed)


def test_ratios_that_overflow_do_not_matter_where_others_drive() -> None:
    batch = random_batch()
    batch["logprobs"] = torch.full_like(batch["logprobs"], -1e4)
    taught = PPOConfig(surrogate_weight=0.0, value_weight=0.0, entropy_weight=0.0, beta=1.0, kl="forward")
    batch["logits"].requires_grad_()
    loss, parts = loss_of(batch, taught)
    loss.backward()
    assert math.isfinite(float(loss))
    assert float(loss) == pytest.approx(float(parts["kl"]))
    assert batch["logits"].grad is not None
    assert bool(batch["logits"].grad.isfinite().all())
