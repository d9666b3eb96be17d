"""Stage ``tokenize``: files of scenarios to a scene store, and from the training split the motion vocabulary."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.assembly import RecordError
from data.completeness import DUPLICATE, Origin, Rejected, Remarks, some
from data.errors import UserError, warn_once
from data.files import at_once, remove_leftovers, write_text
from data.formats.catalogue import AUTO, FORMATS
from data.formats.reader import Reading, WindowConfig
from data.places import open_path
from data.receipts import SUMS, Receipt, accepted, read_receipt, receipt_path, write_receipt, write_sums
from data.scene import Scene
from data.sources import SPLITS, Shard, check_apart, find_shards, shard_content
from data.store import (
    SceneStore,
    check_disjoint,
    is_store,
    shard_name,
    store_kinds,
    write_shard,
)
from data.tokenizer import retokenisation_error
from data.vocabulary import Vocabulary, VocabularyConfig, build_vocabulary
from models.checkpoints import read_any_checkpoint
from pipeline.execution.console import bar, track
from pipeline.execution.engine import EngineConfig, run_on, worker_count
from pipeline.execution.tables import csv_table
from pipeline.run.run_folder import VOCABULARY, Run

REJECTED_FILE = "rejected.csv"


@dataclass(frozen=True)
class TokenizeConfig:
    """Ingest and vocabulary.

    Args:
        format: of the data: womd (TFRecords), scenarionet (pickles), gpudrive (JSON), or auto, which looks.
        windows: how longer recordings of other formats than womd are divided into scenarios.
        workers: processes that ingest shards; 0 for one per core.
        allow_rejected: go on without records that cannot be used; they are listed in rejected.csv either way.
        vocabulary: how the motion vocabulary is built (training split).
        error_scenes: training scenes on which the re-tokenisation error is measured; 0 for all.
    """

    format: str = AUTO
    windows: WindowConfig = field(default_factory=WindowConfig)
    workers: int = 0
    allow_rejected: bool = False
    vocabulary: VocabularyConfig = field(default_factory=VocabularyConfig)
    error_scenes: int = 100


@dataclass(frozen=True)
class _IngestTask:
    shards: tuple[Shard, ...]
    target: Path
    reading: Reading

    def source(self) -> str:
        """What it is made of, for its receipt. The files have just been read, or their checksums are known."""
        future = " with future" if self.reading.need_future else ""
        if FORMATS[self.shards[0].format].numbered:
            return f"{shard_content(self.shards[0])}{future}"
        content = hashlib.sha256("\n".join(map(shard_content, self.shards)).encode()).hexdigest()
        return f"{self.shards[0].format}:{content} {self.reading.windows}{future}"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of files that say how many there are of the split."""
        return tuple(shard.name for shard in self.shards if FORMATS[shard.format].numbered)


def _parsed(task: _IngestTask, rejected: list[Rejected], remarks: Remarks) -> Iterator[Scene]:
    """Usable scenes of a task in order; what is not usable is appended to ``rejected``."""
    seen: set[str] = set()
    for shard in task.shards:
        for where, result in FORMATS[shard.format].read(shard.url, task.reading, remarks):
            if isinstance(result, RecordError):
                rejected.append(Rejected(shard.name, where, result.code, str(result)))
                continue
            name = str(result.scenario_id)
            if name in seen:
                rejected.append(Rejected(shard.name, where, DUPLICATE, f"scenario_id {name} occurs before"))
                continue
            seen.add(name)
            yield result


def _ingest_shard(task: _IngestTask) -> Receipt:
    """Write one shard of the store."""
    rejected, remarks = list[Rejected](), Remarks()
    try:
        infos = write_shard(
            task.target,
            _parsed(task, rejected, remarks),
            origin=lambda: Origin(task.names, tuple(rejected), remarks),
        )
        return write_receipt(task.target, task.source(), len(infos))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename or task.shards[0].url}: the file is gone") from error
    except PermissionError as error:
        raise UserError(f"{error.filename or task.shards[0].url}: permission denied") from error


def _tasks(config: TokenizeConfig, data: str, split: str, out: Path) -> list[_IngestTask]:
    shards = find_shards(data, split, config.format)
    batch = FORMATS[shards[0].format].batch
    batches = [tuple(shards[first : first + batch]) for first in range(0, len(shards), batch)]
    reading = Reading(split != "testing", config.windows)
    return [
        _IngestTask(files, out / shard_name(split, index, len(batches)), reading)
        for index, files in enumerate(batches)
    ]


def changed_data(run: Run) -> str | None:
    """Which file of a user's data has another content than what was ingested, None where none has."""
    for split in SPLITS if run.data is not None else ():
        tasks = _tasks(run.config.tokenize, str(run.data), split, run.store(split))
        for task, source in zip(tasks, at_once(_IngestTask.source, tasks), strict=True):
            if (held := read_receipt(task.target)) is None or held.source != source:
                return (
                    f"{task.shards[0].url}{'' if len(task.shards) == 1 else ', or a file beside it,'} has changed"
                )
    return None


