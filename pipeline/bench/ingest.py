"""Ingest: records to scenes, and scenes to a store and back, on one core."""

from __future__ import annotations

import tempfile
from pathlib import Path

from data.store import SceneStore, shard_name, write_shard
from data.tfrecord import read_records
from data.womd import parse_scenario
from pipeline.bench.rows import Row, cpu_seconds, record_files


def bench() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        kind, files = record_files(Path(folder) / "traffic")
        records = [record for file in files for record in read_records(file) if isinstance(record, bytes)]
        scenes = [parse_scenario(record) for record in records]
        store = Path(folder) / "store"
        path = store / shard_name("validation", 0, 1)
        parsing = cpu_seconds(lambda: [parse_scenario(record) for record in records])
        writing = cpu_seconds(lambda: write_shard(path, scenes))
        opened = SceneStore(store)
        reading = cpu_seconds(lambda: [opened[index] for index in range(len(opened))])
        count = len(records)
        return [
            Row(f"parse, {kind}", count / parsing, "scenarios/s"),
            Row(f"ingest (parse and store), {kind}", count / (parsing + writing), "scenarios/s"),
            Row(f"read from the store, {kind}", count / reading, "scenarios/s"),
            Row(
                f"store, {kind}",
                path.stat().st_size / count,
                "bytes/scenario",
                sum(map(len, records)) / count,
                sum(map(len, records)) / path.stat().st_size,
            ),
        ]
