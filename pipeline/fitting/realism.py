"""The loss of ``finetune --method realism``: policy gradient of the realism meta-metric.

R rollouts of every scene are sampled from the model. A decision of an agent is paid what the meta-metric would lose
without what the agent did from there on in this rollout (``submission.realism.credit``). As this baseline does not
depend on the decision, payment times the gradient of the log-probability is, over the agent's own values, an
unbiased estimate of the gradient of the meta-metric itself. What a decision does to the values of others is left
out: they are many, and their noise would drown the agent's own.

Shape legend: B scenes, R rollouts, A agents, E of them evaluated, M new tokens, K vocabulary size, F components.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from data.ground import joint_states
from data.scene import map_tensors
from data.tokenizer import MotionTokens, scene_origin
from models.reference.engine import Engine, Rollout, Sampler, repeat_agents
from models.reference.inputs import SceneInputs
from models.reference.network import Reference
from models.sampling import SamplingConfig, exact_kl
from pipeline.fitting.scored import ScoredInputs, ScoredScene
from submission.realism import COMPONENTS, MetricConfig, leave_one_out, load_config, score_states
from submission.realism.config import CONFIG_FILES

# Tokens of a pass with gradient; more are done in several passes. On a CPU larger passes are not faster.
_MAX_TOKENS, _MAX_TOKENS_GPU = 4096, 65_536


@dataclass(frozen=True)
class RealismConfig:
    """Fine-tuning on the realism meta-metric.

    Args:
        rollouts: of each scene in a step; the reward is the meta-metric of these.
        metric: whose weights, 2025, 2024 or 2025_scenario_gen.
        kl_weight: of the KL divergence from the initial model, in the states that the rollouts visit (nats a token
            beside payments of deviation 1).
        held_out: components of the metric that pay nothing, to see whether they suffer.
    """

    rollouts: int = 16
    metric: str = "2025"
    kl_weight: float = 0.1
    held_out: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rollouts < 2:
            raise UserError(f"realism.rollouts is {self.rollouts}; leaving one out needs at least 2")
        if self.kl_weight < 0:
            raise UserError(f"realism.kl_weight is {self.kl_weight}; it must be at least 0")
        if self.metric not in CONFIG_FILES:
            raise UserError(f"realism.metric is {self.metric!r}; choose one of {', '.join(CONFIG_FILES)}")
        if unknown := [name for name in self.held_out if name not in COMPONENTS]:
            raise UserError(f"realism.held_out: {unknown[0]!r} is none of {', '.join(COMPONENTS)}")


def rewarded(config: RealismConfig) -> dict[str, float]:
    """Weights of the components in the reward: those of the year without the held-out ones, adding up to 1.

    Raises:
        UserError: none is left.
    """
    weights = load_config(config.metric).weights
    kept = {name: 0.0 if name in config.held_out else weight for name, weight in weights.items()}
    total = sum(kept.values())
    if not total:
        raise UserError("realism.held_out: nothing with a weight is left to be rewarded; hold out less")
    return {name: weight / total for name, weight in kept.items()}


@torch.no_grad()
def sample(model: Reference, batch: ScoredInputs) -> Rollout:
    """R rollouts of every scene from a model in evaluation mode."""
    inputs, (_, rollouts, tokens, _) = batch.inputs, batch.uniform.shape
    types = inputs.agents.types.repeat_interleave(rollouts, 0)
    return Engine(model).rollout(
        model.encode_batch(inputs),
        inputs.agents,
        inputs.tokens,
        inputs.lights,
        rollouts,
        tokens,
        Sampler(batch.uniform.flatten(0, 1), types, SamplingConfig()),
    )


def scored_states(scenes: Sequence[ScoredScene], rollout: Rollout) -> list[Tensor]:
    """States [R, A, 80, 4] of every scene in the order of its context, on its device."""
    # The heights are those of an entry, looked up on the CPU: the one wait of a step.
    poses, found = rollout.poses.cpu(), []
    for one, pose in zip(scenes, poses, strict=True):
        moved = pose[:, : len(one.order)].flatten(2, 3)
        states = joint_states(one.scene, moved, scene_origin(one.scene))
        found.append(states.to(one.order.device, non_blocking=True)[:, one.order])
    return found


def advantages(gain: Tensor, weights: Tensor) -> Tensor:
    """Payments [R, E, N] of gains [F, R, E, N] with weights [F]: mean 0 for an agent, deviation 1 for the scene.

    The mean over rollouts is what an agent gets on average at this decision. The deviation is over all agents of
    the scene, so that agents that hardly matter, such as parked ones, stay so instead of having their noise scaled
    up.
    """
    payment = torch.einsum("fren,f->ren", gain, weights)
    payment = payment - payment.mean(0)
    return payment / payment.square().mean().sqrt().clamp(min=1e-8)


class RealismLoss:
    """Policy gradient of the meta-metric plus KL to the initial model.

    Args:
        config: options. start: the initial model; not trained.
    """

    figures = ("reward", "kl_to_start")

    def __init__(self, config: RealismConfig, start: Reference) -> None:
        self._config, self._start = config, start.eval().requires_grad_(False)
        self._metric: MetricConfig = load_config(config.metric)
        weights = rewarded(config)
        self._weights = torch.tensor([weights[name] for name in COMPONENTS])

    def __call__(self, model: Reference, batch: ScoredInputs) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        device = batch.uniform.device
        self._start, self._weights = self._start.to(device), self._weights.to(device)
        # Dropout would make it another model than the one whose tokens are paid.
        training = model.training
        model.eval()
        rollout = sample(model, batch)
        payment, reward = self._paid(batch, rollout)
        weight = self._config.kl_weight
        loss, divergence = policy_gradient(model, self._start, batch.inputs, rollout, payment, weight)
        model.train(training)
        tokens = learnt_tokens(batch.inputs, rollout)
        each = tokens.flatten(1).sum(1)
        # As the loss: by tokens, so that several devices report what one does.
        mean = (reward * each).sum() / each.sum().clamp(min=1)
        return loss, each.sum(), {"reward": mean, "kl_to_start": divergence}

    @torch.no_grad()
    def _paid(self, batch: ScoredInputs, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Payments [B, R, A, M] and rewards [B]."""
        payment = torch.zeros(rollout.ids.shape, device=rollout.poses.device)
        steps = rollout.poses.shape[4]
        first = torch.arange(rollout.ids.shape[-1], device=payment.device) * steps
        rewards = []
        for row, (one, states) in enumerate(zip(batch.scenes, scored_states(batch.scenes, rollout), strict=True)):
            score = score_states(one.context, states, self._metric)
            gain = leave_one_out(one.context, score, self._metric, first)
            payment[row].index_copy_(1, one.order[: one.context.evaluated], advantages(gain, self._weights))
            parts = torch.stack([score.values[f"{name}_likelihood"] for name in COMPONENTS])
            # A likelihood of no values is NaN.
            rewards.append((parts.nan_to_num(1.0) * self._weights).sum())
        return payment, torch.stack(rewards)


