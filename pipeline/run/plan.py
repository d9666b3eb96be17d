"""Command ``plan``: time, disk and memory of a challenge entry, from what a finished run of this machine took."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.vocabulary import Vocabulary
from models.reference.config import ReferenceConfig, size_preset
from models.reference.network import Reference
from pipeline.execution.manifest import Manifest
from pipeline.run.presets import load_preset
from pipeline.run.run_folder import VOCABULARY, RunFolder
from pipeline.run.stage_table import STAGES

__all__ = ["Estimate", "PlanConfig", "estimates", "run_plan"]

# Traffic is not generated for an entry, and a report takes no time worth planning.
_PLANNED = tuple(stage.name for stage in STAGES if stage.name not in ("traffic", "report"))
_ROLLOUTS_PER_SCENARIO = 32


@dataclass(frozen=True)
class PlanConfig:
    """The size of the entry.

    Args:
        scenarios: of the test split, to sample and to pack; WOMD has 44920.
        training: scenarios to ingest and to train on.
        validation: scenarios to ingest and to score.
        cores: of all machines together; 0 for those of this one.
        gpus: of all machines together, for training and sampling.
        gpu_speedup: cores that a GPU is worth; an assumption, as a run without a GPU cannot measure it.
        settings: preset with the planned numbers of steps.
    """

    scenarios: int = 44_920
    training: int = 486_995
    validation: int = 44_097
    cores: int = 0
    gpus: int = 0
    gpu_speedup: float = 30.0
    settings: str = "paper"


@dataclass(frozen=True)
class Estimate:
    """What one stage takes.

    Attributes:
        seconds: on all cores, or on the GPUs if the stage uses them. disk_gb: written and kept.
        memory_gb: of all processes.
        assumption: where the figures come from.
    """

    stage: str
    seconds: float
    disk_gb: float
    memory_gb: float
    assumption: str


@dataclass(frozen=True)
class _Machines:
    """Cores and GPUs for a stage, in units of this machine's cores, and processes at a time."""

    cores: int
    gpus: int
    gpu_speedup: float

    @property
    def strength(self) -> float:
        return self.gpus * self.gpu_speedup if self.gpus else float(self.cores)

    @property
    def processes(self) -> int:
        return self.gpus or self.cores

    @property
    def words(self) -> str:
        return f"a GPU is {self.gpu_speedup:g} cores (assumed)" if self.gpus else f"{self.cores} cores"


def _here() -> int:
    return len(os.sched_getaffinity(0))


