"""The route: lane centrelines that the AV is to follow, as one polyline; coordinates and allowed speeds along it.

Shape legend: N route points, M points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.spatial import cKDTree

from data.scene import CURRENT_INDEX, Scene
from pipeline.studies.planners.lanes import (
    Floats,
    Lane,
    Taken,
    along,
    match_lanes,
    read_lanes,
    straightest,
    wrapped,
)

_SPACING = 1.0
_LENGTH = 300.0
# Route behind the AV, and the smoothing of centrelines, metres.
_BEHIND = 10.0
_SMOOTHING = 1.0
_CHANGE_LENGTH = 30.0
# A drive is off the lanes if it is so far from them on average, metres, or if they would bend more, 1/m.
_MISFIT = 3.0
_SHARPEST = 0.4
_DRIVE_SMOOTHING = 2.0
# Searching near a given place, for routes that come back to themselves, metres.
_WINDOW = 30.0
_EXACT = 1e-7


@dataclass(frozen=True)
class Route:
    """A polyline of N points about a metre apart, in metres from the scene's origin; straight on beyond its ends.

    Attributes:
        point: [N, 2]. heading: [N] radians, unwrapped along the route. distance: [N] length travelled, from 0.
        speed_limit: [N] m/s, 0 where the map has none.
    """

    point: Floats
    heading: Floats
    distance: Floats
    speed_limit: Floats

    @property
    def length(self) -> float:
        return float(self.distance[-1])

    @cached_property
    def curvature(self) -> Floats:
        """[N] 1/m, positive to the left."""
        return np.asarray(np.gradient(self.heading, self.distance))

    @cached_property
    def _tree(self) -> cKDTree:
        return cKDTree(self.point)

    def at(self, s: Floats | float) -> tuple[Floats, Floats, Floats, Floats]:
        """x, y, heading and curvature at lengths s [...]; a smooth curve through the points."""
        s = np.asarray(s, dtype=np.float64)
        inside = np.clip(s, 0.0, self.length)
        index = np.clip(np.searchsorted(self.distance, inside, side="right") - 1, 0, len(self.distance) - 2)
        size = self.distance[index + 1] - self.distance[index]
        u = (inside - self.distance[index]) / size
        first, second = self.heading[index], self.heading[index + 1]
        heading = first + u * (second - first)
        # Cubic Hermite: through the points, along the headings.
        start, end = (2 * u - 3) * u * u + 1, (3 - 2 * u) * u * u
        out, into = ((u - 2) * u + 1) * u * size, (u - 1) * u * u * size
        beyond = s - inside
        x, y = (
            start * axis[index]
            + end * axis[index + 1]
            + out * part(first)
            + into * part(second)
            + beyond * part(heading)
            for axis, part in ((self.point[:, 0], np.cos), (self.point[:, 1], np.sin))
        )
        bend = self.curvature[index] + u * (self.curvature[index + 1] - self.curvature[index])
        return x, y, heading, np.where(beyond == 0, bend, 0.0)

    def offset(self, s: Floats, d: Floats) -> Floats:
        """[..., 2] the points at lengths s and offsets d (left positive): what ``project`` inverts."""
        x, y, heading, _ = self.at(s)
        return np.stack((x - d * np.sin(heading), y + d * np.cos(heading)), axis=-1)

    def project(self, xy: Floats, near: float | None = None) -> tuple[Floats, Floats]:
        """Frenet coordinates: lengths s and offsets d (left positive) of points.

        The offset is along the normal of the heading at s, which is interpolated between the points, so that s does
        not jump at bends. It is unique within the radius of curvature.

        Args:
            xy: [..., 2]. near: only look within 30 m of this length, if a route comes back to where it was.
        """
        xy = np.asarray(xy, dtype=np.float64)
        points = xy.reshape(-1, 2)
        if near is None:
            s = self.distance[self._tree.query(points)[1]]
        else:
            around = np.abs(self.distance - min(max(near, 0.0), self.length)) <= _WINDOW
            gap = ((points[:, None] - self.point[None, around]) ** 2).sum(-1)
            s = self.distance[around][gap.argmin(1)]
        d = np.zeros_like(s)
        # Newton's method for the foot of the normal; it starts within half a metre unless beyond an end.
        for _ in range(6):
            x, y, heading, bend = self.at(s)
            cos, sin = np.cos(heading), np.sin(heading)
            dx, dy = points[:, 0] - x, points[:, 1] - y
            d = dy * cos - dx * sin
            ahead = dx * cos + dy * sin
            move = ahead / np.maximum(1 - bend * d, 0.3)
            ended = (s + ahead <= 0) | (s + ahead >= self.length)
            move = np.where(ended, ahead, np.clip(move, -2.0, 2.0))
            s = s + move
            if np.abs(move).max(initial=0.0) < _EXACT:
                break
        x, y, heading, _ = self.at(s)
        d = (points[:, 1] - y) * np.cos(heading) - (points[:, 0] - x) * np.sin(heading)
        return s.reshape(xy.shape[:-1]), d.reshape(xy.shape[:-1])

    def limit_at(self, s: Floats | float) -> Floats:
        """Speed limit in m/s at lengths s [...], 0 where the map has none."""
        index = np.searchsorted(self.distance, np.asarray(s), side="right") - 1
        return np.asarray(self.speed_limit[np.clip(index, 0, len(self.distance) - 1)])


def _resampled(point: Floats, spacing: float) -> tuple[Floats, Floats]:
    """A polyline [n, 2] in equal steps, and where they lie along the given one."""
    travelled = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(point, axis=0), axis=1)))
    kept = np.append(True, np.diff(travelled) > 1e-6)
    point, travelled = point[kept], travelled[kept]
    s = np.linspace(0.0, travelled[-1], max(3, round(travelled[-1] / spacing) + 1))
    return np.stack([np.interp(s, travelled, point[:, axis]) for axis in (0, 1)], axis=-1), s


def make_route(point: Floats, speed_limit: Floats | float = 0.0, smoothing: float = _SMOOTHING) -> Route:
    """A route through a polyline.

    Args:
        point: [n, 2] of at least a metre, n >= 2. speed_limit: [n] or one, m/s.
        smoothing: standard deviation in metres of the Gaussian that rounds off bends; ends stay.
    """
    travelled = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(point, axis=0), axis=1)))
    limits = np.broadcast_to(speed_limit, travelled.shape)
    fine, where = _resampled(point, _SPACING / 2)
    if smoothing > 0:
        width = 2 * smoothing / _SPACING
        pad = min(len(fine) - 1, int(4 * width) + 1)
        # Continued by its own point reflection, so that the ends stay and keep their direction.
        grown = np.pad(fine, ((pad, pad), (0, 0)), mode="reflect", reflect_type="odd")
        fine = gaussian_filter1d(grown, width, axis=0, mode="nearest")[pad : pad + len(fine)]
    even, along_fine = _resampled(fine, _SPACING)
    step = np.gradient(even, axis=0)
    distance = np.append(0.0, np.cumsum(np.linalg.norm(np.diff(even, axis=0), axis=1)))
    # Lengths along the smoothed line, as lengths along the given one.
    given = np.interp(along_fine / along_fine[-1], where / where[-1], where)
    index = np.clip(np.searchsorted(travelled, given + 1e-9, side="right") - 1, 0, len(travelled) - 1)
    heading = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    return Route(even, heading, distance, np.asarray(limits[index], dtype=np.float64))


def _quintic(u: Floats) -> Floats:
    """From 0 at 0 to 1 at 1, first and second derivative 0 at both."""
    u = np.clip(u, 0.0, 1.0)
    return np.asarray(u**3 * (10 + u * (-15 + 6 * u)))


def joining_offset(
    route: Route, pose: Floats, length: float, change: tuple[float, float] = (0.0, 0.0)
) -> tuple[float, Callable[[Floats], Floats]]:
    """How a path that starts at a pose [3] beside the route, along its heading, joins the route smoothly.

    Args:
        route: to join. pose: x, y, heading; turned by less than a right angle from the route.
        length: in which to join it, metres.
        change: go over to so many metres to port of the route, as smoothly, beginning so many metres from here.

    Returns:
        The length along the route at which the pose is, and offsets (left positive) by lengths.
    """
    s0, d0 = (float(value) for value in route.project(pose[:2]))
    _, _, heading, bend = route.at(s0)
    turn = float(np.clip(wrapped(pose[2] - heading), -1.2, 1.2))
    slope = (1 - float(bend) * d0) * np.tan(turn)

    def offset(s: Floats) -> Floats:
        u = np.clip((s - s0) / length, 0.0, 1.0)
        # The quintic with offset, slope and no bend at the start, and nothing of them at the end.
        d = d0 * (1 - _quintic(u)) + slope * length * u * (1 + u**2 * (-6 + u * (8 - 3 * u)))
        return np.asarray(d + change[0] * _quintic((s - s0 - change[1]) / length))

    return s0, offset


def path_onto(route: Route, pose: Floats, length: float) -> Route:
    """A path that starts at a pose and joins the route, see ``joining_offset``."""
    s0, offset = joining_offset(route, pose, length)
    s = np.arange(s0, max(route.length, s0 + 2 * length) + _SPACING, _SPACING / 2)
    return make_route(route.offset(s, offset(s)), route.limit_at(s), smoothing=0.0)


def find_route(scene: Scene, origin: Floats, recorded: Floats | None) -> Route:
    """The route of the AV.

    Where it is going is the mission, and no map tells it: the lanes are those along which the AV was recorded, as
    in nuPlan. Nothing else of the recording is used. Beyond its end the lanes that turn least are followed to 300 m
    or to the end of the map, then straight on. Without a recording the lanes that turn least are taken from the
    start. A drive that keeps to no lane (a car park; on average more than 3 m away) is its own route.

    Args:
        scene: the first 11 steps are read. origin: [2] to subtract from positions.
        recorded: [n, 3] x, y, heading of the AV after the current step, minus ``origin``, or None.
    """
    now, driven = _drive(scene, origin, recorded)
    lanes = read_lanes(scene, origin)
    taken = match_lanes(lanes, driven)
    if taken:
        route = _along_lanes(lanes, taken, now)
        if _fits(route, now, driven):
            return route
    return _along_drive(lanes, taken, now, driven)


def _fits(route: Route, now: Floats, driven: Floats) -> bool:
    """Whether a drive went along a route: near it, about as far, and without a bend that no car can drive."""
    first = int((driven == now).all(1).argmax())
    drive = driven[first:, :2]
    s, d = route.project(drive)
    driven_length = float(np.linalg.norm(np.diff(drive, axis=0), axis=1).sum())
    forward = float(s[-1] - s[0])
    bend = np.abs(route.curvature[route.distance <= s[-1] + _BEHIND]).max()
    return bool(
        np.abs(d).mean() <= _MISFIT
        and abs(forward - driven_length) <= _MISFIT + 0.25 * driven_length
        and bend < _SHARPEST
    )


def _drive(scene: Scene, origin: Floats, recorded: Floats | None) -> tuple[Floats, Floats]:
    """The AV's pose now [3], and all its poses about a metre apart [K, 3]; from where it reversed nothing more."""
    agents = scene.agents
    row = int(agents.is_sdc.nonzero()[0])
    steps = slice(0, CURRENT_INDEX + 1)
    past = np.concatenate(
        (agents.position[row, steps, :2].numpy() - origin, agents.heading[row, steps, None].numpy()), axis=1
    )[agents.valid[row, steps].numpy()]
    poses = past if recorded is None else np.concatenate((past, recorded))
    now = past[-1]
    kept = [now]
    for ahead in (False, True):
        part = poses[len(past) :] if ahead else past[:-1][::-1]
        last, line = now, []
        for pose in part:
            gap = pose[:2] - last[:2]
            forward = float(gap @ (np.cos(last[2]), np.sin(last[2]))) * (1 if ahead else -1)
            distance = float(np.linalg.norm(gap))
            if distance < _SPACING:
                continue
            if forward < 0 or distance > 5 * _SPACING:
                break
            line.append(pose)
            last = pose
        kept = [*kept, *line] if ahead else [*line[::-1], *kept]
    return now, np.array(kept)


