"""Command ``export``: a trained reference or policy as safetensors and JSON (``models.portable``)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from data.errors import UserError
from models.checkpoints import read_any_checkpoint
from models.portable import CONFIG_FILE, WEIGHTS_FILE, write_portable

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
    """Write ``model.safetensors`` and ``config.json``, which all commands also read as a checkpoint.

    Args:
        checkpoint: ``reference.ckpt`` or ``policy.ckpt``. out: folder of the two files.

    Raises:
        UserError: not a checkpoint.
    """
    content = read_any_checkpoint(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    try:
        write_portable(out, content, _TYPES[config.dtype])
    except (KeyError, AttributeError) as error:
        raise UserError(f"{checkpoint}: checkpoint of another version of the code; train again") from error
    return {
        "weights": str(out / WEIGHTS_FILE),
        "config": str(out / CONFIG_FILE),
        "megabytes": round((out / WEIGHTS_FILE).stat().st_size / 1e6, 2),
    }
