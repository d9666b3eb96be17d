"""Command ``plan``: what an entry takes, from a finished run of this machine and from measurements on GPUs."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.vocabulary import Vocabulary
from models.reference.config import ReferenceConfig, size_preset
from models.reference.network import Reference
from pipeline.execution.devices import Count, find_devices
from pipeline.execution.manifest import Manifest
from pipeline.run.gpu_plan import GpuEstimate, Gpus, all_agent_steps
from pipeline.run.measured import MEASURED, load_measured
from pipeline.run.presets import load_preset
from pipeline.run.run_config import RunConfig
from pipeline.run.run_folder import VOCABULARY, RunFolder
from pipeline.run.stage_table import STAGES

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
        gpus: of all machines together; auto for those of this one.
        card: part of the name of a GPU, whose measured figures are used; the newest ones where none is given.
        measured: folder of what scripts/gpu_check.py measured.
        gpu_speedup: cores that a GPU is worth, for what was not measured; a guess.
        settings: preset with the planned numbers of steps.
    """

    scenarios: int = 44_920
    training: int = 486_995
    validation: int = 44_097
    cores: int = 0
    gpus: Count = "auto"
    card: str = ""
    measured: Path = MEASURED
    gpu_speedup: float = 30.0
    settings: str = "paper"


@dataclass(frozen=True)
class Estimate:
    """What one stage takes.

    Attributes:
        seconds: on all cores, or on the GPUs if the stage uses them; None where nothing is known.
        disk_gb: written and kept. memory_gb: of all processes, or of each GPU where figures are of GPUs.
        assumption: where the figures come from.
        count, device: what it runs on. scene_gb: GPU memory of a scene, None where nothing was measured.
    """

    stage: str
    seconds: float | None
    disk_gb: float | None
    memory_gb: float | None
    assumption: str
    count: int = 1
    device: str = "cores"
    scene_gb: float | None = None


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
        return f"a GPU is {self.gpu_speedup:g} cores (a guess)" if self.gpus else f"{self.cores} cores"

    def estimate(self, stage: str, seconds: float, disk_gb: float, done: Manifest, assumption: str) -> Estimate:
        """Of a stage that takes the memory that it took, in each process."""
        memory_gb, device = done.peak_memory_mb / 1e3 * self.processes, "GPUs" if self.gpus else "cores"
        return Estimate(stage, seconds, disk_gb, memory_gb, assumption, self.processes, device)


def _here() -> int:
    return len(os.sched_getaffinity(0))


