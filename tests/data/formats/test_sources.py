"""Which files are of which format: by name, by content, and what is said of the wrong ones."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import UserError
from data.formats.catalogue import AUTO
from data.scenes_source import content_digest, open_scenes
from data.sources import find_shards
from data.tfrecord import write_records
from tests.builders import scenario_proto
from tests.other_formats import gpudrive_text, nuscenes_record, scenarionet_record, to_pickle

PICKLE = to_pickle(scenarionet_record(scenario_proto("pickled")))
TEXT = gpudrive_text(scenario_proto("text"))


def put(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def formats(data: Path | str, split: str | None = None, format: str = AUTO) -> list[tuple[str, str]]:
    return [(shard.name, shard.format) for shard in find_shards(str(data), split, format)]


def test_a_folder_is_read_by_its_names(tmp_path: Path) -> None:
    # Converters name files after the TFRecord that they come from, and ScenarioNet's sets have two lists.
    put(tmp_path, "json/training/tfrecord-00000-of-01000_4.json", TEXT)
    put(tmp_path, "net/set_0/sd_nuscenes_a.pkl", PICKLE)
    put(tmp_path, "net/sd_nuscenes_b.pkl", PICKLE)
    for name in ("dataset_summary.pkl", "dataset_mapping.pkl", ".hidden.pkl"):
        put(tmp_path, f"net/{name}", b"\x80\x04N.")
    assert formats(tmp_path / "json", "training") == [("tfrecord-00000-of-01000_4.json", "gpudrive")]
    names = [("sd_nuscenes_b.pkl", "scenarionet"), ("sd_nuscenes_a.pkl", "scenarionet")]
    assert formats(tmp_path / "net", "validation") == names
    assert formats(f"{tmp_path}/net/*.pkl", "training")[-1] == names[0]


def test_a_file_without_a_telling_name_by_its_content(tmp_path: Path) -> None:
    assert formats(put(tmp_path, "a", PICKLE)) == [("a", "scenarionet")]
    assert formats(put(tmp_path, "b", TEXT)) == [("b", "gpudrive")]
    write_records(tmp_path / "c", [b"x"])
    assert formats(tmp_path / "c") == [("c", "womd")]


def test_spoilt_files_do_not_hide_the_others(tmp_path: Path) -> None:
    """Whichever the file system lists first; ingest names them."""
    for number in range(8):
        put(tmp_path, f"json/{number}.json", TEXT if number == 5 else b"")
        put(tmp_path, f"net/{number}.pkl", PICKLE if number == 5 else b"<html>")
    assert {shard for _, shard in formats(tmp_path / "json")} == {"gpudrive"}
    assert len(formats(tmp_path / "net")) == 8
    put(tmp_path, "net/5.pkl", b"")
    with pytest.raises(UserError, match="no TFRecord files"):
        formats(tmp_path / "net")


def test_tfrecords_come_first(tmp_path: Path) -> None:
    write_records(tmp_path / "training.tfrecord", [scenario_proto("s").SerializeToString()])
    put(tmp_path, "notes.json", b"{}")
    put(tmp_path, "sd_x.pkl", PICKLE)
    assert formats(tmp_path) == [("training.tfrecord", "womd")]
    assert formats(tmp_path, format="scenarionet") == [("sd_x.pkl", "scenarionet")]


def test_wrong_formats_are_a_line(tmp_path: Path) -> None:
    put(tmp_path, "net/sd_x.pkl", PICKLE)
    put(tmp_path, "two/sd_x.pkl", PICKLE)
    put(tmp_path, "two/x.json", TEXT)
    put(tmp_path, "notes/manifest.json", b'{"stage": "sample"}')
    for folder, chosen, words in (
        ("net", "lyft", "expected one of auto, womd, scenarionet, gpudrive"),
        ("net", "womd", "no TFRecord files.*tokenize reads the 1 ScenarioNet files"),
        ("net", "gpudrive", "no GPUDrive files"),
        ("two", AUTO, "files of scenarionet and gpudrive"),
        ("notes", AUTO, "no TFRecord files"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            formats(tmp_path / folder, None, chosen)
        assert "\n" not in str(caught.value)


def test_scenes_without_a_store(tmp_path: Path) -> None:
    put(tmp_path, "sd_a.pkl", PICKLE)
    put(tmp_path, "sd_b.pkl", to_pickle(nuscenes_record()))
    source = open_scenes(tmp_path)
    assert source.ids == ["pickled", "nuscenes-scene-0001@0000", "nuscenes-scene-0001@0080"]
    assert len(source) == len(list(source)) == 3
    assert source.get("pickled").scenario_id == source[0].scenario_id == "pickled"
    digest = content_digest(str(tmp_path))
    put(tmp_path, "sd_b.pkl", PICKLE)
    assert content_digest(str(tmp_path)) != digest
    with pytest.raises(UserError, match="occurs more than once"):
        open_scenes(tmp_path)
    put(tmp_path, "sd_b.pkl", PICKLE[:-9])
    with pytest.raises(UserError, match=r"sd_b.pkl: record 0: not a pickle"):
        open_scenes(tmp_path)
