"""The mathematics of PPO with an anchor (SPACeR equations 1 to 5): advantages, minibatches, losses.

    loss     clipped PPO + value_weight * value loss - entropy_weight * entropy + beta * KL

The KL is exact, summed over the vocabulary, and recomputed for every minibatch; its gradient reaches the policy
alone. Several devices share an update: each has the transitions of its own worlds, all draw the same minibatches
over all transitions, and sums are divided by the number of transitions of all devices. So they do what one would.

Shape legend: D decisions, N controlled agents (of all worlds of a device), M transitions, K vocabulary size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from torch import Tensor

from pipeline.execution.devices import summed
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.rollout import Rollout
from pipeline.simulator.observation import Observation

__all__ = [
    "LOSS_PARTS",
    "Minibatch",
    "Shard",
    "anchor_kl",
    "exact_kl",
    "explained_variance",
    "gae",
    "minibatches",
    "ppo_loss",
]

LOSS_PARTS = ("surrogate", "value_loss", "entropy", "kl", "clip_fraction")


def gae(rewards: Tensor, values: Tensor, gamma: float, gae_lambda: float) -> Tensor:
    """Generalised advantage estimates [D, N]; the episode is truncated, so the last value bootstraps.

    Args:
        rewards: [D, N]. values: [D + 1, N].
    """
    delta = rewards + gamma * values[1:] - values[:-1]
    advantages = torch.zeros_like(delta)
    running = torch.zeros_like(delta[0])
    for index in range(len(delta) - 1, -1, -1):
        running = delta[index] + gamma * gae_lambda * running
        advantages[index] = running
    return advantages


def exact_kl(log_policy: Tensor, log_reference: Tensor) -> Tensor:
    """KL(policy || reference) [...] over the vocabulary [..., K], in nats."""
    return (log_policy.exp() * (log_policy - log_reference)).sum(-1)


def anchor_kl(log_policy: Tensor, log_reference: Tensor, kind: str) -> Tensor:
    """The anchor's KL [...]: ``reverse``, KL(policy || reference), or ``forward``, KL(reference || policy)."""
    if kind == "forward":
        return exact_kl(log_reference, log_policy)
    return exact_kl(log_policy, log_reference)


@dataclass(frozen=True)
class Minibatch:
    """M transitions of this device, and how many there are on all devices."""

    observations: Observation  # of M
    actions: Tensor  # [M] int64
    logprobs: Tensor  # [M] of the actions when they were taken
    advantages: Tensor  # [M] normalised over the minibatch of all devices
    returns: Tensor  # [M] targets of the value
    log_reference: Tensor | None  # [M, K] log-probabilities
    covered: Tensor  # [M] bool, where the reference counts
    count: Tensor | int  # transitions of all devices
    covered_count: Tensor | int  # of these, covered


def minibatches(
    shard: Shard, rollout: Rollout, advantages: Tensor, size: int, generator: torch.Generator
) -> Iterator[Minibatch]:
    """One epoch over the transitions of all devices, in minibatches of about ``size``.

    Args:
        shard: of the rollout. advantages: [D, N] of the rollout.
        generator: of the order, the same on all devices.
    """
    returns = (advantages + rollout.values[:-1]).flatten()
    advantages, covered = advantages.flatten(), rollout.covered.flatten()
    actions, logprobs = rollout.actions.flatten(), rollout.logprobs.flatten()
    log_reference = None if rollout.log_reference is None else rollout.log_reference.flatten(0, 1)
    order = torch.randperm(shard.transitions, generator=generator, device=generator.device)
    # Equal parts: a small last one would weigh as much as the others, and normalise few advantages.
    parts = order.tensor_split(max(1, round(shard.transitions / size)))
    rows_of_parts = [shard.rows(part.to(advantages.device)) for part in parts]
    exact = advantages.double()
    sums = [
        torch.stack((exact[rows].sum(), exact[rows].square().sum(), covered[rows].sum().double()))
        for rows in rows_of_parts
    ]
    totals = summed(shard.fabric, torch.stack(sums))  # [minibatches, 3]
    for part, rows, (total, squares, covered_count) in zip(parts, rows_of_parts, totals, strict=True):
        mean = total / len(part)
        deviation = (squares / len(part) - mean.square()).clamp(min=0).sqrt()
        yield Minibatch(
            observations=Observation(**{name: value[rows] for name, value in vars(rollout.observations).items()}),
            actions=actions[rows],
            logprobs=logprobs[rows],
            advantages=((advantages[rows] - mean) / (deviation + 1e-8)).float(),
            returns=returns[rows],
            log_reference=None if log_reference is None else log_reference[rows],
            covered=covered[rows],
            count=len(part),
            covered_count=covered_count.clamp(min=1).float(),
        )


