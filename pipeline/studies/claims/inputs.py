"""What claims read: the folders of a finished run, and the scenes that all is judged on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from data.store import SceneStore, is_store, shard_name, write_shard
from data.vocabulary import Vocabulary
from pipeline.run.run_folder import POLICY, REFERENCE, VOCABULARY

__all__ = ["RunInputs", "judged_scenes"]

_SPLIT = "validation"


@dataclass(frozen=True)
class RunInputs:
    """Paths in a run, each of which is there, the policy perhaps excepted."""

    training: Path
    validation: Path
    vocabulary: Path
    reference: Path
    policy: Path  # checked only where it is needed

    @classmethod
    def of(cls, run: Path, policy: bool) -> RunInputs:
        """Find them.

        Args:
            run: folder of the run. policy: whether its policy is needed.

        Raises:
            UserError: one of them is missing; names the stage that makes it.
        """
        if not run.is_dir():
            raise UserError(f"--run {run}: no such folder; expected that of a run, such as runs/demo")
        found = cls(
            training=run / "tokenize" / "training",
            validation=run / "tokenize" / _SPLIT,
            vocabulary=run / VOCABULARY,
            reference=run / REFERENCE,
            policy=run / POLICY,
        )
        for store in (found.training, found.validation):
            if not is_store(store):
                raise UserError(f"{store}: no store of scenes; run `make tokenize` for this run first")
        needed = [(found.vocabulary, "tokenize"), (found.reference, "finetune"), (found.policy, "selfplay")]
        for path, stage in needed if policy else needed[:2]:
            if not path.is_file():
                raise UserError(f"{path}: not there; run `make {stage}` for this run first")
        return found

    @property
    def tokens(self) -> int:
        """K of the run's vocabulary."""
        return Vocabulary.load(self.vocabulary).size


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
