"""Stage ``package``: rollouts and metadata to a submission archive."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.scenes_source import open_scenes
from pipeline.progress import bar
from submission.archive import Entry, index_rollouts, plan_shards, write_archive
from submission.checks import required_ids, rollout_defects
from submission.metadata import load_metadata, metadata_message

__all__ = ["PackageConfig", "run_package"]

_MAX_SHARD_MB = 500


@dataclass(frozen=True)
class PackageConfig:
    """The archive.

    Args:
        shard_mb: size that a shard does not exceed, MB; the server wants less than 500.
    """

    shard_mb: int = 400


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def run_package(
    config: PackageConfig, *, rollouts: Path, scenarios: str, metadata: Path, out: Path
) -> dict[str, float]:
    """Pack rollouts into a submission archive, after checking that it holds exactly what is required.

    Args:
        config: of the stage.
        rollouts: folder or file of rollouts, as ``sample`` writes them.
        scenarios: the evaluated set: WOMD TFRecords or an ingested store.
        metadata: YAML file, see submission/metadata.example.yaml.
        out: the archive, NAME.tar.gz.

    Raises:
        UserError: bad metadata, a scenario that is missing, extra or present twice, a defect of its rollouts, or
            too little disk space.
    """
    if not 1 <= config.shard_mb < _MAX_SHARD_MB:
        raise UserError(f"--shard_mb {config.shard_mb}: expected 1 to {_MAX_SHARD_MB - 1}")
    if not out.name.endswith(".tar.gz"):
        raise UserError(f"--out {out}: the server takes a .tar.gz")
    # Deterministic serialisation: the archive's bytes are compared between runs.
    head = metadata_message(load_metadata(metadata)).SerializeToString(deterministic=True)
    source = open_scenes(scenarios)
    wanted = source.ids
    known = set(wanted)
    found: dict[str, Entry] = {}

    def check(message: Any, where: str) -> None:
        name = message.scenario_id
        if name not in known:
            raise UserError(f"{where}: scenario {name or '(no id)'} is not in {scenarios}")
        defects = rollout_defects(message, required_ids(source.get(name)))
        if defects:
            raise UserError(f"{where}: scenario {name}: {defects[0]} ({len(defects)} defects in this scenario)")

    with bar("check", len(wanted), " scenario") as progress:
        for entry in index_rollouts(rollouts, check):
            if entry.scenario_id in found:
                raise UserError(f"{entry.file}: scenario {entry.scenario_id} occurs more than once")
            found[entry.scenario_id] = entry
            progress.update()
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(f"{rollouts}: {len(missing)} of {len(wanted)} scenarios are missing: {_some(missing)}")
    shards = plan_shards([found[name] for name in wanted], head, config.shard_mb * 1_000_000)
    with bar("package", len(wanted), " scenario") as progress:
        size = write_archive(out, shards, head, progress.update)
    return {
        "scenarios": len(wanted),
        "shards": len(shards),
        "uncompressed_mb": round(size / 1e6, 3),
        "archive_mb": round(out.stat().st_size / 1e6, 3),
    }