def ppo_loss(
    logits: Tensor, values: Tensor, batch: Minibatch, config: PPOConfig, kl_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """This device's part of the loss of a minibatch, and of ``LOSS_PARTS``; the parts of all devices add up.

    Args:
        logits: [M, K]. values: [M]. batch: transitions. config: weights. kl_weight: of the KL now.
    """
    log_policy = logits.log_softmax(-1)
    logprobs = log_policy.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
    ratio = (logprobs - batch.logprobs).exp()
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    surrogate = torch.minimum(ratio * batch.advantages, clipped * batch.advantages).sum() / batch.count
    entropy = -(log_policy.exp() * log_policy).sum() / batch.count
    value_loss = 0.5 * (values - batch.returns).square().sum() / batch.count
    kl = log_policy.new_zeros(())
    if batch.log_reference is not None:
        # Where the reference has no opinion the policy is compared with itself.
        log_reference = torch.where(batch.covered.unsqueeze(-1), batch.log_reference, log_policy.detach())
        kl = (anchor_kl(log_policy, log_reference, config.kl) * batch.covered).sum() / batch.covered_count
    loss = (
        config.value_weight * value_loss
        - config.surrogate_weight * surrogate
        - config.entropy_weight * entropy
        + kl_weight * kl
    )
    clip_fraction = ((ratio - 1).abs() > config.clip).sum() / batch.count
    parts = zip(LOSS_PARTS, (surrogate, value_loss, entropy, kl, clip_fraction), strict=True)
    return loss, {name: part.detach() for name, part in parts}


def explained_variance(fabric: Fabric, values: Tensor, advantages: Tensor) -> float:
    """Fraction of the variance of the returns that the values [D + 1, N] foresaw; of all devices."""
    error = advantages.double()
    returns = error + values[:-1]
    sums = [total for x in (error, returns) for total in (x.sum(), x.square().sum())]
    count = torch.tensor(float(error.numel()), dtype=torch.float64, device=error.device)
    mean, square, returns_mean, returns_square = (
        summed(fabric, torch.stack(sums)) / summed(fabric, count)
    ).tolist()
    return 1.0 - max(0.0, square - mean**2) / max(1e-8, returns_square - returns_mean**2)


class Shard:
    """The transitions of this device among those of all devices, whose agents stand in a row."""

    def __init__(self, fabric: Fabric, rollout: Rollout) -> None:
        self.fabric = fabric
        self._decisions, self._own = rollout.actions.shape
        counts = torch.zeros(fabric.world_size, dtype=torch.int64, device=rollout.actions.device)
        counts[fabric.global_rank] = self._own
        counts = summed(fabric, counts)
        self._agents = int(counts.sum())
        self._first = int(counts[: fabric.global_rank].sum())

    @property
    def transitions(self) -> int:
        """Of all devices."""
        return self._decisions * self._agents

    def rows(self, everywhere: Tensor) -> Tensor:
        """Of transitions numbered over all devices, the rows here of those that are here."""
        decision, agent = everywhere // self._agents, everywhere % self._agents - self._first
        here = (agent >= 0) & (agent < self._own)
        return decision[here] * self._own + agent[here]