def _finished(run: Path, needed: bool) -> dict[str, Manifest] | None:
    """Manifests of all stages of a run; None where one is missing.

    Raises:
        UserError: one is missing, and nothing else has figures.
    """
    found = {name: RunFolder(run).manifest(name) for name in _PLANNED}
    missing = [name for name, manifest in found.items() if manifest is None]
    if missing and not needed:
        return None
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
    return machines.estimate(
        stage,
        passes * each * growth / machines.strength,
        growth * _size_gb(done),
        done,
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


def _options(stage: str, planned: dict[str, Any], done: dict[str, Manifest] | None) -> dict[str, Any]:
    """Options of a stage by a preset, over those of the run, or over the defaults."""
    base = dataclasses.asdict(getattr(RunConfig(), stage))
    return _merged(_merged(base, done[stage].recipe.config if done else {}), planned.get(stage, {}))


def estimates(config: PlanConfig, run: Path) -> list[Estimate]:
    """An estimate for each stage.

    Args:
        config: what is planned. run: folder of a finished run of this machine.

    Raises:
        UserError: the run is not finished and there are no figures of GPUs, or numbers that make no sense.
    """
    for name in ("scenarios", "training", "validation", "cores", "gpus"):
        if (value := getattr(config, name)) != "auto" and value < 0:
            raise UserError(f"--{name} {value}: expected 0 or more")
    if config.gpu_speedup <= 0:
        raise UserError(f"--gpu_speedup {config.gpu_speedup}: expected more than 0")
    gpus = config.gpus
    if gpus == "auto":
        found = find_devices("auto", "--gpus", "auto")
        gpus = found.count if found.kind == "cuda" else 0
    measured = load_measured(config.measured, config.card)
    cards = Gpus(gpus, measured) if gpus and measured else None
    planned = load_preset(config.settings)
    done = _finished(run, needed=cards is None)
    on_gpus = {} if cards is None else _on_gpus(config, cards, planned, done)
    on_run = {} if done is None else _from_run(config, done, planned, run, gpus)
    plays = "policy" in {*planned.get("agents", ["policy"]), planned.get("submission_agent", "policy")}
    result = []
    for stage in _PLANNED:
        guess, better = on_run.get(stage), on_gpus.get(stage)
        if better is not None and cards is not None:
            basis = f"{better.basis}; {cards.measured.words}"
            if (better.gpu_gb or 0.0) > cards.measured.values.get("memory of the GPU", math.inf):
                basis = f"more memory than this GPU has; {basis}"
            if better.guesses:
                basis += f"; guessed: {', '.join(better.guesses)}"
            disk = None if guess is None else guess.disk_gb
            guess = Estimate(
                stage, better.seconds, disk, better.gpu_gb, basis, better.count, "GPUs", better.scene_gb
            )
        if plays or stage != "selfplay":
            result.append(
                guess or Estimate(stage, None, None, None, f"nothing is known without a run: --run {run}", 0)
            )
    return result


def _on_gpus(
    config: PlanConfig, gpus: Gpus, planned: dict[str, Any], done: dict[str, Manifest] | None
) -> dict[str, GpuEstimate | None]:
    """By stage, from what was measured."""
    pretrain, sample = _options("pretrain", planned, done), _options("sample", planned, done)
    token_steps = _options("tokenize", planned, None)["vocabulary"]["token_steps"]
    agent = planned.get("submission_agent", done["sample"].recipe.config["submission_agent"] if done else "policy")
    return {
        "pretrain": gpus.pretraining(pretrain),
        "finetune": gpus.finetuning(pretrain, _options("finetune", planned, done), token_steps),
        "selfplay": gpus.playing(_options("selfplay", planned, done)),
        "sample": gpus.sampling(config.scenarios, agent, pretrain, sample["workers"]),
        "evaluate": gpus.scoring(config.validation),
    }


def _from_run(
    config: PlanConfig, done: dict[str, Manifest], planned: dict[str, Any], run: Path, gpus: int
) -> dict[str, Estimate]:
    """By stage, from what a run took on this machine's cores."""
    cpu = _Machines(config.cores or _here(), 0, 1.0)
    learnt = _Machines(cpu.cores, gpus, config.gpu_speedup)
    growth = _growth(done["pretrain"], planned.get("pretrain", {}), run)
    found = [
        _ingesting(config, done["tokenize"], cpu),
        _training("pretrain", done["pretrain"], planned.get("pretrain", {}), growth, learnt),
        _training("finetune", done["finetune"], planned.get("finetune", {}), growth, learnt),
        _playing(done["selfplay"], planned.get("selfplay", {}), learnt),
        _sampling(config, done["sample"], done["package"], learnt),
        _scoring(config, done["evaluate"], cpu),
        *_packing(config, done["package"], done["validate"], cpu),
    ]
    return {estimate.stage: estimate for estimate in found}


def _ingesting(config: PlanConfig, done: Manifest, cpu: _Machines) -> Estimate:
    figures = done.figures
    splits = {"training": config.training, "validation": config.validation, "testing": config.scenarios}
    rate = figures["training_ingest_scenes_per_second_per_core"]
    disk = sum(count * figures[f"{split}_store_bytes_per_scene"] for split, count in splits.items()) / 1e9
    return cpu.estimate(
        "tokenize",
        sum(splits.values()) / rate / cpu.cores,
        disk,
        done,
        f"{sum(splits.values())} scenes at {rate} a second and core; the downloaded TFRecords are not counted",
    )


def _playing(done: Manifest, planned: dict[str, Any], machines: _Machines) -> Estimate:
    # Those of distillation are in the rate as well.
    steps = all_agent_steps(_merged(done.recipe.config, planned))
    rate = done.figures["trained_agent_steps_per_second"] / _here()
    return machines.estimate(
        "selfplay",
        steps / rate / machines.strength,
        _size_gb(done),
        done,
        f"{steps:.3g} agent-steps at {rate:.0f} a second and core, the run's networks; {machines.words}",
    )


def _sampling(config: PlanConfig, done: Manifest, packed: Manifest, machines: _Machines) -> Estimate:
    agent = done.recipe.config["submission_agent"]
    rate = done.figures[f"validation_{agent}_scenarios_per_second"] / _here()
    raw = packed.figures["uncompressed_mb"] / packed.figures["scenarios"]
    return machines.estimate(
        "sample",
        config.scenarios / rate / machines.strength,
        config.scenarios * raw / 1e3,
        done,
        f"{_ROLLOUTS_PER_SCENARIO} futures by {agent}, {rate:.2f} a second and core; {raw:.2f} MB each; "
        f"{machines.words}",
    )


def _scoring(config: PlanConfig, done: Manifest, cpu: _Machines) -> Estimate:
    agents = done.recipe.config["agents"]
    count = sum(done.figures[f"{agent}_scenarios"] for agent in agents)
    each = done.seconds * _here() / count
    return cpu.estimate(
        "evaluate",
        config.validation * each / cpu.cores,
        0.0,
        done,
        f"one agent on {config.validation} scenarios, {each:.2f} core-s each, start of the program included",
    )


def _packing(config: PlanConfig, packed: Manifest, checked: Manifest, cpu: _Machines) -> list[Estimate]:
    count = packed.figures["scenarios"]
    size = packed.figures["archive_mb"] / count
    each, look = packed.seconds / count, checked.seconds / count
    return [
        cpu.estimate(
            "package",
            config.scenarios * each / cpu.cores,
            2 * config.scenarios * size / 1e3,
            packed,
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


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def _gb(value: float | None) -> str:
    return "?" if value is None else f"{value:.2f} GB" if value < 10 else f"{value:.0f} GB"


def run_plan(config: PlanConfig, *, run: Path = Path("runs/demo")) -> dict[str, Any]:
    """Estimate what an entry to the challenge takes, stage by stage.

    Args:
        config: what is planned.
        run: folder of a finished run of this machine, whose figures are used for what no GPU does.

    Raises:
        UserError: the run is not finished and there are no figures of GPUs, or numbers that make no sense.
    """
    found = estimates(config, run)
    print(f"{'stage':10} {'on':>9} {'time':>9} {'disk':>9} {'memory':>9} {'a scene':>9}   from")
    for item in found:
        where = (
            f"{item.count} {item.device if item.count > 1 else item.device.removesuffix('s')}"
            if item.count
            else "?"
        )
        scene = "" if item.scene_gb is None else _gb(item.scene_gb)
        print(
            f"{item.stage:10} {where:>9} {_time(item.seconds):>9} {_gb(item.disk_gb):>9} {_gb(item.memory_gb):>9} "
            f"{scene:>9}   {item.assumption}"
        )
    seconds = sum(item.seconds or 0.0 for item in found)
    disk = sum(item.disk_gb or 0.0 for item in found)
    memory = max(item.memory_gb or 0.0 for item in found)
    some = " (without what is not known)" if any(item.seconds is None for item in found) else ""
    print(f"{'all':10} {'':>9} {_time(seconds):>9} {_gb(disk):>9} {_gb(memory):>9}{some}")
    return {"seconds": round(seconds), "disk_gb": round(disk, 1), "memory_gb": round(memory, 1)}
