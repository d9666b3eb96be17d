"""The one table of stages: graph, commands, sections of the configuration and plan are made from it.

A stage is a command that can also be run in the folder of a run. Code is named here, and imported only when it is
called: ``MODULE:NAME``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.execution.manifest import Manifest
from pipeline.run.run_folder import ARCHIVE, PRETRAINED, REFERENCE, REPORT, VERDICT, VOCABULARY, Run


def load(name: str) -> Any:
    """What ``MODULE:NAME`` stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command: its code, its help, and what it writes.

    Attributes:
        name: on the command line, and of its section in presets. summary, example: shown by --help.
        module: of its code; with all that it imports, it decides whether outputs are stale.
        function, config: entry and configuration class in that module; ``config`` may name another module.
        positional: option that may be given without its name.
        parts: sections of presets that are parts of its configuration.
        outputs: patterns of names in its folder; where "" is one of them the command writes a file, and they are
            the endings of the file and its companions. Empty: the folder remembers for itself what is made from
            what, and refuses to mix. None: nothing is kept.
        inputs: options whose files decide the result.
        out: where it writes below --run if --out is not given.
        once: a finished result is not made again. Other commands recognise what is there, or write it anew.
        goes_on: unfinished work can go on under other options (--keep); no file of it mixes two of them.
    """

    name: str
    summary: str
    example: str
    module: str
    function: str
    config: str
    positional: str | None = None
    parts: tuple[str, ...] = ()
    outputs: tuple[str, ...] | None = None
    inputs: tuple[str, ...] = ()
    out: str | None = None
    once: bool = False
    goes_on: bool = False

    @property
    def writes_file(self) -> bool:
        """Whether it writes a file and its companions, not a folder."""
        return "" in (self.outputs or ())

    def load(self) -> tuple[Callable[..., dict[str, Any]], type[Any]]:
        """The function and the class of its configuration."""
        config = self.config if ":" in self.config else f"{self.module}:{self.config}"
        return load(f"{self.module}:{self.function}"), load(config)


@dataclass(frozen=True, kw_only=True)
class Stage(Command):
    """A node of the graph. Its outputs are in the folder of its name.

    Attributes:
        needs: stages whose outputs it reads.
        paths: options of its function by path in the run's folder; seed, engine and the like are given too.
        settings: fields of the run's configuration beside the stage's section that decide the outputs. Of a file,
            the content decides.
        whole: function of the module that does the stage of a ``Run`` where that is more than one call.
        changed: function of the module that tells whether data from outside have changed since.
        about_stages: it reports on the stages themselves, not on their outputs alone.
        begins_with: the kind of model whose weights it may begin with (``RunConfig.weights``).
    """

    needs: tuple[str, ...] = ()
    paths: Mapping[str, str] = field(default_factory=dict)
    settings: tuple[str, ...] = ()
    whole: str | None = None
    changed: str | None = None
    about_stages: bool = False
    begins_with: str | None = None

    def run(self, run: Run) -> dict[str, Any]:
        """Do the stage in the run's folder; returns figures."""
        if self.whole is not None:
            whole: Callable[[Run], dict[str, Any]] = load(f"{self.module}:{self.whole}")
            return whole(run)
        function, _ = self.load()
        given = {"out": run.path(self.name), "seed": run.config.seed, "keep": run.keep, "engine": run.engine}
        given |= {name: getattr(run.config, name) for name in self.settings}
        given |= {option: run.path(name) for option, name in self.paths.items()}
        if self.begins_with:
            given["start"] = run.config.start_of(self.begins_with)
        accepted = inspect.signature(function).parameters
        own = {name: value for name, value in given.items() if name in accepted}
        return function(getattr(run.config, self.name), **own)

    def options(self, config: Any) -> dict[str, Any]:
        """What of a run's configuration decides the outputs, as plain values."""
        settings = {name: getattr(config, name) for name in self.settings}
        # Named only where it is given: other runs stay as they are.
        if self.begins_with and (start := config.start_of(self.begins_with)):
            settings["start"] = start
        return {
            **{name: _content(value) if isinstance(value, Path) else value for name, value in settings.items()},
            **dataclasses.asdict(getattr(config, self.name)),
        }

    def new_data(self, run: Run) -> str | None:
        """What of data from outside is not what the stage has read, in a few words."""
        found: str | None = load(f"{self.module}:{self.changed}")(run) if self.changed else None
        return found

    def input_of(self, manifest: Manifest) -> str:
        """What of a stage that this one needs decides whether its outputs hold."""
        return manifest.id if self.about_stages else manifest.content


