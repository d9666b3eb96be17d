"""Checkpoints of all kinds of models: reading, checks, and the scenarios that a model was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from data.errors import UserError, warn_once
from data.places import open_path
from data.scene import recording_id
from data.vocabulary import LOAD_ERRORS, load_saved
from models.portable import SUFFIX, read_portable, weights_file

_STAGES = {"reference": "pretrain (and finetune)", "policy": "selfplay"}
_ANY_STAGE = " or ".join(_STAGES.values())


def read_checkpoint(path: Path, kind: str, version: int) -> dict[str, Any]:
    """Content of a checkpoint, loaded without running code from it.

    Args:
        path: file. kind: of model, ``reference`` or ``policy``. version: of the format.

    Raises:
        UserError: no such file, not a checkpoint, of another kind or version, or of a training that diverged.
    """
    content = _load(path, _STAGES[kind])
    actual = content.get("kind") if isinstance(content, dict) else None
    if actual != kind:
        is_vocabulary = isinstance(content, dict) and "vocabulary" in content
        other = "a motion vocabulary" if is_vocabulary else "some other file"
        text = f"a checkpoint of a {actual}" if actual else other
        raise UserError(f"{path}: {text}, expected a checkpoint of a {kind} ({kind}.ckpt)")
    if content.get("format") != version:
        raise UserError(
            f"{path}: {kind} checkpoint of format {content.get('format')}, this version reads {version}; "
            "train again"
        )
    _check_finite(path, content.get("weights"))
    return dict(content)


def _check_finite(path: Path, weights: Any) -> None:
    """Refuse weights with NaN, with which agents drive all the same."""
    tensors = weights.items() if isinstance(weights, dict) else ()
    for name, tensor in tensors:
        if isinstance(tensor, Tensor) and not bool(tensor.isfinite().all()):
            raise UserError(f"{path}: {name} is NaN or infinite: its training diverged; train again")


def read_any_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint of any kind, of any version.

    Raises:
        UserError: no such file, not a checkpoint, or of a training that diverged.
    """
    content = _load(path, _ANY_STAGE)
    if not isinstance(content, dict) or content.get("kind") not in _STAGES:
        raise UserError(f"{path}: some other file, expected a checkpoint ({' or '.join(_STAGES)}.ckpt)")
    _check_finite(path, content.get("weights"))
    return content


def name_untrained(path: Path, model: nn.Module) -> None:
    """Warn once of a model whose layer norms are all as initialised, since every training step changes them."""
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    changed = any(bool((norm.weight != 1).any() | (norm.bias != 0).any()) for norm in norms)
    if norms and not changed:
        warn_once(f"{path}: untrained, its weights are as initialised; is it the right file?")


def checkpoint_kind(path: Path) -> str | None:
    """Kind of the model in a file, None if it is not of this project.

    Raises:
        UserError: no such file, or not a checkpoint.
    """
    content = _load(path, _ANY_STAGE)
    return content.get("kind") if isinstance(content, dict) else None


def scene_digests(ids: Iterable[str]) -> Tensor:
    """Scenario ids as sorted int64 hashes [S]: 4 MB for the training split of WOMD."""
    return torch.tensor(sorted(set(map(_digest, ids))), dtype=torch.int64)


def _digest(scenario_id: str) -> int:
    """All windows of a recording have the same one: who was trained on one of them knows the recording."""
    name = recording_id(scenario_id).encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little", signed=True)


def merge_digests(*sets: Tensor) -> Tensor:
    """Sorted union of several sets of digests."""
    return torch.cat(sets).unique()


def seen_scenes(digests: Tensor, ids: Sequence[str]) -> list[str]:
    """The ids that are in the set ``digests``."""
    known = set(digests.tolist())
    return [name for name in ids if _digest(name) in known]


def trained_on(path: Path) -> Tensor:
    """Digests of the scenarios that a checkpoint and its initial checkpoints were trained on; empty if unknown.

    Raises:
        UserError: no such file, or not a checkpoint.
    """
    content = _load(path, _ANY_STAGE)
    digests = content.get("trained_on") if isinstance(content, dict) else None
    return digests if isinstance(digests, Tensor) else scene_digests(())


def _load(path: Path, stages: str) -> Any:
    path = weights_file(open_path(path))
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint; run {stages} first, or correct the path")
    try:
        if path.suffix == SUFFIX:
            return read_portable(path)
        return load_saved(path)
    except LOAD_ERRORS as error:
        raise UserError(f"{path}: not a checkpoint of this project, or damaged; train again") from error