def _along_lanes(lanes: Sequence[Lane], taken: Sequence[Taken], now: Floats) -> Route:
    """Lanes joined, from a little behind the AV on, and their continuation."""
    after = [Taken(lane, 0.0, lanes[lane].length, False) for lane in straightest(lanes, taken[-1].lane, _LENGTH)]
    every = [*taken, *after]
    points: list[Floats] = []
    limits: list[Floats] = []
    for index, part in enumerate(every):
        lane = lanes[part.lane]
        first, last = part.enters, part.leaves
        # A change of lanes takes half its length from each of the two; the straight line between is rounded off.
        if part.changed:
            first = min(first + _CHANGE_LENGTH / 2, (first + last) / 2)
        if index + 1 < len(every) and every[index + 1].changed:
            last = max(last - _CHANGE_LENGTH / 2, (part.enters + last) / 2)
        line = lane.piece(first, max(last, first + 1e-3))
        if part.changed and points:
            points.append(_blend(points[-1], line))
            limits.append(np.full(len(points[-1]), lane.speed_limit))
        points.append(line)
        limits.append(np.full(len(line), lane.speed_limit))
    return _cut(np.concatenate(points), np.concatenate(limits), now)


def _blend(before: Floats, after: Floats) -> Floats:
    """[9, 2] a cubic from the end of one polyline to the start of another, along both."""
    gap = float(np.linalg.norm(after[0] - before[-1]))
    out, into = (
        (line[1] - line[0]) / max(float(np.linalg.norm(line[1] - line[0])), 1e-6) for line in (before[-2:], after)
    )
    u = np.linspace(0.0, 1.0, 11)[1:-1, None]
    return np.asarray(
        (1 + u * u * (2 * u - 3)) * before[-1]
        + u * u * (3 - 2 * u) * after[0]
        + gap * u * (1 - u) * ((1 - u) * out - u * into)
    )


