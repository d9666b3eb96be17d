"""The realism metric's three rule checks, written out for one scene with plain loops over vectors.

Brute force after the published rules of Waymo's Sim Agents metric (2025), quirks included; a truth for the
generator, which decides with polygons instead.
"""

from __future__ import annotations

import numpy as np
import shapely
import torch
from numpy.typing import NDArray

from data.geometry import box_corners
from data.scene import CURRENT_INDEX, AgentType, LightState, MapKind, Scene

FloatArray = NDArray[np.float64]
FUTURE = slice(CURRENT_INDEX + 1, None)


def evaluated(scene: Scene) -> NDArray[np.int64]:
    return np.flatnonzero(scene.evaluated.numpy())


def collides(scene: Scene) -> NDArray[np.bool_]:
    """[E] whether each evaluated agent's rounded box touches another one at a future step."""
    agents = scene.agents
    size = agents.size[:, CURRENT_INDEX, :2]
    radius = 0.7 * size.min(dim=-1).values / 2
    core = size - 2 * radius[:, None]
    corners = box_corners(
        agents.position[..., :2].double(),
        agents.heading.double(),
        core[:, None, 0].double(),
        core[:, None, 1].double(),
    )
    boxes = shapely.polygons(corners.numpy())
    alive = (agents.valid & scene.simulated[:, None]).numpy()
    result = []
    for row in evaluated(scene):
        gap = shapely.distance(boxes[row], boxes) - (radius[row] + radius)[:, None].numpy()
        gap[row] = np.inf
        both = alive & alive[row]
        result.append(bool((gap < 0)[both & (np.arange(alive.shape[1]) > CURRENT_INDEX)].any()))
    return np.array(result)


def _polylines(scene: Scene, kind: MapKind, subtype: int | None = None) -> list[FloatArray]:
    lines = []
    for feature in torch.nonzero(scene.map.kind == kind)[:, 0].tolist():
        if subtype is None or int(scene.map.subtype[feature]) == subtype:
            lines.append(scene.map.point[scene.map.point_feature == feature].double().numpy())
    return lines


def edge_distance(scene: Scene, points: FloatArray) -> FloatArray:
    """Signed distance [N] of points [N, 3] to the nearest road edge; positive is off the road."""
    best = np.full(len(points), np.inf)
    answer = np.zeros(len(points))
    for line in _polylines(scene, MapKind.ROAD_EDGE):
        if len(line) < 2:
            continue
        start, step = line[:-1], np.diff(line, axis=0)
        offset = points[:, None] - start
        along = (offset[..., :2] * step[:, :2]).sum(-1) / (step[:, :2] ** 2).sum(-1)
        side = np.sign(offset[..., 0] * step[:, 1] - offset[..., 1] * step[:, 0])
        gap = offset - np.clip(along, 0, 1)[..., None] * step
        stretched = np.sqrt((gap[..., :2] ** 2).sum(-1) + (3 * gap[..., 2]) ** 2)
        nearest = stretched.argmin(axis=1)
        rows = np.arange(len(points))
        turn = step[:-1, 0] * step[1:, 1] - step[:-1, 1] * step[1:, 0]
        for row in rows:
            segment = nearest[row]
            if stretched[row, segment] >= best[row]:
                continue
            sign = side[row, segment]
            if along[row, segment] < 0 and segment > 0:
                merge = max if turn[segment - 1] > 0 else min
                sign = merge(sign, side[row, segment - 1])
            elif along[row, segment] > 1 and segment < len(step) - 1:
                merge = max if turn[segment] > 0 else min
                sign = merge(sign, side[row, segment + 1])
            best[row] = stretched[row, segment]
            answer[row] = sign * np.linalg.norm(gap[row, segment, :2])
    return answer


