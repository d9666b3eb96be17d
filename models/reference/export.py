"""A reference as safetensors and JSON, for programs that are not this one: nothing in either file can run code.

``model.safetensors`` holds the weights by their names in ``Reference`` and the vocabulary as ``vocabulary.poses``
[3, K, token_steps, 3], ``vocabulary.box`` [3, 2] and ``vocabulary.tolerance`` [3]; ``config.json`` the sizes, and
what is needed to use it: seconds of a token, names of the types, notes of the training.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from data.errors import UserError
from data.files import atomic_write, write_json
from data.scene import STEP_SECONDS
from data.vocabulary import TYPE_NAMES, Vocabulary
from models.reference.config import ReferenceConfig
from models.reference.network import Reference

__all__ = ["CONFIG_NAME", "WEIGHTS_NAME", "export_reference", "import_reference"]

WEIGHTS_NAME, CONFIG_NAME = "model.safetensors", "config.json"
_WORDS = "vocabulary."
_FORMAT = "spacer-reference/2"


def export_reference(
    folder: Path, model: Reference, notes: dict[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write both files atomically; the vocabulary stays in float32 whatever the weights become."""
    tensors = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    words = {f"{_WORDS}{name}": tensor.contiguous() for name, tensor in model.vocabulary.state_dict().items()}
    vocabulary = model.vocabulary
    config = {
        "format": _FORMAT,
        "model": dataclasses.asdict(model.config),
        "types": list(TYPE_NAMES),
        "vocabulary_size": vocabulary.size,
        "token_seconds": round(vocabulary.token_steps * STEP_SECONDS, 3),
        "parameters": sum(p.numel() for p in model.parameters()),
        "dtype": str(dtype).removeprefix("torch."),
        "notes": notes,
    }
    content = save_tensors({**tensors, **words}, metadata={"format": _FORMAT})
    atomic_write(folder / WEIGHTS_NAME, lambda file: file.write(content))
    write_json(folder / CONFIG_NAME, config)


def import_reference(folder: Path) -> Reference:
    """Read what ``export_reference`` wrote, in float32.

    Raises:
        UserError: files missing, damaged, or of something else.
    """
    weights, described = folder / WEIGHTS_NAME, folder / CONFIG_NAME
    for path in (weights, described):
        if not path.is_file():
            raise UserError(f"{path}: no such file; expected a folder written by `python -m pipeline export`")
    try:
        config = json.loads(described.read_text())
        found = config.get("format") if isinstance(config, dict) else None
        if found != _FORMAT:
            raise UserError(f"{described}: format {found!r}, this version reads {_FORMAT!r}; export again")
        tensors = {name: tensor.float() for name, tensor in load_tensors(weights.read_bytes()).items()}
        words = {name.removeprefix(_WORDS): tensors.pop(name) for name in list(tensors) if name.startswith(_WORDS)}
        model = Reference(ReferenceConfig(**config["model"]), Vocabulary.from_state_dict(words))
        model.load_state_dict(tensors)
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"{folder}: damaged export, or of another version; export again") from error
    return model
