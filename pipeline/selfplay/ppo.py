"""The mathematics of PPO with an anchor (SPACeR equations 1 to 5): advantages, minibatches, losses.

    loss     clipped PPO + value_weight * value loss - entropy_weight * entropy + beta * KL

The KL is exact, summed over the vocabulary, and recomputed for every minibatch; its gradient reaches the policy
alone. Several devices share an update: each has the transitions of its own worlds, all draw the same minibatches
over all transitions, and sums are divided by the number of transitions of all devices. So they do what one would.

Shape legend: D decisions, N controlled agents (of all worlds of a device), M transitions, K vocabulary size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter

import torch
from lightning.fabric import Fabric
from torch import Tensor

from data.scene import map_tensors
from models.sampling import exact_kl
from pipeline.execution.devices import summed
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.rollout import Rollout
from pipeline.simulator.observation import Observation

# The last is an estimate of KL(policy that drove || policy).
LOSS_PARTS = ("surrogate", "value_loss", "entropy", "kl", "clip_fraction", "policy_change")

# How much of a running deviation stays at an update.
_SCALE_KEPT = 0.9


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
    advantages: Tensor  # [M] normalised, over the minibatch of all devices or on a running scale
    returns: Tensor  # [M] targets of the value
    log_reference: Tensor | None  # [M, K] log-probabilities
    covered: Tensor  # [M] bool, where the reference counts
    real: Tensor  # [M] bool, false for padding
    count: Tensor  # [] float32: transitions of all devices
    covered_count: Tensor  # [] float32: of these, covered; at least 1


def minibatches(
    shard: Shard,
    rollout: Rollout,
    advantages: Tensor,
    size: int,
    generator: torch.Generator,
    scale: Scale | None = None,
) -> Iterator[Minibatch]:
    """One epoch over the transitions of all devices, in minibatches of about ``size``.

    All are padded to the same length, so that one CUDA graph serves them all.

    Args:
        shard: of the rollout. advantages: [D, N] of the rollout. size: of a minibatch.
        generator: of the order, the same on all devices.
        scale: by which returns and advantages are divided, instead of advantages by their deviation in a minibatch.
    """
    device, flat = advantages.device, advantages.flatten()
    returns, covered = flat + rollout.values[:-1].flatten(), rollout.covered.flatten()
    actions, logprobs = rollout.actions.flatten(), rollout.logprobs.flatten()
    log_reference = None if rollout.log_reference is None else rollout.log_reference.flatten(0, 1)
    order = torch.randperm(shard.transitions, generator=generator)
    # Equal parts: a small last one would weigh as much as the others, and normalise few advantages.
    parts = order.tensor_split(max(1, round(shard.transitions / size)))
    rows, real = shard.rows(parts)
    exact = torch.where(real, flat[rows].double(), 0.0)  # [B, M]
    seen = real & covered[rows]
    sums = torch.stack((exact.sum(1), exact.square().sum(1), seen.sum(1).double()), dim=1)
    totals = summed(shard.fabric, sums)  # [B, 3]
    counts = torch.tensor([len(part) for part in parts], dtype=torch.float64).to(device)
    means = totals[:, 0] / counts
    deviations = (totals[:, 1] / counts - means.square()).clamp(min=0).sqrt()
    if scale is None:
        normalised = ((exact - means.unsqueeze(1)) / (deviations.unsqueeze(1) + 1e-8)).float()
    else:
        normalised = (exact / scale.advantages).float()
        returns = returns / scale.returns
    counts, covered_counts = counts.float(), totals[:, 2].clamp(min=1).float()
    for number, chosen in enumerate(rows):
        yield Minibatch(
            observations=map_tensors(rollout.observations, itemgetter(chosen)),
            actions=actions[chosen],
            logprobs=logprobs[chosen],
            advantages=normalised[number],
            returns=returns[chosen],
            log_reference=None if log_reference is None else log_reference[chosen],
            covered=seen[number],
            real=real[number],
            count=counts[number],
            covered_count=covered_counts[number],
        )


def ppo_loss(
    logits: Tensor, values: Tensor, batch: Minibatch, config: PPOConfig, kl_weight: Tensor | float
) -> tuple[Tensor, dict[str, Tensor]]:
    """This device's part of the loss of a minibatch, and of ``LOSS_PARTS``; the parts of all devices add up.

    Args:
        logits: [M, K]. values: [M]. batch: transitions. config: weights. kl_weight: of the KL now.
    """

    def mean(value: Tensor) -> Tensor:
        return torch.where(batch.real, value, 0.0).sum() / batch.count

    log_policy = logits.log_softmax(-1)
    logprobs = log_policy.gather(-1, batch.actions.unsqueeze(-1)).squeeze(-1)
    ratio = (logprobs - batch.logprobs).exp()
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    surrogate = mean(torch.minimum(ratio * batch.advantages, clipped * batch.advantages))
    entropy = mean(-(log_policy.exp() * log_policy).sum(-1))
    value_loss = 0.5 * mean((values - batch.returns).square())
    kl = log_policy.new_zeros(())
    if batch.log_reference is not None:
        # Where the reference has no opinion the policy is compared with itself.
        log_reference = torch.where(batch.covered.unsqueeze(-1), batch.log_reference, log_policy.detach())
        kl = (anchor_kl(log_policy, log_reference, config.kl) * batch.covered).sum() / batch.covered_count
    loss = config.value_weight * value_loss - config.entropy_weight * entropy + kl_weight * kl
    if config.surrogate_weight:
        # Where others drive, ratios may overflow, and zero times infinity is no number.
        loss = loss - config.surrogate_weight * surrogate
    clip_fraction = mean(((ratio - 1).abs() > config.clip).float())
    # Never negative, and of less variance than the mean of the logarithm.
    change = mean(ratio - 1 - (logprobs - batch.logprobs))
    parts = zip(LOSS_PARTS, (surrogate, value_loss, entropy, kl, clip_fraction, change), strict=True)
    return loss, {name: part.detach() for name, part in parts}


def _moments(fabric: Fabric, rollout: Rollout, advantages: Tensor) -> list[float]:
    """Means and means of squares of the advantages, then of the returns, that are learnt from; of all devices."""
    error = advantages[:, rollout.learnt].double()
    returns = error + rollout.values[:-1, rollout.learnt]
    sums = [total for x in (error, returns) for total in (x.sum(), x.square().sum())]
    total = summed(fabric, torch.stack([*sums, sums[0].new_full((), error.numel())])).tolist()
    return [value / total[4] for value in total[:4]]


def explained_variance(fabric: Fabric, rollout: Rollout, advantages: Tensor) -> float:
    """Fraction of the variance of the returns that the values foresaw; of all devices.

    Args:
        rollout: of this device. advantages: [D, N] of it.
    """
    mean, square, returns_mean, returns_square = _moments(fabric, rollout, advantages)
    return 1.0 - max(0.0, square - mean**2) / max(1e-8, returns_square - returns_mean**2)


@dataclass
class Scale:
    """Running deviations of returns and advantages: roots of means of squares over the last updates."""

    returns: float = 0.0  # 0 before the first update
    advantages: float = 0.0

    def follow(self, fabric: Fabric, rollout: Rollout, advantages: Tensor) -> None:
        """Take in an update.

        Args:
            rollout: of this device. advantages: [D, N] of it.
        """
        _, advantage_square, mean, square = _moments(fabric, rollout, advantages)
        now = math.sqrt(max(0.0, square - mean**2)), math.sqrt(advantage_square)
        kept = _SCALE_KEPT if self.returns else 0.0
        self.returns = max(1e-3, math.hypot(kept**0.5 * self.returns, (1 - kept) ** 0.5 * now[0]))
        self.advantages = max(1e-3, math.hypot(kept**0.5 * self.advantages, (1 - kept) ** 0.5 * now[1]))


class Shard:
    """The transitions of this device among those of all devices, whose agents stand in a row."""

    def __init__(self, fabric: Fabric, rollout: Rollout) -> None:
        self.fabric = fabric
        self._decisions, self._stride = rollout.actions.shape
        self._learnt, self._own = rollout.learnt, len(rollout.learnt)
        self._agents, self._first = self._own, 0
        if fabric.world_size > 1:
            counts = torch.zeros(fabric.world_size, dtype=torch.int64, device=rollout.actions.device)
            counts[fabric.global_rank] = self._own
            counts = summed(fabric, counts)
            self._agents = int(counts.sum())
            self._first = int(counts[: fabric.global_rank].sum())

    @property
    def transitions(self) -> int:
        """Of all devices."""
        return self._decisions * self._agents

    def rows(self, parts: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
        """Rows here of the transitions of some minibatches.

        Args:
            parts: B minibatches, transitions numbered over all devices; on the CPU.

        Returns:
            Rows [B, m] of the flattened rollout, and which of them are no padding [B, m]; m is a number that seldom
            changes from update to update, at least that of the largest minibatch.
        """
        own = []
        for part in parts:
            agent = part % self._agents - self._first
            own.append(part[(agent >= 0) & (agent < self._own)])
        padded = torch.nn.utils.rnn.pad_sequence(own, batch_first=True, padding_value=-1)
        longest = padded.shape[1]
        if self._learnt.is_cuda:
            more = -longest % max(1, 1 << max(0, longest.bit_length() - 6))
            padded = torch.nn.functional.pad(padded, (0, more), value=-1)
        padded = padded.to(self._learnt.device, non_blocking=True)
        real = padded >= 0
        decision, agent = padded // self._agents, padded % self._agents - self._first
        rows = decision * self._stride + self._learnt[torch.where(real, agent, 0)]
        return torch.where(real, rows, 0), real
