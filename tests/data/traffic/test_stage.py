"""The shards: names, counts, parsing, determinism, resuming, refusals."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.scene import CURRENT_INDEX, NUM_STEPS
from data.tfrecord import read_records
from data.womd import RecordError, parse_scenario
from pipeline.stages.traffic import TrafficConfig, run_traffic
from tests.data.traffic.conftest import CONFIG, SEED, read_split


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_layout_is_that_of_womd(generated: Path) -> None:
    names = {str(path.relative_to(generated)) for path in generated.rglob("*tfrecord*")}
    assert names == {
        "training/training.tfrecord-00000-of-00002",
        "training/training.tfrecord-00001-of-00002",
        "validation/validation.tfrecord-00000-of-00001",
        "testing/testing.tfrecord-00000-of-00001",
    }


@pytest.mark.parametrize(("split", "count"), [("training", 6), ("validation", 3), ("testing", 2)])
def test_every_record_parses(generated: Path, split: str, count: int) -> None:
    parsed = read_split(generated, split)
    assert len(parsed) == count
    for scene in parsed:
        assert re.fullmatch("[0-9a-f]{16}", str(scene.scenario_id))
        assert scene.num_steps == (CURRENT_INDEX + 1 if split == "testing" else NUM_STEPS)
        torch.testing.assert_close(scene.timestamp, torch.arange(scene.num_steps).double() / 10)
        assert scene.unscorable_reason == ("only 11 of 91 steps" if split == "testing" else None)


def test_testing_scenes_have_no_future(generated: Path) -> None:
    for scene in read_split(generated, "testing"):
        assert scene.agents.valid.any(dim=1).all(), "a track without any state tells of the future"
        assert scene.lights.state.shape[1] == CURRENT_INDEX + 1
        assert scene.agents.to_predict.any()
    record = next(iter(read_records(generated / "testing" / "testing.tfrecord-00000-of-00001")))
    assert isinstance(record, bytes)
    with pytest.raises(RecordError, match="future"):
        parse_scenario(record, need_future=True)


def test_ids_and_worlds_differ(generated: Path) -> None:
    every = [scene for split in ("training", "validation", "testing") for scene in read_split(generated, split)]
    assert len({scene.scenario_id for scene in every}) == len(every)
    # Every network is moved to a place of its own, so its first road edge tells networks apart.
    corners = {
        split: {_place(scene) for scene in read_split(generated, split)} for split in ("training", "validation")
    }
    assert not corners["training"] & corners["validation"]
    assert len(corners["training"]) >= 3


def _place(scene) -> tuple[int, int]:
    x, y = scene.map.point[:, :2].mean(dim=0).tolist()
    return round(x / 1000), round(y / 1000)


def test_same_bytes_whatever_the_workers_and_interruptions(generated: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(generated, again)
    # As after a kill: one shard missing, of another one only the tally written, scratch files left behind.
    (again / "training" / "training.tfrecord-00001-of-00002").unlink()
    (again / "validation" / "validation.tfrecord-00000-of-00001").unlink()
    (again / "counts" / "validation-00000-of-00001.json").unlink()
    (again / ".scratch" / "old").mkdir(parents=True)
    kept = again / "training" / "training.tfrecord-00000-of-00002"
    before = kept.stat().st_mtime_ns
    figures = run_traffic(dataclasses.replace(CONFIG, workers=2), out=again, seed=SEED)
    assert contents(again) == contents(generated)
    assert kept.stat().st_mtime_ns == before
    assert figures == run_traffic(CONFIG, out=generated, seed=SEED), "nothing left to do, same figures"


def test_seed_changes_everything(generated: Path, tmp_path: Path) -> None:
    small = dataclasses.replace(CONFIG, training=0, validation=1, testing=0)
    run_traffic(small, out=tmp_path, seed=SEED + 1)
    (other,) = read_split(tmp_path, "validation")
    assert str(other.scenario_id) not in {str(scene.scenario_id) for scene in read_split(generated, "validation")}


def test_other_settings_are_refused(generated: Path) -> None:
    changes = r"holds traffic made with other settings \(radius .* -> 140.0, seed \d+ -> \d+\)"
    with pytest.raises(UserError, match=changes):
        run_traffic(dataclasses.replace(CONFIG, radius=140.0), out=generated, seed=SEED + 1)


@pytest.mark.parametrize(
    "change",
    [{"training": -1}, {"scenarios_per_shard": 0}, {"scenarios_per_world": 0}, {"radius": 50.0}, {"warm_up": -1}],
)
def test_impossible_settings_are_named(change: dict[str, float]) -> None:
    (name,) = change
    with pytest.raises(UserError, match=f"traffic.{name}"):
        TrafficConfig(**change)  # type: ignore[arg-type]
