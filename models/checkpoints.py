"""Checkpoint files of all kinds of models: what they have in common, and how a wrong one is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from data.places import place
from data.vocabulary import LOAD_ERRORS

__all__ = ["checkpoint_kind", "read_checkpoint"]

_STAGES = {"reference": "pretrain (and finetune)", "policy": "selfplay"}


def read_checkpoint(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Content of a checkpoint; nothing in it can run code.

    Args:
        path: file. kind: of model, ``reference`` or ``policy``. version: of the format.

    Raises:
        UserError: no such file, not a checkpoint, of another kind or version.
    """
    content = _load(path, _STAGES[kind])
    found = content.get("kind") if isinstance(content, dict) else None
    if found != kind:
        what = f"a checkpoint of a {found}" if found else "some other file"
        raise UserError(f"{path}: {what}, expected one of a {kind} ({kind}.ckpt)")
    if content.get("format") != version:
        raise UserError(
            f"{path}: {kind} checkpoint of format {content.get('format')}, this version reads {version}; "
            "train again"
        )
    return dict(content)


def checkpoint_kind(path: Path) -> str | None:
    """Which kind of model a file holds, None if it is not of this project.

    Raises:
        UserError: no such file, or not a checkpoint.
    """
    content = _load(path, " or ".join(_STAGES.values()))
    return content.get("kind") if isinstance(content, dict) else None


def _load(path: Path, stages: str) -> Any:
    path = place(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; run {stages} first, or mend the path")
    try:
        with path.open("rb") as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        raise UserError(f"{path}: not a checkpoint of this project, or damaged; train again") from error
