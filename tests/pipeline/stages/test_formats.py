"""Stage ``tokenize`` with other formats: one store, whatever the files; changed files and options are noticed."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.formats.reader import WindowConfig
from data.scenes_source import open_scenes
from data.store import SceneStore
from pipeline.stages.tokenize import TokenizeConfig, ingest
from tests.other_formats import nuscenes_record, to_pickle

CONFIG = TokenizeConfig(workers=1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("scene-0001", "scene-0002"):
        record = nuscenes_record()
        record["metadata"]["scenario_id"] = name
        (folder / f"sd_nuscenes_{name}.pkl").write_bytes(to_pickle(record))
    return folder


def test_a_store_of_pickles(data: Path, tmp_path: Path) -> None:
    figures = ingest(CONFIG, data=str(data), split="training", out=tmp_path / "out")
    store = SceneStore(tmp_path / "out")
    assert store.ids == [f"nuscenes-scene-000{number}@{step}" for number in (1, 2) for step in ("0000", "0080")]
    assert figures["scenes"] == figures["derived_edges"] == figures["no_lights"] == 4
    assert figures["objects_left_out"] == 2
    assert figures["unscorable"] == 0
    for scene in open_scenes(data):
        assert torch.equal(store.get(str(scene.scenario_id)).map.point, scene.map.point)
    assert not store.origin.files


def test_other_windows_and_other_content_are_read_again(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ingest(CONFIG, data=str(data), split="training", out=out)
    narrow = replace(CONFIG, windows=WindowConfig(stride=50))
    assert ingest(narrow, data=str(data), split="training", out=out)["scenes"] == 6
    changed = data / "sd_nuscenes_scene-0002.pkl"
    changed.write_bytes(to_pickle(nuscenes_record(91)).replace(b"scene-0001", b"scene-0003"))
    assert ingest(narrow, data=str(data), split="training", out=out)["scenes"] == 4


def test_what_is_refused_is_listed(data: Path, tmp_path: Path) -> None:
    (data / "sd_nuscenes_scene-0003.pkl").write_bytes(b"\x80\x04cos\nsystem\n.")
    with pytest.raises(UserError, match=r"scene-0003.pkl: record 0: a pickle of os.system; only numpy arrays"):
        ingest(CONFIG, data=str(data), split="training", out=tmp_path / "out")
    figures = ingest(replace(CONFIG, allow_rejected=True), data=str(data), split="training", out=tmp_path / "out")
    assert (figures["scenes"], figures["rejected"]) == (4, 1)
    rows = list(csv.DictReader((tmp_path / "out" / "rejected.csv").open()))
    assert [row["code"] for row in rows] == ["pickle"]


def test_options_that_mean_nothing() -> None:
    for options in ({"stride": 0}, {"agents": 0}):
        with pytest.raises(UserError, match="expected 1 or more"):
            WindowConfig(**options)
