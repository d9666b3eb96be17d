"""A few generated scenes."""

from __future__ import annotations

import pytest

from data.scene import Scene
from data.tfrecord import read_records
from data.womd import parse_scenario
from pipeline.stages.traffic import TrafficConfig, run_traffic


@pytest.fixture(scope="session")
def generated(tmp_path_factory: pytest.TempPathFactory) -> list[Scene]:
    folder = tmp_path_factory.mktemp("planners") / "traffic"
    config = TrafficConfig(
        training=3, validation=1, testing=1, scenarios_per_shard=3, scenarios_per_world=2, warm_up=25.0, workers=1
    )
    run_traffic(config, out=folder, seed=4)
    (shard,) = (folder / "training").iterdir()
    records = [record for record in read_records(shard) if isinstance(record, bytes)]
    return [parse_scenario(record) for record in records]
