"""Which stages a run has, what each needs, and how the run's folders become their arguments."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.sources import SPLITS, check_apart, find_shards
from data.store import SceneStore
from pipeline.execution.engine import EngineConfig
from pipeline.execution.manifest import Manifest
from pipeline.run.names import ARCHIVE, POLICY, REFERENCE, REPORT
from pipeline.run.run_config import RunConfig
from pipeline.stages.evaluate import run_evaluate
from pipeline.stages.finetune import run_finetune
from pipeline.stages.package import run_package
from pipeline.stages.pretrain import run_pretrain
from pipeline.stages.report import run_report
from pipeline.stages.sample import run_sample
from pipeline.stages.selfplay import run_selfplay
from pipeline.stages.tokenize import VOCABULARY_FILE, changed_shard, ingest, learn_vocabulary
from pipeline.stages.traffic import run_traffic
from pipeline.stages.validate import run_validate

__all__ = ["Run", "Stage", "data_fingerprint", "scene_count", "stages_of"]


@dataclass(frozen=True)
class Run:
    """A run's folder, its configuration, the data a user gave (None: generated traffic), who does the work, and
    whether unfinished trainings go on although their options changed."""

    folder: Path
    config: RunConfig
    data: str | None
    engine: EngineConfig = EngineConfig()
    keep: bool = False

    def path(self, stage: str) -> Path:
        return self.folder / stage

    def store(self, split: str) -> Path:
        return self.path("tokenize") / split


@dataclass(frozen=True)
class Stage:
    """A node of the graph.

    Attributes:
        name: also that of its folder. needs: stages whose outputs it reads.
        module: whose code, with all that it imports, decides whether outputs are stale.
        config: the part of the configuration that decides the outputs, as a plain value.
        run: does the work in the folder it is given, and returns figures.
        goes_on: whether unfinished work can be gone on with under other options; no file of it mixes two of them.
        changed: what of data from outside is not what the stage has read, in a few words.
        whole: it tells of the stages themselves, not of their outputs alone.
    """

    name: str
    needs: tuple[str, ...]
    module: str
    config: Callable[[RunConfig], Any]
    run: Callable[[Run, Path], dict[str, Any]]
    goes_on: bool = False
    changed: Callable[[Run, Path], str | None] = lambda run, out: None
    whole: bool = False

    def input_of(self, manifest: Manifest) -> str:
        """What of a stage that this one needs decides whether its outputs hold."""
        return manifest.id if self.whole else manifest.content


def _traffic(run: Run, out: Path) -> dict[str, Any]:
    return run_traffic(run.config.traffic, out=out, seed=run.config.seed)


def _tokenize(run: Run, out: Path) -> dict[str, Any]:
    data = run.data or str(run.path("traffic"))
    config, figures = run.config.tokenize, dict[str, Any]()
    check_apart(data)
    for split in SPLITS:
        (out / split).mkdir(exist_ok=True)
        found = ingest(config, data=data, split=split, out=out / split, engine=run.engine)
        figures |= {f"{split}_{name}": value for name, value in found.items()}
    learnt = learn_vocabulary(config, store=out / "training", out=out / VOCABULARY_FILE, seed=run.config.seed)
    return figures | learnt


def _new_data(run: Run, out: Path) -> str | None:
    """Which file of the data has another content than the one that was ingested."""
    if run.data is None:
        return None
    found = (changed_shard(run.data, split, out / split) for split in SPLITS)
    return next((f"{shard} has changed" for shard in found if shard is not None), None)


def _pretrain(run: Run, out: Path) -> dict[str, Any]:
    return run_pretrain(
        run.config.pretrain,
        scenes=run.store("training"),
        validation=run.store("validation"),
        vocabulary=run.path("tokenize") / VOCABULARY_FILE,
        out=out,
        seed=run.config.seed,
        keep=run.keep,
    )


def _finetune(run: Run, out: Path) -> dict[str, Any]:
    return run_finetune(
        run.config.finetune,
        scenes=run.store("training"),
        validation=run.store("validation"),
        checkpoint=run.path("pretrain") / REFERENCE,
        out=out,
        seed=run.config.seed,
        keep=run.keep,
    )


def _selfplay(run: Run, out: Path) -> dict[str, Any]:
    return run_selfplay(
        run.config.selfplay,
        scenes=run.store("training"),
        reference=run.path("finetune") / REFERENCE,
        validation=run.store("validation"),
        out=out,
        seed=run.config.seed,
        keep=run.keep,
    )


def _checkpoint(run: Run, agent: str) -> Path | None:
    return {
        "reference": run.path("finetune") / REFERENCE,
        "policy": run.path("selfplay") / POLICY,
    }.get(agent)


def _sample(run: Run, out: Path) -> dict[str, Any]:
    tasks = [(agent, "validation", out / "validation" / agent) for agent in run.config.agents]
    tasks.append((run.config.submission_agent, "testing", out / "testing"))
    figures: dict[str, Any] = {}
    for agent, split, folder in tasks:
        found = run_sample(
            dataclasses.replace(run.config.sample, agent=agent),
            scenarios=run.store(split),
            checkpoint=_checkpoint(run, agent),
            out=folder,
            seed=run.config.seed,
            engine=run.engine,
        )
        figures |= {f"{split}_{agent}_{name}": value for name, value in found.items()}
    return figures


def _evaluate(run: Run, out: Path) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for agent in run.config.agents:
        found = run_evaluate(
            # One scene must not cost a run its scores; what has none is in its table and figures.
            dataclasses.replace(run.config.evaluate, allow_unscorable=True),
            scenarios=str(run.store("validation")),
            rollouts=str(run.path("sample") / "validation" / agent),
            out=out / agent,
            seed=run.config.seed,
            show=False,
            engine=run.engine,
        )
        figures |= {f"{agent}_{name}": value for name, value in found.items()}
    return figures


def _package(run: Run, out: Path) -> dict[str, Any]:
    return run_package(
        run.config.package,
        rollouts=run.path("sample") / "testing",
        scenarios=str(run.store("testing")),
        metadata=run.config.metadata,
        out=out / ARCHIVE,
        engine=run.engine,
    )


def _validate(run: Run, out: Path) -> dict[str, Any]:
    return run_validate(
        run.config.validate,
        archive=run.path("package") / ARCHIVE,
        scenarios=str(run.store("testing")),
        report=out / "report.json",
    )


def _report(run: Run, out: Path) -> dict[str, Any]:
    return run_report(run.config.report, run=run.folder, out=out / REPORT, engine=run.engine)


def _fields(value: Any) -> Any:
    return dataclasses.asdict(value)


_STAGES = (
    Stage("traffic", (), "pipeline.stages.traffic", lambda c: _fields(c.traffic), _traffic),
    Stage(
        "tokenize",
        ("traffic",),
        "pipeline.stages.tokenize",
        lambda c: _fields(c.tokenize),
        _tokenize,
        goes_on=True,
        changed=_new_data,
    ),
    Stage(
        "pretrain",
        ("tokenize",),
        "pipeline.stages.pretrain",
        lambda c: _fields(c.pretrain),
        _pretrain,
        goes_on=True,
    ),
    Stage(
        "finetune",
        ("tokenize", "pretrain"),
        "pipeline.stages.finetune",
        lambda c: _fields(c.finetune),
        _finetune,
        goes_on=True,
    ),
    Stage(
        "selfplay",
        ("tokenize", "finetune"),
        "pipeline.stages.selfplay",
        lambda c: _fields(c.selfplay),
        _selfplay,
        goes_on=True,
    ),
    Stage(
        "sample",
        ("tokenize", "finetune", "selfplay"),
        "pipeline.stages.sample",
        lambda c: {"agents": c.agents, "submission_agent": c.submission_agent, **_fields(c.sample)},
        _sample,
    ),
    Stage(
        "evaluate",
        ("tokenize", "sample"),
        "pipeline.stages.evaluate",
        lambda c: {"agents": c.agents, **_fields(c.evaluate)},
        _evaluate,
    ),
    Stage(
        "package",
        ("tokenize", "sample"),
        "pipeline.stages.package",
        lambda c: {
            "metadata": hashlib.sha256(c.metadata.read_bytes()).hexdigest() if c.metadata.is_file() else "",
            **_fields(c.package),
        },
        _package,
        goes_on=True,
    ),
    Stage(
        "validate",
        ("tokenize", "package"),
        "pipeline.stages.validate",
        lambda c: _fields(c.validate),
        _validate,
        goes_on=True,
    ),
    Stage(
        "report",
        ("tokenize", "pretrain", "finetune", "selfplay", "sample", "evaluate", "package", "validate"),
        "pipeline.stages.report",
        lambda c: _fields(c.report),
        _report,
        goes_on=True,
        whole=True,
    ),
)


def stages_of(data: str | None) -> tuple[Stage, ...]:
    """The stages of a run in order; with data of the user's own there is no traffic to generate."""
    if data is None:
        return _STAGES
    return tuple(
        dataclasses.replace(stage, needs=tuple(need for need in stage.needs if need != "traffic"))
        for stage in _STAGES
        if stage.name != "traffic"
    )


def data_fingerprint(data: str) -> str:
    """Digest of names and sizes of all shards of all splits, of remote ones also of their versions.

    What local ones hold is known once they were read, and is compared by ``Stage.changed``.
    """
    text = ";".join(shard.fingerprint for split in SPLITS for shard in find_shards(data, split))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def scene_count(run: Run, split: str) -> int:
    return len(SceneStore(run.store(split)))
