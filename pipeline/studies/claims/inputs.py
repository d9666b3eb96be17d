"""What claims read: the folder of a finished run, and the scenes that all is judged on."""

from __future__ import annotations

from pathlib import Path

from data.store import SceneStore, is_store, shard_name, write_shard
from pipeline.run.run_folder import VOCABULARY, RunFolder

__all__ = ["claim_inputs", "judged_scenes"]

_SPLIT = "validation"


def claim_inputs(run: Path, policy: bool) -> RunFolder:
    """The folder of a run in which all is finished that claims read.

    Args:
        run: the folder. policy: whether the policy is read.

    Raises:
        UserError: something is missing; names the stage that makes it.
    """
    inputs = RunFolder.opened(run)
    for name in ("tokenize/training", "tokenize/validation", VOCABULARY):
        inputs.needed(name)
    _ = inputs.reference, policy and inputs.policy
    return inputs


def judged_scenes(store: Path, count: int, folder: Path) -> Path:
    """A store of ``count`` scenes spread over another; that one itself where it has no more, or count is 0.

    Args:
        folder: where the smaller one is written; kept if it holds the same scenes already.
    """
    source = SceneStore(store)
    if count == 0 or count >= len(source):
        return store
    rows = [(2 * index + 1) * len(source) // (2 * count) for index in range(count)]
    ids = [source.ids[row] for row in rows]
    if not (is_store(folder) and SceneStore(folder).ids == ids):
        folder.mkdir(parents=True, exist_ok=True)
        write_shard(folder / shard_name(_SPLIT, 0, 1), (source[row] for row in rows))
    return folder
