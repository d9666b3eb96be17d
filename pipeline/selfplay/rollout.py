"""Experience of self-play: the policy drives a batch of worlds for 8 s, and its decisions are kept as transitions.

    reward   r = r_task + alpha * log pi_ref(a | s)

Shape legend: W worlds, A agents, D decisions, N controlled agents of all worlds, K vocabulary size. A transition is
one decision of one controlled agent. ``start``, ``drive`` and ``finish`` are the three parts of ``collect``; only
``drive`` takes long, and it waits for nothing, so that it can be recorded as a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.execution.devices import Clock
from pipeline.selfplay.config import PPOConfig
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import Observation
from pipeline.simulator.step import AgentIndex, agent_indices, controlled_agents
from pipeline.simulator.world import World

# Of a token under the reference, nats: what it excludes must not outweigh everything else.
LEAST_LOG_LIKELIHOOD = -20.0


@dataclass(frozen=True)
class Start:
    """Who drives in an episode, and all that is random in it.

    With ``slots`` the N agents are filled up by slots in which nobody exists, at the end.
    """

    controlled: Tensor  # [W, A] bool
    agent_index: AgentIndex  # of the N controlled agents
    goal_hidden: Tensor  # [W, A] bool
    uniform: Tensor  # [D, N] in [0, 1)
    agents: int  # of the N, those that exist


@dataclass(frozen=True)
class Given:
    """An episode that the policy does not drive."""

    tokens: Tensor  # [W, A, D] int64
    replay: bool  # agents replay the log, to which the tokens are near; else they execute the tokens


@dataclass(frozen=True)
class Episode:
    """What happened in 8 s; [D, N, ...] or [W, A, ...]."""

    observations: Observation  # of D * N agents, flattened
    actions: Tensor  # [D, N] int64
    logprobs: Tensor  # [D, N] of the actions
    values: Tensor  # [D + 1, N]; the last one is the bootstrap at the truncation
    rewards: Mapping[str, Tensor]  # [D, N] by what they are for
    happened: Mapping[str, Tensor]  # [W, A] bool by kind of event: at any time
    tokens: Tensor  # [W, A, D] int64
    poses: Tensor  # [W, A, D + 1, 3] at the decisions and at the end
    present: Tensor  # [W, A, D + 1] bool


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
# The policy: from the fields of an observation to logits [N, K] and values [N].
Net = Callable[..., tuple[Tensor, Tensor]]


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
    learnt: Tensor  # [n] int64, the agents of the N that are learnt from
    agents: int  # agents that were controlled
    sums: Mapping[str, Tensor]  # figure to [2] float64: a total, and the count that it is divided by
    seconds: Mapping[str, float]  # by phase

    @property
    def transitions(self) -> int:
        """Number of transitions to learn from."""
        return len(self.actions) * len(self.learnt)

    @property
    def agent_steps(self) -> int:
        """Number of executed decisions."""
        return len(self.actions) * self.agents


def act(policy: Net, observations: Observation) -> tuple[Tensor, Tensor]:
    """Logits [N, K] and values [N] of a policy, in float32."""
    obs = observations
    logits, values = policy(
        obs.ego, obs.neighbour, obs.neighbour_seen, obs.road, obs.road_seen, obs.type, obs.motion, obs.beyond
    )
    return logits.float(), values.float()


def _sample(log_policy: Tensor, uniform: Tensor) -> Tensor:
    """[N] tokens drawn with given numbers: the actions of a world depend on its own draws, not on its slot."""
    cumulative = log_policy.exp().cumsum(-1)
    index = (cumulative <= uniform.unsqueeze(-1) * cumulative[:, -1:]).sum(-1)
    return index.clamp(max=log_policy.shape[-1] - 1)


def start(world: World, config: PPOConfig, uniform: Tensor, slots: int = 0) -> Start:
    """Choose who drives.

    Args:
        world: batched. config: which agents are controlled.
        uniform: [D + 2, W, A] in [0, 1), all that is random: one row for each decision, one for hidden goals, and
            one for the parked agents that are learnt from or the one agent that is controlled.
        slots: N at least; more than there are agents needs a last agent that does not exist in the first world.
    """
    controlled = controlled_agents(world, config.driven, uniform[-1])
    row, agent = agent_indices(controlled)
    count, empty = len(row), max(0, slots - len(row))
    row = torch.nn.functional.pad(row, (0, empty))
    agent = torch.nn.functional.pad(agent, (0, empty), value=controlled.shape[1] - 1)
    return Start(controlled, (row, agent), uniform[-2] < config.goal_dropout, uniform[:-2, row, agent], count)


class _Kept:
    """Tensors of all decisions, written one after the other into one."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._all: dict[str, Tensor] = {}

    def put(self, number: int, name: str, value: Tensor, dtype: torch.dtype | None = None) -> None:
        if name not in self._all:
            kind = dtype if dtype is not None and value.is_floating_point() else value.dtype
            self._all[name] = torch.empty((self._count, *value.shape), dtype=kind, device=value.device)
        self._all[name][number].copy_(value)

    def __getitem__(self, name: str) -> Tensor:
        return self._all[name]


