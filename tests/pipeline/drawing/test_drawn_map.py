"""Maps are drawn with fewer points in the same places."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import shapely
import torch

from data.scene import MapKind
from data.store import SceneStore
from pipeline.drawing.drawn_map import Line, drawn_map
from tests.scenes import Mover, circle, hand_made


def test_lines_stay_where_they_are_with_fewer_points() -> None:
    points = circle(30.0, 400)
    scene = hand_made([Mover()], [(MapKind.ROAD_EDGE, points)])
    drawn = drawn_map(scene)
    (line,) = drawn.lines(Line.EDGE)
    assert len(line) < 80
    exact = shapely.linestrings([point[:2] for point in points])
    assert shapely.hausdorff_distance(shapely.linestrings(line), exact) < 0.07
    assert drawn.lines(Line.LANE) == []


def test_areas_are_closed_and_signs_are_points() -> None:
    corners = [(0.0, 0.0), (4.0, 0.0), (4.0, 2.0), (0.0, 2.0)]
    scene = hand_made([Mover()], [(MapKind.CROSSWALK, corners), (MapKind.STOP_SIGN, [(7.0, 8.0)])])
    drawn = drawn_map(scene)
    np.testing.assert_array_equal(drawn.lines(Line.CROSSWALK)[0], [*corners, corners[0]])
    np.testing.assert_array_equal(drawn.lines(Line.STOP_SIGN)[0], [(7.0, 8.0)])


def test_yellow_and_broken_lines_are_told_apart() -> None:
    kinds = [Line.WHITE, Line.WHITE_BROKEN, Line.WHITE, Line.WHITE, Line.YELLOW_BROKEN, Line.YELLOW_BROKEN]
    kinds += [Line.YELLOW, Line.YELLOW, Line.YELLOW_BROKEN]
    line = [(0.0, 0.0), (9.0, 0.0)]
    scene = hand_made([Mover()], [(MapKind.ROAD_LINE, line)] * len(kinds))
    scene = dataclasses.replace(scene, map=dataclasses.replace(scene.map, subtype=torch.arange(len(kinds))))
    assert drawn_map(scene).kinds.tolist() == kinds


def test_no_map_and_single_points_can_be_drawn() -> None:
    assert len(drawn_map(hand_made([Mover()])).points) == 0
    drawn = drawn_map(hand_made([Mover()], [(MapKind.LANE, [(1.0, 2.0)])]))
    assert drawn.starts.tolist() == [0, 1]


def test_real_maps_lose_nothing_that_can_be_seen(womd, tmp_path) -> None:
    from pipeline.stages.tokenize import TokenizeConfig, ingest

    ingest(TokenizeConfig(workers=1), data=str(womd), split="testing", out=tmp_path)
    for scene in SceneStore(tmp_path):
        drawn = drawn_map(scene)
        assert len(drawn.points) < len(scene.map.point) / 3
        # Lanes and edges are drawn in the order of the map.
        kinds, sizes = scene.map.kind.tolist(), scene.map.point_feature.bincount(minlength=len(scene.map.kind))
        features = [f for f, kind in enumerate(kinds) if kind in (MapKind.LANE, MapKind.ROAD_EDGE) and sizes[f]]
        numbers = [n for n, kind in enumerate(drawn.kinds) if kind in (Line.LANE, Line.EDGE)]
        for feature, number in zip(features, numbers, strict=True):
            exact = scene.map.point[scene.map.point_feature == feature, :2].double().numpy()
            line = drawn.points[drawn.starts[number] : drawn.starts[number + 1]]
            if len(exact) > 1:
                distance = shapely.hausdorff_distance(shapely.linestrings(line), shapely.linestrings(exact))
                assert distance < 0.07 or math.isnan(distance)
