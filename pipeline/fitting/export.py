"""Command ``export``: a trained reference as safetensors and JSON for other programs; neither file can run code.

``model.safetensors`` holds the weights by their names in ``Reference`` and the vocabulary as ``vocabulary.poses``
[3, K, token_steps, 3], ``vocabulary.box`` [3, 2] and ``vocabulary.tolerance`` [3]. ``config.json`` holds the sizes,
the seconds of a token, the names of the types, and the notes of the training.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_tensors

from data.errors import UserError
from data.files import atomic_write, write_json
from data.scene import STEP_SECONDS
from data.vocabulary import TYPE_NAMES
from models.reference.checkpoint import load_reference, read_notes
from models.reference.network import Reference

_WEIGHTS, _CONFIG = "model.safetensors", "config.json"
_PREFIX = "vocabulary."
_FORMAT = "spacer-reference/2"
_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ExportConfig:
    """Options of the export.

    Args:
        dtype: float32, or bfloat16 for half the size.
    """

    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in _TYPES:
            raise UserError(f"--dtype {self.dtype}: choose one of {', '.join(_TYPES)}")


def run_export(config: ExportConfig, *, checkpoint: Path, out: Path) -> dict[str, object]:
    """Write ``model.safetensors`` and ``config.json``.

    Args:
        checkpoint: ``reference.ckpt``. out: folder of the two files.

    Raises:
        UserError: not a reference checkpoint.
    """
    model = load_reference(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    export_reference(out, model, read_notes(checkpoint), _TYPES[config.dtype])
    return {
        "weights": str(out / _WEIGHTS),
        "config": str(out / _CONFIG),
        "megabytes": round((out / _WEIGHTS).stat().st_size / 1e6, 2),
    }


def export_reference(
    folder: Path, model: Reference, notes: dict[str, Any], dtype: torch.dtype = torch.float32
) -> None:
    """Write both files atomically; the vocabulary is always in float32."""
    tensors = {name: tensor.detach().cpu().to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    vocabulary = model.vocabulary
    vocabulary_tensors = {f"{_PREFIX}{name}": part.contiguous() for name, part in vocabulary.state_dict().items()}
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
    content = save_tensors({**tensors, **vocabulary_tensors}, metadata={"format": _FORMAT})
    atomic_write(folder / _WEIGHTS, lambda file: file.write(content))
    write_json(folder / _CONFIG, config)