def _cut(point: Floats, limit: Floats, now: Floats) -> Route:
    """A route from a little behind the AV to the full length ahead, straight on where the polyline ends."""
    length = float(np.linalg.norm(np.diff(point, axis=0), axis=1).sum())
    # The direction of the last metre: the last piece may be arbitrarily short.
    back = point[-1] - point[np.linalg.norm(point - point[-1], axis=1) > min(1.0, length / 2)][-1]
    ahead = back / np.linalg.norm(back) * (_LENGTH + 2 * _SPACING)
    whole = make_route(np.concatenate((point, point[-1:] + ahead)), np.append(limit, limit[-1]))
    s = float(whole.project(now[:2])[0])
    keep = (whole.distance >= s - _BEHIND) & (whole.distance <= max(s, 0.0) + _LENGTH + _SPACING)
    distance = whole.distance[keep]
    return Route(whole.point[keep], whole.heading[keep], distance - distance[0], whole.speed_limit[keep])


def _along_drive(lanes: Sequence[Lane], taken: Sequence[Taken], now: Floats, driven: Floats) -> Route:
    """The drive itself, then the lane that it ended in, if it ended in one, or straight on."""
    first, last = driven[0], driven[-1]
    start = first[:2] - _BEHIND * np.array([np.cos(first[2]), np.sin(first[2])])
    points = make_route(np.array([start, *driven[:, :2]]), smoothing=_DRIVE_SMOOTHING).point
    limits = np.zeros(len(points))
    if taken:
        lane = lanes[taken[-1].lane]
        where, distance, heading = along(lane, last[None, :2])
        enters = float(where[0]) + _CHANGE_LENGTH / 2
        # Behind the end of the lane its successors are entered.
        numbers = [taken[-1].lane, *straightest(lanes, taken[-1].lane, _LENGTH)]
        while len(numbers) > 1 and enters > lanes[numbers[0]].length - _SPACING:
            enters -= lanes[numbers.pop(0)].length
        if distance[0] < _MISFIT and np.cos(heading[0] - last[2]) > 0.5 and enters < lanes[numbers[0]].length:
            parts = [lanes[numbers[0]].piece(max(enters, 0.0), lanes[numbers[0]].length)]
            parts += [lanes[number].point for number in numbers[1:]]
            limit = [np.full(len(part), lanes[number].speed_limit) for part, number in zip(parts, numbers)]
            blend = _blend(points, parts[0])
            every = np.concatenate((points, blend, *parts))
            return _cut(every, np.concatenate((limits, np.zeros(len(blend)), *limit)), now)
    return _cut(points, limits, now)


