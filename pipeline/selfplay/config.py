"""Options of self-play, of PPO and of its anchor."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

from data.errors import UserError
from models.policy import PolicyConfig
from pipeline.execution.devices import Count
from pipeline.simulator.observation import ObservationConfig
from pipeline.simulator.reward import RewardConfig
from pipeline.simulator.step import CONTROLLED

_KINDS = ("reverse", "forward")
_DRIVERS = ("policy", "log", "reference")
_ANCHORS = ("reference", "log")
_TAUGHT = ("epochs", "minibatch", "learning_rate", "final_rate", "parked_share")
_PRECISIONS = ("auto", "32-true", "bf16-mixed")


@dataclass(frozen=True)
class PPOConfig:
    """PPO and the anchor; defaults are the paper's Table A3 where it names a value.

    Args:
        epochs: passes over the transitions of an update.
        minibatch: approximate number of transitions in a gradient step; an update's are divided into equal parts.
        learning_rate: of Adam.
        final_rate: fraction of the learning rate at the end, to which it falls linearly; 1 for constant.
        gamma: discount of a decision.
        gae_lambda: of the advantage estimate.
        clip: of the probability ratio.
        surrogate_weight: of PPO's own loss; 0 leaves the KL alone, as in distillation.
        value_weight: of the value loss.
        entropy_weight: of the entropy bonus.
        gradient_clip: largest norm of the gradient.
        running_scale: divide returns and advantages by their deviation over the last updates, instead of advantages
            by that in their minibatch: what beta means changes less as returns become alike.
        target_kl: end an update after the epoch in which the policy has moved so far from the one that drove, nats;
            0 for never.
        beta: weight of the KL between policy and reference in the loss; 0 for plain self-play.
        beta_final: the weight of the KL at the end, to which it changes linearly; not set for constant.
        kl: reverse, KL(policy || reference), seeks the reference's main mode; forward, KL(reference || policy),
            covers all its modes.
        alpha: weight of the reference's log-likelihood in the reward.
        goal_dropout: fraction of agents whose goal is hidden in an episode, though reaching it is still rewarded.
        controlled: agents that the policy drives, while all others replay the log: all; moving, agents whose log
            ends elsewhere; vehicles, moving vehicles (the paper's main experiment); one, a single moving agent in
            each world, drawn anew for each episode, which is no self-play.
        vehicles_only: the same as ``controlled: vehicles``.
        parked_share: fraction of the agents whose log stands still that are learnt from in an episode; all are
            driven. More than half of all agents are parked, and there is little to learn from them.
        compared: measure KL and log-likelihood under the reference without an anchor, which changes nothing else.
    """

    epochs: int = 4
    minibatch: int = 8192
    learning_rate: float = 3e-4
    final_rate: float = 1.0
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip: float = 0.2
    surrogate_weight: float = 1.0
    value_weight: float = 0.3
    entropy_weight: float = 1e-4
    gradient_clip: float = 0.5
    running_scale: bool = False
    target_kl: float = 0.0
    beta: float = 0.1
    beta_final: float | None = None
    kl: str = "reverse"
    alpha: float = 0.0
    goal_dropout: float = 0.5
    controlled: str = "all"
    vehicles_only: bool = False
    parked_share: float = 1.0
    compared: bool = False

    def __post_init__(self) -> None:
        if self.kl not in _KINDS:
            raise UserError(f"ppo.kl is {self.kl!r}; choose one of {', '.join(_KINDS)}")
        if self.controlled not in CONTROLLED:
            raise UserError(f"ppo.controlled is {self.controlled!r}; choose one of {', '.join(CONTROLLED)}")
        if self.vehicles_only and self.controlled not in ("all", "vehicles"):
            raise UserError(f"ppo.vehicles_only contradicts ppo.controlled {self.controlled}; give one of them")
        if self.epochs < 1 or self.minibatch < 2:
            raise UserError("ppo.epochs must be at least 1 and ppo.minibatch at least 2")
        for name in ("goal_dropout", "parked_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"ppo.{name} is {getattr(self, name)}; it must be in [0, 1]")

    @property
    def anchored(self) -> bool:
        """Whether a reference is needed."""
        return bool(self.beta or self.beta_final or self.alpha)

    @property
    def compares(self) -> bool:
        """Whether a reference says what it thinks of every episode."""
        return self.anchored or self.compared

    @property
    def driven(self) -> str:
        """The controlled agents, a kind of ``controlled_agents``."""
        return "vehicles" if self.vehicles_only else self.controlled

    def kl_weight_at(self, progress: float) -> float:
        """The weight of the KL when a fraction ``progress`` of the training is done."""
        if self.beta_final is None:
            return self.beta
        return self.beta + (self.beta_final - self.beta) * min(1.0, progress)

    def learning_rate_at(self, progress: float) -> float:
        """The learning rate when a fraction ``progress`` of the training is done."""
        return self.learning_rate * (1.0 + (self.final_rate - 1.0) * min(1.0, progress))


@dataclass(frozen=True)
class DistillConfig:
    """What comes before self-play: others drive, and the policy learns what the anchor says there.

    Args:
        agent_steps: of distillation; 0 for none.
        driver: who drives, log or reference.
        epochs, minibatch, learning_rate, final_rate, parked_share: as for PPO.
    """

    agent_steps: int = 0
    driver: str = "log"
    epochs: int = 1
    minibatch: int = 256
    learning_rate: float = 1e-3
    final_rate: float = 0.02
    parked_share: float = 0.2

    def __post_init__(self) -> None:
        if self.driver not in _DRIVERS[1:]:
            raise UserError(f"distill.driver is {self.driver!r}; choose one of {', '.join(_DRIVERS[1:])}")
        if self.agent_steps < 0:
            raise UserError(f"distill.agent_steps is {self.agent_steps}; it must be at least 0")


@dataclass(frozen=True)
class Phase:
    """A part of a training: who drives, and how it is learnt from."""

    driver: str
    ppo: PPOConfig
    begin: int  # agent-steps
    end: int

    def progress(self, agent_steps: int) -> float:
        """Fraction that is done."""
        return (agent_steps - self.begin) / (self.end - self.begin)


@dataclass(frozen=True)
class SelfPlayConfig:
    """Anchored self-play.

    Args:
        agent_steps: transitions to train on; a transition is one decision of one controlled agent. Those of
            distillation come before.
        driver: policy, which is self-play; or log or reference, for distillation: the policy learns in the states
            that these reach (with ppo.surrogate_weight 0).
        anchor: what the policy is held to: reference, the model that is given; or log, for behaviour cloning: the
            tokens of the log, where it drives (the reference of HR-PPO).
        worlds: scenes simulated at once, of all devices together.
        turnover: worlds that are replaced by other scenes at each update; 0 for all.
        pool: scenes of the training split to draw from, spread evenly; 0 for all.
        max_agents: scenes with more simulated agents are left out, which bounds padding.
        cache_worlds: built worlds, and encoded maps, that each process keeps (some 2 MB each).
        workers: processes that build worlds ahead of their use; 0 builds them in the training process.
        checkpoint_every: updates between checkpoints, from which an interrupted training goes on.
        evaluate_every: updates between evaluations on held-out scenes, which keep the best policy so far; 0 for
            none.
        evaluate_scenes: of the validation split, spread evenly.
        evaluate_rollouts: of each.
        evaluate_least_speed: the best policy is the most real one of those whose moving agents have at least this
            fraction of the log's speed after 8 s; if none has, the fastest one.
        tensorboard: write curves for TensorBoard.
        device: cpu, cuda, cuda:N, gpu, mps, or auto for a GPU where there is one.
        devices: how many of them on each machine; auto for the largest number of GPUs that share the worlds evenly.
        nodes: machines; each runs this command, started by torchrun or Slurm.
        precision: of the policy: 32-true, bf16-mixed, or auto for bf16-mixed on GPUs and 32-true elsewhere.
        compile: fuse simulator and policy with torch.compile; pays off in trainings of many minutes.
        policy: size of the net.
        view: what agents see.
        reward: what events are worth.
        ppo: optimisation and anchor.
        distill: from the anchor, before self-play.
    """

    agent_steps: int = 400_000
    driver: str = "policy"
    anchor: str = "reference"
    worlds: int = 24
    turnover: int = 0
    pool: int = 96
    max_agents: int = 64
    cache_worlds: int = 512
    workers: int = 0
    checkpoint_every: int = 2
    evaluate_every: int = 0
    evaluate_scenes: int = 8
    evaluate_rollouts: int = 32
    evaluate_least_speed: float = 0.7
    tensorboard: bool = True
    device: str = "auto"
    devices: Count = "auto"
    nodes: int = 1
    precision: str = "auto"
    compile: bool = False
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    view: ObservationConfig = field(default_factory=ObservationConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)

    def __post_init__(self) -> None:
        for name in (
            "agent_steps",
            "worlds",
            "max_agents",
            "checkpoint_every",
            "devices",
            "nodes",
            "evaluate_scenes",
        ):
            if (value := getattr(self, name)) != "auto" and value < 1:
                raise UserError(f"selfplay.{name} is {value}; it must be at least 1")
        if not self.evaluate_least_speed >= 0:
            raise UserError(f"selfplay.evaluate_least_speed is {self.evaluate_least_speed}; it must be at least 0")
        if self.driver not in _DRIVERS:
            raise UserError(f"selfplay.driver is {self.driver!r}; choose one of {', '.join(_DRIVERS)}")
        if self.anchor not in _ANCHORS:
            raise UserError(f"selfplay.anchor is {self.anchor!r}; choose one of {', '.join(_ANCHORS)}")
        if self.anchor == "log" and self.driver != "log":
            raise UserError("selfplay.anchor log says something where the log drives alone; give --driver log")
        if self.precision not in _PRECISIONS:
            raise UserError(f"selfplay.precision is {self.precision!r}; choose one of {', '.join(_PRECISIONS)}")
        if self.devices != "auto":
            self.check_share(self.devices)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """Distillation, if there is any, and self-play."""
        distill = self.distill
        begin = distill.agent_steps
        main = Phase(self.driver, self.ppo, begin, begin + self.agent_steps)
        if not begin:
            return (main,)
        taught = dataclasses.replace(
            self.ppo,
            **{name: getattr(distill, name) for name in _TAUGHT},
            surrogate_weight=0.0,
            value_weight=0.0,
            entropy_weight=0.0,
            alpha=0.0,
            target_kl=0.0,
            beta=1.0,
            beta_final=None,
            kl="forward",
        )
        return Phase(distill.driver, taught, 0, begin), main

    def check_share(self, devices: int) -> None:
        """Raise ``UserError`` where so many devices on each machine cannot share the worlds evenly."""
        together = devices * self.nodes
        if self.worlds % together:
            raise UserError(
                f"selfplay.worlds is {self.worlds}, which {together} devices cannot share evenly; give a multiple "
                f"of {together}"
            )
