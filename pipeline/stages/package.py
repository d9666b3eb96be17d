"""Stage ``package``: rollouts and metadata to a submission archive."""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from data.completeness import Origin, partial_allowed, some
from data.errors import UserError
from data.files import atomic_write, read_json, remove_leftovers, write_json, write_text
from data.places import is_remote, open_path
from data.receipts import Receipt, accepted, write_receipt
from data.scenes_source import SceneSource, content_digest, open_scenes
from pipeline.execution.console import bar
from pipeline.execution.engine import EngineConfig, run_on, worker_count
from pipeline.execution.result_cache import code_version
from submission.archive import (
    Entry,
    Shard,
    assemble,
    compression_ratio,
    index_rollouts,
    plan_shards,
    write_part,
)
from submission.checks import examine
from submission.members import file_version
from submission.metadata import load_metadata, metadata_message, metadata_suspicions
from submission.protos import rollout_files
from submission.suspicion import Suspicion, Tally

_MAX_SHARD_MB = 500
_BLOCK, _MEGABYTE = 1 << 20, 1_000_000
_BYTES_A_WORKER = 100_000_000


@dataclass(frozen=True)
class PackageConfig:
    """The archive.

    Args:
        shard_mb: size that a shard does not exceed before compression, MB; the server wants less than 500.
        split_mb: cut the archive into pieces of so many MB for an upload in parts; 0 leaves it in one piece.
        workers: processes; 0 for one per core, but none for small files alone.
    """

    shard_mb: int = 400
    split_mb: int = 0
    workers: int = 0


@dataclass(frozen=True)
class _CheckTask:
    """A file of rollouts to check and to index in ``target``."""

    file: Path
    scenarios: str
    digest: str
    target: Path
    source: str


@lru_cache(maxsize=1)
def _opened(scenarios: str, digest: str) -> tuple[SceneSource, frozenset[str]]:
    """Opened once in a process; ``digest`` tells changed scenarios apart."""
    source = open_scenes(scenarios)
    return source, frozenset(source.ids)


def _check_file(task: _CheckTask) -> int:
    """Check every scenario of a file and write where it lies; returns their number."""
    source, known = _opened(task.scenarios, task.digest)
    suspicions: list[tuple[str, Suspicion]] = []

    def check(message: Any, where: str) -> None:
        name = message.scenario_id
        if name not in known:
            raise UserError(f"{where}: scenario {name or '(no id)'} is not in {task.scenarios}")
        findings = examine(message, source.get(name))
        defects = findings.defects
        if defects:
            raise UserError(f"{where}: scenario {name}: {defects[0]} ({len(defects)} defects in this scenario)")
        suspicions.extend((f"scenario {name}", suspicion) for suspicion in findings.suspicions)

    entries = list(index_rollouts(task.file, check))
    index = {
        "entries": [{**asdict(entry), "file": ""} for entry in entries],
        "suspicions": [(place, asdict(suspicion)) for place, suspicion in suspicions],
    }
    write_json(task.target, index)
    write_receipt(task.target, task.source, len(entries))
    return len(entries)


def _pack_shard(shard: Shard, parts: Path) -> int:
    """Compress a shard to a file of a folder; returns the number of its scenarios."""
    write_part(shard, parts / shard.name)
    write_receipt(parts / shard.name, shard.digest, len(shard.entries))
    return len(shard.entries)


