"""Stage ``traffic``: generated scenarios in TFRecord shards laid out and named as WOMD's."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data.errors import UserError
from data.files import read_json, write_json
from data.sources import SPLITS
from data.tfrecord import write_records
from data.traffic.sumo import require_sumo
from data.traffic.world import WorldTask, generate_world
from pipeline.execution.console import bar
from pipeline.execution.engine import run_tasks, worker_count
from pipeline.execution.result_cache import keep_settings

SETTINGS_FILE = "traffic.json"
COUNTS_FOLDER = "counts"
_SCRATCH = ".scratch"


@dataclass(frozen=True)
class TrafficConfig:
    """Generated traffic.

    Args:
        training: scenarios in the training split.
        validation: scenarios in the validation split.
        testing: scenarios in the testing split, cut after the current step.
        scenarios_per_shard: most scenarios in one file; a shard is what an interrupted run keeps.
        scenarios_per_world: scenarios cut from one simulated road network.
        radius: how far around the AV's path the map reaches, metres; at least 100, as far as agents are seen.
        warm_up: seconds that a network is simulated before its first scenario.
        workers: processes; 0 for one per core. The scenarios do not depend on it.
    """

    training: int = 192
    validation: int = 32
    testing: int = 8
    scenarios_per_shard: int = 32
    scenarios_per_world: int = 8
    radius: float = 120.0
    warm_up: float = 40.0
    workers: int = 0

    def __post_init__(self) -> None:
        for name in ("training", "validation", "testing"):
            if getattr(self, name) < 0:
                raise UserError(f"traffic.{name}: {getattr(self, name)}, expected 0 or more scenarios")
        for name in ("scenarios_per_shard", "scenarios_per_world"):
            if getattr(self, name) < 1:
                raise UserError(f"traffic.{name}: {getattr(self, name)}, expected 1 or more")
        if self.radius < 100:
            raise UserError(f"traffic.radius: {self.radius} m, expected 100 or more")
        if self.warm_up < 0:
            raise UserError(f"traffic.warm_up: {self.warm_up} s, expected 0 or more")


@dataclass(frozen=True)
class _Shard:
    """One file to write, the tally beside it, and the worlds whose scenes it holds."""

    path: Path
    counts: Path
    tasks: tuple[WorldTask, ...]

    @property
    def done(self) -> bool:
        return self.path.is_file() and self.counts.is_file()


def _plan(config: TrafficConfig, out: Path, seed: int) -> list[_Shard]:
    """All shards of all splits. Worlds belong to one shard each, so shards can be made alone."""
    shards = []
    for split in SPLITS:
        total, world = getattr(config, split), 0
        count = -(-total // config.scenarios_per_shard)
        for number in range(count):
            begin = number * config.scenarios_per_shard
            end = min(begin + config.scenarios_per_shard, total)
            tasks = []
            for first in range(begin, end, config.scenarios_per_world):
                scenes = min(config.scenarios_per_world, end - first)
                tasks.append(WorldTask(seed, split, world, first, scenes, config.radius, config.warm_up))
                world += 1
            part = f"{number:05d}-of-{count:05d}"
            name = f"{split}.tfrecord-{part}"
            # No "tfrecord" in this name: programs that look for records by pattern must not find it.
            tally = out / COUNTS_FOLDER / f"{split}-{part}.json"
            shards.append(_Shard(out / split / name, tally, tuple(tasks)))
    return shards


def _check_settings(config: TrafficConfig, out: Path, seed: int) -> None:
    """Remember what the folder is made from, and refuse to mix two settings in it."""
    settings = {"seed": seed, **dataclasses.asdict(config)}
    # How many processes work has no influence on the result.
    del settings["workers"]
    keep_settings(out / SETTINGS_FILE, settings, "traffic")


def _results(shards: list[_Shard], scratch: Path, workers: int) -> Iterator[int]:
    """Generate the missing shards, write each as soon as it is complete, and yield scenes as they come."""
    owners = [(shard, position) for shard in shards for position in range(len(shard.tasks))]
    worlds = [shard.tasks[position] for shard, position in owners]
    parts: dict[Path, dict[int, tuple[list[bytes], Counter[str]]]] = {shard.path: {} for shard in shards}
    for index, result in run_tasks(partial(generate_world, scratch=scratch), worlds, workers):
        shard, position = owners[index]
        ready = parts[shard.path]
        ready[position] = result
        if len(ready) == len(shard.tasks):
            ordered = [ready[i] for i in range(len(ready))]
            tally = sum((counts for _, counts in ordered), Counter())
            write_json(shard.counts, dict(sorted(tally.items())))
            write_records(shard.path, (record for records, _ in ordered for record in records))
            del parts[shard.path]
        yield len(result[0])


def run_traffic(config: TrafficConfig, *, out: Path, seed: int) -> dict[str, float]:
    """Generate the splits under ``out``; shards that exist are kept.

    Args:
        config: how much of what. out: folder that gets ``training/``, ``validation/`` and ``testing/``.
        seed: the same seed gives the same bytes, whatever the number of workers and interruptions.

    Returns:
        Scenarios of each split, networks simulated, and how many agents and scenes were dropped for which reason.

    Raises:
        UserError: SUMO is missing, or ``out`` holds traffic of other settings.
    """
    require_sumo()
    out.mkdir(parents=True, exist_ok=True)
    _check_settings(config, out, seed)
    shards = _plan(config, out, seed)
    missing = [shard for shard in shards if not shard.done]
    scratch = out / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    if missing:
        scratch.mkdir()
        total = sum(task.scenes for shard in shards for task in shard.tasks)
        ahead = sum(task.scenes for shard in missing for task in shard.tasks)
        try:
            with bar("traffic", total, " scenarios", initial=total - ahead) as progress:
                for scenes in _results(missing, scratch, worker_count(config.workers)):
                    progress.update(scenes)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    tally: Counter[str] = Counter()
    for shard in shards:
        tally.update(read_json(shard.counts))
    figures = {f"{split}_scenarios": float(getattr(config, split)) for split in SPLITS}
    return figures | {name: float(value) for name, value in sorted(tally.items())}
