"""Command ``export``: a trained reference as safetensors and JSON."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from data.errors import UserError
from models.reference.checkpoint import load_reference, read_notes
from models.reference.export import CONFIG_NAME, WEIGHTS_NAME, export_reference

__all__ = ["ExportConfig", "run_export"]

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ExportConfig:
    """How weights are written.

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
        "weights": str(out / WEIGHTS_NAME),
        "config": str(out / CONFIG_NAME),
        "megabytes": round((out / WEIGHTS_NAME).stat().st_size / 1e6, 2),
    }