def learnt_tokens(inputs: SceneInputs, rollout: Rollout) -> Tensor:
    """Which tokens [B, R, A, M] count: those of agents with a loss; others are context."""
    return inputs.learnt[:, None, :, None].expand(rollout.ids.shape)


def policy_gradient(
    model: Reference,
    start: Reference,
    inputs: SceneInputs,
    rollout: Rollout,
    payment: Tensor,
    kl_weight: float,
) -> tuple[Tensor, Tensor]:
    """Minus the mean payment times log-probability of paid tokens, plus the mean KL of all learnt tokens.

    Args:
        model: in evaluation mode; gets the gradient. start: what it began with.
        rollout: of the batch ``inputs``, from ``sample``. payment: [B, R, A, M], 0 where nothing is paid.

    Returns:
        The loss, with its gradient, and the KL divergence from the initial model in nats; means over tokens.
    """
    learnt = learnt_tokens(inputs, rollout)
    total = learnt.sum().clamp(min=1)
    payment = payment * learnt
    # The scene's tokens for each one that is paid, so that both terms are means over their own tokens.
    share = learnt.flatten(1).sum(1) / (payment != 0).flatten(1).sum(1).clamp(min=1)
    weight = payment * share.view(-1, 1, 1, 1) / total
    counted = learnt / total
    executed = map_tensors(
        rollout.executed(inputs.agents, inputs.tokens),
        lambda tensor: tensor.unflatten(0, rollout.ids.shape[:2]),
    )
    count = rollout.ids.shape[-1]
    encoding = model.encode_batch(inputs)
    with torch.no_grad():
        known = start.encode_batch(inputs)

    def part(rows: slice, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Loss and KL of some rollouts of all scenes."""
        tokens: MotionTokens = map_tensors(executed, lambda tensor: tensor[:, rows].flatten(0, 1))
        some = rollout.ids[:, rows].flatten(0, 1)
        agents = repeat_agents(inputs.agents, len(some) // len(inputs.learnt))
        given = dataclasses.replace(inputs, agents=agents, tokens=tokens)
        logits = model(given, dataclasses.replace(encoding, feature=feature))[:, :, -count:]
        own = logits.float().log_softmax(-1)  # [B * R', A, M, K]
        chosen = own.gather(-1, some.unsqueeze(-1)).squeeze(-1)
        with torch.no_grad():
            other = start(given, known)[:, :, -count:].float().log_softmax(-1)
        divergence = (exact_kl(own, other) * counted[:, rows].flatten(0, 1)).sum()
        loss = kl_weight * divergence - (chosen * weight[:, rows].flatten(0, 1)).sum()
        return loss, divergence.detach()

    limit = _MAX_TOKENS if learnt.device.type == "cpu" else _MAX_TOKENS_GPU
    size = max(1, limit // max(1, executed.ids[:, 0].numel()))
    slices = [slice(first, first + size) for first in range(0, rollout.ids.shape[1], size)]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return _summed([partial(part, rows) for rows in slices], encoding.feature, trained)


def _summed(
    parts: Iterable[Callable[[Tensor], tuple[Tensor, Tensor]]], feature: Tensor, trained: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Sums of parts (value, figure), with the gradient of the value; only one part's graph is held at a time."""
    leaf = feature.detach().requires_grad_(feature.requires_grad)
    leaves = [*trained, leaf] if feature.requires_grad else list(trained)
    gradients = [torch.zeros_like(one) for one in leaves]
    value, figure = feature.new_zeros(()), feature.new_zeros(())
    for part in parts:
        with torch.enable_grad():
            one, beside = part(leaf)
        for total, found in zip(gradients, torch.autograd.grad(one, leaves, allow_unused=True), strict=True):
            if found is not None:
                total.add_(found)
        value, figure = value + one.detach(), figure + beside
    given = [*trained, feature] if feature.requires_grad else trained
    result: Tensor = _Known.apply(value, len(gradients), *gradients, *given)
    return result, figure


class _Known(torch.autograd.Function):
    """A value whose gradient is known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *tensors: Tensor) -> Tensor:
        ctx.count = count
        ctx.save_for_backward(*tensors[:count])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        known = (gradient * one for one in ctx.saved_tensors)
        return (None, None, *(None for _ in range(ctx.count)), *known)
