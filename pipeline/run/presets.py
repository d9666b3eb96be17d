"""Presets: values of options by section, below the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from data.errors import UserError, expected

CONFIGS = Path(__file__).with_name("configs")
PRESETS = ("smoke", "demo", "womd", "gpu", "node", "leaderboard", "paper")


def load_preset(name: str) -> dict[str, Any]:
    """A preset's overrides, by section.

    Raises:
        UserError: no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"--preset {name}: no such preset, {expected(name, PRESETS)}")
    values: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) or {}
    return values


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted name."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result.update(leaves(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result
