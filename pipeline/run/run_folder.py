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

from data.errors import UserError, warn_once
from pipeline.execution.engine import EngineConfig
from pipeline.execution.manifest import Manifest, read_manifest

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

    @staticmethod
    def opened(folder: Path) -> RunFolder:
        """The folder of a run.

        Raises:
            UserError: there is none, or no stage of a run is finished there.
        """
        if not any(folder.glob("*/manifest.json")):
            what = "no finished stage of a run here" if folder.is_dir() else "no such folder"
            raise UserError(f"{folder}: {what}; expected the folder of a run, such as runs/demo")
        return RunFolder(folder)

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
            UserError: the stage is not finished, or its output is gone; names the command that makes it.
        """
        if (path := self.finished(name)) is not None:
            return path
        stage = name.partition("/")[0]
        raise UserError(f"{self.path(name)}: no output of a finished stage; run `make {stage}` for this run first")

    def checkpoint(self, agent: str) -> Path | None:
        """Of ``reference``, fine-tuned if possible, or ``policy``; None for others, and where none is finished."""
        if agent != "reference":
            return self.finished(POLICY) if agent == "policy" else None
        if (path := self.finished(REFERENCE)) is None and (path := self.finished(PRETRAINED)) is not None:
            warn_once(f"{self.folder}: finetune is not finished; the reference of pretrain is used")
        return path

    @property
    def reference(self) -> Path:
        """Checkpoint of the reference, or a ``UserError``."""
        return self.checkpoint("reference") or self.needed(REFERENCE)

    @property
    def policy(self) -> Path:
        """Checkpoint of the policy, or a ``UserError``."""
        return self.needed(POLICY)


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
