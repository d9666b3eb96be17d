"""At which scale claims are tried."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from data.errors import UserError
from models.reference.config import SIZES
from pipeline.execution.devices import Count
from pipeline.stages.finetune import FinetuneConfig
from pipeline.stages.pretrain import PretrainConfig
from pipeline.stages.selfplay import SelfPlayConfig
from pipeline.stages.tokenize import TokenizeConfig

_SPEC = re.compile(r"(?P<size>[a-z]+):(?P<steps>\d+)(\+(?P<finetune>\d+))?")


@dataclass(frozen=True)
class ReferenceSpec:
    """A reference to train: size, steps of teacher forcing and of closed-loop fine-tuning, tokens a type.

    Attributes:
        vocabulary: K; 0 for the run's own vocabulary.
    """

    size: str
    steps: int
    finetune: int = 0
    vocabulary: int = 0

    @property
    def name(self) -> str:
        tuned = f"+{self.finetune}" if self.finetune else ""
        tokens = f" K {self.vocabulary}" if self.vocabulary else ""
        return f"{self.size} {self.steps}{tuned}{tokens}"

    @classmethod
    def parse(cls, text: str) -> ReferenceSpec:
        """From ``SIZE:STEPS`` or ``SIZE:STEPS+STEPS``.

        Raises:
            UserError: it is not of that form, or no such size.
        """
        found = _SPEC.fullmatch(text)
        if found is None or found["size"] not in SIZES or int(found["steps"]) < 1:
            raise UserError(
                f"claims.references: {text!r}; expected SIZE:STEPS or SIZE:STEPS+FINETUNE_STEPS, such as "
                f"micro:300+20, with a size of {', '.join(SIZES)}"
            )
        return cls(found["size"], int(found["steps"]), int(found["finetune"] or 0))


@dataclass(frozen=True)
class ClaimsConfig:
    """Scale of the experiments.

    Args:
        agent_steps: of each training of a policy.
        single_steps: of the two trainings in which self-play is compared with a single agent among replayed ones.
            A whole scene is simulated and judged for one agent's decisions, so that they take long.
        seeds: trainings of every arm; with one, intervals are of scenes alone.
        scenes: of the validation split that all is judged on, spread evenly; 0 for all.
        rollouts: futures of each scene.
        sampling_modes: how policies draw their tokens: top_k, 0 among all.
        metric: of realism; the paper's figures are of 2024.
        evaluations: looks at realism and minADE in the course of the trainings whose stability is compared.
        levels: of disturbed logs, standard deviation in metres.
        likelihood_rollouts: futures of each kind that the likelihood claim judges by the metric.
        likelihood_scored: of these, how many the reference scores.
        references: to train for the claim about their quality, besides the run's own, as SIZE:STEPS of teacher
            forcing alone or SIZE:STEPS+STEPS with fine-tuning.
        vocabularies: sizes K to compare.
        vocabulary_reference: the reference that is trained for each of them, likewise.
        worlds_of_one: how many times more scenes an update has where only one agent of each is learnt from.
        verbose: progress of every training and scoring, not a line for each arm.
        workers: processes of sampling and scoring; 0 for one per core, or per GPU.
        device: of sampling and scoring: cpu, cuda, cuda:N, mps, or auto for a GPU where there is one.
        devices: GPUs among which scenarios are dealt out; auto for all of this machine.
        tokenize: options of the vocabularies, besides their sizes.
        selfplay: of all arms, besides what an arm changes.
        pretrain: of all references that are trained, besides size and steps.
        finetune: likewise.
    """

    agent_steps: int = 100_000
    single_steps: int = 30_000
    seeds: int = 1
    scenes: int = 0
    rollouts: int = 32
    sampling_modes: list[int] = field(default_factory=lambda: [0, 5])
    metric: str = "2024"
    evaluations: int = 6
    levels: list[float] = field(default_factory=lambda: [0.1, 0.25, 0.5, 1.0])
    likelihood_rollouts: int = 16
    likelihood_scored: int = 4
    references: list[str] = field(default_factory=lambda: ["micro:100", "micro:300"])
    vocabularies: list[int] = field(default_factory=lambda: [100, 200, 400])
    vocabulary_reference: str = "micro:300"
    worlds_of_one: int = 6
    verbose: bool = False
    workers: int = 0
    device: str = "auto"
    devices: Count = "auto"
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    selfplay: SelfPlayConfig = field(default_factory=SelfPlayConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)

    def __post_init__(self) -> None:
        for name in ("agent_steps", "single_steps", "seeds", "rollouts", "likelihood_rollouts", "worlds_of_one"):
            if getattr(self, name) < 1:
                raise UserError(f"claims.{name} is {getattr(self, name)}; it must be at least 1")
        if not 1 <= self.likelihood_scored <= self.likelihood_rollouts:
            raise UserError("claims.likelihood_scored must be from 1 to claims.likelihood_rollouts")
        if not self.sampling_modes or min(self.sampling_modes) < 0:
            raise UserError("claims.sampling_modes: give at least one top_k, 0 for all tokens")
        if not self.levels or min(self.levels) <= 0 or self.levels != sorted(set(self.levels)):
            raise UserError("claims.levels: give noise levels above 0 m in ascending order")
        if len(self.vocabularies) != len(set(self.vocabularies)) or len(self.vocabularies) < 2:
            raise UserError("claims.vocabularies: give at least two different sizes")
        _ = self.reference_specs, self.vocabulary_specs

    @property
    def reference_specs(self) -> list[ReferenceSpec]:
        return [ReferenceSpec.parse(text) for text in self.references]

    @property
    def vocabulary_specs(self) -> list[ReferenceSpec]:
        base = ReferenceSpec.parse(self.vocabulary_reference)
        return [ReferenceSpec(base.size, base.steps, base.finetune, size) for size in self.vocabularies]
