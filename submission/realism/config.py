"""Configurations of the metric, read from the textprotos in the Waymo wheel (or a file in that format).

Waymo ships its configurations as textprotos beside the metric's code. They are read here by a parser of the small
part of the format that they use, so that neither protobuf nor TensorFlow is needed.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import UserError

__all__ = [
    "BUCKETS",
    "COMPONENTS",
    "CONFIG_FILES",
    "Bernoulli",
    "Component",
    "Histogram",
    "KernelDensity",
    "MetricConfig",
    "config_path",
    "load_config",
    "parse_config",
]

# Components of the metametric by bucket, in the order in which Waymo's code adds them up.
BUCKETS: dict[str, tuple[str, ...]] = {
    "kinematic_metrics": ("linear_speed", "linear_acceleration", "angular_speed", "angular_acceleration"),
    "interactive_metrics": ("distance_to_nearest_object", "collision_indication", "time_to_collision"),
    "map_based_metrics": ("distance_to_road_edge", "offroad_indication", "traffic_light_violation"),
}
COMPONENTS: tuple[str, ...] = tuple(name for names in BUCKETS.values() for name in names)

# Names of the configurations in the installed package ``waymo_open_dataset``.
CONFIG_FILES: dict[str, str] = {
    "2025": "challenge_2025_sim_agents_config.textproto",
    "2024": "challenge_2024_config.textproto",
    "2025_scenario_gen": "challenge_2025_scenario_gen_config.textproto",
}
_CONFIG_FOLDER = "wdl_limited/sim_agents_metrics"
_DEFAULT_PSEUDOCOUNT = float(np.float32(0.001))
_INDICATORS = frozenset({"collision_indication", "offroad_indication", "traffic_light_violation"})
_DIFFERENCES = frozenset(BUCKETS["kinematic_metrics"])


@dataclass(frozen=True)
class Histogram:
    """Values are clipped to [low, high] and counted in bins of equal width, each started at ``pseudocount``."""

    low: float
    high: float
    bins: int
    pseudocount: float = _DEFAULT_PSEUDOCOUNT


@dataclass(frozen=True)
class Bernoulli:
    """Yes or no, each count started at ``pseudocount``."""

    pseudocount: float = _DEFAULT_PSEUDOCOUNT


@dataclass(frozen=True)
class KernelDensity:
    """Gaussian kernels of standard deviation ``bandwidth``, relative to a kernel's own peak."""

    bandwidth: float


@dataclass(frozen=True)
class Component:
    """``FeatureConfig``: how one feature becomes a likelihood.

    Attributes:
        estimator: of the simulated distribution.
        weight: in the metametric.
        independent_timesteps: one distribution for all steps instead of one per step.
        aggregate_objects: one distribution for all objects instead of one per object.
    """

    estimator: Histogram | Bernoulli | KernelDensity
    weight: float
    independent_timesteps: bool = False
    aggregate_objects: bool = False


@dataclass(frozen=True)
class MetricConfig:
    """One field for each component of the metametric."""

    linear_speed: Component
    linear_acceleration: Component
    angular_speed: Component
    angular_acceleration: Component
    distance_to_nearest_object: Component
    collision_indication: Component
    time_to_collision: Component
    distance_to_road_edge: Component
    offroad_indication: Component
    traffic_light_violation: Component

    def component(self, name: str) -> Component:
        value: Component = getattr(self, name)
        return value

    @property
    def weights(self) -> dict[str, float]:
        return {name: self.component(name).weight for name in COMPONENTS}


def load_config(name_or_path: str | Path = "2025") -> MetricConfig:
    """A configuration of Waymo's by name, or an own file in the same format.

    Args:
        name_or_path: "2025", "2024" (its weights on today's features, see docs/metric.md), "2025_scenario_gen", or
            a textproto of ``SimAgentMetricsConfig``.

    Raises:
        UserError: no such configuration, or a mistake in the file, naming its line.
    """
    name = str(name_or_path)
    path = config_path(name)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"metric configuration {name}: cannot be read ({type(error).__name__}); expected one of "
            f"{', '.join(CONFIG_FILES)} or the path of a textproto"
        ) from error
    return parse_config(text, str(path))


def config_path(name: str) -> Path:
    """The file of a configuration that Waymo ships, or the path itself."""
    return _package_folder() / _CONFIG_FOLDER / CONFIG_FILES[name] if name in CONFIG_FILES else Path(name)


def _package_folder() -> Path:
    spec = importlib.util.find_spec("waymo_open_dataset")
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places:
        raise UserError(
            "the package waymo-open-dataset-tf-2-12-0 is not installed, and Waymo's metric configurations come "
            "with it: install requirements-waymo.txt, or give the path of an own textproto"
        )
    return Path(places[0])


def parse_config(text: str, where: str) -> MetricConfig:
    """Parse a textproto of ``SimAgentMetricsConfig``.

    Args:
        text: the file's content. where: named in errors.

    Raises:
        UserError: wrong syntax, an unknown or missing field, or an estimator that does not suit its feature.
    """
    fields = _parse_message(_tokens(text, where), where, top=True)
    unknown = set(fields) - set(COMPONENTS)
    if unknown:
        raise UserError(f"{where}: unknown field {min(unknown)}, expected some of {', '.join(COMPONENTS)}")
    missing = [name for name in COMPONENTS if name not in fields]
    if missing:
        raise UserError(f"{where}: field {missing[0]} is missing; give it an estimator, with weight 0 if need be")
    return MetricConfig(**{name: _component(name, fields[name], f"{where}: {name}") for name in COMPONENTS})


