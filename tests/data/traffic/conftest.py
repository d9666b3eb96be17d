"""One small generated data set for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from data.scene import Scene
from data.tfrecord import read_records
from data.womd import parse_scenario
from pipeline.stages.traffic import TrafficConfig, run_traffic

CONFIG = TrafficConfig(
    training=6,
    validation=3,
    testing=2,
    scenarios_per_shard=3,
    scenarios_per_world=2,
    warm_up=25.0,
    workers=1,
)
SEED = 4


def read_split(folder: Path, split: str) -> list[Scene]:
    scenes = []
    for path in sorted((folder / split).iterdir()):
        for record in read_records(path):
            assert isinstance(record, bytes)
            scenes.append(parse_scenario(record))
    return scenes


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run."""
    folder = tmp_path_factory.mktemp("traffic") / "generated"
    run_traffic(CONFIG, out=folder, seed=SEED)
    return folder


@pytest.fixture(scope="session")
def scenes(generated: Path) -> list[Scene]:
    """Training and validation scenes."""
    return read_split(generated, "training") + read_split(generated, "validation")