def ingest(
    config: TokenizeConfig, *, data: str, split: str, out: Path, engine: EngineConfig = EngineConfig()
) -> dict[str, float]:
    """Read all records of a split into a store; every record is either stored or listed in rejected.csv.

    Raises:
        UserError: no files, no usable record, rejected records without ``allow_rejected``, or a scenario id that
            occurs in two files.
    """
    out = open_path(out)
    tasks = _tasks(config, data, split, out)
    expected = {task.target.name for task in tasks}
    if foreign := store_kinds(out) - {split}:
        raise UserError(f"{out}: holds a store of {', '.join(sorted(foreign))}; give another folder for {split}")
    for stale in out.glob("*.scenes.parquet"):
        if stale.name not in expected:
            stale.unlink()
            receipt_path(stale).unlink(missing_ok=True)
    receipts = {
        task.target.name: receipt for task in tasks if (receipt := accepted(task.target, task.source)) is not None
    }
    todo = [task for task in tasks if task.target.name not in receipts]
    started, count = time.perf_counter(), 0
    workers = min(worker_count(config.workers), max(1, len(todo)))
    with bar(f"ingest {split}", len(tasks), " shard", initial=len(tasks) - len(todo)) as progress:
        for index, receipt in run_on(engine, _ingest_shard, todo, config.workers, folder=out):
            receipts[todo[index].target.name] = receipt
            count += receipt.items
            progress.set_postfix_str(f"{count} scenes", refresh=False)
            progress.update()
    seconds = time.perf_counter() - started
    remove_leftovers(out)
    write_sums(out / SUMS, receipts)
    store = SceneStore(out)
    rejected = store.origin.rejected
    for line in store.origin.remarks.lines(f"{data}: {split}"):
        warn_once(line)
    write_text(out / REJECTED_FILE, csv_table([Rejected._fields, *rejected]))
    if rejected and not config.allow_rejected:
        first = rejected[0]
        raise UserError(
            f"{first.file}: record {first.record}: {first.reason}; {len(rejected)} rejected records in all, "
            f"listed in {out / REJECTED_FILE}; mend the data, or go on without them with --allow-rejected"
        )
    _check_unique(store)
    _check_siblings(store, split)
    for lacking in filter(None, (store.origin.absence, store.origin.rejection)):
        warn_once(f"{out}: {lacking}")
    size = sum((out / name).stat().st_size for name in expected)
    return {
        "scenes": len(store),
        "rejected": len(rejected),
        **store.origin.figures(),
        **store.origin.remarks.figures(),
        "unscorable": sum(info.unscorable_reason is not None and info.steps > 11 for info in store.infos),
        "store_bytes_per_scene": round(size / len(store)),
        **({"ingest_scenes_per_second_per_core": round(count / seconds / workers, 1)} if count else {}),
    }


def _check_unique(store: SceneStore) -> None:
    if not len(store):
        raise UserError(f"{store.folder}: no usable record in any shard; see {store.folder / REJECTED_FILE}")
    ids = store.ids
    if len(set(ids)) != len(ids):
        twice = next(value for value in ids if ids.count(value) > 1)
        raise UserError(
            f"{store.folder}: scenario {twice} occurs in more than one shard ({some(store.shards_of(twice))}); "
            "remove one of the files"
        )


def _check_siblings(store: SceneStore, split: str) -> None:
    """Compare with the stores of other splits beside this one, as a run has them."""
    for folder in (store.folder.parent / name for name in SPLITS if name != split):
        if store.folder.name != split or not is_store(folder):
            continue
        try:
            other = SceneStore(folder)
        except UserError:
            # Being written, perhaps: whichever is finished last is compared.
            continue
        check_disjoint(store, other)


def learn_vocabulary(
    config: TokenizeConfig, *, store: Path, out: Path, seed: int, start: Path | None = None
) -> dict[str, float]:
    """Build the vocabulary from a store, or take that of a checkpoint, save it and measure its error."""
    scenes = SceneStore(store)
    if start is not None:
        vocabulary = Vocabulary.from_state_dict(read_any_checkpoint(start)["vocabulary"])
    else:
        vocabulary = build_vocabulary(track(scenes, "vocabulary", len(scenes), " scene"), config.vocabulary, seed)
    vocabulary.save(out)
    count = min(len(scenes), config.error_scenes or len(scenes))
    sample = (scenes[index * len(scenes) // count] for index in range(count))
    return retokenisation_error(track(sample, "token error", count, " scene"), vocabulary)


def run_tokenize(
    config: TokenizeConfig,
    *,
    data: str,
    split: str,
    out: str | Path,
    seed: int = 0,
    engine: EngineConfig = EngineConfig(),
) -> dict[str, float]:
    """Ingest a split of a dataset into a scene store; the training split also builds the vocabulary.

    Args:
        config: of the stage.
        data: folder laid out as Waymo's bucket, folder of files, glob, file, or a URL that fsspec opens.
        split: training, validation or testing; only testing may have scenarios of 11 steps.
        out: folder or URL of the store; vocabulary.pt, rejected.csv and SHA256SUMS are written there too.
        seed: of the vocabulary.
        engine: who ingests shards.

    Raises:
        UserError: see ``ingest``.
    """
    if split not in SPLITS:
        raise UserError(f"--split {split}: expected one of {', '.join(SPLITS)}")
    folder = open_path(out)
    folder.mkdir(parents=True, exist_ok=True)
    figures = ingest(config, data=data, split=split, out=folder, engine=engine)
    if split == "training":
        figures |= learn_vocabulary(config, store=folder, out=folder / "vocabulary.pt", seed=seed)
    return figures


def tokenize_run(run: Run) -> dict[str, Any]:
    """The stage of a run: a store of every split, and the vocabulary of the training split."""
    data = run.data or str(run.path("traffic"))
    config, figures = run.config.tokenize, dict[str, Any]()
    check_apart(data, config.format)
    for split in SPLITS:
        run.store(split).mkdir(exist_ok=True)
        found = ingest(config, data=data, split=split, out=run.store(split), engine=run.engine)
        figures |= {f"{split}_{name}": value for name, value in found.items()}
    learnt = learn_vocabulary(
        config,
        store=run.store("training"),
        out=run.path(VOCABULARY),
        seed=run.config.seed,
        start=run.config.start_of("reference"),
    )
    return figures | learnt
