"""Readers of other formats: the same scenes as from protos, windows, and what a source lacks or makes up."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from data.assembly import RecordError
from data.completeness import Remarks
from data.formats.catalogue import FORMATS
from data.formats.reader import Reading, WindowConfig
from data.formats.road_edges import outline_of_lanes
from data.scene import AgentType, MapKind, Scene
from data.womd import parse_scenario
from tests.builders import scenario_proto
from tests.other_formats import gpudrive_text, nuscenes_record, scenarionet_record, to_pickle

FUTURE = Reading(True)


def read(
    path: Path, content: bytes, reading: Reading = FUTURE, remarks: Remarks | None = None
) -> list[Scene | RecordError]:
    path.write_bytes(content)
    name = "gpudrive" if path.suffix == ".json" else "scenarionet"
    return [item.result for item in FORMATS[name].read(str(path), reading, remarks or Remarks())]


def scenes(results: list[Scene | RecordError]) -> list[Scene]:
    assert all(isinstance(result, Scene) for result in results), results
    return [result for result in results if isinstance(result, Scene)]


def refusal(results: list[Scene | RecordError]) -> RecordError:
    (error,) = results
    assert isinstance(error, RecordError)
    assert "\n" not in str(error)
    return error


def fields(scene: Scene) -> Iterator[tuple[str, Tensor]]:
    for part in (scene.agents, scene.map, scene.lights):
        for name, value in vars(part).items():
            yield f"{type(part).__name__}.{name}", value
    yield "timestamp", scene.timestamp


def test_a_pickle_and_its_proto_are_the_same_scene(tmp_path: Path) -> None:
    proto = scenario_proto(agents=4)
    proto.tracks[1].object_type = 4
    (scene,) = scenes(read(tmp_path / "x.pkl", to_pickle(scenarionet_record(proto))))
    wanted = dict(fields(parse_scenario(proto.SerializeToString())))
    assert scene.scenario_id == proto.scenario_id
    for name, value in fields(scene):
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=0, msg=name)


def test_a_json_text_and_its_proto_are_the_same_scene(tmp_path: Path) -> None:
    proto = scenario_proto(agents=4)
    (scene,) = scenes(read(tmp_path / "x.json", gpudrive_text(proto)))
    wanted = dict(fields(parse_scenario(proto.SerializeToString())))
    lost = {"RoadMap.speed_limit", "RoadMap.link_source", "RoadMap.link_kind", "RoadMap.link_target", "Agents.size"}
    for name, value in fields(scene):
        if name not in lost:
            torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-12, msg=name)
    assert not scene.map.speed_limit.any()
    valid = scene.agents.valid
    torch.testing.assert_close(scene.agents.size[valid], wanted["Agents.size"][valid])


def test_windows_of_a_longer_recording(tmp_path: Path) -> None:
    remarks = Remarks()
    content = to_pickle(nuscenes_record())
    first, second = scenes(read(tmp_path / "x.pkl", content, remarks=remarks))
    assert [first.scenario_id, second.scenario_id] == ["nuscenes-scene-0001@0000", "nuscenes-scene-0001@0080"]
    assert first.num_steps == 91
    torch.testing.assert_close(first.agents.position[:, 80:], second.agents.position[:, :11])
    torch.testing.assert_close(second.timestamp, 0.1 * torch.arange(91, dtype=torch.float64))
    # The cone is no agent; the one that stands is not to be predicted, and neither is the AV.
    assert first.agents.type.tolist() == [AgentType.VEHICLE, AgentType.VEHICLE, AgentType.PEDESTRIAN]
    assert first.agents.to_predict.tolist() == [False, True, False]
    assert first.agents.is_sdc.tolist() == [True, False, False]
    assert remarks.figures()["objects_left_out"] == 1
    assert remarks.figures()["chosen_agents"] == 2
    (line,) = [line for line in remarks.lines("x") if "cones" in line]
    assert "1 were left out" in line
    several = Reading(True, WindowConfig(stride=50))
    assert len(scenes(read(tmp_path / "x.pkl", content, several))) == 3
    remarks = Remarks()
    assert read(tmp_path / "x.pkl", content, Reading(True, WindowConfig(agents=4)), remarks) == []
    assert remarks.figures() == {"windows_left_out": 2}


def test_the_eight_nearest_to_the_av_are_chosen(tmp_path: Path) -> None:
    record = nuscenes_record(steps=91)
    one = record["tracks"].pop("a" * 32)
    for number in range(10):
        other = copy.deepcopy(one)
        other["state"]["position"][:, 1] = 60.0 - 5 * number
        record["tracks"][f"{number}" * 32] = other
    (scene,) = scenes(read(tmp_path / "x.pkl", to_pickle(record)))
    away = scene.agents.position[:, 10, 1] + 2.0
    assert away[scene.agents.to_predict].tolist() == [62.0 - 5 * number for number in range(2, 10)]


def test_what_nuscenes_lacks_and_makes_up(tmp_path: Path) -> None:
    remarks = Remarks()
    scene = scenes(read(tmp_path / "x.pkl", to_pickle(nuscenes_record()), remarks=remarks))[0]
    road = scene.map
    # A heading is no height, a constant no speed limit, and the AV drives forward.
    assert not road.point[:, 2].any()
    assert not road.speed_limit.any()
    assert scene.agents.size[0, 0].tolist() == [4.0, 2.0, 1.5]
    assert {"derived_edges", "no_lights", "no_crosswalks", "no_heights", "turned_box"} <= remarks.figures().keys()
    edges = (road.kind == MapKind.ROAD_EDGE).nonzero().flatten().tolist()
    assert road.kind.tolist().count(MapKind.ROAD_LINE) == 1
    assert len(edges) == 2
    assert road.subtype[edges].tolist() == [0, 0]
    for edge in edges:
        points = road.point[road.point_feature == edge]
        along = points[1:] - points[:-1]
        left = (
            points[:-1]
            + along / 2
            + 0.2 * torch.stack([-along[:, 1], along[:, 0], along[:, 2]], -1) / along.norm(dim=-1, keepdim=True)
        )
        in_street = left[:, 1].abs() < 4
        on_island = (left[:, 1].abs() < 1) & (left[:, 0] > 140) & (left[:, 0] < 150)
        assert bool((in_street & ~on_island).all())


def test_maps_are_cut_around_the_way_of_the_av(tmp_path: Path) -> None:
    record = nuscenes_record()
    features = record["map_features"]
    far = np.array([(0.0, 400.0), (10.0, 400.0)])
    features["far"] = {"type": "ROAD_LINE_SOLID_SINGLE_WHITE", "polyline": far}
    street = features["boundary_0"]["polyline"]
    street[street == 200] = 900
    record["metadata"]["objects_of_interest"] = ["a" * 32]
    scene = scenes(read(tmp_path / "x.pkl", to_pickle(record)))[0]
    point = scene.map.point
    assert point[:, 1].abs().max() < 10
    assert point[:, 0].max() < 45 + 150 + 60
    assert len(set(scene.map.feature_id.tolist())) == len(scene.map.kind)
    assert scene.agents.of_interest.tolist() == [False, True, False]


def test_lanes_without_an_outline_give_edges() -> None:
    centre = np.stack([np.arange(0.0, 50.0), np.zeros(50)], axis=-1)
    polygon = np.array([(0, 1.75), (49, 1.75), (49, 5), (0, 5)], dtype=float)
    (edge,) = outline_of_lanes([polygon], [centre])
    assert edge[:, 1].min() == pytest.approx(-1.75)
    assert edge[:, 1].max() == pytest.approx(5)
    area = 0.5 * np.sum(edge[:-1, 0] * edge[1:, 1] - edge[1:, 0] * edge[:-1, 1])
    assert area == pytest.approx(49 * 6.75, rel=1e-3)


@pytest.mark.parametrize("period", [0.05, 0.5])
def test_other_rates_are_interpolated(period: float, tmp_path: Path) -> None:
    steps = round(9.0 / period) + 1
    record = nuscenes_record(steps, period)
    other = record["tracks"]["a" * 32]["state"]
    time = period * np.arange(steps)
    other["heading"] = (3.0 + 0.1 * time + np.pi) % (2 * np.pi) - np.pi
    other["valid"][-1] = 0
    remarks = Remarks()
    (scene,) = scenes(read(tmp_path / "x.pkl", to_pickle(record), remarks=remarks))
    agents = scene.agents
    wanted = 0.1 * torch.arange(91)
    torch.testing.assert_close(agents.position[0, :, 0], 5 * wanted, atol=1e-4, rtol=0)
    until = round((9.0 - period) / 0.1) + 1
    assert agents.valid[1].tolist() == [step < until for step in range(91)]
    turned = agents.heading[1, :until] - (3.0 + 0.1 * wanted[:until])
    torch.testing.assert_close(turned.cos(), torch.ones(until), atol=1e-5, rtol=0)
    assert remarks.figures()["resampled"] == 1


Change = Callable[[dict[str, Any]], Any]
SPOILT: dict[str, tuple[Change, str]] = {
    "rate": (lambda r: r["metadata"].update(ts=1.0 * np.arange(191)), "rate"),
    "no number as rate": (lambda r: r["metadata"].update(ts=None, timestep=None, sample_rate="ten"), "rate"),
    "no step as rate": (lambda r: r["metadata"].update(ts=None, timestep=None, sample_rate=0.0), "rate"),
    "backwards": (lambda r: r["metadata"].update(ts=-0.1 * np.arange(191)), "rate"),
    "no tracks": (lambda r: r.pop("tracks"), "kind"),
    "no AV": (lambda r: r["metadata"].update(sdc_id="nobody"), "sdc"),
    "short track": (lambda r: r["tracks"]["ego"]["state"].update(heading=np.zeros(3)), "field"),
    "no velocity": (lambda r: r["tracks"]["ego"]["state"].pop("velocity"), "field"),
    "points": (lambda r: r["map_features"]["e" * 36].update(polyline=["a"]), "field"),
    "far": (lambda r: r["map_features"]["boundary_0"]["polyline"].__setitem__((2, 0), 1e13), "map"),
    "id": (lambda r: r["metadata"].update(scenario_id="x" * 200), "scenario_id"),
    "lights": (
        lambda r: r["dynamic_map_states"].update(a={"state": {"object_state": ["GREENISH"] * 191}}),
        "field",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_pickle_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    record = nuscenes_record()
    change, code = SPOILT[name]
    change(record)
    assert refusal(read(tmp_path / "x.pkl", to_pickle(record))).code == code


def test_recordings_that_are_too_short(tmp_path: Path) -> None:
    assert refusal(read(tmp_path / "x.pkl", to_pickle(nuscenes_record(90)))).code == "steps"
    short = to_pickle(scenarionet_record(scenario_proto(steps=11)))
    assert refusal(read(tmp_path / "x.pkl", short)).code == "no_future"
    assert scenes(read(tmp_path / "x.pkl", short, Reading(False)))[0].num_steps == 11


def test_not_finite_where_the_metric_reads(tmp_path: Path) -> None:
    record = nuscenes_record(91)
    record["tracks"]["ego"]["state"]["position"][10] = np.nan
    assert refusal(read(tmp_path / "x.pkl", to_pickle(record))).code == "not_finite"


def without(key: str) -> Change:
    return lambda record: record["metadata"].pop(key)


JSONS: dict[str, tuple[Change, str]] = {
    "degrees": (lambda r: r["objects"][0]["heading"].__setitem__(0, 180.0), "heading"),
    "no AV": (without("sdc_track_index"), "sdc"),
    "AV beyond": (lambda r: r["metadata"].update(sdc_track_index=99), "sdc"),
    "to predict": (lambda r: r["metadata"].update(tracks_to_predict=[{"track_index": -1}]), "tracks_to_predict"),
    "no objects": (lambda r: r.update(objects=[]), "no_agent"),
    "type": (lambda r: r["objects"][0].update(type="tram"), "field"),
    "road": (lambda r: r["roads"][0].update(type="river"), "field"),
    "steps": (lambda r: r["objects"][1].update(valid=[True]), "steps"),
    "same id": (lambda r: r["objects"][1].update(id=r["objects"][0]["id"]), "duplicate_id"),
    "light": (lambda r: r["tl_states"]["1"].update(time_index=[500] * 89), "steps"),
    "other": (lambda r: r.pop("roads"), "kind"),
}


@pytest.mark.parametrize("name", JSONS)
def test_a_spoilt_json_text_is_refused_in_a_line(name: str, tmp_path: Path) -> None:
    record = json.loads(gpudrive_text(scenario_proto()))
    change, code = JSONS[name]
    change(record)
    assert refusal(read(tmp_path / "x.json", json.dumps(record).encode())).code == code


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"[1]", b"1" * 5000])
def test_texts_that_are_no_json_of_this_kind(content: bytes, tmp_path: Path) -> None:
    assert refusal(read(tmp_path / "x.json", content)).code in ("json", "kind", "record")
