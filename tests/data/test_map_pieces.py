"""Map pieces against shapely: they lie on the lines, cover them, and are no longer than five metres."""

from __future__ import annotations

import dataclasses
import itertools
import math
from pathlib import Path

import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.batch import collate
from data.map_pieces import PIECE_LENGTH, cut_map
from data.scene import MapKind, RoadMap
from data.scenes_source import open_scenes
from data.tokenizer import scene_origin
from tests.models.scenes import random_scene
from tests.transformations import mirror, move


def scene_with(features, feature_ids=None):
    """A scene whose map holds features (kind, subtype, points [n, 2])."""
    scene = random_scene(0, origin=(0.0, 0.0))
    points = [torch.as_tensor(p, dtype=torch.float32).reshape(-1, 2) for _, _, p in features]
    count = len(features)
    flat = torch.cat(points) if points else torch.zeros(0, 2)
    empty = torch.zeros(0, dtype=torch.int64)
    road = RoadMap(
        point=torch.cat((flat, torch.full((len(flat), 1), 2.5)), dim=-1),
        point_feature=torch.repeat_interleave(
            torch.arange(count), torch.tensor([len(p) for p in points], dtype=torch.int64)
        ),
        feature_id=torch.tensor(feature_ids or list(range(count)), dtype=torch.int64),
        kind=torch.tensor([int(kind) for kind, _, _ in features], dtype=torch.int64),
        subtype=torch.tensor([subtype for _, subtype, _ in features], dtype=torch.int64),
        speed_limit=torch.zeros(count),
        interpolating=torch.zeros(count, dtype=torch.bool),
        link_source=empty,
        link_kind=empty,
        link_target=empty,
    )
    return dataclasses.replace(scene, map=road)


def pieces_of(*features, **arguments):
    return cut_map(scene_with(list(features), **arguments), torch.zeros(2))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-400, 400), st.integers(-400, 400)), min_size=2, max_size=12),
    st.sampled_from((MapKind.LANE, MapKind.ROAD_EDGE, MapKind.CROSSWALK)),
)
def test_pieces_lie_on_the_line_and_cover_it(corners, kind):
    points = [(x / 10, y / 10) for x, y in corners]
    pieces = pieces_of((kind, 1, points))
    ring = [*points, points[0]] if kind == MapKind.CROSSWALK else points
    line = shapely.LineString(ring)
    for point in pieces.point.flatten(0, 1).tolist():
        assert line.distance(shapely.Point(point)) < 1e-3
    if len(pieces.kind) == 0:
        assert line.length < 0.1 * len(ring), "only dirt may vanish altogether"
        return
    parts = shapely.union_all([shapely.LineString(part) for part in pieces.point.tolist()])
    # Pieces round off bends below 45 degrees a little, and dirt shorter than 0.1 m is left out.
    sides = [shapely.LineString(side) for side in itertools.pairwise(ring)]
    for side in sides:
        assert side.difference(parts.buffer(1.0)).length <= 0.1
    assert float((pieces.point[:, 1:] - pieces.point[:, :-1]).norm(dim=-1).max()) <= PIECE_LENGTH / 2 + 5e-3


def test_straight_lane_by_hand():
    pieces = pieces_of((MapKind.LANE, 2, [(0.0, 0.0), (4.0, 0.0), (12.0, 0.0)]))
    expected = torch.tensor([[[4.0 * i + 2.0 * j, 0.0] for j in range(3)] for i in range(3)])
    torch.testing.assert_close(pieces.point, expected)
    torch.testing.assert_close(pieces.pose[0], torch.tensor([2.0, 0.0, 0.0]))
    assert pieces.kind.tolist() == [MapKind.LANE] * 3
    assert pieces.subtype.tolist() == [2] * 3
    assert pieces.height.tolist() == [2.5] * 3
    assert pieces.light.tolist() == [-1] * 3


def test_corners_stay_corners():
    square = [(0.0, 0.0), (4.0, 0.0), (4.0, 4.0), (0.0, 4.0)]
    pieces = pieces_of((MapKind.CROSSWALK, 0, square))
    headings = sorted(round(math.degrees(h)) % 360 for h in pieces.pose[:, 2].tolist())
    assert headings == [0, 90, 180, 270], "four sides, the closing one included"
    ends = pieces.point[:, ::2].flatten(0, 1)
    for corner in square:
        assert float((ends - torch.tensor(corner)).norm(dim=-1).min()) < 1e-4
    assert len(pieces_of((MapKind.LANE, 0, square)).kind) == 3, "a lane is not closed"