_TOKEN = re.compile(r"\s+|#[^\n]*|(?P<token>[A-Za-z_]\w*|[-+]?[\d.][\w.+-]*|[:{}])|(?P<bad>.)", re.DOTALL)


def _tokens(text: str, where: str) -> Iterator[tuple[str, int]]:
    """(token, line number), comments and blanks left out; ends with an empty token."""
    line = 1
    for match in _TOKEN.finditer(text):
        if match["bad"]:
            raise UserError(f"{where}: line {line}: unexpected {match['bad']!r}")
        if match["token"]:
            yield match["token"], line
        line += match[0].count("\n")
    yield "", line


def _parse_message(tokens: Iterator[tuple[str, int]], where: str, top: bool = False) -> dict[str, Any]:
    """Fields up to the closing brace: nested messages as dicts, scalars as text."""
    fields: dict[str, Any] = {}
    for name, line in tokens:
        if name == ("" if top else "}"):
            return fields
        if not name or not (name[0].isalpha() or name[0] == "_"):
            raise UserError(f"{where}: line {line}: expected a field name, found {name or 'the end of the file'!r}")
        if name in fields:
            raise UserError(f"{where}: line {line}: {name} is given twice")
        value, _ = next(tokens)
        if value == ":":
            value, _ = next(tokens)
            if value not in ("{", "}", ":", ""):
                fields[name] = value
                continue
        if value != "{":
            raise UserError(f"{where}: line {line}: {name}: expected a value or {{")
        fields[name] = _parse_message(tokens, where)
    raise AssertionError("the last token is empty")


def _number(value: object, where: str) -> float:
    """A proto float: rounded to float32, as Waymo's code sees it."""
    try:
        return float(np.float32(str(value)))
    except ValueError:
        raise UserError(f"{where}: expected a number, found {value!r}") from None


def _flag(value: object, where: str) -> bool:
    if value not in ("true", "false"):
        raise UserError(f"{where}: expected true or false, found {value!r}")
    return value == "true"


def _check_names(fields: Mapping[str, Any], known: set[str], where: str) -> None:
    for name in fields:
        if name not in known:
            raise UserError(f"{where}: unknown field {name}, expected some of {', '.join(sorted(known))}")


def _component(name: str, fields: Any, where: str) -> Component:
    if not isinstance(fields, dict):
        raise UserError(f"{where}: expected a message in braces")
    estimators: dict[str, Callable[[Mapping[str, Any], str], Histogram | Bernoulli | KernelDensity]] = {
        "histogram": _histogram,
        "bernoulli": _bernoulli,
        "kernel_density": _kernel_density,
    }
    flags = {"independent_timesteps", "aggregate_objects"}
    _check_names(fields, {*estimators, *flags, "metametric_weight"}, where)
    chosen = [key for key in estimators if key in fields]
    if len(chosen) != 1 or not isinstance(fields[chosen[0]], dict):
        raise UserError(f"{where}: expected exactly one estimator of {', '.join(estimators)}")
    estimator = estimators[chosen[0]](fields[chosen[0]], f"{where}.{chosen[0]}")
    if isinstance(estimator, Bernoulli) != (name in _INDICATORS):
        raise UserError(f"{where}: {chosen[0]} does not suit this feature")
    if isinstance(estimator, KernelDensity) and name in _DIFFERENCES:
        raise UserError(f"{where}: kernel_density cannot take the undefined values at the ends of differences")
    return Component(
        estimator=estimator,
        weight=_number(fields.get("metametric_weight", "0"), f"{where}.metametric_weight"),
        **{flag: _flag(fields.get(flag, "false"), f"{where}.{flag}") for flag in sorted(flags)},
    )


def _histogram(fields: Mapping[str, Any], where: str) -> Histogram:
    names = {"min_val": "low", "max_val": "high", "additive_smoothing_pseudocount": "pseudocount"}
    _check_names(fields, {*names, "num_bins"}, where)
    values = {names[key]: _number(fields[key], f"{where}.{key}") for key in names if key in fields}
    bins = str(fields.get("num_bins", "0"))
    if not bins.isdigit() or int(bins) < 1:
        raise UserError(f"{where}.num_bins: expected a positive whole number, found {bins!r}")
    result = Histogram(
        low=values.get("low", 0.0),
        high=values.get("high", 0.0),
        bins=int(bins),
        pseudocount=values.get("pseudocount", _DEFAULT_PSEUDOCOUNT),
    )
    if not result.low < result.high:
        raise UserError(f"{where}: expected min_val < max_val, found {result.low:g} and {result.high:g}")
    if not result.pseudocount > 0:
        raise UserError(f"{where}.additive_smoothing_pseudocount: expected a positive number")
    return result


def _bernoulli(fields: Mapping[str, Any], where: str) -> Bernoulli:
    key = "additive_smoothing_pseudocount"
    _check_names(fields, {key}, where)
    result = Bernoulli(_number(fields[key], f"{where}.{key}")) if key in fields else Bernoulli()
    if not result.pseudocount > 0:
        raise UserError(f"{where}.{key}: expected a positive number")
    return result


def _kernel_density(fields: Mapping[str, Any], where: str) -> KernelDensity:
    _check_names(fields, {"bandwidth"}, where)
    result = KernelDensity(_number(fields.get("bandwidth", "0"), f"{where}.bandwidth"))
    if not result.bandwidth > 0:
        raise UserError(f"{where}.bandwidth: expected a positive number")
    return result