@torch.no_grad()
def drive(
    policy: Net,
    simulator: Simulator,
    world: World,
    begin: Start,
    given: Given | None = None,
    clock: Clock | None = None,
    dtype: torch.dtype = torch.float32,
) -> Episode:
    """Let the policy, or somebody else, drive for one episode.

    Args:
        policy: in evaluation mode. simulator: of the worlds. world: batched. begin: who drives.
        given: who drives instead of the policy.
        clock: takes the time of observing, deciding and moving.
        dtype: in which features are kept. bfloat16 loses nothing where the policy computes in it.
    """
    agent_index = begin.agent_index
    replay = given is not None and given.replay
    simulator.reset(world, begin.controlled, begin.goal_hidden, replay, agent_index)
    happened: dict[str, Tensor] = {}
    count = len(begin.uniform)
    kept, tokens = _Kept(count), torch.zeros_like(world.types)
    poses, present, executed, values = [simulator.state.pose], [simulator.state.present], [], []
    lap = (lambda _: None) if clock is None else clock.lap
    for number in range(count):
        seen = simulator.observe()
        for name, value in vars(seen).items():
            # What the last token did enters in double precision, and critics compute in float32.
            kept.put(number, name, value, None if name in ("motion", "beyond") else dtype)
        lap("observe")
        logits, value = act(policy, seen)
        log_policy = logits.log_softmax(-1)
        if given is None:
            action = _sample(log_policy, begin.uniform[number])
        else:
            action = given.tokens[..., number][agent_index]
        kept.put(number, "action", action)
        kept.put(number, "logprob", log_policy.gather(-1, action.unsqueeze(-1)).squeeze(-1))
        values.append(value)
        lap("policy")
        tokens = tokens.index_put(agent_index, action)
        rewards, events = simulator.step(tokens)
        for name, reward in rewards.items():
            kept.put(number, f"reward {name}", reward[agent_index])
        happened = {name: flag | happened.get(name, flag) for name, flag in vars(events).items()}
        executed.append(tokens)
        poses.append(simulator.state.pose)
        present.append(simulator.state.present)
        lap("simulate")
    values.append(act(policy, simulator.observe())[1])
    lap("policy")
    return Episode(
        observations=Observation(**{name: kept[name].flatten(0, 1) for name in vars(seen)}),
        actions=kept["action"],
        logprobs=kept["logprob"],
        values=torch.stack(values),
        rewards={name: kept[f"reward {name}"] for name in rewards},
        happened=happened,
        tokens=torch.stack(executed, -1),
        poses=torch.stack(poses, 2),
        present=torch.stack(present, -1),
    )


