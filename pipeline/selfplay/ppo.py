"""PPO anchored to a frozen reference (SPACeR equations 1 to 5), readable from top to bottom.

    reward   r = r_task + alpha * log pi_ref(a | s)                       (``episode.collect``)
    loss     clipped PPO + value_weight * value loss - entropy_weight * entropy + beta * KL

The KL is exact, summed over the vocabulary, recomputed for every minibatch; its gradient reaches the policy alone.
Several devices share an update: each has the transitions of its own worlds, all draw the same minibatches over all
transitions, and what is divided by a number of transitions is divided by that of all devices. So they do what one
would.

Shape legend: D decisions, N controlled agents (of all worlds of a device), M transitions, K vocabulary size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.episode import Episode, act
from pipeline.simulator.observation import Observation

__all__ = ["Minibatch", "advantages", "anchor_kl", "exact_kl", "policy_loss", "update"]

_PARTS = ("surrogate", "value_loss", "entropy", "kl", "clip_fraction")


@dataclass(frozen=True)
class Minibatch:
    """M transitions of this device, and how many there are on all of them."""

    action: Tensor  # [M] int64
    old_log_prob: Tensor  # [M] of the action when it was taken
    advantage: Tensor  # [M] normalised over the minibatch of all devices
    target: Tensor  # [M] of the value
    reference: Tensor | None  # [M, K] log-probabilities
    covered: Tensor  # [M] bool, where the reference counts
    count: Tensor | int  # transitions of all devices
    covered_count: Tensor | int  # of these, covered


def advantages(reward: Tensor, value: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates [D, N]; the episode is truncated, so the last value bootstraps.

    Args:
        reward: [D, N]. value: [D + 1, N].
    """
    delta = reward + gamma * value[1:] - value[:-1]
    result = torch.zeros_like(delta)
    running = torch.zeros_like(delta[0])
    for index in range(len(delta) - 1, -1, -1):
        running = delta[index] + gamma * gae_lambda * running
        result[index] = running
    return result


def exact_kl(log_policy: Tensor, log_reference: Tensor) -> Tensor:
    """KL(policy || reference) [...] over the vocabulary [..., K], in nats."""
    return (log_policy.exp() * (log_policy - log_reference)).sum(-1)


def anchor_kl(log_policy: Tensor, log_reference: Tensor, kind: str) -> Tensor:
    """The KL [...] that anchors: ``reverse``, KL(policy || reference), or ``forward``, the other way round."""
    if kind == "forward":
        return exact_kl(log_reference, log_policy)
    return exact_kl(log_policy, log_reference)


