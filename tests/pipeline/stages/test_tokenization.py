"""Stage ``tokenize``: everything is stored or listed, whatever is wrong with it, and killing it loses nothing."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import pytest

from data.errors import UserError, warn_once
from data.scenes_source import open_scenes
from data.store import SceneStore
from data.tfrecord import write_records
from data.vocabulary import Vocabulary, VocabularyConfig
from pipeline.stages.tokenize import TokenizeConfig, run_tokenize
from tests.builders import scenario_proto

CONFIG = TokenizeConfig(workers=1, vocabulary=VocabularyConfig(size=12, max_segments=2000))


def record(name: str, **options: int) -> bytes:
    return scenario_proto(name, **options).SerializeToString()  # type: ignore[arg-type]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for index in range(3):
        write_records(
            tmp_path / "data" / "training" / f"training.tfrecord-{index:05d}-of-00003",
            [record(f"s{index}{number}", agents=3 + number) for number in range(2)],
        )
    return tmp_path / "data"


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_store_vocabulary_and_figures(data: Path, tmp_path: Path) -> None:
    figures = run_tokenize(CONFIG, data=str(data), split="training", out=tmp_path / "out", seed=0)
    assert figures["scenes"] == 6
    assert figures["rejected"] == 0
    assert SceneStore(tmp_path / "out").ids == ["s00", "s01", "s10", "s11", "s20", "s21"]
    vocabulary = Vocabulary.load(tmp_path / "out" / "vocabulary.pt")
    assert vocabulary.poses.shape[:2] == (3, 12)


def test_same_bytes_whatever_the_workers_and_interruptions(data: Path, tmp_path: Path) -> None:
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    run_tokenize(CONFIG, data=str(data), split="training", out=whole, seed=0)
    run_tokenize(
        TokenizeConfig(workers=2, vocabulary=CONFIG.vocabulary),
        data=str(data),
        split="training",
        out=pieces,
        seed=0,
    )
    assert content(pieces) == content(whole)
    # As a kill between shards would leave it, with a temporary file of the shard in hand.
    for name in ("training-00001-of-00003.scenes.parquet", "vocabulary.pt", "rejected.csv"):
        (pieces / name).unlink()
    kept = (pieces / "training-00000-of-00003.scenes.parquet").stat().st_mtime_ns
    run_tokenize(CONFIG, data=str(data), split="training", out=pieces, seed=0)
    assert content(pieces) == content(whole)
    assert (pieces / "training-00000-of-00003.scenes.parquet").stat().st_mtime_ns == kept


def test_a_changed_source_is_ingested_again(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_tokenize(CONFIG, data=str(data), split="training", out=out, seed=0)
    write_records(data / "training" / "training.tfrecord-00001-of-00003", [record("new")])
    run_tokenize(CONFIG, data=str(data), split="training", out=out, seed=0)
    assert "new" in SceneStore(out).ids


def test_rejected_records_are_listed_and_fail_the_stage(data: Path, tmp_path: Path) -> None:
    bad = data / "training" / "training.tfrecord-00001-of-00003"
    write_records(bad, [record("good"), b"not a proto", record("good"), record("short", steps=11), record("last")])
    raw = bytearray(bad.read_bytes())
    raw[-10] ^= 1
    bad.write_bytes(bytes(raw))
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"00001-of-00003: record 1: not a Scenario.*4 rejected records in all"):
        run_tokenize(CONFIG, data=str(data), split="training", out=out, seed=0)
    with (out / "rejected.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["record"], row["code"]) for row in rows] == [
        ("1", "proto"),
        ("2", "duplicate"),
        ("3", "no_future"),
        ("4", "record"),
    ]
    allowed = dataclasses.replace(CONFIG, allow_rejected=True)
    figures = run_tokenize(allowed, data=str(data), split="training", out=out, seed=0)
    assert (figures["scenes"], figures["rejected"]) == (5, 4)


def test_scene_without_map_is_kept_and_marked(tmp_path: Path) -> None:
    write_records(
        tmp_path / "validation.tfrecord-00000-of-00001",
        [scenario_proto("bare", with_map=False).SerializeToString()],
    )
    out = tmp_path / "out"
    figures = run_tokenize(CONFIG, data=str(tmp_path), split="validation", out=out, seed=0)
    assert figures["unscorable"] == 1
    assert SceneStore(out).infos[0].unscorable_reason == "no road edge"


def test_clear_errors(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--split trainin: expected one of training, validation, testing"):
        run_tokenize(CONFIG, data=str(data), split="trainin", out=tmp_path / "out")
    write_records(data / "training" / "training.tfrecord-00002-of-00003", [record("s00")])
    both = r"training-00000-of-00003, training-00002-of-00003"
    with pytest.raises(UserError, match=rf"scenario s00 occurs in more than one shard \({both}\); remove one"):
        run_tokenize(CONFIG, data=str(data), split="training", out=tmp_path / "out")
    empty = tmp_path / "empty"
    write_records(empty / "training.tfrecord-00000-of-00001", [])
    with pytest.raises(UserError, match=r"empty \(0 bytes\), not a TFRecord"):
        run_tokenize(CONFIG, data=str(empty), split="training", out=tmp_path / "none")


def test_what_was_put_right_is_said_once_for_the_dataset(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By tokenize, also when it finds its work done, and by whoever reads the records directly."""
    for shard in range(2):
        protos = [scenario_proto(f"{shard}{number}") for number in range(3)]
        for proto in protos[:2]:
            proto.tracks[0].states[5].velocity_x = math.nan
        write_records(
            tmp_path / "data" / f"validation.tfrecord-0000{shard}-of-00002", [p.SerializeToString() for p in protos]
        )
    warn_once.cache_clear()
    text = (
        "4 scenarios have velocities that are NaN or infinite in valid states; differences of positions are taken"
    )
    for _ in range(2):
        run_tokenize(CONFIG, data=str(tmp_path / "data"), split="validation", out=tmp_path / "store")
        said = capsys.readouterr().err
        assert said.count("warning: ") == said.count(f"data: validation: {text} instead (00, 01, 10)\n") == 1
        warn_once.cache_clear()
    for _ in range(2):
        assert len(list(open_scenes(tmp_path / "data"))) == 6
    said = capsys.readouterr().err
    assert said.count("warning: ") == said.count(f"validation.tfrecord-00000-of-00002 and 1 more: {text}") == 1


