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

from pipeline.execution.clock import Clock
from pipeline.selfplay.config import PPOConfig
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import Observation
from pipeline.simulator.step import AgentIndex, controlled_agents
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
    agent_index: AgentIndex  # of the N controlled agents
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
    simulator: Simulator,
    world: World,
    score: Scorer | None,
    config: PPOConfig,
    uniform: Tensor,
    logged: Tensor | None = None,
) -> Episode:
    """Let the policy, or the log, drive a batch of worlds for one episode.

    Args:
        policy: in evaluation mode. simulator: of the worlds. world: batched.
        score: reference log-probabilities of what was executed; None without an anchor.
        config: whom to control, and what the reference's log-likelihood is worth.
        uniform: [D + 2, W, A] in [0, 1), all that is random: actions, then whose goal is hidden, then which parked
            agents are learnt from or which agent is controlled.
        logged: [W, A, D] tokens of the log, for an episode in which all agents replay it instead of driving.
    """
    clock = Clock(world.pose.device)
    controlled = controlled_agents(world, config.driven, uniform[-1])
    simulator.reset(world, controlled, uniform[-2] < config.goal_dropout, replay=logged is not None)
    agent_index = simulator.agent_index
    tokens = torch.zeros_like(world.types)
    happened: dict[str, Tensor] = {}
    seen: list[Observation] = []
    actions: list[Tensor] = []
    log_probs: list[Tensor] = []
    values: list[Tensor] = []
    taken: list[Tensor] = []
    terms: list[dict[str, Tensor]] = []
    poses, present = [simulator.state.pose], [simulator.state.present]
    while not simulator.over:
        uniform_now = uniform[len(actions)]
        seen.append(simulator.observe())
        clock.lap("observe")
        logits, value = act(policy, seen[-1])
        log_policy = logits.log_softmax(-1)
        if logged is None:
            action = _choose(log_policy, uniform_now[agent_index])
        else:
            action = logged[..., len(actions)][agent_index]
        clock.lap("policy")
        tokens = tokens.index_put(agent_index, action)
        rewards, events = simulator.step(tokens)
        terms.append({name: term[agent_index] for name, term in rewards.items()})
        happened = {name: flag | happened.get(name, flag) for name, flag in vars(events).items()}
        actions.append(action)
        log_probs.append(log_policy.gather(-1, action.unsqueeze(-1)).squeeze(-1))
        values.append(value)
        taken.append(tokens)
        poses.append(simulator.state.pose)
        present.append(simulator.state.present)
        clock.lap("simulate")
    values.append(act(policy, simulator.observe())[1])
    action, observation = torch.stack(actions), join(seen)
    earned = {name: torch.stack([term[name] for term in terms]) for name in terms[0]}  # [D, N] each
    task = torch.stack(list(earned.values())).sum(0)
    clock.lap("policy")
    reference, covered, likelihood = None, torch.zeros_like(action, dtype=torch.bool), torch.zeros_like(task)
    if score is not None:
        driven = Driven(
            torch.stack(taken, -1),
            torch.stack(poses, 2),
            torch.stack(present, -1),
            controlled,
            agent_index,
            observation,
        )
        reference = score(driven)
        covered = torch.isfinite(reference).all(-1)
        likelihood = reference.gather(-1, action.unsqueeze(-1)).squeeze(-1).clamp(min=_LEAST_LOG_LIKELIHOOD)
        likelihood = torch.where(covered, likelihood, 0.0)
        clock.lap("reference")
    # Only vehicles are paid for the road and its lights, so the rates of both are theirs.
    vehicle = controlled & (world.types == 0)
    counted = {"collision": controlled, "off_road": vehicle, "red_light": vehicle, "goal": controlled & world.moves}
    agents = len(agent_index[0])
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
    return episode.of_agents((world.moves | (uniform[-1] < config.parked_share))[agent_index].nonzero().flatten())


def _sum(total: Tensor, count: Tensor | int) -> Tensor:
    return torch.stack((total.double(), torch.as_tensor(count, device=total.device).double()))