def _content(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else ""


def _stage(name: str, config: str, summary: str, example: str, **further: Any) -> Stage:
    """A stage whose code is where all stages have it."""
    return Stage(
        name=name,
        summary=summary,
        example=example,
        module=f"pipeline.stages.{name}",
        function=f"run_{name}",
        config=config,
        **further,
    )


_SCENES = {"scenes": "tokenize/training", "validation": "tokenize/validation"}
_FITTED = ("reference.ckpt", "training.ckpt", "metrics.csv", "tensorboard")

# Stages that write metrics.csv as they learn.
TRAININGS = ("pretrain", "finetune", "selfplay")

# In the order in which they run.
STAGES = (
    _stage(
        "traffic",
        "TrafficConfig",
        "generate traffic scenarios with SUMO",
        "--out runs/traffic --seed 0",
        outputs=("training", "validation", "testing", "counts", "traffic.json"),
    ),
    _stage(
        "tokenize",
        "TokenizeConfig",
        "ingest TFRecords into a store, learn the vocabulary",
        "--data womd --split training --out runs/store/training",
        needs=("traffic",),
        outputs=("*.scenes.parquet", ".receipts", "rejected.csv", "SHA256SUMS", "vocabulary.pt"),
        inputs=("data",),
        goes_on=True,
        whole="tokenize_run",
        begins_with="reference",
        changed="changed_data",
    ),
    _stage(
        "pretrain",
        "PretrainConfig",
        "train the reference with teacher forcing",
        "--scenes runs/store/training --vocabulary runs/store/training/vocabulary.pt --out runs/pretrain",
        needs=("tokenize",),
        paths={**_SCENES, "vocabulary": VOCABULARY},
        begins_with="reference",
        outputs=_FITTED,
        inputs=("scenes", "validation", "vocabulary", "start"),
        once=True,
        goes_on=True,
    ),
    _stage(
        "finetune",
        "FinetuneConfig",
        "fine-tune the reference in closed loop",
        "--scenes runs/store/training --checkpoint runs/pretrain/reference.ckpt --out runs/finetune",
        needs=("tokenize", "pretrain"),
        paths={**_SCENES, "checkpoint": PRETRAINED},
        outputs=_FITTED,
        inputs=("scenes", "validation", "checkpoint"),
        once=True,
        goes_on=True,
    ),
    _stage(
        "selfplay",
        "SelfPlayConfig",
        "train the policy by self-play, kept close to the reference",
        "--scenes runs/store/training --reference runs/finetune/reference.ckpt --out runs/selfplay",
        needs=("tokenize", "finetune"),
        paths={**_SCENES, "reference": REFERENCE},
        begins_with="policy",
        outputs=("policy.ckpt", "best.ckpt", "training.pt", "metrics.csv", "tensorboard"),
        inputs=("scenes", "validation", "reference", "start"),
        once=True,
        goes_on=True,
    ),
    _stage(
        "sample",
        "SampleConfig",
        "simulate joint futures of scenarios",
        "--agent policy --checkpoint runs/demo/selfplay/policy.ckpt --scenarios womd/testing --out runs/out",
        needs=("tokenize", "finetune", "selfplay"),
        settings=("agents", "submission_agent"),
        outputs=("rollouts.binproto-*", ".receipts", "SHA256SUMS", "sampling.json"),
        inputs=("scenarios", "checkpoint"),
        whole="sample_run",
    ),
    _stage(
        "evaluate",
        "EvaluateConfig",
        "score rollouts with the realism meta-metric",
        "--scenarios womd/validation --rollouts runs/out --metric 2025 --out runs/score",
        needs=("tokenize", "sample"),
        settings=("agents",),
        outputs=("metrics.json", "per_scenario.csv", "motion.csv", "diagnosis.csv", "parts"),
        inputs=("scenarios", "rollouts"),
        whole="evaluate_run",
    ),
    _stage(
        "package",
        "PackageConfig",
        "pack rollouts into a submission archive",
        "--rollouts runs/out --scenarios womd/testing --metadata metadata.yaml --out submission.tar.gz",
        needs=("tokenize", "sample"),
        paths={"rollouts": "sample/testing", "scenarios": "tokenize/testing", "out": ARCHIVE},
        settings=("metadata",),
        outputs=("", ".sha256", ".part-*"),
        inputs=("rollouts", "scenarios", "metadata"),
        goes_on=True,
    ),
    _stage(
        "validate",
        "ValidateConfig",
        "check a submission archive as the server would",
        "submission.tar.gz --scenarios womd/testing",
        needs=("tokenize", "package"),
        paths={"archive": ARCHIVE, "scenarios": "tokenize/testing", "report": VERDICT},
        positional="archive",
        goes_on=True,
    ),
    _stage(
        "report",
        "ReportConfig",
        "write one HTML file about a run: tables, charts, animated scenes",
        "--run runs/demo",
        needs=("tokenize", "pretrain", "finetune", "selfplay", "sample", "evaluate", "package", "validate"),
        paths={"run": "", "out": REPORT},
        outputs=("",),
        inputs=("run",),
        out=REPORT,
        goes_on=True,
        about_stages=True,
    ),
)


def stages_of(data: str | None, agents: Collection[str]) -> tuple[Stage, ...]:
    """The stages of a run in order, but those that nobody needs.

    Args:
        data: of the user's own, for which there is no traffic to generate, or None.
        agents: that are sampled; without the policy there is no self-play.
    """
    left_out = {"traffic"} if data is not None else set()
    if "policy" not in agents:
        left_out.add("selfplay")
    return tuple(
        dataclasses.replace(stage, needs=tuple(need for need in stage.needs if need not in left_out))
        for stage in STAGES
        if stage.name not in left_out
    )