def test_a_store_remembers_what_was_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "testing", tmp_path / "store"
    for index in (0, 3):
        write_records(folder / f"testing.tfrecord-{index:05d}-of-00150", [record(f"s{index}", steps=11)])
    with pytest.raises(UserError, match="148 of 150 shards of testing are missing"):
        run_tokenize(CONFIG, data=str(folder), split="testing", out=out)
    monkeypatch.setenv("SPACER_PARTIAL", "1")
    assert run_tokenize(CONFIG, data=str(folder), split="testing", out=out)["missing_shards"] == 148
    assert "warning: " in capsys.readouterr().err
    monkeypatch.delenv("SPACER_PARTIAL")
    assert SceneStore(out).origin.absence.startswith("148 of 150 shards of testing are missing")
    # A file that was named is a choice, and remembered too.
    file = folder / "testing.tfrecord-00003-of-00150"
    assert run_tokenize(CONFIG, data=str(file), split="testing", out=tmp_path / "one")["missing_shards"] == 149


def test_a_store_of_another_split_is_not_replaced(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_tokenize(CONFIG, data=str(data), split="training", out=out)
    write_records(tmp_path / "validation" / "validation.tfrecord", [record("v")])
    with pytest.raises(UserError, match="out: holds a store of training; give another folder for validation"):
        run_tokenize(CONFIG, data=str(tmp_path), split="validation", out=out)
    assert len(SceneStore(out)) == 6


def test_splits_that_share_a_scenario(data: Path, tmp_path: Path) -> None:
    stores = tmp_path / "store"
    run_tokenize(CONFIG, data=str(data), split="training", out=stores / "training")
    # The same scenario under another name, in a copy of other bytes.
    write_records(tmp_path / "validation" / "v.tfrecord", [record("v"), record("s10", agents=5)])
    with pytest.raises(UserError, match=r"validation: 1 of its scenarios are in .*training too \(s10\)"):
        run_tokenize(CONFIG, data=str(tmp_path), split="validation", out=stores / "validation")
