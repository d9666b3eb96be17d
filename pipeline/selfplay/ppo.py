"""PPO anchored to a frozen reference (SPACeR equations 1 to 5), readable from top to bottom.

    reward   r = r_task + alpha * log pi_ref(a | s)
    loss     clipped PPO + value_weight * value loss - entropy_weight * entropy + beta * KL(pi || pi_ref)

The KL is exact, summed over the vocabulary, recomputed for every minibatch; its gradient reaches the policy alone.
Shape legend: D decisions, N controlled agents (of all worlds), K vocabulary size. A transition is one decision of
one controlled agent; padded slots are never part of a batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from data.vocabulary import Vocabulary
from pipeline.selfplay.events import events_at_start, find_events
from pipeline.selfplay.observation import Observation, ObservationConfig, observe
from pipeline.selfplay.reward import RewardConfig, note_events, still, task_reward, without
from pipeline.selfplay.simulator import controlled_agents, decisions, places, reset, step
from pipeline.selfplay.worlds import World

__all__ = ["Episode", "PPOConfig", "advantages", "collect", "exact_kl", "join", "policy_loss", "update"]

_LEAST_LOG_LIKELIHOOD = -20.0


@dataclass(frozen=True)
class PPOConfig:
    """PPO and the anchor; defaults are the paper's Table A3 where it names a value.

    Args:
        epochs: passes over the transitions of an update.
        minibatch: transitions in a gradient step, about: an update's transitions are divided into equal parts.
        learning_rate: of Adam, constant.
        gamma: discount of a decision.
        gae_lambda: of the advantage estimate.
        clip: of the probability ratio.
        value_weight: of the value loss.
        entropy_weight: of the entropy bonus.
        gradient_clip: largest norm of the gradient.
        beta: weight of KL(policy || reference) in the loss; 0 for plain self-play.
        alpha: weight of the reference's log-likelihood in the reward.
        goal_dropout: share of agents whose goal is hidden in an episode, though reaching it is still paid.
        vehicles_only: control moving vehicles alone, all others replay the log (the paper's main experiment).
    """

    epochs: int = 4
    minibatch: int = 8192
    learning_rate: float = 3e-4
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    value_weight: float = 0.3
    entropy_weight: float = 1e-4
    gradient_clip: float = 0.5
    beta: float = 0.1
    alpha: float = 0.0
    goal_dropout: float = 0.5
    vehicles_only: bool = False


@dataclass(frozen=True)
class Episode:
    """All transitions of 8 s in a batch of worlds; [D, N, ...]."""

    observation: Observation  # of D * N agents, flattened
    action: Tensor  # [D, N] int64
    log_prob: Tensor  # [D, N] of the action when it was taken
    value: Tensor  # [D + 1, N]; the last one is the bootstrap at the truncation
    reward: Tensor  # [D, N]
    reference: Tensor | None  # [D, N, K] log-probabilities of the frozen reference
    covered: Tensor  # [D, N] bool: the reference has an opinion
    rates: dict[str, float]  # shares of agents with an event, mean task reward of an episode and log-likelihood

    @property
    def transitions(self) -> int:
        return self.action.numel()


# (tokens [W, A, D], poses [W, A, D + 1, 3], controlled [W, A], present [W, A, D + 1]) to [W, A, D, K].
Scorer = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def join(observations: Sequence[Observation]) -> Observation:
    """Observations of several decisions as one."""
    return Observation(
        **{name: torch.cat([getattr(o, name) for o in observations]) for name in vars(observations[0])}
    )


def act(policy: nn.Module, seen: Observation) -> tuple[Tensor, Tensor]:
    """Logits [N, K] and values [N] of a policy."""
    logits, value = policy(
        seen.ego, seen.neighbour, seen.neighbour_seen, seen.road, seen.road_seen, seen.type, seen.motion
    )
    return logits, value


@torch.no_grad()
def collect(
    policy: nn.Module,
    world: World,
    vocabulary: Vocabulary,
    score: Scorer | None,
    config: PPOConfig,
    reward: RewardConfig,
    view: ObservationConfig,
    generator: torch.Generator,
) -> Episode:
    """Let the policy drive a batch of worlds for one episode.

    Args:
        policy: in evaluation mode. world: batched. vocabulary: of the tokens.
        score: reference log-probabilities of what was executed; None without an anchor.
        config, reward, view: settings. generator: of hidden goals and actions.
    """
    controlled = controlled_agents(world, config.vehicles_only)
    who = places(controlled)
    vehicle = controlled & (world.types == 0)
    drivers = places(vehicle)
    device = controlled.device
    hidden = torch.rand(controlled.shape, generator=generator, device=device) < config.goal_dropout
    state = reset(world, hidden)
    tokens = torch.zeros_like(world.types)
    nobody = torch.zeros_like(controlled)
    before = events_at_start(world, state, view.box_scale, drivers)
    # What lasts from the start on is the record's doing: paying for it would teach parked cars to flee.
    excused = before if reward.forgive_start else dataclasses.replace(before, collision=nobody, off_road=nobody)
    happened = dict.fromkeys(("collision", "off_road", "red_light", "goal"), nobody)
    seen: list[Observation] = []
    actions: list[Tensor] = []
    log_probs: list[Tensor] = []
    values: list[Tensor] = []
    rewards: list[Tensor] = []
    taken: list[Tensor] = []
    poses, present = [state.pose], [state.present]
    for _ in range(decisions(vocabulary)):
        seen.append(observe(world, state, who, view))
        logits, value = act(policy, seen[-1])
        log_policy = logits.log_softmax(-1)
        action = torch.multinomial(log_policy.exp(), 1, generator=generator).squeeze(-1)
        tokens = tokens.index_put(who, action)
        state, motion = step(world, state, tokens, controlled, vocabulary)
        events = find_events(world, state, motion, view.box_scale, drivers)
        excused = still(excused, events)
        blamed = without(events, excused)
        rewards.append(task_reward(blamed, before, reward)[who])
        before = blamed
        happened = {name: flag | getattr(blamed, name) for name, flag in happened.items()}
        state = note_events(state, events)
        actions.append(action)
        log_probs.append(log_policy.gather(-1, action.unsqueeze(-1)).squeeze(-1))
        values.append(value)
        taken.append(tokens)
        poses.append(state.pose)
        present.append(state.present)
    values.append(act(policy, observe(world, state, who, view))[1])
    action, task = torch.stack(actions), torch.stack(rewards)
    reference, covered, likelihood = None, torch.zeros_like(action, dtype=torch.bool), torch.zeros_like(task)
    if score is not None:
        scored = score(torch.stack(taken, -1), torch.stack(poses, 2), controlled, torch.stack(present, -1))
        reference = scored[who].transpose(0, 1)  # [D, N, K]
        likelihood = reference.gather(-1, action.unsqueeze(-1)).squeeze(-1).clamp(min=_LEAST_LOG_LIKELIHOOD)
        covered = torch.isfinite(reference).all(-1)
    # Only vehicles are paid for the road and its lights, so the rates of both are theirs.
    counted = {"collision": controlled, "off_road": vehicle, "red_light": vehicle, "goal": controlled & world.moves}
    rates = {
        f"{name}_rate": float((flag & counted[name]).sum()) / max(1, int(counted[name].sum()))
        for name, flag in happened.items()
    }
    rates |= {"task_reward": float(task.sum(0).mean()), "log_likelihood": float(likelihood.mean())}
    return Episode(
        observation=join(seen),
        action=action,
        log_prob=torch.stack(log_probs),
        value=torch.stack(values),
        reward=task + config.alpha * likelihood,
        reference=reference,
        covered=covered,
        rates=rates,
    )


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


def policy_loss(
    logits: Tensor,
    value: Tensor,
    action: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    target: Tensor,
    reference: Tensor | None,
    covered: Tensor,
    config: PPOConfig,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of a minibatch of M transitions and its parts.

    Args:
        logits: [M, K]. value, action, old_log_prob, advantage, target: [M]. reference: [M, K] or None.
        covered: [M] bool, where the KL counts. config: weights.
    """
    log_policy = logits.float().log_softmax(-1)
    log_prob = log_policy.gather(-1, action.unsqueeze(-1)).squeeze(-1)
    ratio = (log_prob - old_log_prob).exp()
    normalised = (advantage - advantage.mean()) / (advantage.std(unbiased=False) + 1e-8)
    clipped = ratio.clamp(1 - config.clip, 1 + config.clip)
    surrogate = torch.minimum(ratio * normalised, clipped * normalised).mean()
    entropy = -(log_policy.exp() * log_policy).sum(-1).mean()
    value_loss = 0.5 * (value.float() - target).square().mean()
    kl = log_policy.new_zeros(())
    if reference is not None:
        weight = covered.float()
        known = torch.where(covered.unsqueeze(-1), reference, log_policy.detach())
        kl = (exact_kl(log_policy, known) * weight).sum() / weight.sum().clamp(min=1.0)
    loss = -surrogate + config.value_weight * value_loss - config.entropy_weight * entropy + config.beta * kl
    parts = {
        "surrogate": surrogate,
        "value_loss": value_loss,
        "entropy": entropy,
        "kl": kl,
        "clip_fraction": ((ratio - 1).abs() > config.clip).float().mean(),
    }
    return loss, {name: part.detach() for name, part in parts.items()}


def update(
    fabric: Fabric,
    policy: nn.Module,
    optimizer: torch.optim.Optimizer,
    episode: Episode,
    config: PPOConfig,
    generator: torch.Generator,
) -> dict[str, float]:
    """Improve the policy on an episode.

    Args:
        fabric: runs the backward pass. policy: in training mode. optimizer: of its weights.
        episode: transitions. config: settings. generator: of the minibatches.

    Returns:
        Means of the loss's parts over the last epoch, and explained variance.
    """
    advantage = advantages(episode.reward, episode.value, config.gamma, config.gae_lambda)
    target = advantage + episode.value[:-1]
    flat = [
        tensor.flatten(0, 1) for tensor in (episode.action, episode.log_prob, advantage, target, episode.covered)
    ]
    reference = None if episode.reference is None else episode.reference.flatten(0, 1)
    count = episode.transitions
    # Equal parts: a small last one would weigh as much as the others, and normalise few advantages.
    batches = max(1, round(count / config.minibatch))
    parts: list[dict[str, Tensor]] = []
    for _ in range(config.epochs):
        parts = []
        order = torch.randperm(count, generator=generator, device=generator.device)
        for rows in order.tensor_split(batches):
            action, old_log_prob, adv, goal, covered = (tensor[rows] for tensor in flat)
            seen = Observation(**{name: value[rows] for name, value in vars(episode.observation).items()})
            logits, value = act(policy, seen)
            anchor = None if reference is None else reference[rows]
            loss, part = policy_loss(logits, value, action, old_log_prob, adv, goal, anchor, covered, config)
            optimizer.zero_grad(set_to_none=True)
            fabric.backward(loss)
            fabric.clip_gradients(policy, optimizer, max_norm=config.gradient_clip)
            optimizer.step()
            parts.append(part)
    variance = target.var(unbiased=False)
    explained = 1.0 - (target - episode.value[:-1]).var(unbiased=False) / variance.clamp(min=1e-8)
    means = {name: float(torch.stack([part[name] for part in parts]).mean()) for name in parts[0]}
    return {
        **means,
        "explained_variance": float(explained),
        "reference_coverage": float(episode.covered.float().mean()),
    }
