"""Gradient steps of PPO: forward, backward, sum over the devices, clip, Adam; on CUDA as two recorded graphs."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from data.errors import UserError
from pipeline.execution.devices import summed
from pipeline.execution.graphs import Graphed
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.ppo import (
    LOSS_PARTS,
    Minibatch,
    Scale,
    Shard,
    explained_variance,
    gae,
    minibatches,
    ppo_loss,
)
from pipeline.selfplay.rollout import Net, Rollout, act
from pipeline.simulator.observation import Observation


class Learner:
    """A policy, its optimiser, and how both are improved on rollouts.

    Args:
        fabric: devices and precision. policy: on the device of the fabric. config: of PPO.
        compiled: fuse the net by torch.compile. recorded: steps are CUDA graphs, if there is a GPU.

    Attributes:
        actor: the policy in the precision of the training, for ``collect``.
        scale: of returns and advantages, with ``running_scale``.
    """

    def __init__(
        self, fabric: Fabric, policy: nn.Module, config: PPOConfig, compiled: bool = False, recorded: bool = True
    ) -> None:
        self.fabric, self.policy, self.config = fabric, policy, config
        self.scale = Scale() if config.running_scale else None
        self._parameters = [parameter for parameter in policy.parameters() if parameter.requires_grad]
        device = self._parameters[0].device
        self._on_gpu = device.type == "cuda"
        self._fused = device.type in ("cpu", "cuda")
        # One tensor for all gradients: one sum over the devices, one norm.
        self._flat = torch.zeros(sum(p.numel() for p in self._parameters), device=device)
        rate = torch.tensor(config.learning_rate, device=device) if self._on_gpu else config.learning_rate
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(
            self._parameters, lr=rate, eps=1e-5, fused=self._fused, capturable=self._on_gpu
        )
        # On a GPU for sizes that seldom change, and for any if they do; on a CPU for any.
        dynamic = None if self._on_gpu else True
        fused = cast(nn.Module, torch.compile(policy, fullgraph=True, dynamic=dynamic)) if compiled else policy
        self.actor = self._in_precision(fused)
        # On a CPU the compiled backward pass takes longer than the plain one (make bench ONLY=selfplay).
        self._net = self.actor if self._on_gpu else self._in_precision(policy)
        recorded = self._on_gpu and recorded
        self._gradients, self._improved = Graphed(self._backward, recorded), Graphed(self._apply, recorded)

    @property
    def in_bfloat16(self) -> bool:
        """Whether the net computes in bfloat16."""
        with self.fabric.autocast():
            return torch.is_autocast_enabled(self._flat.device.type)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with a saved state of the optimiser."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group.update(lr=rate, fused=self._fused, capturable=self._on_gpu)

    def update(self, rollout: Rollout, generator: torch.Generator, progress: float = 0.0) -> dict[str, float]:
        """Improve the policy, in training mode, on a rollout.

        Args:
            rollout: transitions of this device.
            generator: of the minibatches, the same on all devices. progress: fraction of the training that is done.

        Returns:
            Means of the loss's parts over the last epoch, and the explained variance; of all devices.

        Raises:
            UserError: a gradient was not finite.
        """
        config = self.config
        self._set_rate(config.learning_rate_at(progress))
        kl_weight = self._flat.new_full((), config.kl_weight_at(progress))
        scale = self.scale
        if scale is not None and scale.returns:
            # The critic's values are on the scale of its last targets.
            rollout = dataclasses.replace(rollout, values=rollout.values * scale.returns)
        advantages = gae(rollout.rewards, rollout.values, config.gamma, config.gae_lambda)
        if scale is not None:
            scale.follow(self.fabric, rollout, advantages)
        shard = Shard(self.fabric, rollout)
        norms: list[Tensor] = []
        epochs = 0
        for _ in range(config.epochs):
            epochs += 1
            figures: list[Tensor] = []
            for batch in minibatches(shard, rollout, advantages, config.minibatch, generator, scale):
                figures.append(self._gradients(kl_weight, *_tensors(batch)).clone())
                if self.fabric.world_size > 1:
                    self._flat.copy_(summed(self.fabric, self._flat))
                norms.append(self._improved().clone())
            means = summed(self.fabric, torch.stack(figures).mean(0))
            # Once an epoch, and only where it is asked for, since the host waits.
            if config.target_kl and float(means[LOSS_PARTS.index("policy_change")]) > config.target_kl:
                break
        if not bool(torch.stack(norms).isfinite().all()):
            raise UserError(
                "self-play: a gradient is not finite; lower ppo.learning_rate, or use precision 32-true"
            )
        explained = explained_variance(self.fabric, rollout, advantages)
        parts = dict(zip(LOSS_PARTS, means.tolist(), strict=True))
        return parts | {"explained_variance": explained, "epochs": float(epochs)}

    def _in_precision(self, policy: nn.Module) -> Net:
        def net(*features: Tensor) -> tuple[Tensor, Tensor]:
            with self.fabric.autocast():
                logits, values = policy(*features)
            return logits, values

        return net

    def _set_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def _backward(self, kl_weight: Tensor, *tensors: Tensor) -> Tensor:
        """Parts of the loss [6]; the gradient is left in ``_flat``."""
        batch = _minibatch(tensors)
        self._flat.zero_()
        views = self._flat.split([parameter.numel() for parameter in self._parameters])
        for parameter, view in zip(self._parameters, views, strict=True):
            parameter.grad = view.view_as(parameter)
        logits, values = act(self._net, batch.observations)
        loss, parts = ppo_loss(logits, values, batch, self.config, kl_weight)
        loss.backward()
        return torch.stack([parts[name] for name in LOSS_PARTS])

    def _apply(self) -> Tensor:
        """Step of the optimiser with a clipped gradient, and the norm before clipping []."""
        norm = self._flat.norm()
        self._flat.mul_((self.config.gradient_clip / (norm + 1e-6)).clamp(max=1.0))
        self.optimizer.step()
        return norm


_PARTS = ("observations", "log_reference")
_FIELDS = tuple(field.name for field in dataclasses.fields(Minibatch) if field.name not in _PARTS)
_SEEN = tuple(field.name for field in dataclasses.fields(Observation))


def _tensors(batch: Minibatch) -> list[Tensor]:
    tensors = [getattr(batch, name) for name in _FIELDS]
    tensors += [getattr(batch.observations, name) for name in _SEEN]
    return tensors if batch.log_reference is None else [*tensors, batch.log_reference]


def _minibatch(tensors: tuple[Tensor, ...]) -> Minibatch:
    """The inverse of ``_tensors``."""
    plain = dict(zip(_FIELDS, tensors))
    rest = tensors[len(_FIELDS) :]
    seen = Observation(**dict(zip(_SEEN, rest)))
    reference = rest[len(_SEEN)] if len(rest) > len(_SEEN) else None
    return Minibatch(**plain, observations=seen, log_reference=reference)
