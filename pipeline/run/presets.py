"""Presets: values of options by section, below the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from data.errors import UserError, did_you_mean, expected

ConfigT = TypeVar("ConfigT")

CONFIGS = Path(__file__).with_name("configs")
_SETTINGS = CONFIGS / "selfplay"
PRESETS = ("smoke", "demo", "scratch", "womd", "gpu", "node", "leaderboard", "paper")


def load_preset(name: str) -> dict[str, Any]:
    """A preset's overrides, by section; ``like`` in that of self-play names settings that lie below it.

    Raises:
        UserError: no such preset.
    """
    if name not in PRESETS:
        raise UserError(f"--preset {name}: no such preset, {expected(name, PRESETS)}")
    values: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) or {}
    if settings := values.get("selfplay", {}).pop("like", None):
        values["selfplay"] = _merged(_settings(settings), values["selfplay"])
    return values


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options, those of ``above`` where both have one."""
    both = {key for key in above if isinstance(above[key], Mapping) and key in below}
    return {**below, **above, **{key: _merged(below[key], above[key]) for key in both}}


def leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted name."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            result.update(leaves(value, f"{prefix}{key}."))
        else:
            result[f"{prefix}{key}"] = value
    return result


def override(config: ConfigT, values: Mapping[str, Any]) -> ConfigT:
    """A configuration with some of its options changed.

    Args:
        config: a dataclass, perhaps of dataclasses. values: by dotted name, such as ``ppo.beta``; texts are read as
            the option's type.

    Raises:
        UserError: no such option, or a value of another type; and what the configuration says of its own values.
    """
    for name, value in values.items():
        config = _changed(config, name.split("."), value, name)
    return config


def _changed(config: ConfigT, path: list[str], value: Any, name: str) -> ConfigT:
    known = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    if path[0] not in known:
        raise UserError(f"option {name}: {path[0]} is unknown{did_you_mean(path[0], known)}")
    before = getattr(config, path[0])
    if dataclasses.is_dataclass(before):
        if len(path) == 1:
            raise UserError(f"option {name}: expected one of its options, such as {name}.{_first(before)}")
        after: Any = _changed(before, path[1:], value, name)
    else:
        if len(path) > 1:
            raise UserError(f"option {name}: {path[0]} has no options of its own")
        after = _typed(value, before, name)
    return dataclasses.replace(config, **{path[0]: after})  # type: ignore[type-var]


def _first(config: Any) -> str:
    return dataclasses.fields(config)[0].name


def _typed(value: Any, before: Any, name: str) -> Any:
    """A value as the type of the one that it replaces."""
    if isinstance(value, str) and not isinstance(before, str):
        value = yaml.safe_load(value)
    if isinstance(before, bool) or before is None:
        good = isinstance(value, bool) if isinstance(before, bool) else True
    elif isinstance(before, float):
        try:
            # YAML takes 3e-4 for a text.
            value, good = float(value), not isinstance(value, bool)
        except (TypeError, ValueError):
            good = False
    else:
        good = isinstance(value, type(before)) and not isinstance(value, bool)
    if not good:
        raise UserError(f"option {name} is {value!r}; expected {type(before).__name__}")
    return value


def read_settings(name: str) -> dict[str, Any]:
    """A file of settings of self-play (``pipeline/run/configs/selfplay``) by dotted names.

    Raises:
        UserError: no such file.
    """
    return leaves(_settings(name))


def _settings(name: str) -> dict[str, Any]:
    path = _SETTINGS / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in _SETTINGS.glob("*.yaml"))
        raise UserError(f"{path}: no such settings; choose one of {', '.join(known)}")
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    return values
