"""An episode of self-play: the policy drives a batch of worlds for 8 s, and what it did is kept as transitions.

    reward   r = r_task + alpha * log pi_ref(a | s)

Shape legend: W worlds, A agents, D decisions, N controlled agents of all worlds, K vocabulary size. A transition is
one decision of one controlled agent; padded slots are never among them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from data.vocabulary import Vocabulary
from pipeline.execution.clock import Clock
from pipeline.selfplay.config import PPOConfig
from pipeline.simulator.events import events_at_start
from pipeline.simulator.observation import Observation, ObservationConfig
from pipeline.simulator.reward import RewardConfig, still, task_rewards, without
from pipeline.simulator.step import controlled_agents, decisions, places, reset
from pipeline.simulator.stepping import Stepper
from pipeline.simulator.world import World

__all__ = ["Driven", "Episode", "Scorer", "act", "collect", "join"]

_LEAST_LOG_LIKELIHOOD = -20.0


@dataclass(frozen=True)
class Driven:
    """What was executed in an episode, for a reference to judge."""

    tokens: Tensor  # [W, A, D] int64
    poses: Tensor  # [W, A, D + 1, 3] at the decisions and at the end
    present: Tensor  # [W, A, D + 1] bool
    controlled: Tensor  # [W, A] bool
    who: tuple[Tensor, Tensor]  # [N] world and [N] agent of those controlled
    observation: Observation  # of D * N, flattened


# From what was executed to log-probabilities of all tokens [D, N, K].
Scorer = Callable[[Driven], Tensor]


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
    sums: Mapping[str, Tensor]  # name to [2] float64: what it adds up to, and over how many
    seconds: Mapping[str, float]  # by phase

    @property
    def transitions(self) -> int:
        """Of which something is learnt."""
        return self.action.numel()

    @property
    def agent_steps(self) -> int:
        """Decisions executed."""
        return int(self.sums["task_reward"][1]) * len(self.action)

    def of_agents(self, chosen: Tensor) -> Episode:
        """The transitions of some agents [n] of the N; sums are still those of all."""
        count = self.action.shape[1]
        rows = (torch.arange(len(self.action), device=chosen.device)[:, None] * count + chosen).flatten()
        parts = {
            name: getattr(self, name)[:, chosen] for name in ("action", "log_prob", "value", "reward", "covered")
        }
        return dataclasses.replace(
            self,
            observation=Observation(**{name: value[rows] for name, value in vars(self.observation).items()}),
            reference=None if self.reference is None else self.reference[:, chosen],
            **parts,
        )


def join(observations: Sequence[Observation]) -> Observation:
    """Observations of several decisions as one."""
    return Observation(
        **{name: torch.cat([getattr(o, name) for o in observations]) for name in vars(observations[0])}
    )


def act(policy: nn.Module, seen: Observation) -> tuple[Tensor, Tensor]:
    """Logits [N, K] and values [N] of a policy, in float32."""
    logits, value = policy(
        seen.ego, seen.neighbour, seen.neighbour_seen, seen.road, seen.road_seen, seen.type, seen.motion
    )
    return logits.float(), value.float()


def _choose(log_policy: Tensor, uniform: Tensor) -> Tensor:
    """[N] tokens drawn with given numbers: what a world does depends on its own draws, not on its place."""
    cumulative = log_policy.exp().cumsum(-1)
    index = (cumulative <= uniform.unsqueeze(-1) * cumulative[:, -1:]).sum(-1)
    return index.clamp(max=log_policy.shape[-1] - 1)


@torch.no_grad()
def collect(
    policy: nn.Module,
    world: World,
    vocabulary: Vocabulary,
    score: Scorer | None,
    config: PPOConfig,
    reward: RewardConfig,
    view: ObservationConfig,
    uniform: Tensor,
    stepper: Stepper | None = None,
    logged: Tensor | None = None,
) -> Episode:
    """Let the policy, or the log, drive a batch of worlds for one episode.

    Args:
        policy: in evaluation mode. world: batched. vocabulary: of the tokens.
        score: reference log-probabilities of what was executed; None without an anchor.
        config, reward, view: settings.
        uniform: [D + 2, W, A] in [0, 1), all that is random: actions, and last whose goal is hidden, and which of
            the parked are learnt from or which one is controlled.
        stepper: how observations and steps are computed; plainly by default.
        logged: [W, A, D] tokens of the log, for an episode in which all replay it instead of driving.
    """
    stepper = stepper or Stepper(vocabulary, view)
    clock = Clock(world.pose.device)
    controlled = controlled_agents(world, config.driven, uniform[-1])
    driving = controlled if logged is None else torch.zeros_like(controlled)
    who = places(controlled)
    vehicle = controlled & (world.types == 0)
    drivers = places(vehicle)
    state = reset(world, uniform[-2] < config.goal_dropout, view.history)
    tokens = torch.zeros_like(world.types)
    nobody = torch.zeros_like(controlled)
    before = events_at_start(world, state, view.box_scale, who, drivers)
    # What lasts from the start on is the record's doing: paying for it would teach parked cars to flee.
    excused = before if reward.forgive_start else dataclasses.replace(before, collision=nobody, off_road=nobody)
    happened = dict.fromkeys(("collision", "off_road", "red_light", "goal"), nobody)
    seen: list[Observation] = []
    actions, log_probs, values, taken = [], [], [], []
    terms: list[dict[str, Tensor]] = []
    poses, present = [state.pose], [state.present]
    for index in range(decisions(vocabulary)):
        seen.append(stepper.observe(world, state, who))
        clock.lap("observe")
        logits, value = act(policy, seen[-1])
        log_policy = logits.log_softmax(-1)
        action = _choose(log_policy, uniform[index][who]) if logged is None else logged[..., index][who]
        clock.lap("policy")
        tokens = tokens.index_put(who, action)
        state, _, events = stepper.step(world, state, tokens, driving, who, drivers)
        excused = still(excused, events)
        blamed = without(events, excused)
        terms.append({name: term[who] for name, term in task_rewards(blamed, before, reward).items()})
        before = blamed
        happened = {name: flag | getattr(blamed, name) for name, flag in happened.items()}
        actions.append(action)
        log_probs.append(log_policy.gather(-1, action.unsqueeze(-1)).squeeze(-1))
        values.append(value)
        taken.append(tokens)
        poses.append(state.pose)
        present.append(state.present)
        clock.lap("simulate")
    values.append(act(policy, stepper.observe(world, state, who))[1])
    action, observation = torch.stack(actions), join(seen)
    earned = {name: torch.stack([term[name] for term in terms]) for name in terms[0]}  # [D, N] each
    task = torch.stack(list(earned.values())).sum(0)
    clock.lap("policy")
    reference, covered, likelihood = None, torch.zeros_like(action, dtype=torch.bool), torch.zeros_like(task)
    if score is not None:
        driven = Driven(
            torch.stack(taken, -1), torch.stack(poses, 2), torch.stack(present, -1), controlled, who, observation
        )
        reference = score(driven)
        covered = torch.isfinite(reference).all(-1)
        likelihood = reference.gather(-1, action.unsqueeze(-1)).squeeze(-1).clamp(min=_LEAST_LOG_LIKELIHOOD)
        likelihood = torch.where(covered, likelihood, 0.0)
        clock.lap("reference")
    # Only vehicles are paid for the road and its lights, so the rates of both are theirs.
    counted = {"collision": controlled, "off_road": vehicle, "red_light": vehicle, "goal": controlled & world.moves}
    agents = len(who[0])
    sums = {
        f"{name}_rate": _sum((flag & counted[name]).sum(), counted[name].sum()) for name, flag in happened.items()
    }
    sums["task_reward"] = _sum(task.sum(), agents)
    sums |= {f"reward_{name}": _sum(term.sum(), agents) for name, term in earned.items()}
    sums["reward_likelihood"] = _sum(config.alpha * likelihood.sum(), agents)
    sums["log_likelihood"] = _sum(likelihood.sum(), covered.sum())
    sums["reference_coverage"] = _sum(covered.sum(), covered.numel())
    episode = Episode(
        observation=observation,
        action=action,
        log_prob=torch.stack(log_probs),
        value=torch.stack(values),
        reward=task + config.alpha * likelihood,
        reference=reference,
        covered=covered,
        sums=sums,
        seconds=clock.seconds(),
    )
    if config.parked_share == 1:
        return episode
    return episode.of_agents((world.moves | (uniform[-1] < config.parked_share))[who].nonzero().flatten())


def _sum(total: Tensor, count: Tensor | int) -> Tensor:
    return torch.stack((total.double(), torch.as_tensor(count, device=total.device).double()))