def _finished(run: Path) -> dict[str, Manifest]:
    """Manifests of all stages of a run.

    Raises:
        UserError: one is missing.
    """
    found = {name: RunFolder(run).manifest(name) for name in _PLANNED}
    missing = [name for name, manifest in found.items() if manifest is None]
    if missing:
        raise UserError(
            f"--run {run}: stage {missing[0]} is not finished there; figures come from a finished run, "
            "as of make stages"
        )
    return {name: manifest for name, manifest in found.items() if manifest is not None}


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return base | {
        key: _merged(base.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }


def _training(stage: str, done: Manifest, planned: dict[str, Any], growth: float, machines: _Machines) -> Estimate:
    """Of supervised training: scenes seen, at what a scene took."""
    was, will = done.recipe.config["fit"], _merged(done.recipe.config, planned)["fit"]
    passes = will["steps"] * will["batch_size"]
    each = done.seconds * _here() / (was["steps"] * was["batch_size"])
    return Estimate(
        stage,
        passes * each * growth / machines.strength,
        growth * _size_gb(done),
        done.peak_memory_mb / 1e3 * machines.processes,
        f"{passes:.3g} scenes seen, {each:.2f} core-s each with validation, times {growth:.1f} for "
        f"the parameters; {machines.words}",
    )


def _growth(done: Manifest, planned: dict[str, Any], run: Path) -> float:
    """Parameters of the planned reference over those of the one that the run trained."""
    vocabulary = Vocabulary.load(run / VOCABULARY)

    def parameters(config: dict[str, Any]) -> int:
        custom = ReferenceConfig(**config["model"]) if config["size"] == "custom" else size_preset(config["size"])
        return sum(parameter.numel() for parameter in Reference(custom, vocabulary).parameters())

    return parameters(_merged(done.recipe.config, planned)) / parameters(done.recipe.config)


def _size_gb(done: Manifest) -> float:
    return sum(float(output["bytes"]) for output in done.outputs.values()) / 1e9


def estimates(config: PlanConfig, run: Path) -> list[Estimate]:
    """An estimate for each stage.

    Args:
        config: what is planned. run: folder of a finished run of this machine.

    Raises:
        UserError: the run is not finished, or numbers that make no sense.
    """
    for name in ("scenarios", "training", "validation", "cores", "gpus"):
        if getattr(config, name) < 0:
            raise UserError(f"--{name} {getattr(config, name)}: expected 0 or more")
    if config.gpu_speedup <= 0:
        raise UserError(f"--gpu_speedup {config.gpu_speedup}: expected more than 0")
    done, planned = _finished(run), load_preset(config.settings)
    cpu = _Machines(config.cores or _here(), 0, 1.0)
    learnt = _Machines(cpu.cores, config.gpus, config.gpu_speedup)
    growth = _growth(done["pretrain"], planned.get("pretrain", {}), run)
    return [
        _ingesting(config, done["tokenize"], cpu),
        _training("pretrain", done["pretrain"], planned.get("pretrain", {}), growth, learnt),
        _training("finetune", done["finetune"], planned.get("finetune", {}), growth, learnt),
        _playing(done["selfplay"], planned.get("selfplay", {}), learnt),
        _sampling(config, done["sample"], done["package"], learnt),
        _scoring(config, done["evaluate"], cpu),
        *_packing(config, done["package"], done["validate"], cpu),
    ]


def _ingesting(config: PlanConfig, done: Manifest, cpu: _Machines) -> Estimate:
    figures = done.figures
    splits = {"training": config.training, "validation": config.validation, "testing": config.scenarios}
    rate = figures["training_ingest_scenes_per_second_per_core"]
    disk = sum(count * figures[f"{split}_store_bytes_per_scene"] for split, count in splits.items()) / 1e9
    return Estimate(
        "tokenize",
        sum(splits.values()) / rate / cpu.cores,
        disk,
        done.peak_memory_mb / 1e3 * cpu.processes,
        f"{sum(splits.values())} scenes at {rate} a second and core; the downloaded TFRecords are not counted",
    )


def _playing(done: Manifest, planned: dict[str, Any], machines: _Machines) -> Estimate:
    steps = planned.get("agent_steps", done.recipe.config["agent_steps"])
    rate = done.figures["trained_agent_steps_per_second"] / _here()
    return Estimate(
        "selfplay",
        steps / rate / machines.strength,
        _size_gb(done),
        done.peak_memory_mb / 1e3 * machines.processes,
        f"{steps:.3g} agent-steps at {rate:.0f} a second and core, the run's networks; {machines.words}",
    )


def _sampling(config: PlanConfig, done: Manifest, packed: Manifest, machines: _Machines) -> Estimate:
    agent = done.recipe.config["submission_agent"]
    rate = done.figures[f"validation_{agent}_scenarios_per_second"] / _here()
    raw = packed.figures["uncompressed_mb"] / packed.figures["scenarios"]
    return Estimate(
        "sample",
        config.scenarios / rate / machines.strength,
        config.scenarios * raw / 1e3,
        done.peak_memory_mb / 1e3 * machines.processes,
        f"{_ROLLOUTS_PER_SCENARIO} futures by {agent}, {rate:.2f} a second and core; {raw:.2f} MB each; "
        f"{machines.words}",
    )


def _scoring(config: PlanConfig, done: Manifest, cpu: _Machines) -> Estimate:
    agents = done.recipe.config["agents"]
    count = sum(done.figures[f"{agent}_scenarios"] for agent in agents)
    each = done.seconds * _here() / count
    return Estimate(
        "evaluate",
        config.validation * each / cpu.cores,
        0.0,
        done.peak_memory_mb / 1e3 * cpu.processes,
        f"one agent on {config.validation} scenarios, {each:.2f} core-s each, start of the program included",
    )


def _packing(config: PlanConfig, packed: Manifest, checked: Manifest, cpu: _Machines) -> list[Estimate]:
    count = packed.figures["scenarios"]
    size = packed.figures["archive_mb"] / count
    each, look = packed.seconds / count, checked.seconds / count
    return [
        Estimate(
            "package",
            config.scenarios * each / cpu.cores,
            2 * config.scenarios * size / 1e3,
            packed.peak_memory_mb / 1e3 * cpu.processes,
            f"{each:.3f} core-s and {size:.2f} MB a scenario; twice the archive while it is put together",
        ),
        Estimate(
            "validate",
            config.scenarios * look,
            0.0,
            checked.peak_memory_mb / 1e3,
            f"{look:.3f} s a scenario, one process; start of the program included",
        ),
    ]


def _time(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def run_plan(config: PlanConfig, *, run: Path = Path("runs/demo")) -> dict[str, Any]:
    """Estimate what an entry to the challenge takes, stage by stage.

    Args:
        config: what is planned.
        run: folder of a finished run of this machine, whose figures are used.

    Raises:
        UserError: the run is not finished, or numbers that make no sense.
    """
    found = estimates(config, run)
    print(f"{'stage':10} {'time':>9} {'disk':>10} {'memory':>9}   from")
    for item in found:
        print(
            f"{item.stage:10} {_time(item.seconds):>9} {item.disk_gb:7.1f} GB {item.memory_gb:6.1f} GB   "
            f"{item.assumption}"
        )
    seconds, disk = sum(item.seconds for item in found), sum(item.disk_gb for item in found)
    print(f"{'all':10} {_time(seconds):>9} {disk:7.1f} GB {max(item.memory_gb for item in found):6.1f} GB")
    return {
        "seconds": round(seconds),
        "disk_gb": round(disk, 1),
        "memory_gb": round(max(item.memory_gb for item in found), 1),
    }
