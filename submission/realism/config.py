"""Configurations of the metric, read from the textprotos in the Waymo wheel (or a file in that format).

The schema is declared here, so that a machine without the rest of the wheel can read the textprotos
(``gpu_check``). It has no kernel densities, since no challenge uses them.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from data.errors import UserError

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
_Field = descriptor_pb2.FieldDescriptorProto
_MESSAGES: dict[str, dict[str, Any]] = {
    "Config": dict.fromkeys(COMPONENTS, "FeatureConfig"),
    "FeatureConfig": {
        "histogram": "HistogramEstimate",
        "bernoulli": "BernoulliEstimate",
        "independent_timesteps": _Field.TYPE_BOOL,
        "metametric_weight": _Field.TYPE_FLOAT,
        "aggregate_objects": _Field.TYPE_BOOL,
    },
    "HistogramEstimate": {
        "min_val": _Field.TYPE_FLOAT,
        "max_val": _Field.TYPE_FLOAT,
        "num_bins": _Field.TYPE_INT32,
        "additive_smoothing_pseudocount": _Field.TYPE_FLOAT,
    },
    "BernoulliEstimate": {"additive_smoothing_pseudocount": _Field.TYPE_FLOAT},
}


@dataclass(frozen=True)
class Histogram:
    """Histogram of values clipped to [low, high], with bins of equal width that start at ``pseudocount``."""

    low: float
    high: float
    bins: int
    pseudocount: float = _DEFAULT_PSEUDOCOUNT


@dataclass(frozen=True)
class Bernoulli:
    """Yes or no, with counts that start at ``pseudocount``."""

    pseudocount: float = _DEFAULT_PSEUDOCOUNT


@dataclass(frozen=True)
class Component:
    """``FeatureConfig``: estimation of the likelihood of a feature.

    Attributes:
        estimator: of the simulated distribution.
        weight: in the metametric.
        independent_timesteps: one distribution for all steps instead of one per step.
        aggregate_objects: one distribution for all objects instead of one per object.
    """

    estimator: Histogram | Bernoulli
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
    """A configuration of Waymo by name, or another file of the same format.

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
            "with it: install requirements-waymo.txt, or give the path of another textproto"
        )
    return Path(places[0])


def parse_config(text: str, where: str) -> MetricConfig:
    """Parse a textproto of ``SimAgentMetricsConfig``.

    Args:
        text: the file's content. where: named in errors.

    Raises:
        UserError: wrong syntax, an unknown or missing field, or an estimator that does not suit its feature.
    """
    message = _config_class()()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise UserError(f"{where}: {error}") from error
    missing = [name for name in COMPONENTS if not message.HasField(name)]
    if missing:
        raise UserError(f"{where}: field {missing[0]} is missing; give it an estimator, with weight 0 if need be")
    return MetricConfig(
        **{name: _component(name, getattr(message, name), f"{where}: {name}") for name in COMPONENTS}
    )


@cache
def _config_class() -> Any:
    """The class of ``SimAgentMetricsConfig`` messages; field numbers are arbitrary, since a textproto has none."""
    file = descriptor_pb2.FileDescriptorProto(name="metric_config.proto", package="spacer", syntax="proto2")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            added = message.field.add(name=field, number=number, label=_Field.LABEL_OPTIONAL)
            if isinstance(kind, str):
                added.type, added.type_name = _Field.TYPE_MESSAGE, f".spacer.{kind}"
            else:
                added.type = kind
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("spacer.Config"))


def _component(name: str, message: Any, where: str) -> Component:
    given = [estimator for estimator in ("histogram", "bernoulli") if message.HasField(estimator)]
    expected = "bernoulli" if name in _INDICATORS else "histogram"
    if given != [expected]:
        raise UserError(f"{where}: expected the estimator {expected}, found {' and '.join(given) or 'none'}")
    parts = getattr(message, expected)
    pseudocount = _DEFAULT_PSEUDOCOUNT
    if parts.HasField("additive_smoothing_pseudocount"):
        pseudocount = parts.additive_smoothing_pseudocount
    if not pseudocount > 0:
        raise UserError(f"{where}.additive_smoothing_pseudocount: expected a positive number")
    estimator: Histogram | Bernoulli = Bernoulli(pseudocount)
    if expected == "histogram":
        if not parts.min_val < parts.max_val:
            raise UserError(f"{where}: expected min_val < max_val, found {parts.min_val:g} and {parts.max_val:g}")
        if parts.num_bins < 1:
            raise UserError(f"{where}.num_bins: expected a positive whole number, found {parts.num_bins}")
        estimator = Histogram(parts.min_val, parts.max_val, parts.num_bins, pseudocount)
    return Component(estimator, message.metametric_weight, message.independent_timesteps, message.aggregate_objects)