def test_stop_sign_takes_the_heading_of_the_nearest_lane():
    lanes = [(MapKind.LANE, 0, [(0.0, 0.0), (5.0, 0.0)]), (MapKind.LANE, 0, [(50.0, 0.0), (50.0, 5.0)])]
    sign = (MapKind.STOP_SIGN, 0, [(48.0, 2.0)])
    pieces = pieces_of(*lanes, sign)
    assert pieces.kind.tolist() == [MapKind.LANE, MapKind.LANE, MapKind.STOP_SIGN]
    torch.testing.assert_close(pieces.pose[2], torch.tensor([48.0, 2.0, math.pi / 2]))
    assert len(pieces_of(sign).kind) == 0, "without any lane it has no heading, and is left out"


def test_lights_are_linked_by_lane_id():
    lanes = [(MapKind.LANE, 0, [(0.0, 3.0 * i), (4.0, 3.0 * i)]) for i in range(3)]
    edge = (MapKind.ROAD_EDGE, 1, [(0.0, 20.0), (4.0, 20.0)])
    # Lights are of lanes 100 and 103; the edge has a lane's id by accident.
    pieces = pieces_of(*lanes, edge, feature_ids=[103, 55, 100, 103])
    assert pieces.light.tolist() == [1, -1, 0, -1]


@pytest.mark.parametrize("features", [[], [(MapKind.LANE, 1, [(0.0, 0.0)])], [(MapKind.LANE, 1, [(1.0, 1.0)] * 3)]])
def test_maps_without_length(features):
    assert len(pieces_of(*features).kind) == 0
    batch = collate([scene_with(features), random_scene(0)])
    pieces = cut_map(batch, scene_origin(batch))
    assert int(pieces.valid[0].sum()) == 0
    assert int(pieces.valid[1].sum()) > 0


def test_batch_equals_single_scenes():
    scenes = [random_scene(0), scene_with([(MapKind.LANE, 1, [(0.0, 0.0), (7.0, 1.0)])]), random_scene(2)]
    batch = collate(scenes)
    pieces = cut_map(batch, scene_origin(batch), multiple=8)
    assert pieces.kind.shape[1] % 8 == 0
    for row, scene in enumerate(scenes):
        alone = cut_map(scene, scene_origin(scene))
        count = int(pieces.valid[row].sum())
        assert count == len(alone.kind)
        for field in dataclasses.fields(alone):
            torch.testing.assert_close(
                getattr(pieces, field.name)[row, :count], getattr(alone, field.name), atol=1e-3, rtol=0
            )


def test_moving_and_mirroring_the_scene_moves_the_pieces():
    scene = random_scene(4)
    pieces = cut_map(scene, scene_origin(scene))
    moved = move(scene, 1.1, (70.0, -20.0))
    turned = cut_map(moved, scene_origin(moved))
    cos, sin = math.cos(1.1), math.sin(1.1)
    rotation = torch.tensor([[cos, sin], [-sin, cos]])
    torch.testing.assert_close(turned.point, pieces.point @ rotation, atol=2e-3, rtol=0)
    flipped = mirror(scene)
    other = cut_map(flipped, scene_origin(flipped))
    torch.testing.assert_close(other.point, pieces.point * torch.tensor([1.0, -1.0]), atol=2e-3, rtol=0)


@pytest.mark.womd
def test_real_maps(womd: Path):
    source = open_scenes(womd, "validation")
    for index in range(0, len(source), 9):
        scene = source[index]
        pieces = cut_map(scene, scene_origin(scene))
        lanes = int((pieces.kind == MapKind.LANE).sum())
        assert lanes > 0
        assert bool(pieces.pose.isfinite().all())
        length = (pieces.point[:, 1:] - pieces.point[:, :-1]).norm(dim=-1).sum(-1)
        assert float(length.max()) <= PIECE_LENGTH + 1e-2
        assert float(length[pieces.kind == MapKind.LANE].median()) > 3.0


def test_a_line_to_the_west_has_no_corner_where_headings_wrap():
    """Headings just above and just below half a turn: 4 m in one piece."""
    pieces = pieces_of((MapKind.LANE, 1, [(0.0, 0.0), (-2.0, 0.1), (-4.0, 0.0)]))
    assert pieces.point[0, ::2].tolist() == [[0.0, 0.0], [-4.0, 0.0]]
    assert len(pieces.kind) == 1
