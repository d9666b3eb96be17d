"""Checkpoints as safetensors and JSON, which other programs read and which cannot run code.

``model.safetensors`` holds the weights by their names in the network, the vocabulary as ``vocabulary.poses``
[3, K, token_steps, 3], ``vocabulary.box`` [3, 2] and ``vocabulary.tolerance`` [3], and ``trained_on``, hashes of
the training scenarios. ``config.json`` beside it holds everything else: sizes, seconds of a token, names of the
types, what a policy sees, and notes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from data.files import atomic_write, write_json
from data.scene import STEP_SECONDS
from data.vocabulary import TYPE_NAMES

WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
SUFFIX = ".safetensors"
_VOCABULARY, _TRAINED = "vocabulary.", "trained_on"
_NAME = "spacer"
# Of a checkpoint's content, what is in config.json as it is.
_PLAIN = ("features", "observation", "notes")


def weights_file(path: Path) -> Path:
    """The checkpoint that a path stands for: of a folder with an export, the file in it; else the path itself."""
    inside = path / WEIGHTS_FILE
    return inside if inside.is_file() else path


def write_portable(folder: Path, content: Mapping[str, Any], dtype: torch.dtype = torch.float32) -> None:
    """Write both files atomically.

    Args:
        folder: that exists. content: of a checkpoint (``models.checkpoints.read_checkpoint``).
        dtype: of the weights; the vocabulary is always in float32.
    """
    words = content["vocabulary"]
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in content["weights"].items()}
    tensors |= {f"{_VOCABULARY}{name}": tensor.contiguous() for name, tensor in words.items()}
    # Checkpoints of earlier versions lack it.
    tensors[_TRAINED] = content.get(_TRAINED, torch.zeros(0, dtype=torch.int64))
    version = f"{_NAME}-{content['kind']}/{content['format']}"
    config = {
        "format": version,
        "model": content["config"],
        **{name: content[name] for name in _PLAIN if name in content},
        "types": list(TYPE_NAMES),
        "vocabulary_size": words["poses"].shape[1],
        "token_seconds": round(words["poses"].shape[2] * STEP_SECONDS, 3),
        "parameters": sum(tensor.numel() for tensor in content["weights"].values()),
        "dtype": str(dtype).removeprefix("torch."),
    }
    data = save_tensors(tensors, metadata={"format": version})
    atomic_write(folder / WEIGHTS_FILE, lambda file: file.write(data))
    write_json(folder / CONFIG_FILE, config)


def read_portable(path: Path) -> dict[str, Any]:
    """The content of a checkpoint from what ``write_portable`` wrote.

    Args:
        path: of the weights; the configuration is beside it.

    Raises:
        OSError, KeyError, ValueError, TypeError: not such files.
    """
    config = json.loads((path.parent / CONFIG_FILE).read_bytes())
    kind, _, version = str(config["format"]).removeprefix(f"{_NAME}-").partition("/")
    try:
        tensors = load_tensors(path.read_bytes())
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    words = {
        name.removeprefix(_VOCABULARY): tensors.pop(name) for name in list(tensors) if name.startswith(_VOCABULARY)
    }
    return {
        "kind": kind,
        "format": int(version),
        "config": config["model"],
        **{name: config[name] for name in _PLAIN if name in config},
        "vocabulary": words,
        _TRAINED: tensors.pop(_TRAINED, torch.zeros(0, dtype=torch.int64)),
        "weights": {
            name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()
        },
    }
