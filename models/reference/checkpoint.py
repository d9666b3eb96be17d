"""Reference checkpoints: one file with configuration, vocabulary and weights, and nothing that could run code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from data.files import atomic_write
from data.vocabulary import LOAD_ERRORS, Vocabulary
from models.reference.config import ReferenceConfig
from models.reference.network import Reference

__all__ = ["load_reference", "read_notes", "save_reference"]

_KIND = "reference"
_FORMAT = 2


def save_reference(path: Path, model: Reference, notes: dict[str, Any] | None = None) -> None:
    """Write atomically. ``notes`` (plain values) travel along, such as how the model was trained."""
    content = {
        "kind": _KIND,
        "format": _FORMAT,
        "config": dataclasses.asdict(model.config),
        "vocabulary": model.vocabulary.state_dict(),
        "weights": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "notes": notes or {},
    }
    atomic_write(path, lambda file: torch.save(content, file))


def _read(path: Path) -> dict[str, Any]:
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; run pretrain (and finetune) first, or mend the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except LOAD_ERRORS as error:
        raise UserError(f"{path}: not a checkpoint of this project, or damaged; train again") from error
    if not isinstance(content, dict) or content.get("kind") != _KIND:
        kind = content.get("kind") if isinstance(content, dict) else None
        found = f"a checkpoint of a {kind}" if kind else "some other file"
        raise UserError(f"{path}: {found}, expected one of a {_KIND} (reference.ckpt)")
    if content.get("format") != _FORMAT:
        raise UserError(
            f"{path}: reference checkpoint of format {content.get('format')}, this version reads {_FORMAT}; "
            "train again"
        )
    return content


def load_reference(path: Path, device: torch.device | str = "cpu") -> Reference:
    """Read what ``save_reference`` wrote.

    Raises:
        UserError: no such file, another kind of file, or of another version.
    """
    content = _read(path)
    try:
        model = Reference(ReferenceConfig(**content["config"]), Vocabulary.from_state_dict(content["vocabulary"]))
        model.load_state_dict(content["weights"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: reference checkpoint of another version of the code; train again") from error
    return model.to(device)


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of a checkpoint.

    Raises:
        UserError: as ``load_reference``.
    """
    notes: dict[str, Any] = _read(path)["notes"]
    return notes