def policy_loss(
    logits: Tensor, value: Tensor, batch: Minibatch, config: PPOConfig, beta: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """This device's part of the loss of a minibatch, and of its parts; those of all devices add up to the whole.

    Args:
        logits: [M, K]. value: [M]. batch: transitions. config: weights. beta: weight of the KL now.
    """
    log_policy = logits.log_softmax(-1)
    log_prob = log_policy.gather(-1, batch.action.unsqueeze(-1)).squeeze(-1)
    ratio = (log_prob - batch.old_log_prob).exp()
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    surrogate = torch.minimum(ratio * batch.advantage, clipped * batch.advantage).sum() / batch.count
    entropy = -(log_policy.exp() * log_policy).sum() / batch.count
    value_loss = 0.5 * (value - batch.target).square().sum() / batch.count
    kl = log_policy.new_zeros(())
    if batch.reference is not None:
        # Where the reference has no opinion the policy is compared with itself.
        known = torch.where(batch.covered.unsqueeze(-1), batch.reference, log_policy.detach())
        kl = (anchor_kl(log_policy, known, config.kl) * batch.covered).sum() / batch.covered_count
    loss = (
        config.value_weight * value_loss
        - config.surrogate_weight * surrogate
        - config.entropy_weight * entropy
        + beta * kl
    )
    far = ((ratio - 1).abs() > config.clip).sum() / batch.count
    parts = zip(_PARTS, (surrogate, value_loss, entropy, kl, far), strict=True)
    return loss, {name: part.detach() for name, part in parts}


class _Shares:
    """Which transitions of all devices are this one's: those of its agents, who stand in a row among all agents."""

    def __init__(self, fabric: Fabric, episode: Episode) -> None:
        self.decisions, self.own = episode.action.shape
        counts = torch.zeros(fabric.world_size, dtype=torch.int64, device=episode.action.device)
        counts[fabric.global_rank] = self.own
        counts = _summed(fabric, counts)
        self.agents = int(counts.sum())
        self.first = int(counts[: fabric.global_rank].sum())

    @property
    def transitions(self) -> int:
        return self.decisions * self.agents

    def rows(self, everywhere: Tensor) -> Tensor:
        """Of transitions numbered over all devices, the numbers here of those that are here."""
        decision, agent = everywhere // self.agents, everywhere % self.agents - self.first
        here = (agent >= 0) & (agent < self.own)
        return decision[here] * self.own + agent[here]


def _summed(fabric: Fabric, tensor: Tensor) -> Tensor:
    """The sum over all devices."""
    total = fabric.all_reduce(tensor, reduce_op="sum")
    assert isinstance(total, Tensor)
    return total


def _minibatches(
    fabric: Fabric, shares: _Shares, episode: Episode, config: PPOConfig, generator: torch.Generator
) -> Iterator[tuple[Tensor, Minibatch]]:
    """An epoch: rows of this device, and what the loss needs of them."""
    advantage = advantages(episode.reward, episode.value, config.gamma, config.gae_lambda)
    target = (advantage + episode.value[:-1]).flatten()
    advantage, covered = advantage.flatten(), episode.covered.flatten()
    action, log_prob = episode.action.flatten(), episode.log_prob.flatten()
    reference = None if episode.reference is None else episode.reference.flatten(0, 1)
    order = torch.randperm(shares.transitions, generator=generator, device=generator.device)
    # Equal parts: a small last one would weigh as much as the others, and normalise few advantages.
    parts = order.tensor_split(max(1, round(shares.transitions / config.minibatch)))
    chosen = [shares.rows(part.to(advantage.device)) for part in parts]
    exact = advantage.double()
    sums = [torch.stack((exact[r].sum(), exact[r].square().sum(), covered[r].sum().double())) for r in chosen]
    totals = _summed(fabric, torch.stack(sums))  # [minibatches, 3]
    for part, rows, (total, squares, known) in zip(parts, chosen, totals, strict=True):
        mean = total / len(part)
        deviation = (squares / len(part) - mean.square()).clamp(min=0).sqrt()
        yield (
            rows,
            Minibatch(
                action=action[rows],
                old_log_prob=log_prob[rows],
                advantage=((advantage[rows] - mean) / (deviation + 1e-8)).float(),
                target=target[rows],
                reference=None if reference is None else reference[rows],
                covered=covered[rows],
                count=len(part),
                covered_count=known.clamp(min=1).float(),
            ),
        )


def update(
    fabric: Fabric,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    episode: Episode,
    config: PPOConfig,
    generator: torch.Generator,
    share: float = 0.0,
) -> dict[str, float]:
    """Improve the policy on an episode.

    Args:
        fabric: runs the backward pass. policy: in training mode. optimizer: of its weights.
        episode: transitions of this device. config: settings.
        generator: of the minibatches, the same on all devices. share: of the training that is done.

    Returns:
        Means of the loss's parts over the last epoch, and explained variance; of all devices.
    """
    beta = config.beta_at(share)
    for group in optimizer.param_groups:
        group["lr"] = config.rate_at(share)
    shares = _Shares(fabric, episode)
    found: list[Tensor] = []
    for _ in range(config.epochs):
        found = []
        for rows, batch in _minibatches(fabric, shares, episode, config, generator):
            seen = Observation(**{name: value[rows] for name, value in vars(episode.observation).items()})
            logits, value = act(policy, seen)
            loss, parts = policy_loss(logits, value, batch, config, beta)
            optimizer.zero_grad(set_to_none=True)
            # Devices average their gradients, and their losses add up.
            fabric.backward(loss * fabric.world_size)
            fabric.clip_gradients(policy, optimizer, max_norm=config.gradient_clip)
            optimizer.step()
            found.append(torch.stack([parts[name] for name in _PARTS]))
    means = _summed(fabric, torch.stack(found).mean(0)).tolist()
    return dict(zip(_PARTS, means, strict=True)) | {"explained_variance": _explained(fabric, episode, config)}


def _explained(fabric: Fabric, episode: Episode, config: PPOConfig) -> float:
    """Share of the variance of the value's targets that the value foresaw."""
    error = advantages(episode.reward, episode.value, config.gamma, config.gae_lambda).double()
    target = error + episode.value[:-1]
    sums = [t for x in (error, target) for t in (x.sum(), x.square().sum())]
    total, squares, other, others = (
        _summed(fabric, torch.stack(sums))
        / _summed(fabric, torch.tensor(float(episode.transitions), dtype=torch.float64, device=error.device))
    ).tolist()
    return 1.0 - max(0.0, squares - total**2) / max(1e-8, others - other**2)