def leaves_road(scene: Scene) -> NDArray[np.bool_]:
    """[E] whether any bottom corner of each evaluated agent is off the road at a valid future step."""
    agents, result = scene.agents, []
    for row in evaluated(scene):
        steps = np.flatnonzero(agents.valid[row].numpy())
        steps = steps[steps > CURRENT_INDEX]
        size = agents.size[row, CURRENT_INDEX].double()
        corners = box_corners(
            agents.position[row, steps, :2].double(), agents.heading[row, steps].double(), size[0], size[1]
        )
        z = (agents.position[row, steps, 2] - size[2] / 2).double()[:, None, None].expand(-1, 4, 1)
        points = torch.cat([corners, z], dim=-1).reshape(-1, 3).numpy()
        result.append(bool((edge_distance(scene, points) > 0).any()) if len(points) else False)
    return np.array(result)


def _nearest_on_lanes(
    lanes: list[FloatArray], points: FloatArray
) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Nearest lane [N], and the nearest segment [N] on each lane, by the metric's own search: it adds where it
    should subtract, and every lane but the longest has one more segment, from its end to the origin."""
    longest = max(map(len, lanes))
    distances, segments = [], []
    for lane in lanes:
        line = lane[:, :2] if len(lane) == longest else np.concatenate([lane[:, :2], np.zeros((1, 2))])
        step = np.diff(line, axis=0)
        offset = points[:, None, :2] - line[:-1]
        along = np.clip((offset * step).sum(-1) / np.maximum((step**2).sum(-1), 1e-12), 0, 1)
        distance = np.linalg.norm(offset + along[..., None] * step, axis=-1)
        segments.append(distance.argmin(axis=1))
        distances.append(distance.min(axis=1))
    return np.array(distances).argmin(axis=0), segments


def _coordinate(lane: FloatArray, longest: int, segment: int, point: FloatArray) -> float:
    line = lane[:, :2] if len(lane) == longest else np.concatenate([lane[:, :2], np.zeros((1, 2))])
    step = line[segment + 1] - line[segment]
    return float((point[:2] - line[segment]) @ step / (step @ step))


def runs_red(scene: Scene) -> NDArray[np.bool_]:
    """[E] whether each evaluated vehicle crosses the stop point of its nearest lane at red in the future."""
    ids = scene.map.feature_id.tolist()
    kinds, subtypes = scene.map.kind.tolist(), scene.map.subtype.tolist()
    names = [i for i, kind, subtype in zip(ids, kinds, subtypes) if kind == MapKind.LANE and subtype == 2]
    lanes = _polylines(scene, MapKind.LANE, subtype=2)
    lights = scene.lights
    row_of = {int(lane): row for row, lane in enumerate(lights.lane_id.tolist())}
    result = []
    longest = max(map(len, lanes))
    for agent in evaluated(scene):
        path = scene.agents.position[agent].double().numpy()
        valid = scene.agents.valid[agent].numpy()
        hit = False
        if int(scene.agents.type[agent]) == AgentType.VEHICLE and row_of:
            lane_at, _ = _nearest_on_lanes(lanes, path)
            for step in np.flatnonzero(valid):
                row = row_of.get(names[lane_at[step]])
                if step <= CURRENT_INDEX or row is None:
                    continue
                if int(lights.state[row, step]) not in (LightState.STOP, LightState.ARROW_STOP):
                    continue
                lane = lanes[lane_at[step]]
                before, now = (lights.stop_point[row, t].double().numpy() for t in (step - 1, step))
                # The coordinate is measured on the lane's segment that is nearest to the stop point.
                _, (first,) = _nearest_on_lanes([lane], before[None])
                _, (second,) = _nearest_on_lanes([lane], now[None])
                behind = _coordinate(lane, longest, int(first[0]), path[step - 1]) < _coordinate(
                    lane, longest, int(first[0]), before
                )
                ahead = _coordinate(lane, longest, int(second[0]), path[step]) > _coordinate(
                    lane, longest, int(second[0]), now
                )
                hit = hit or (behind and ahead)
        result.append(hit)
    return np.array(result)