@torch.no_grad()
def finish(
    world: World,
    begin: Start,
    episode: Episode,
    score: Scorer | None,
    config: PPOConfig,
    uniform: Tensor,
    clock: Clock,
) -> Rollout:
    """The transitions of an episode, with the anchor's opinion; arguments as for ``collect``."""
    actions, agent_index, controlled = episode.actions, begin.agent_index, begin.controlled
    real = torch.arange(actions.shape[1], device=actions.device) < begin.agents
    task_reward = torch.stack(list(episode.rewards.values())).sum(0)
    log_reference, covered = None, torch.zeros_like(actions, dtype=torch.bool)
    log_likelihood = torch.zeros_like(task_reward)
    if score is not None:
        executed = episode.tokens, episode.poses, episode.present
        log_reference = score(Executed(*executed, controlled, agent_index, episode.observations))
        covered = torch.isfinite(log_reference).all(-1) & real
        log_likelihood = log_reference.gather(-1, actions.unsqueeze(-1)).squeeze(-1)
        log_likelihood = torch.where(covered, log_likelihood.clamp(min=LEAST_LOG_LIKELIHOOD), 0.0)
        clock.lap("reference")
    # Only vehicles are paid for the road and its lights, so the rates of both are theirs.
    vehicles = controlled & (world.types == 0)
    counted = {
        "collision": controlled,
        "off_road": vehicles,
        "red_light": vehicles,
        "goal": controlled & world.moves,
    }
    sums = {
        f"{name}_rate": _sum((flag & counted[name]).sum(), counted[name].sum())
        for name, flag in episode.happened.items()
    }
    sums["task_reward"] = _sum(task_reward.sum(), begin.agents)
    sums |= {f"reward_{name}": _sum(term.sum(), begin.agents) for name, term in episode.rewards.items()}
    sums["reward_likelihood"] = _sum(config.alpha * log_likelihood.sum(), begin.agents)
    sums["log_likelihood"] = _sum(log_likelihood.sum(), covered.sum())
    # More than half of all agents are parked, and easy to imitate. The KL is estimated by the actions alone.
    moving = covered & world.moves[agent_index]
    sums["log_likelihood_moving"] = _sum((log_likelihood * moving).sum(), moving.sum())
    sums["kl_moving"] = _sum(((episode.logprobs - log_likelihood) * moving).sum(), moving.sum())
    sums["reference_coverage"] = _sum(covered.sum(), len(actions) * begin.agents)
    learnt = real
    if config.parked_share < 1:
        learnt = learnt & (world.moves | (uniform[-1] < config.parked_share))[agent_index]
    return Rollout(
        observations=episode.observations,
        actions=actions,
        logprobs=episode.logprobs,
        values=episode.values,
        rewards=task_reward + config.alpha * log_likelihood,
        log_reference=log_reference,
        covered=covered,
        learnt=learnt.nonzero().flatten(),
        agents=begin.agents,
        sums=sums,
        seconds=clock.seconds(),
    )


def collect(
    policy: Net,
    simulator: Simulator,
    world: World,
    score: Scorer | None,
    config: PPOConfig,
    uniform: Tensor,
    given: Given | None = None,
) -> Rollout:
    """Let the policy, or somebody else, drive a batch of worlds for one episode.

    Args:
        policy, simulator, world, given: see ``drive``. config, uniform: see ``start``; and what the anchor's
            log-likelihood is worth.
        score: log-probabilities of an anchor for what was executed; None without an anchor.
    """
    clock = Clock(world.pose.device)
    begin = start(world, config, uniform)
    return finish(world, begin, drive(policy, simulator, world, begin, given, clock), score, config, uniform, clock)


def _sum(total: Tensor, count: Tensor | int) -> Tensor:
    # Filled on the device: a copy of a number from the host would wait.
    many = count.double() if isinstance(count, Tensor) else total.new_full((), count, dtype=torch.float64)
    return torch.stack((total.double(), many))
