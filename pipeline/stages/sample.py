"""Stage ``sample``: joint futures of every scenario by one agent, to shards of rollouts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.completeness import some
from data.errors import UserError
from data.files import atomic_write, read_json, remove_leftovers, sha256_of, write_json
from data.places import is_remote, open_path
from data.receipts import SUMS, Receipt, accepted, receipt_path, write_receipt, write_sums
from data.scenes_source import SceneSource, content_digest, open_scenes
from models.sampling import SamplingConfig
from pipeline.agents.agent import Agent
from pipeline.agents.catalogue import LEARNT, make_agent
from pipeline.agents.leaks import RECIPE, TRAINED, trained_scenes
from pipeline.execution.console import bar, say
from pipeline.execution.devices import Count, find_devices
from pipeline.execution.engine import EngineConfig, run_on
from pipeline.execution.manifest import Work, set_aside
from pipeline.execution.result_cache import code_version
from pipeline.run.run_folder import POLICY, REFERENCE, Run
from submission.protos import Rollouts, encode_field, to_proto

_ROLLOUTS_FIELD = 1
_OWNED = ("rollouts.binproto-*", ".receipts", SUMS, RECIPE)
# A finished shard, or one that a killed run left behind (see ``atomic_path``).
_OURS = re.compile(r"rollouts\.binproto-\d{5}-of-\d{5}|\.rollouts\.binproto-.*\.part")


@dataclass(frozen=True)
class SampleConfig:
    """Joint futures.

    Args:
        agent: log, constant_velocity, reference, policy, or another of ``pipeline/agents/catalogue.py``.
        rollouts: joint futures per scenario; the challenge wants 32.
        temperature: divides a learnt agent's logits; below 1 sharpens. Here and in the next two, one number for
            all, or three, as [1.0,0.8,0.9], for vehicles, pedestrians and cyclists.
        top_k: a learnt agent draws among its k likeliest tokens; 0 among all.
        top_p: a learnt agent draws among the likeliest tokens that together have this probability; 1 among all.
        shard_scenarios: scenarios in an output file.
        workers: processes; 0 for one per core, or per GPU; on a Ray cluster one per CPU, or per GPU.
        device: of a learnt agent: cpu, cuda, cuda:N, mps, or auto for a GPU where there is one.
        devices: GPUs among which the scenarios are dealt out; auto for all of this machine.
        compile: fuse a learnt agent's steps with torch.compile, which takes a minute or two in each process; for
            hundreds of scenarios.
    """

    agent: str = "policy"
    rollouts: int = 32
    temperature: float | tuple[float, float, float] = 1.0
    top_k: int | tuple[int, int, int] = 0
    top_p: float | tuple[float, float, float] = 1.0
    shard_scenarios: int = 16
    workers: int = 0
    device: str = "auto"
    devices: Count = "auto"
    compile: bool = False


@dataclass(frozen=True)
class _Task:
    """One output file."""

    inputs: _Inputs
    rollouts: int
    seed: int
    first: int
    last: int
    target: Path
    source: str


@dataclass(frozen=True)
class _Inputs:
    """What a worker opens once: scenarios and agent. The digests are there to tell changed files apart."""

    scenarios: str
    scenarios_digest: str
    agent: str
    checkpoint: Path | None
    checkpoint_digest: str | None
    sampling: SamplingConfig
    device: str
    compiled: bool


@lru_cache(maxsize=1)
def _opened(inputs: _Inputs) -> tuple[SceneSource, Agent]:
    return open_scenes(inputs.scenarios), make_agent(
        inputs.agent, inputs.checkpoint, inputs.sampling, inputs.device, inputs.compiled
    )


def _sample_shard(task: _Task) -> Receipt:
    """Simulate the scenarios of one shard and write it."""
    source, agent = _opened(task.inputs)

    def messages() -> Iterator[bytes]:
        scenes = (source[index] for index in range(task.first, task.last))
        for scene, states in agent.rollouts_of(scenes, task.rollouts, task.seed):
            rollouts = Rollouts(str(scene.scenario_id), scene.agents.id[scene.simulated], states)
            yield encode_field(_ROLLOUTS_FIELD, to_proto(rollouts).SerializeToString(deterministic=True))

    atomic_write(task.target, lambda file: file.writelines(messages()))
    return write_receipt(task.target, task.source, task.last - task.first)


def _recipe_of(out: Path) -> Any:
    """What the rollouts there were made from; None where that cannot be read."""
    try:
        return read_json(out / RECIPE)
    except ValueError:
        return None


def _prepare(out: Path, recipe: dict[str, Any], names: set[str]) -> None:
    """Keep shards of the same settings; move what an earlier run with other settings left to ``replaced``.

    Raises:
        UserError: rollouts from elsewhere, which are not ours to move, or of other settings at a URL.
    """
    out.mkdir(parents=True, exist_ok=True)
    ours = (out / RECIPE).exists()
    same = ours and _recipe_of(out) == recipe
    for file in sorted(out.glob("*.binproto*"), key=str):
        if not (ours and _OURS.fullmatch(file.name)):
            raise UserError(f"{file}: not written by this stage; choose another --out, or remove the file")
        if same and file.name not in names:
            file.unlink()
            receipt_path(file).unlink(missing_ok=True)
    if ours and not same:
        if is_remote(out):
            raise UserError(f"{out}: holds rollouts of other settings; choose another --out, or remove them")
        aside = set_aside(Work(out, "sample", out / "replaced" / "sample", _OWNED))
        say(f"{out}: rollouts of other settings are kept in {aside}")
    if not same:
        write_json(out / RECIPE, recipe)


def run_sample(
    config: SampleConfig,
    *,
    scenarios: str | Path,
    checkpoint: str | Path | None = None,
    out: str | Path,
    seed: int = 0,
    engine: EngineConfig = EngineConfig(),
) -> dict[str, float]:
    """Simulate joint futures of scenarios and write them as shards of ScenarioRollouts.

    Args:
        config: of the stage.
        scenarios: WOMD TFRecords (file, folder, glob, URL) or the folder (or URL) of an ingested store.
        checkpoint: of a reference or a policy; file, URL, or folder of an export.
        out: folder or URL of the shards, rollouts.binproto-?????-of-?????, and SHA256SUMS of them all.
        seed: of the rollouts; those of a scenario depend on it and the scenario's id alone.
        engine: who does the work.

    Raises:
        UserError: unknown agent, no checkpoint, nothing to simulate, a scenario the agent cannot simulate, or
            rollouts from elsewhere in ``out``.
    """
    if config.rollouts < 1:
        raise UserError(f"--rollouts {config.rollouts}: expected at least 1")
    if config.shard_scenarios < 1:
        raise UserError(f"--shard_scenarios {config.shard_scenarios}: expected at least 1")
    devices = find_devices(config.device if config.agent in LEARNT else "cpu", count=config.devices)
    weights = None if checkpoint is None else open_path(checkpoint)
    if weights is not None and not weights.is_file():
        raise UserError(f"--checkpoint {checkpoint}: no such file, and no folder of an export")
    if config.agent not in LEARNT and weights is not None:
        print(f"warning: --checkpoint {checkpoint}: not used by --agent {config.agent}", file=sys.stderr)
        weights = None
    source_name, folder = str(open_path(scenarios)), open_path(out)
    inputs = _Inputs(
        scenarios=source_name,
        scenarios_digest=content_digest(source_name),
        agent=config.agent,
        checkpoint=weights,
        checkpoint_digest=sha256_of(weights) if weights else None,
        sampling=SamplingConfig(config.temperature, config.top_k, config.top_p),
        device=devices.name,
        compiled=config.compile,
    )
    # Opened here too: names every mistake in the options before workers start.
    source, _ = _opened(inputs)
    count = len(source)
    seen = trained_scenes(weights, source.ids)
    if seen:
        print(
            f"warning: {checkpoint}: was trained on {len(seen)} of the {count} scenarios of {scenarios} "
            f"({some(seen)}); a score of these rollouts says nothing of others",
            file=sys.stderr,
            flush=True,
        )
    starts = range(0, count, config.shard_scenarios)
    recipe = {
        "agent": config.agent,
        "rollouts": config.rollouts,
        **dataclasses.asdict(inputs.sampling),
        # Which one, and how many, decides nothing.
        "device": devices.kind,
        "compile": config.compile,
        "shard_scenarios": config.shard_scenarios,
        "seed": seed,
        "checkpoint": inputs.checkpoint_digest,
        "scenarios": inputs.scenarios_digest,
        TRAINED: len(seen),
        "code": code_version(__name__),
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
    tasks = [
        _Task(
            inputs=inputs,
            rollouts=config.rollouts,
            seed=seed,
            first=first,
            last=min(first + config.shard_scenarios, count),
            target=folder / f"rollouts.binproto-{number:05d}-of-{len(starts):05d}",
            source=digest,
        )
        for number, first in enumerate(starts)
    ]
    _prepare(folder, recipe, {task.target.name for task in tasks})
    receipts = {
        task.target.name: receipt for task in tasks if (receipt := accepted(task.target, digest)) is not None
    }
    todo = [task for task in tasks if task.target.name not in receipts]
    done = sum(receipt.items for receipt in receipts.values())
    started = time.perf_counter()
    if todo and engine.kind == "local":
        devices.tell(f"sample {config.agent}", processes=min(devices.processes(config.workers), len(todo)))
    with bar(f"sample {config.agent}", count, " scenario", initial=done) as progress:
        work = run_on(engine, _sample_shard, todo, config.workers, devices=devices, folder=folder)
        for index, receipt in work:
            receipts[todo[index].target.name] = receipt
            progress.update(receipt.items)
    seconds = time.perf_counter() - started
    remove_leftovers(folder)
    write_sums(folder / SUMS, receipts)
    return {
        "scenarios": count,
        "rollouts": config.rollouts,
        **({"trained_scenarios": len(seen)} if seen else {}),
        **({"scenarios_per_second": round((count - done) / seconds, 3)} if todo else {}),
    }


def sample_run(run: Run) -> dict[str, Any]:
    """The stage of a run: validation scenarios by every agent, and testing scenarios by that of the submission."""
    checkpoints = {"reference": run.path(REFERENCE), "policy": run.path(POLICY)}
    tasks = [(agent, "validation", run.rollouts(agent)) for agent in run.config.agents]
    tasks.append((run.config.submission_agent, "testing", run.path("sample/testing")))
    figures: dict[str, Any] = {}
    for agent, split, folder in tasks:
        found = run_sample(
            dataclasses.replace(run.config.sample, agent=agent),
            scenarios=run.store(split),
            checkpoint=checkpoints.get(agent),
            out=folder,
            seed=run.config.seed,
            engine=run.engine,
        )
        figures |= {f"{split}_{agent}_{name}": value for name, value in found.items()}
    return figures
