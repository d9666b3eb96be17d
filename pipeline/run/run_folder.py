"""Where things are in the folder of a run, and which of them count.

A run's folder has one folder for each stage, with the stage's name. One rule holds for all that read a run: outputs
count once their stage is finished, that is, once its ``manifest.json`` is there. What an unfinished stage has
written may still change. There is one fallback, and it is said in a line: the reference of ``pretrain`` stands in
for that of ``finetune`` while ``finetune`` is not finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.notices import warn_once
from pipeline.execution.engine import EngineConfig
from pipeline.execution.manifest import Manifest, read_manifest

__all__ = [
    "ARCHIVE",
    "POLICY",
    "PRETRAINED",
    "REFERENCE",
    "REPORT",
    "VERDICT",
    "VOCABULARY",
    "Run",
    "RunFolder",
]

# Files by their paths below a run's folder; the first part is the stage that writes them.
VOCABULARY = "tokenize/vocabulary.pt"
PRETRAINED, REFERENCE = "pretrain/reference.ckpt", "finetune/reference.ckpt"
POLICY = "selfplay/policy.ckpt"
ARCHIVE = "package/submission.tar.gz"
VERDICT = "validate/report.json"
REPORT = "report/report.html"


@dataclass(frozen=True)
class RunFolder:
    """The folder of a run. Paths are given as ``STAGE`` or ``STAGE/FILE``."""

    folder: Path

    def path(self, name: str) -> Path:
        """Where a stage's folder or file is, whether or not it is there."""
        return self.folder / name

    def store(self, split: str) -> Path:
        """Scenes of a split."""
        return self.path(f"tokenize/{split}")

    def rollouts(self, agent: str) -> Path:
        """An agent's rollouts of the validation split."""
        return self.path(f"sample/validation/{agent}")

    def scores(self, agent: str) -> Path:
        """Scores of these rollouts."""
        return self.path(f"evaluate/{agent}")

    def manifest(self, stage: str) -> Manifest | None:
        """What a finished stage left; None where the stage is not finished."""
        return read_manifest(self.path(stage))

    def finished(self, name: str) -> Path | None:
        """The path, if the stage that writes it is finished and it is there."""
        path = self.path(name)
        return path if path.exists() and self.manifest(name.partition("/")[0]) is not None else None

    def needed(self, name: str) -> Path:
        """The path.

        Raises:
            UserError: there is no such run, or the stage is not finished; names the command that finishes it.
        """
        if (path := self.finished(name)) is not None:
            return path
        if not self.folder.is_dir():
            raise UserError(f"--run {self.folder}: no such folder; expected that of a run, such as runs/demo")
        stage = name.partition("/")[0]
        raise UserError(f"{self.path(name)}: stage {stage} of this run is not finished; run `make {stage}` first")

    @property
    def reference(self) -> Path | None:
        """Checkpoint of the reference, fine-tuned if possible."""
        if (path := self.finished(REFERENCE)) is None and (path := self.finished(PRETRAINED)) is not None:
            warn_once(f"{self.folder}: finetune is not finished; the reference of pretrain is used")
        return path

    @property
    def policy(self) -> Path | None:
        """Checkpoint of the policy."""
        return self.finished(POLICY)


@dataclass(frozen=True)
class Run(RunFolder):
    """A run that stages work on.

    Attributes:
        config: a ``RunConfig``. data: that a user gave; None for generated traffic.
        engine: who does the work. keep: unfinished trainings go on although their options changed.
    """

    config: Any
    data: str | None
    engine: EngineConfig = EngineConfig()
    keep: bool = False
