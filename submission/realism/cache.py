"""Map and log features of a scene on disk, for metrics that see the same scenes again and again."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from data.files import atomic_write
from submission.realism.features import Features, SceneContext
from submission.realism.red_light import Lanes, SignalFences
from submission.realism.road_edge import RoadEdges

__all__ = ["load_context", "save_context"]

_FORMAT = 1
_NESTED: dict[str, Any] = {"edges": RoadEdges, "fences": SignalFences, "lanes": Lanes, "log_features": Features}


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as dicts of tensors and numbers."""
    items = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: _plain(item) if name in _NESTED else item for name, item in items.items()}


def _built(kind: Any, items: dict[str, Any]) -> Any:
    return kind(**{name: _built(_NESTED[name], item) if name in _NESTED else item for name, item in items.items()})


def save_context(path: Path, context: SceneContext) -> None:
    """Write what ``prepare_scene`` computed. A reader never sees half a file."""
    content = {"format": _FORMAT, "context": _plain(context)}
    atomic_write(path, lambda file: torch.save(content, file))


def load_context(path: Path, device: torch.device | str = "cpu") -> SceneContext | None:
    """Read what ``save_context`` wrote; None where there is nothing, or something of another version."""
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        if content["format"] != _FORMAT:
            return None
        context: SceneContext = _built(SceneContext, content["context"])
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, EOFError):
        return None
    return context
