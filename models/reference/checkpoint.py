"""Reference checkpoints: one file with configuration, vocabulary and weights; loading runs no code from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from data.errors import UserError
from data.files import atomic_write
from data.vocabulary import Vocabulary
from models.checkpoints import name_untrained, read_checkpoint
from models.reference.config import ReferenceConfig
from models.reference.network import Reference

_KIND = "reference"
_FORMAT = 2


def save_reference(path: Path, model: Reference, notes: dict[str, Any] | None = None) -> None:
    """Write atomically; ``notes`` (plain values) are stored too, such as the options of the training."""
    content = {
        "kind": _KIND,
        "format": _FORMAT,
        "config": dataclasses.asdict(model.config),
        "vocabulary": model.vocabulary.state_dict(),
        "weights": {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()},
        "trained_on": model.trained_on,
        "notes": notes or {},
    }
    atomic_write(path, lambda file: torch.save(content, file))


def load_reference(path: Path, device: torch.device | str = "cpu") -> Reference:
    """Read what ``save_reference`` wrote; warns of an untrained reference.

    Raises:
        UserError: no such file, another kind of file, or of another version.
    """
    content = read_checkpoint(path, _KIND, _FORMAT)
    try:
        model = Reference(ReferenceConfig(**content["config"]), Vocabulary.from_state_dict(content["vocabulary"]))
        model.load_state_dict(content["weights"])
        # Checkpoints of earlier versions lack it.
        model.trained_on = content.get("trained_on", model.trained_on)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{path}: reference checkpoint of another version of the code; train again") from error
    name_untrained(path, model)
    return model.to(device)


def read_notes(path: Path) -> dict[str, Any]:
    """The notes of a checkpoint; UserError as ``load_reference``."""
    notes: dict[str, Any] = read_checkpoint(path, _KIND, _FORMAT)["notes"]
    return notes