# Of roads whose limit the map does not tell, m/s: 35 mph, a common one of surface streets. If the AV is faster to
# begin with, it may stay as fast: it will be a faster road.
ASSUMED_LIMIT = 15.65
# Curvature is averaged over so many metres, so that a kink of the map is no hairpin.
_AVERAGED = 5


def allowed_speeds(
    path: Route, desired: float, speed: float, lateral: float, braking: float, keep_limit: bool = True
) -> Floats:
    """[N] m/s at the points of a path, low enough before curves and lower limits that braking for them is gentle.

    Args:
        path: to drive. desired: what the driver wants, m/s. speed: now, m/s.
        lateral: acceleration that is comfortable in curves, m/s^2. braking: deceleration before them, m/s^2.
        keep_limit: never faster than the limit of the road, or the assumed one.
    """
    allowed = np.full(len(path.distance), desired)
    if keep_limit:
        assumed = max(ASSUMED_LIMIT, speed)
        allowed = np.minimum(allowed, np.where(path.speed_limit > 0, path.speed_limit, assumed))
    window = np.ones(_AVERAGED) / _AVERAGED
    padded = np.pad(np.abs(path.curvature), _AVERAGED // 2, mode="edge")
    bend = np.convolve(padded, window, mode="valid")
    allowed = np.minimum(allowed, np.sqrt(lateral / np.maximum(bend, 1e-6)))
    # Along the path v^2 falls by 2 b for every metre at most: a running minimum from the end.
    energy = allowed**2 + 2 * braking * path.distance
    return np.asarray(np.sqrt(np.minimum.accumulate(energy[::-1])[::-1] - 2 * braking * path.distance))
