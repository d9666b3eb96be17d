"""Features of a scene's evaluated agents, logged or simulated (wosac metric, metric features).

Shape legend: R rollouts, E evaluated agents, A all simulated agents (the evaluated ones first), T = 91 steps,
80 scored steps.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.files import atomic_write
from data.scene import CURRENT_INDEX, FUTURE_STEPS, AgentType, Scene, map_tensors
from submission.realism.kinematics import kinematics, linear_speed, norm
from submission.realism.objects import Boxes, nearest_object_distance, time_to_collision
from submission.realism.red_light import Lanes, SignalFences, prepare_signals, violations
from submission.realism.road_edge import RoadEdges, box_distance, prepare_edges

_HISTORY = CURRENT_INDEX + 1
# Steps before the scored ones that differences need: speeds at 11 need step 10, accelerations step 9.
_LEAD = 2


@dataclass(frozen=True)
class Features:
    """Features of E agents over the 80 scored steps, [R, E, 80] except where noted."""

    linear_speed: Tensor
    linear_acceleration: Tensor
    angular_speed: Tensor
    angular_acceleration: Tensor
    distance_to_nearest_object: Tensor
    collision: Tensor
    time_to_collision: Tensor
    distance_to_road_edge: Tensor
    offroad: Tensor
    traffic_light_violation: Tensor
    displacement: Tensor  # [R, E] mean displacement from the log, metres


@dataclass(frozen=True)
class SceneContext:
    """Everything that is computed once per scene.

    Attributes:
        agent_id: [A] in the order of the tensors: evaluated ids ascending, then the others.
        evaluated: E.
        is_vehicle: [E] bool.
        size: [A, 3] at the current step, used for all scored steps, metres.
        history: [A, 11, 4] x, y, z, heading.
        log: [A, 91, 4] and log_valid: [A, 91] bool.
        edges, fences: of the map and its lights.
        bug_compatible: whether documented defects of the official code are reproduced.
        log_features: features of the log, R = 1.
    """

    scenario_id: str
    agent_id: Tensor
    evaluated: int
    is_vehicle: Tensor
    size: Tensor
    history: Tensor
    log: Tensor
    log_valid: Tensor
    edges: RoadEdges
    fences: SignalFences
    bug_compatible: bool
    log_features: Features | None = None

    def to(self, device: torch.device | str) -> SceneContext:
        return map_tensors(self, lambda tensor: tensor.to(device))


def prepare_scene(scene: Scene, bug_compatible: bool = True) -> SceneContext:
    """Compute map and log features of a single scene.

    Raises:
        ValueError: Waymo's code refuses the scene (see ``Scene.unscorable_reason``).
    """
    if (reason := scene.unscorable_reason) is not None:
        raise ValueError(f"scenario {scene.scenario_id}: {reason}")
    agents = scene.agents
    index = torch.arange(len(agents.id), device=agents.id.device)
    scored = scene.simulated & scene.evaluated
    first = index[scored][torch.argsort(agents.id[scored])]
    order = torch.cat((first, index[scene.simulated & ~scored]))
    states = torch.cat((agents.position, agents.heading.unsqueeze(-1)), dim=-1)[order]
    context = SceneContext(
        scenario_id=str(scene.scenario_id),
        agent_id=agents.id[order],
        evaluated=len(first),
        is_vehicle=agents.type[first] == AgentType.VEHICLE,
        size=agents.size[order, CURRENT_INDEX],
        history=states[:, :_HISTORY],
        log=states,
        log_valid=agents.valid[order],
        edges=prepare_edges(scene.map, bug_compatible),
        fences=prepare_signals(scene, bug_compatible),
        bug_compatible=bug_compatible,
    )
    log_features = compute_features(context, states[None, :, _HISTORY:], context.log_valid)
    return replace(context, log_features=log_features)


def compute_features(
    context: SceneContext, future: Tensor, valid: Tensor | None = None, exhaustive: bool | None = None
) -> Features:
    """Compute the features of futures.

    Args:
        context: of the scene.
        future: [R, A, 80, 4] x, y, z, heading, agents in the order of ``context.agent_id``.
        valid: [A, 91] bool for the log; simulated agents are always valid.
        exhaustive: compare all pairs instead of pruning: the same values, with shapes that do not depend on values,
            so that a GPU never waits for the host. None prunes on CPUs only.
    """
    if exhaustive is None:
        exhaustive = future.device.type != "cpu"
    rollouts = len(future)
    count = context.evaluated
    if valid is None:
        valid = torch.ones_like(context.log_valid)
        valid[:, :_HISTORY] = context.log_valid[:, :_HISTORY]
    history = context.history.expand(rollouts, *context.history.shape)
    states = torch.cat((history, future), dim=2)  # [R, A, 91, 4]
    scored = slice(_HISTORY, None)
    speed, acceleration, turn, turn_acceleration = kinematics(states[:, :count, :, :3], states[:, :count, :, 3])
    boxes = Boxes(future[..., :3], future[..., 3], context.size, valid[:, scored])
    nearest = nearest_object_distance(boxes, count, exhaustive)
    plane = linear_speed(states[:, :, _HISTORY - _LEAD :, :2])
    ttc = time_to_collision(boxes, plane[..., _LEAD:], count, wrap_yaw=not context.bug_compatible)
    size = context.size[:count, None].expand(rollouts, count, FUTURE_STEPS, 3)
    edge = box_distance(future[:, :count, :, :3], future[:, :count, :, 3], size, context.edges, exhaustive)
    edge = torch.where(valid[:count, scored], edge, -1e10)
    red = violations(states[:, :count, :, :2], valid[:count], context.fences, _HISTORY, exhaustive)
    log, log_valid = context.log[:count], context.log_valid[:count]
    error = norm(states[:, :count, :, :3] - log[..., :3])
    averaged = slice(None) if context.bug_compatible else scored
    mask = log_valid[:, averaged]
    total = torch.where(mask, error[..., averaged], 0.0).sum(-1)
    return Features(
        linear_speed=speed[..., scored],
        linear_acceleration=acceleration[..., scored],
        angular_speed=turn[..., scored],
        angular_acceleration=turn_acceleration[..., scored],
        distance_to_nearest_object=nearest,
        collision=nearest < 0.0,
        time_to_collision=ttc,
        distance_to_road_edge=edge,
        offroad=edge > 0.0,
        traffic_light_violation=red,
        displacement=total / mask.sum(-1).to(torch.float32),
    )


_FORMAT = 1
_NESTED: dict[str, Any] = {"edges": RoadEdges, "fences": SignalFences, "lanes": Lanes, "log_features": Features}


def _plain(value: Any) -> dict[str, Any]:
    """A dataclass as nested dicts of tensors and numbers."""
    items = {field.name: getattr(value, field.name) for field in fields(value)}
    return {name: _plain(item) if name in _NESTED else item for name, item in items.items()}


def _built(kind: Any, items: dict[str, Any]) -> Any:
    return kind(**{name: _built(_NESTED[name], item) if name in _NESTED else item for name, item in items.items()})


def save_context(path: Path, context: SceneContext) -> None:
    """Write map and log features of a scene atomically, for callers that score the same scenes repeatedly."""
    content = {"format": _FORMAT, "context": _plain(context)}
    atomic_write(path, lambda file: torch.save(content, file))


def load_context(path: Path) -> SceneContext | None:
    """Read what ``save_context`` wrote; None if there is no such file, or one of another version."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["format"] != _FORMAT:
            return None
        context: SceneContext = _built(SceneContext, content["context"])
    except (OSError, RuntimeError, LookupError, TypeError, ValueError, EOFError):
        return None
    return context
