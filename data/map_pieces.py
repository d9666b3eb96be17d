"""Road map to pieces: polylines cut to at most 5 m with three points each, in scene-centred coordinates.

Models attend to these pieces (they are SMART's map tokens without its vocabulary of shapes). Outlines of
crosswalks, speed bumps and driveways are closed and cut like polylines; a stop sign is one piece of length zero.
Shape legend: B scenes, M pieces, P points, F features, G segments between consecutive points, C chains of segments.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from data.geometry import planar_length, wrap_angle
from data.scene import MapKind, Scene

PIECE_LENGTH = 5.0
# A new piece begins where a line turns by more than this between two segments, which keeps corners.
_CORNER = math.radians(45)
# Chains shorter than this (metres) are duplicate points or noise.
_MIN_LENGTH = 0.1
_ROUNDING = 1e-3
_POLYGONS = (MapKind.CROSSWALK, MapKind.SPEED_BUMP, MapKind.DRIVEWAY)


@dataclass(frozen=True)
class MapPieces:
    """Pieces of the map, with a leading B for a batch; padded pieces have kind PADDING and zeros elsewhere."""

    point: Tensor  # [M, 3, 2] float32 start, middle and end along the line, metres from the scene's origin
    pose: Tensor  # [M, 3] float32 x, y of the middle point, heading from start to end
    height: Tensor  # [M] float32 z of the middle point, metres
    kind: Tensor  # [M] int64 MapKind
    subtype: Tensor  # [M] int64 the proto's type enum of the feature, 0 undefined
    light: Tensor  # [M] int64 row of the scene's lights that controls the piece's lane, -1 for none

    @property
    def valid(self) -> Tensor:
        """[M] bool."""
        return self.kind != int(MapKind.PADDING)  # a plain number, so that torch.compile can read it


def cut_map(scene: Scene, origin: Tensor, multiple: int = 1) -> MapPieces:
    """Cut the map of a scene, or of a batch of scenes.

    Args:
        origin: [2] or [B, 2], subtracted from all positions.
        multiple: M of a batch is rounded up to a multiple of this.

    Returns:
        ``MapPieces``; for a batch padded to the scene with most pieces (M is at least 1).
    """
    batched = scene.map.point.dim() == 3
    road, lights = scene.map, scene.lights
    point, owner = road.point, road.point_feature
    kind, subtype, feature_id, lane_id = road.kind, road.subtype, road.feature_id, lights.lane_id
    if not batched:
        point, owner, kind, subtype, feature_id, lane_id, origin = (
            tensor.unsqueeze(0) for tensor in (point, owner, kind, subtype, feature_id, lane_id, origin)
        )
    features = kind.shape[1]
    # One flat list of points and features for all scenes; the feature of a piece gives its scene.
    shift = torch.arange(len(kind), device=kind.device).unsqueeze(-1) * features
    flat_owner = torch.where(owner >= 0, owner + shift, -1).flatten()
    centred = point.double()
    centred[..., :2] -= origin.double().unsqueeze(1)
    used = flat_owner >= 0
    lines, line_owner = _cut_lines(centred.flatten(0, 1)[used], flat_owner[used], kind.flatten())
    signs, sign_owner = _stop_signs(centred.flatten(0, 1)[used], flat_owner[used], kind.flatten())
    heading = _heading(lines)
    sign_heading = _nearest_lane_heading(signs, sign_owner // features, lines, heading, line_owner, kind)
    placed = ~sign_heading.isnan()
    piece = torch.cat((lines, signs[placed].unsqueeze(1).expand(-1, 3, 3)))  # [M, 3, 3]
    heading = torch.cat((heading, sign_heading[placed]))
    piece_owner = torch.cat((line_owner, sign_owner[placed]))
    flat = MapPieces(
        point=piece[..., :2].float(),
        pose=torch.cat((piece[:, 1, :2], heading.unsqueeze(-1)), dim=-1).float(),
        height=piece[:, 1, 2].float(),
        kind=kind.flatten()[piece_owner],
        subtype=subtype.flatten()[piece_owner],
        light=_light_rows(feature_id, kind, lane_id).flatten()[piece_owner],
    )
    return _pad(flat, piece_owner // features, len(kind), multiple) if batched else flat


def _cut_lines(point: Tensor, owner: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """Cut all features of at least two points.

    Args:
        point: [P, 3] double. owner: [P] feature of each point, nondecreasing. kind: [F].

    Returns:
        pieces [M, 3, 3] double (start, middle, end) and their features [M].
    """
    closes = torch.stack([kind == polygon for polygon in _POLYGONS]).any(0)[owner]
    is_last = torch.ones_like(owner, dtype=torch.bool)
    is_last[:-1] = owner[1:] != owner[:-1]
    first_of = torch.searchsorted(owner, owner)  # [P] index of the first point of the same feature
    index = torch.arange(len(owner), device=owner.device)
    follower = torch.where(is_last, first_of, index + 1)
    length = (point[follower] - point).norm(dim=-1)
    is_segment = (~is_last | closes) & (length > 1e-6)
    start, end, length, feature = (t[is_segment] for t in (point, point[follower], length, owner))
    if not len(start):
        return point.new_zeros(0, 3, 3), owner.new_zeros(0)
    direction = torch.atan2(end[:, 1] - start[:, 1], end[:, 0] - start[:, 0])
    begins = torch.ones_like(feature, dtype=torch.bool)
    begins[1:] = (feature[1:] != feature[:-1]) | (wrap_angle(direction.diff()).abs() > _CORNER)
    chain = begins.long().cumsum(0) - 1  # [G]
    chain_length = torch.zeros(int(chain[-1]) + 1, dtype=length.dtype, device=length.device)
    chain_length.index_add_(0, chain, length)
    chain_feature = feature[begins]
    # Rounding must not add a piece where the length is a multiple of the piece length.
    wanted = (chain_length / PIECE_LENGTH - _ROUNDING).ceil().long().clamp(min=1)
    count = torch.where(chain_length >= _MIN_LENGTH, wanted, 0)  # [C]
    # Arc length along all chains laid end to end, at the start, middle and end of each piece.
    segment_end = length.cumsum(0)
    chain_start = chain_length.cumsum(0) - chain_length
    piece_chain = torch.repeat_interleave(torch.arange(len(count), device=count.device), count)
    number = torch.arange(len(piece_chain), device=count.device) - (count.cumsum(0) - count)[piece_chain]
    part = number.unsqueeze(-1) + torch.arange(3, dtype=length.dtype, device=length.device) / 2
    size = (chain_length / count.clamp(min=1))[piece_chain]
    arc = chain_start[piece_chain].unsqueeze(-1) + part * size.unsqueeze(-1)  # [M, 3]
    first_segment = torch.searchsorted(chain, torch.arange(len(count), device=count.device))
    last_segment = torch.searchsorted(chain, torch.arange(len(count), device=count.device), right=True) - 1
    # Clamped to the piece's own chain: where two chains meet, arc lengths are equal but positions are not.
    segment = torch.searchsorted(segment_end, arc).clamp(
        first_segment[piece_chain].unsqueeze(-1), last_segment[piece_chain].unsqueeze(-1)
    )
    fraction = 1 - ((segment_end[segment] - arc) / length[segment]).clamp(0, 1)
    return torch.lerp(start[segment], end[segment], fraction.unsqueeze(-1)), chain_feature[piece_chain]


def _stop_signs(point: Tensor, owner: Tensor, kind: Tensor) -> tuple[Tensor, Tensor]:
    """Positions [Q, 3] and features [Q] of stop signs."""
    is_sign = kind[owner] == MapKind.STOP_SIGN
    return point[is_sign], owner[is_sign]


def _heading(piece: Tensor) -> Tensor:
    """[M] from start to end of pieces [M, 3, 3]."""
    delta = piece[:, 2] - piece[:, 0]
    return torch.atan2(delta[:, 1], delta[:, 0])


def _nearest_lane_heading(
    signs: Tensor, sign_scene: Tensor, lines: Tensor, heading: Tensor, line_owner: Tensor, kind: Tensor
) -> Tensor:
    """Heading [Q] of the lane piece nearest to each sign, NaN where its scene has no lane.

    A sign has no heading of its own, and its lanes are not always given.
    """
    lane = kind.flatten()[line_owner] == MapKind.LANE
    if not len(signs) or not bool(lane.any()):
        return torch.full((len(signs),), math.nan, dtype=lines.dtype, device=lines.device)
    middle = lines[lane][:, 1]
    distance = planar_length(signs[:, :1] - middle[:, 0], signs[:, 1:2] - middle[:, 1])
    other = sign_scene.unsqueeze(-1) != (line_owner[lane] // kind.shape[1]).unsqueeze(0)
    nearest = distance.masked_fill(other, math.inf).min(-1)
    return torch.where(nearest.values.isinf(), math.nan, heading[lane][nearest.indices])


def _light_rows(feature_id: Tensor, kind: Tensor, lane_id: Tensor) -> Tensor:
    """[B, F] row of the light of each lane, -1 where it has none."""
    if not lane_id.shape[1]:
        return torch.full_like(feature_id, -1)
    same = (feature_id.unsqueeze(-1) == lane_id.unsqueeze(1)) & (kind == MapKind.LANE).unsqueeze(-1)
    same &= (lane_id >= 0).unsqueeze(1)
    return torch.where(same.any(-1), same.long().argmax(-1), -1)


def _pad(flat: MapPieces, scene: Tensor, scenes: int, multiple: int) -> MapPieces:
    """Pieces [M_all, ...] with their scene [M_all] to [B, M, ...]."""
    order = torch.argsort(scene, stable=True)
    scene = scene[order]
    count = torch.bincount(scene, minlength=scenes)
    size = -(-max(1, int(count.max())) // multiple) * multiple
    column = torch.arange(len(scene), device=scene.device) - (count.cumsum(0) - count)[scene]

    def scatter(tensor: Tensor, fill: int = 0) -> Tensor:
        padded = torch.full((scenes, size, *tensor.shape[1:]), fill, dtype=tensor.dtype, device=tensor.device)
        padded[scene, column] = tensor[order]
        return padded

    return MapPieces(
        point=scatter(flat.point),
        pose=scatter(flat.pose),
        height=scatter(flat.height),
        kind=scatter(flat.kind),
        subtype=scatter(flat.subtype),
        light=scatter(flat.light, -1),
    )
