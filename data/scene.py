"""``Scene``: one recorded traffic scene as tensors, the input of every stage.

Shape legend: A agents, T steps (91, or 11 in the test split), P map points, F map features, L links between
features, S signalled lanes. A batch of scenes is the same dataclass with a leading dimension B (see
``data.batch``). Positions are metres in the frame of the source (x east, y north, z up), stored as the float32
rounding of the proto's doubles, because the official metric rounds in the same place. Headings are radians,
counter-clockwise from +x. Steps are 0.1 s.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TypeVar

import torch
from torch import Tensor

STEP_SECONDS = 0.1
CURRENT_INDEX = 10
FUTURE_STEPS = 80
NUM_STEPS = CURRENT_INDEX + 1 + FUTURE_STEPS
# LaneCenter.LaneType.TYPE_SURFACE_STREET of map.proto.
SURFACE_STREET = 2

# The end of the id of a window.
_WINDOW = re.compile(r"@\d{4,}$")

DataclassT = TypeVar("DataclassT")


class AgentType(IntEnum):
    """``Track.ObjectType`` of scenario.proto."""

    UNSET = 0
    VEHICLE = 1
    PEDESTRIAN = 2
    CYCLIST = 3
    OTHER = 4


class MapKind(IntEnum):
    """Which member of ``MapFeature.feature_data`` (map.proto) a feature is; 0 is padding."""

    PADDING = 0
    LANE = 1
    ROAD_LINE = 2
    ROAD_EDGE = 3
    STOP_SIGN = 4
    CROSSWALK = 5
    SPEED_BUMP = 6
    DRIVEWAY = 7


class LinkKind(IntEnum):
    """Relation of a link's target to its source feature. The target is a feature id that may not be in the map."""

    ENTRY = 1
    EXIT = 2
    LEFT = 3
    RIGHT = 4
    STOP_CONTROLS = 5


class LightState(IntEnum):
    """``TrafficSignalLaneState.State`` of map.proto."""

    UNKNOWN = 0
    ARROW_STOP = 1
    ARROW_CAUTION = 2
    ARROW_GO = 3
    STOP = 4
    CAUTION = 5
    GO = 6
    FLASHING_STOP = 7
    FLASHING_CAUTION = 8


@dataclass(frozen=True)
class Agents:
    """Tracks in the order of the proto. Values at invalid steps are kept as recorded (zeros in WOMD)."""

    id: Tensor  # [A] int64, -1 where padded (batches only)
    type: Tensor  # [A] int64, AgentType
    position: Tensor  # [A, T, 3] float32, metres, box centre
    heading: Tensor  # [A, T] float32, radians
    velocity: Tensor  # [A, T, 2] float32, m/s
    size: Tensor  # [A, T, 3] float32, metres: length, width, height
    valid: Tensor  # [A, T] bool
    is_sdc: Tensor  # [A] bool, the autonomous vehicle
    to_predict: Tensor  # [A] bool, in tracks_to_predict
    of_interest: Tensor  # [A] bool, in objects_of_interest


@dataclass(frozen=True)
class RoadMap:
    """Static map features; points of one feature are consecutive and in the proto's order."""

    point: Tensor  # [P, 3] float32, metres
    point_feature: Tensor  # [P] int64, index into the features, -1 where padded (batches only)
    feature_id: Tensor  # [F] int64
    kind: Tensor  # [F] int64, MapKind
    subtype: Tensor  # [F] int64, the proto's type enum of lanes, road lines and road edges; 0 undefined
    speed_limit: Tensor  # [F] float32, mph, 0 where none
    interpolating: Tensor  # [F] bool, lanes that only interpolate between two others
    link_source: Tensor  # [L] int64, index into the features, -1 where padded (batches only)
    link_kind: Tensor  # [L] int64, LinkKind
    link_target: Tensor  # [L] int64, a feature id

    @property
    def usable(self) -> Tensor:
        """[F] bool, features of two points or more (single maps only)."""
        return torch.bincount(self.point_feature, minlength=len(self.kind)) >= 2

    @property
    def lanes_are_points(self) -> bool:
        """Whether there are surface-street lanes and none has two points (single maps only)."""
        surface = (self.kind == MapKind.LANE) & (self.subtype == SURFACE_STREET)
        return bool(surface.any()) and not bool((surface & self.usable).any())


