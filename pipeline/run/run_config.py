"""The configuration of a whole run: one section a stage."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.stages.evaluate import EvaluateConfig
from pipeline.stages.finetune import FinetuneConfig
from pipeline.stages.package import PackageConfig
from pipeline.stages.pretrain import PretrainConfig
from pipeline.stages.report import ReportConfig
from pipeline.stages.sample import SampleConfig
from pipeline.stages.selfplay import SelfPlayConfig
from pipeline.stages.tokenize import TokenizeConfig
from pipeline.stages.traffic import TrafficConfig
from pipeline.stages.validate import ValidateConfig

__all__ = ["RunConfig"]


@dataclass(frozen=True)
class RunConfig:
    """All stages.

    Args:
        seed: of everything random in the run.
        agents: kinds of agent that are sampled and evaluated on the validation split, in the order of the table.
        submission_agent: the agent whose rollouts of the testing split are packaged.
        metadata: YAML file with what the challenge wants to know of an entry; see submission/metadata.example.yaml.
        traffic: generated traffic, used where no data are given.
        tokenize: ingest and vocabulary.
        pretrain: reference, teacher forcing.
        finetune: reference, closed loop.
        selfplay: policy, anchored self-play.
        sample: joint futures.
        evaluate: realism metric.
        package: archive.
        validate: checks of the archive.
        report: what people look at.
    """

    seed: int = 0
    agents: list[str] = field(default_factory=lambda: ["log", "constant_velocity", "reference", "policy"])
    submission_agent: str = "policy"
    metadata: Path = Path(__file__).resolve().parents[2] / "submission" / "metadata.example.yaml"
    traffic: TrafficConfig = field(default_factory=TrafficConfig)
    tokenize: TokenizeConfig = field(default_factory=TokenizeConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    finetune: FinetuneConfig = field(default_factory=FinetuneConfig)
    selfplay: SelfPlayConfig = field(default_factory=SelfPlayConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    package: PackageConfig = field(default_factory=PackageConfig)
    validate: ValidateConfig = field(default_factory=ValidateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