def _workers(config: PackageConfig, engine: EngineConfig, size: int) -> int:
    """Processes for so many bytes: starting one takes as long as some of them."""
    if config.workers or engine.kind != "local":
        return config.workers
    return min(worker_count(0), 1 + size // _BYTES_A_WORKER)


def _checked(
    rollouts: str | Path,
    scenarios: str,
    source: SceneSource,
    parts: Path,
    config: PackageConfig,
    engine: EngineConfig,
) -> list[Entry]:
    """All entries in the order of the scenarios.

    Raises:
        UserError: a defect, or a scenario that is missing, extra or present twice.
    """
    digest, code = content_digest(scenarios), code_version(__name__)
    tasks = []
    for file in rollout_files(rollouts):
        made_of = hashlib.sha256(f"{file}\n{file_version(file)}\n{digest}\n{code}".encode()).hexdigest()
        tasks.append(_CheckTask(file, scenarios, digest, parts / f"index-{made_of[:16]}.json", made_of))
    held = {task.target: accepted(task.target, task.source) for task in tasks}
    todo = [task for task in tasks if held[task.target] is None]
    workers = _workers(config, engine, sum(task.file.stat().st_size for task in todo))
    done = sum(receipt.items for receipt in held.values() if receipt is not None)
    with bar("check", len(source), " scenario", initial=done) as progress:
        for _, count in run_on(engine, _check_file, todo, workers, folder=parts):
            progress.update(count)
    found: dict[str, Entry] = {}
    tally = Tally()
    for task in tasks:
        index = read_json(task.target)
        for where, fields in index["suspicions"]:
            tally.add(where, Suspicion(**fields))
        for values in index["entries"]:
            entry = Entry(**{**values, "file": task.file})
            if entry.scenario_id in found:
                raise UserError(f"{entry.file}: scenario {entry.scenario_id} occurs more than once")
            found[entry.scenario_id] = entry
    wanted = source.ids
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{rollouts}: {len(missing)} of {len(wanted)} scenarios are missing: {some(missing)}")
    tally.show()
    return [found[name] for name in wanted]


def _check_set(scenarios: str | Path, origin: Origin) -> None:
    """Say what the set of scenarios lacks, and refuse where nobody asked for a part.

    Whoever ingests some shards of a split has said ``--partial``, or named the file; records that were rejected are
    lacking by accident.
    """
    if origin.lost and not partial_allowed():
        raise UserError(
            f"{scenarios}: {origin.rejection}; the server refuses an entry without their scenarios: mend the data "
            "and run tokenize again, or pack the others with --partial"
        )
    for lacking in filter(None, (origin.absence, origin.rejection)):
        print(f"warning: {scenarios}: {lacking}; the server refuses such an entry", file=sys.stderr, flush=True)


def _check_space(out: Path, parts: Path, shards: Sequence[Shard], entries: Sequence[Entry], split: bool) -> None:
    """Say how large the archive will be, and refuse where it has no room."""
    size = sum(shard.size for shard in shards)
    expected = size * compression_ratio(entries)
    print(
        f"package: {len(entries)} scenarios, {len(shards)} shards, {size / 1e9:.2f} GB, "
        f"about {expected / 1e9:.2f} GB compressed",
        file=sys.stderr,
        flush=True,
    )
    if is_remote(out):
        return
    there = sum(file.stat().st_size for file in parts.iterdir() if file.is_file())
    # The archive is put together of parts that are still there, and pieces are cut from it while it is.
    needed = expected * (3 if split else 2) - there
    free = shutil.disk_usage(parts).free
    if needed > free:
        raise UserError(f"{out}: needs about {needed / 1e9:.2f} GB while it is made, {free / 1e9:.2f} GB are free")


def _pieces(out: Path, size: int) -> Iterator[tuple[str, str]]:
    """Cut a file into pieces; yields the name and SHA-256 of each."""
    number, total = 0, out.stat().st_size
    with out.open("rb") as archive:
        while archive.tell() < total:
            digest = hashlib.sha256()

            def write(file: Any, digest: Any = digest) -> None:
                left = size
                while left > 0 and (data := archive.read(min(left, _BLOCK))):
                    file.write(data)
                    digest.update(data)
                    left -= len(data)

            piece = out.with_name(f"{out.name}.part-{number:03d}")
            atomic_write(piece, write)
            yield piece.name, digest.hexdigest()
            number += 1


def run_package(
    config: PackageConfig,
    *,
    rollouts: str | Path,
    scenarios: str | Path,
    metadata: Path,
    out: str | Path,
    engine: EngineConfig = EngineConfig(),
) -> dict[str, float]:
    """Pack rollouts into a submission archive, after checking that it holds exactly what is required.

    Beside the archive OUT.sha256 lists the SHA-256 of it and of its pieces, for ``sha256sum --check``. A run that
    is killed goes on with the files and shards that are left.

    Args:
        config: of the stage.
        rollouts: folder, file or URL of rollouts, as ``sample`` writes them.
        scenarios: the evaluated set: WOMD TFRecords or an ingested store.
        metadata: YAML file, see submission/metadata.example.yaml.
        out: the archive, NAME.tar.gz, a file or a URL.
        engine: who checks and compresses.

    Raises:
        UserError: bad metadata, a set that lacks rejected records, a scenario that is missing, extra or present
            twice, a defect of its rollouts, or too little disk space.
    """
    if not 1 <= config.shard_mb < _MAX_SHARD_MB:
        raise UserError(f"--shard_mb {config.shard_mb}: expected 1 to {_MAX_SHARD_MB - 1}")
    if config.split_mb < 0:
        raise UserError(f"--split_mb {config.split_mb}: expected 1 or more, or 0 for a single piece")
    archive = open_path(out)
    if not archive.name.endswith(".tar.gz"):
        raise UserError(f"--out {out}: the server takes a .tar.gz")
    # Deterministic serialisation: the archive's bytes are compared between runs.
    message = metadata_message(load_metadata(metadata))
    head = message.SerializeToString(deterministic=True)
    tally = Tally()
    for suspicion in metadata_suspicions(message):
        tally.add(str(metadata), suspicion)
    tally.show()
    source = open_scenes(scenarios)
    _check_set(scenarios, source.origin)
    parts = archive.with_name(f".{archive.name}.parts")
    parts.mkdir(parents=True, exist_ok=True)
    entries = _checked(rollouts, str(open_path(scenarios)), source, parts, config, engine)
    shards = plan_shards(entries, head, config.shard_mb * 1_000_000)
    _check_space(archive, parts, shards, entries, config.split_mb > 0)
    held: list[Receipt | None] = [accepted(parts / shard.name, shard.digest) for shard in shards]
    todo = [shard for shard, receipt in zip(shards, held, strict=True) if receipt is None]
    done = sum(receipt.items for receipt in held if receipt is not None)
    workers = _workers(config, engine, sum(shard.size for shard in todo))
    with bar("package", len(entries), " scenario", initial=done) as progress:
        for _, count in run_on(engine, partial(_pack_shard, parts=parts), todo, workers, folder=parts):
            progress.update(count)
    with bar("assemble", len(shards), " shard") as progress:
        sums = {archive.name: assemble(archive, [parts / shard.name for shard in shards], progress.update)}
    if config.split_mb:
        sums |= dict(_pieces(archive, config.split_mb * _MEGABYTE))
    lines = [f"{digest}  {name}\n" for name, digest in sums.items()]
    write_text(archive.with_name(f"{archive.name}.sha256"), "".join(lines))
    _remove(parts)
    remove_leftovers(archive.parent, archive.name)
    return {
        "scenarios": len(entries),
        **source.origin.figures(),
        "shards": len(shards),
        "uncompressed_mb": round(sum(shard.size for shard in shards) / 1e6, 3),
        "archive_mb": round(archive.stat().st_size / 1e6, 3),
    }


def _remove(folder: Path) -> None:
    """Delete a folder of this machine or of a URL."""
    for path in folder.iterdir():
        if path.is_dir():
            _remove(path)
        else:
            path.unlink()
    folder.rmdir()
