"""The policy: a small feed-forward net over the observation of one agent (SPACeR section 3; GPUDrive's late
fusion).

Shape legend: N agents, P neighbours, R road segments, K vocabulary size.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError
from data.files import atomic_write
from data.vocabulary import TYPE_NAMES, Vocabulary
from models.checkpoints import name_untrained, read_checkpoint
from models.layers import Inertia, full_precision

POLICY_KIND, _FORMAT = "policy", 2
# Numbers that the critic alone may see.
BEYOND = 6


@dataclass(frozen=True)
class PolicyConfig:
    """Size of the policy.

    Args:
        embedding: width of the three encoders.
        hidden: width of the fused layer.
        dropout: probability, in training only. Where it is not 0, the policy that learns is not quite the one that
            drove, and PPO's ratios are noisy from the first step on.
        row_layers: linear layers through which every neighbour and road segment goes before the maximum over them,
            2 as in GPUDrive, or 1: the second then follows the maximum, at half the cost of a training step.
        gelu: a GELU before and after the fused layer. It is linear in GPUDrive: logits there are sums of terms of
            the agent, its neighbours and the road.
        own_critic: a critic with a hidden layer of its own, which also sees what no agent sees: time, goal, log
            (``Observation.beyond``). Its gradient does not reach what it shares with the actor. In the paper it is
            a linear layer on what the actor makes of what it sees.
        per_type: an action head each for vehicles, pedestrians and cyclists, instead of one for all.
        inertia: add logits that fall with the distance from the last motion (``models.layers.Inertia``); the net
            of the paper has none.
    """

    embedding: int = 64
    hidden: int = 128
    dropout: float = 0.0
    row_layers: int = 2
    gelu: bool = False
    own_critic: bool = False
    per_type: bool = True
    inertia: bool = True

    def __post_init__(self) -> None:
        if self.row_layers not in (1, 2):
            raise UserError(f"policy.row_layers is {self.row_layers}; it must be 1 or 2")


class _Encoder(nn.Sequential):
    """GPUDrive's encoder, [..., F] to [..., D]."""

    def __init__(self, inputs: int, width: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(inputs, width), nn.LayerNorm(width), nn.Tanh(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def pooled(self, rows: Tensor, seen: Tensor, layers: int) -> Tensor:
        """Maximum [N, D] of rows [N, M, F] where ``seen`` [N, M], zero where none is, with ``layers`` before it.

        This takes most of the time and memory of the net. Buffers that are no longer needed are reused, and the
        last bias is added after the maximum.
        """
        first, norm, tanh, dropout, last = self
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        linear, some = torch.nn.functional.linear, seen.any(1, keepdim=True)
        away = torch.where(seen, 0.0, -torch.inf).unsqueeze(-1)
        normed = norm(linear(rows, first.weight).add_(first.bias))
        if layers == 1:
            # The largest tanh is the tanh of the largest. Nothing infinite may enter it: its gradient would be NaN.
            pooled = torch.where(some, _largest(normed.add_(away)), 0.0)
            return torch.where(some, last(dropout(tanh(pooled))), 0.0)
        pooled = _largest(linear(dropout(normed.tanh_()), last.weight).add_(away))
        return torch.where(some, pooled + last.bias, 0.0)


def _largest(rows: Tensor) -> Tensor:
    """Maximum [N, D] over M of [N, M, D]."""
    # The backward pass of ``max`` with indices is cheaper than that of ``amax``, which looks for ties.
    return rows.max(1).values if torch.is_grad_enabled() else rows.amax(1)


class Policy(nn.Module):
    """Action logits and value from ego, neighbour and road features.

    Args:
        config: sizes. features: widths of ego, neighbour and road features.
        ends: [3, K, 3] ends of the tokens of each type (``Vocabulary.ends``), metres and radians.

    Attributes:
        trained_on: digests of the scenarios that it and its reference were trained on, see ``models.checkpoints``.
    """

    def __init__(self, config: PolicyConfig, features: tuple[int, int, int], ends: Tensor) -> None:
        super().__init__()
        self.trained_on = torch.zeros(0, dtype=torch.int64)
        self.config, self.features, self.actions = config, features, ends.shape[1]
        self.ego, self.neighbour, self.road = (
            _Encoder(size, config.embedding, config.dropout) for size in features
        )
        self.fuse = nn.Sequential(nn.Linear(3 * config.embedding, config.hidden), nn.Dropout(config.dropout))
        self.around = nn.GELU() if config.gelu else nn.Identity()
        self.heads = len(TYPE_NAMES) if config.per_type else 1
        self.actor = nn.Linear(config.hidden, self.heads * self.actions)
        last = nn.Linear(config.hidden, 1)
        self.critic: nn.Module = last
        if config.own_critic:
            self.critic = nn.Sequential(nn.Linear(3 * config.embedding + BEYOND, config.hidden), nn.Tanh(), last)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.orthogonal_(module.weight, 2**0.5)
                nn.init.zeros_(module.bias)
        nn.init.orthogonal_(self.actor.weight, 0.01)
        nn.init.orthogonal_(last.weight, 1.0)
        self.inertia = Inertia(config.hidden, ends) if config.inertia else None

    def forward(
        self,
        ego: Tensor,
        neighbour: Tensor,
        neighbour_seen: Tensor,
        road: Tensor,
        road_seen: Tensor,
        agent_type: Tensor,
        motion: Tensor,
        beyond: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and values [N].

        Args:
            ego: [N, E]. neighbour: [N, P, F]. neighbour_seen: [N, P] bool. road: [N, R, G].
            road_seen: [N, R] bool. agent_type: [N] int64, row of the vocabulary.
            motion: [N, 3] the last token's motion, metres and radians.
            beyond: [N, 6], or [N, 0], what the critic alone may see; see ``decide``.
        """
        road = self.see_road(road, road_seen)
        return self.decide(ego, neighbour, neighbour_seen, road, agent_type, motion, beyond)

    def see_road(self, road: Tensor, road_seen: Tensor) -> Tensor:
        """Encoded road [N, D]: most of the work, and constant while an agent stands still."""
        return self.road.pooled(road, road_seen, self.config.row_layers)

    def decide(
        self,
        ego: Tensor,
        neighbour: Tensor,
        neighbour_seen: Tensor,
        road: Tensor,
        agent_type: Tensor,
        motion: Tensor,
        beyond: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, K] and values [N]; as ``forward``, with ``road`` [N, D] from ``see_road``.

        Without ``beyond`` values of a critic of its own mean nothing.
        """
        others = self.neighbour.pooled(neighbour, neighbour_seen, self.config.row_layers)
        seen = torch.cat((self.ego(ego), others, road), dim=-1)
        fused = self.around(self.fuse(self.around(seen)))
        # bfloat16 would change probabilities by some percent, and PPO divides them by each other.
        with full_precision(fused.device):
            fused = fused.float()
            judged = fused
            if self.config.own_critic:
                if beyond is None or not beyond.shape[-1]:
                    beyond = seen.new_zeros(seen.shape[0], BEYOND)
                judged = torch.cat((seen.detach().float(), beyond.float()), dim=-1)
            return self._logits(fused, agent_type, motion), self.critic(judged).squeeze(-1)

    def _logits(self, fused: Tensor, agent_type: Tensor, motion: Tensor) -> Tensor:
        logits = self.actor(fused)
        if self.heads > 1:
            by_type = logits.view(logits.shape[0], self.heads, self.actions)
            index = agent_type.view(-1, 1, 1).expand(-1, 1, self.actions)
            logits = by_type.gather(1, index).squeeze(1)
        if self.inertia is not None:
            logits = logits + self.inertia(fused, agent_type, motion)
        return logits


def save_policy(path: Path, policy: Policy, vocabulary: Vocabulary, observation: dict[str, Any]) -> None:
    """Write a self-contained checkpoint atomically; ``observation`` are the fields of its config."""
    content = {
        "kind": POLICY_KIND,
        "format": _FORMAT,
        "config": dataclasses.asdict(policy.config),
        "features": list(policy.features),
        "observation": observation,
        "vocabulary": vocabulary.state_dict(),
        "weights": {name: tensor.detach().cpu() for name, tensor in policy.state_dict().items()},
        "trained_on": policy.trained_on,
    }
    atomic_write(path, lambda file: torch.save(content, file))


def load_policy(path: Path) -> tuple[Policy, Vocabulary, dict[str, Any]]:
    """Read policy, vocabulary and fields of the observation's config; warns of an untrained policy.

    Raises:
        UserError: no such file, another kind of file, or of another version.
    """
    content = read_checkpoint(path, POLICY_KIND, _FORMAT)
    try:
        vocabulary = Vocabulary.from_state_dict(content["vocabulary"])
        ego, neighbour, road = content["features"]
        policy = Policy(PolicyConfig(**content["config"]), (ego, neighbour, road), vocabulary.ends)
        policy.load_state_dict(content["weights"])
        observation = dict(content["observation"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: policy checkpoint of another version of the code; train again") from error
    name_untrained(path, policy)
    return policy.eval(), vocabulary, observation
