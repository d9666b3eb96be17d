"""Experience of self-play: the policy drives a batch of worlds for 8 s, and its decisions are kept as transitions.

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

from pipeline.execution.devices import Clock
from pipeline.selfplay.config import PPOConfig
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import Observation
from pipeline.simulator.step import AgentIndex, controlled_agents
from pipeline.simulator.world import World

__all__ = ["LEAST_LOG_LIKELIHOOD", "Executed", "Rollout", "Scorer", "act", "collect", "join"]

# Of a token under the reference, nats: what it excludes must not outweigh everything else.
LEAST_LOG_LIKELIHOOD = -20.0


@dataclass(frozen=True)
class Executed:
    """What was executed in an episode, for an anchor to score."""

    tokens: Tensor  # [W, A, D] int64
    poses: Tensor  # [W, A, D + 1, 3] at the decisions and at the end
    present: Tensor  # [W, A, D + 1] bool
    controlled: Tensor  # [W, A] bool
    agent_index: AgentIndex  # of the N controlled agents
    observations: Observation  # of D * N, flattened


# From what was executed to the anchor's log-probabilities of all tokens [D, N, K].
Scorer = Callable[[Executed], Tensor]


@dataclass(frozen=True)
class Rollout:
    """All transitions of 8 s in a batch of worlds; [D, N, ...]."""

    observations: Observation  # of D * N agents, flattened
    actions: Tensor  # [D, N] int64
    logprobs: Tensor  # [D, N] of the actions when they were taken
    values: Tensor  # [D + 1, N]; the last one is the bootstrap at the truncation
    rewards: Tensor  # [D, N]
    log_reference: Tensor | None  # [D, N, K] log-probabilities of the frozen anchor
    covered: Tensor  # [D, N] bool: the anchor has an opinion
    sums: Mapping[str, Tensor]  # figure to [2] float64: a total, and the count that it is divided by
    seconds: Mapping[str, float]  # by phase

    @property
    def transitions(self) -> int:
        """Number of transitions to learn from."""
        return self.actions.numel()

    @property
    def agent_steps(self) -> int:
        """Number of executed decisions."""
        return int(self.sums["task_reward"][1]) * len(self.actions)

    def of_agents(self, rows: Tensor) -> Rollout:
        """The transitions of some agents [n] of the N; sums are still those of all."""
        decisions, count = self.actions.shape
        flat = (torch.arange(decisions, device=rows.device)[:, None] * count + rows).flatten()
        names = ("actions", "logprobs", "values", "rewards", "covered")
        return dataclasses.replace(
            self,
            observations=Observation(**{name: value[flat] for name, value in vars(self.observations).items()}),
            log_reference=None if self.log_reference is None else self.log_reference[:, rows],
            **{name: getattr(self, name)[:, rows] for name in names},
        )


def join(observations: Sequence[Observation]) -> Observation:
    """Observations of several decisions as one."""
    return Observation(
        **{name: torch.cat([getattr(o, name) for o in observations]) for name in vars(observations[0])}
    )


def act(policy: nn.Module, observations: Observation) -> tuple[Tensor, Tensor]:
    """Logits [N, K] and values [N] of a policy, in float32."""
    obs = observations
    logits, values = policy(
        obs.ego, obs.neighbour, obs.neighbour_seen, obs.road, obs.road_seen, obs.type, obs.motion
    )
    return logits.float(), values.float()


def _sample(log_policy: Tensor, uniform: Tensor) -> Tensor:
    """[N] tokens drawn with given numbers: the actions of a world depend on its own draws, not on its slot."""
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
) -> Rollout:
    """Let the policy, or the log, drive a batch of worlds for one episode.

    Args:
        policy: in evaluation mode. simulator: of the worlds. world: batched.
        score: log-probabilities of an anchor for what was executed; None without an anchor.
        config: which agents are controlled, and what the anchor's log-likelihood is worth.
        uniform: [D + 2, W, A] in [0, 1), all that is random: one row for each decision, one for hidden goals, and
            one for the parked agents that are learnt from or the one agent that is controlled.
        logged: [W, A, D] tokens of the log, for an episode in which all agents replay it instead of driving.
    """
    clock = Clock(world.pose.device)
    controlled = controlled_agents(world, config.driven, uniform[-1])
    simulator.reset(world, controlled, uniform[-2] < config.goal_dropout, replay=logged is not None)
    agent_index = simulator.agent_index
    tokens = torch.zeros_like(world.types)
    happened: dict[str, Tensor] = {}
    obs_list: list[Observation] = []
    action_list: list[Tensor] = []
    logprob_list, value_list, token_list = [], [], []
    reward_list: list[dict[str, Tensor]] = []
    poses, present = [simulator.state.pose], [simulator.state.present]
    while not simulator.over:
        number = len(action_list)
        obs_list.append(simulator.observe())
        clock.lap("observe")
        logits, value = act(policy, obs_list[-1])
        log_policy = logits.log_softmax(-1)
        if logged is None:
            action = _sample(log_policy, uniform[number][agent_index])
        else:
            action = logged[..., number][agent_index]
        clock.lap("policy")
        tokens = tokens.index_put(agent_index, action)
        rewards, events = simulator.step(tokens)
        reward_list.append({name: reward[agent_index] for name, reward in rewards.items()})
        happened = {name: flag | happened.get(name, flag) for name, flag in vars(events).items()}
        action_list.append(action)
        logprob_list.append(log_policy.gather(-1, action.unsqueeze(-1)).squeeze(-1))
        value_list.append(value)
        token_list.append(tokens)
        poses.append(simulator.state.pose)
        present.append(simulator.state.present)
        clock.lap("simulate")
    value_list.append(act(policy, simulator.observe())[1])
    actions, observations = torch.stack(action_list), join(obs_list)
    # [D, N] each.
    terms = {name: torch.stack([rewards[name] for rewards in reward_list]) for name in reward_list[0]}
    task_reward = torch.stack(list(terms.values())).sum(0)
    clock.lap("policy")
    log_reference, covered = None, torch.zeros_like(actions, dtype=torch.bool)
    log_likelihood = torch.zeros_like(task_reward)
    if score is not None:
        executed = torch.stack(token_list, -1), torch.stack(poses, 2), torch.stack(present, -1)
        log_reference = score(Executed(*executed, controlled, agent_index, observations))
        covered = torch.isfinite(log_reference).all(-1)
        log_likelihood = log_reference.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        log_likelihood = torch.where(covered, log_likelihood.clamp(min=LEAST_LOG_LIKELIHOOD), 0.0)
        clock.lap("reference")
    # Only vehicles are paid for the road and its lights, so the rates of both are theirs.
    vehicles = controlled & (world.types == 0)
    moving, agents = controlled & world.moves, len(agent_index[0])
    counted = {"collision": controlled, "off_road": vehicles, "red_light": vehicles, "goal": moving}
    sums = {
        f"{name}_rate": _sum((flag & counted[name]).sum(), counted[name].sum()) for name, flag in happened.items()
    }
    sums["task_reward"] = _sum(task_reward.sum(), agents)
    sums |= {f"reward_{name}": _sum(term.sum(), agents) for name, term in terms.items()}
    sums["reward_likelihood"] = _sum(config.alpha * log_likelihood.sum(), agents)
    sums["log_likelihood"] = _sum(log_likelihood.sum(), covered.sum())
    sums["reference_coverage"] = _sum(covered.sum(), covered.numel())
    rollout = Rollout(
        observations=observations,
        actions=actions,
        logprobs=torch.stack(logprob_list),
        values=torch.stack(value_list),
        rewards=task_reward + config.alpha * log_likelihood,
        log_reference=log_reference,
        covered=covered,
        sums=sums,
        seconds=clock.seconds(),
    )
    if config.parked_share == 1:
        return rollout
    return rollout.of_agents((world.moves | (uniform[-1] < config.parked_share))[agent_index].nonzero().flatten())


def _sum(total: Tensor, count: Tensor | int) -> Tensor:
    return torch.stack((total.double(), torch.as_tensor(count, device=total.device).double()))
