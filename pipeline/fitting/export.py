"""Command ``export``: a trained reference or policy as safetensors and JSON (``models.portable``), and as ONNX."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from data.errors import UserError
from data.scenes_source import open_scenes
from models.checkpoints import read_any_checkpoint
from models.policy import POLICY_KIND, load_policy
from models.portable import CONFIG_FILE, WEIGHTS_FILE, write_portable
from models.reference.agent import ReferenceAgent
from pipeline.fitting.export_onnx import export_policy_onnx, export_reference_onnx, write_scene

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class ExportConfig:
    """Options of the export.

    Args:
        dtype: float32, or bfloat16 for half the size.
        onnx: also write ONNX files (``export_onnx``), in float32.
        scenarios: a store or files of scenes; what the ONNX files of a reference read of the first scene is written
            as scene.npz.
    """

    dtype: str = "float32"
    onnx: bool = False
    scenarios: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in _TYPES:
            raise UserError(f"--dtype {self.dtype}: choose one of {', '.join(_TYPES)}")
        if self.scenarios and not self.onnx:
            raise UserError("--scenarios is for ONNX: add --onnx true")


def run_export(config: ExportConfig, *, checkpoint: Path, out: Path) -> dict[str, object]:
    """Write ``model.safetensors`` and ``config.json``, which all commands also read as a checkpoint; ONNX if asked.

    Args:
        checkpoint: ``reference.ckpt`` or ``policy.ckpt``. out: folder of the two files.

    Raises:
        UserError: not a checkpoint, no such scenes, or ONNX is asked for and not installed.
    """
    content = read_any_checkpoint(checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    try:
        write_portable(out, content, _TYPES[config.dtype])
    except (KeyError, AttributeError) as error:
        raise UserError(f"{checkpoint}: checkpoint of another version of the code; train again") from error
    graphs = _export_onnx(config, checkpoint, out, content["kind"]) if config.onnx else []
    return {
        **({"onnx": ", ".join(map(str, graphs))} if graphs else {}),
        "weights": str(out / WEIGHTS_FILE),
        "config": str(out / CONFIG_FILE),
        "megabytes": round((out / WEIGHTS_FILE).stat().st_size / 1e6, 2),
    }


def _export_onnx(config: ExportConfig, checkpoint: Path, out: Path, kind: str) -> list[Path]:
    if kind == POLICY_KIND:
        return [export_policy_onnx(out, load_policy(checkpoint)[0])]
    agent = ReferenceAgent.from_checkpoint(checkpoint)
    if config.scenarios:
        write_scene(out / "scene.npz", agent, open_scenes(config.scenarios)[0])
    return export_reference_onnx(out, agent.model)