@dataclass(frozen=True)
class Lights:
    """Traffic signals, one row for each lane that has a state at any step."""

    lane_id: Tensor  # [S] int64, feature id of the lane, -1 where padded (batches only)
    state: Tensor  # [S, T] int64, LightState, 0 where not observed
    stop_point: Tensor  # [S, T, 3] float32, metres, 0 where not observed
    observed: Tensor  # [S, T] bool


@dataclass(frozen=True)
class Scene:
    """One scenario (or a batch of them: then the ids are a tuple and every tensor has a leading B)."""

    scenario_id: str | tuple[str, ...]
    timestamp: Tensor  # [T] float64, seconds
    agents: Agents
    map: RoadMap
    lights: Lights

    @property
    def num_steps(self) -> int:
        return int(self.agents.valid.shape[-1])

    @property
    def has_future(self) -> bool:
        """Whether the steps after the current one are recorded (false in the test split)."""
        return self.num_steps >= NUM_STEPS

    @property
    def simulated(self) -> Tensor:
        """[A] bool: agents that an entry must simulate, all those valid at the current step."""
        return self.agents.valid[..., CURRENT_INDEX] & (self.agents.id >= 0)

    @property
    def evaluated(self) -> Tensor:
        """[A] bool: agents that the Sim Agents metric scores, the AV and tracks_to_predict."""
        return self.agents.is_sdc | self.agents.to_predict

    @property
    def unscorable_reason(self) -> str | None:
        """Why Waymo's metric refuses this single scene, or None.

        A scene that is not refused may still have no score; see ``submission.realism.unscorable_reason``.
        """
        if not self.has_future:
            return f"only {self.num_steps} of {NUM_STEPS} steps"
        road = self.map
        if not bool(((road.kind == MapKind.ROAD_EDGE) & road.usable).any()):
            return "no road edge"
        # Waymo's code fails where there are lights and no surface-street lane is a line; none at all is no failure.
        if len(self.lights.lane_id) and road.lanes_are_points:
            return "lights, but no surface-street lane of two points"
        absent = self.evaluated & ~self.simulated
        if bool(absent.any()):
            row = int(absent.nonzero()[0])
            name = "the AV" if bool(self.agents.is_sdc[row]) else "an agent to predict"
            return f"{name} (track {int(self.agents.id[row])}) is not valid at the current step"
        if not bool(self.evaluated.any()):
            return "no agent is to be evaluated"
        return None

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Scene:
        return map_tensors(self, lambda tensor: tensor.to(device, non_blocking=non_blocking))


def map_tensors(value: DataclassT, function: Callable[[Tensor], Tensor]) -> DataclassT:
    """Apply ``function`` to every tensor of a dataclass, nested dataclasses included."""
    changes: dict[str, object] = {}
    for field in dataclasses.fields(value):  # type: ignore[arg-type]
        item = getattr(value, field.name)
        if isinstance(item, Tensor):
            changes[field.name] = function(item)
        elif dataclasses.is_dataclass(item) and not isinstance(item, type):
            changes[field.name] = map_tensors(item, function)
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def until_now(scene: Scene) -> Scene:
    """A scene or batch without its future, so that the future cannot leak into a rollout."""
    agents, lights, steps = scene.agents, scene.lights, slice(0, CURRENT_INDEX + 1)
    timed = ("heading", "valid")
    vectors = ("position", "velocity", "size")
    parts = {
        name: value[..., steps, :] if name in vectors else value[..., steps] if name in timed else value
        for name, value in vars(agents).items()
    }
    return Scene(
        scenario_id=scene.scenario_id,
        timestamp=scene.timestamp[..., steps],
        agents=Agents(**parts),
        map=scene.map,
        lights=Lights(
            lights.lane_id, lights.state[..., steps], lights.stop_point[..., steps, :], lights.observed[..., steps]
        ),
    )


def window_id(recording: str, step: int) -> str:
    """Id of the scenario that begins at a step of a longer recording."""
    return f"{recording}@{step:04d}"


def recording_id(scenario_id: str) -> str:
    """The recording of a window; of other scenarios their own id."""
    return _WINDOW.sub("", scenario_id)


def generator_for(seed: int, scenario_id: str) -> torch.Generator:
    """A generator seeded by (seed, scenario id) alone, so that the worker, order and batch do not matter.

    It is on the CPU, so that every device draws the same numbers.
    """
    digest = hashlib.sha256(f"{seed}/{scenario_id}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
