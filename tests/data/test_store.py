"""The store gives back every bit, by number and by id, and names damage."""

from __future__ import annotations

import dataclasses
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from data import store as store_module
from data.batch import collate
from data.completeness import Origin, Rejected
from data.errors import UserError
from data.scene import Agents, Lights, RoadMap, Scene
from data.scene_codec import decode_row, encode_row
from data.scenes_source import content_digest, open_scenes
from data.store import SceneStore, check_disjoint, shard_name, write_shard
from data.tfrecord import read_records, write_records
from data.womd import parse_scenario
from models.checkpoints import scene_digests, seen_scenes
from tests.builders import scenario_proto
from tests.scenes import Mover, hand_made


def assert_same(a: object, b: object) -> None:
    """Equal to the bit, NaN included."""
    assert type(a) is type(b)
    for field in dataclasses.fields(a):  # type: ignore[arg-type]
        x, y = getattr(a, field.name), getattr(b, field.name)
        if isinstance(x, Tensor):
            assert x.dtype == y.dtype, field.name
            assert x.shape == y.shape, field.name
            assert x.numpy().tobytes() == y.contiguous().numpy().tobytes(), field.name
        elif dataclasses.is_dataclass(x):
            assert_same(x, y)
        else:
            assert x == y, field.name


def make_scene(index: int, agents: int = 3, steps: int = 91) -> Scene:
    proto = scenario_proto(f"{index:016x}", steps=steps, agents=agents)
    return parse_scenario(proto.SerializeToString())


def random_scene(rng: np.random.Generator, counts: list[int], steps: int) -> Scene:
    """A scene of arbitrary bits: every float pattern, also NaN and infinity."""
    a, p, f, k, s = counts

    def floats(*shape: int) -> Tensor:
        bits = rng.integers(-(2**31), 2**31, size=shape, dtype=np.int64).astype(np.int32)
        return torch.from_numpy(bits.view(np.float32))

    def integers(*shape: int) -> Tensor:
        return torch.from_numpy(rng.integers(-(2**62), 2**62, size=shape))

    def flags(*shape: int) -> Tensor:
        return torch.from_numpy(rng.random(shape) < 0.5)

    return Scene(
        "x",
        torch.from_numpy(rng.normal(size=steps)),
        Agents(
            integers(a), integers(a), floats(a, steps, 3), floats(a, steps), floats(a, steps, 2),
            floats(a, steps, 3), flags(a, steps), flags(a), flags(a), flags(a),
        ),
        RoadMap(
            floats(p, 3), integers(p), integers(f), integers(f), integers(f), floats(f), flags(f),
            integers(k), integers(k), integers(k),
        ),
        Lights(integers(s), integers(s, steps), floats(s, steps, 3), flags(s, steps)),
    )  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.lists(st.integers(0, 5), min_size=5, max_size=5), st.sampled_from([11, 91]))
def test_codec_keeps_every_bit(seed: int, counts: list[int], steps: int) -> None:
    scene = random_scene(np.random.default_rng(seed), counts, steps)
    row = encode_row(scene)
    assert_same(decode_row({name: row.column(name) for name in row.schema.names}), scene)


@pytest.mark.womd
def test_real_scenes_survive_and_are_small(womd: Path, tmp_path: Path) -> None:
    files = sorted((womd / "validation").iterdir())[:1]
    scenes = [
        parse_scenario(record) for file in files for record in read_records(file) if isinstance(record, bytes)
    ]
    path = tmp_path / shard_name("validation", 0, 1)
    write_shard(path, scenes)
    for stored, scene in zip(SceneStore(tmp_path), scenes, strict=True):
        assert_same(stored, scene)
    assert path.stat().st_size / len(scenes) < 100_000


@pytest.fixture
def store(tmp_path: Path) -> SceneStore:
    write_shard(tmp_path / shard_name("training", 1, 2), [make_scene(3, agents=9)])
    write_shard(tmp_path / shard_name("training", 0, 2), [make_scene(1), make_scene(2, agents=5)])
    return SceneStore(tmp_path)


def test_access_by_number_and_id(store: SceneStore) -> None:
    assert store.ids == [f"{index:016x}" for index in (1, 2, 3)]
    assert_same(store.get(f"{2:016x}"), make_scene(2, agents=5))
    assert [info.agents for info in store.infos] == [3, 5, 9]
    assert_same(pickle.loads(pickle.dumps(store))[0], make_scene(1))
    with pytest.raises(KeyError):
        store.get("nobody")


def test_few_shards_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scenes = [parse_scenario(scenario_proto(f"{index:016x}").SerializeToString()) for index in range(5)]
    for index, scene in enumerate(scenes):
        write_shard(tmp_path / shard_name("testing", index, 5), [scene])
    opened, real = list[str](), store_module._opened

    def noted(shard: Path) -> pq.ParquetFile:
        opened.append(shard.name)
        return real(shard)

    monkeypatch.setattr(store_module, "_opened", noted)
    monkeypatch.setattr(store_module, "_OPEN_FILES", 2)
    many = SceneStore(tmp_path)
    for index in (0, 1, 0, 2, 0, 1):
        assert_same(many[index], scenes[index])
    # The one used last stays: of 0, 1 and 2 the second is closed for the third, and opened again.
    assert [int(name.split("-")[1]) for name in opened] == [0, 1, 2, 1]


def test_works_beside_tensorflow(store: SceneStore, tmp_path: Path) -> None:
    """TensorFlow brings an Arrow of its own, which takes the names of the file systems."""
    code = (
        "import sys, tensorflow\n"
        "from pathlib import Path\n"
        "from data.store import SceneStore, shard_name, write_shard\n"
        "scenes = list(SceneStore(sys.argv[1]))\n"
        "write_shard(Path(sys.argv[2]) / shard_name('training', 0, 1), scenes)\n"
        "assert len(SceneStore(sys.argv[2])) == 3\n"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(store.folder), str(tmp_path / "copy")],
        check=True,
        capture_output=True,
        cwd=Path(__file__).parents[2],
    )


def test_bytes_depend_on_scenes_alone(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name, [make_scene(1), make_scene(2)], origin=lambda: Origin(("x",)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def scenes():
        yield make_scene(1)
        raise ValueError("broken source")

    with pytest.raises(ValueError, match="broken source"):
        write_shard(tmp_path / "shard", scenes())
    assert list(tmp_path.iterdir()) == []


def test_damage_is_named(store: SceneStore, tmp_path: Path) -> None:
    shard = tmp_path / shard_name("training", 0, 2)
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged shard"):
        SceneStore(tmp_path)
    table = pq.read_table(tmp_path / shard_name("training", 1, 2))
    pq.write_table(table, shard)
    with pytest.raises(UserError, match="not a scene store shard"):
        SceneStore(tmp_path)
    with pytest.raises(UserError, match="no scene store here"):
        SceneStore(tmp_path / "nowhere")


def test_open_scenes_takes_store_and_records(store: SceneStore, tmp_path: Path) -> None:
    records = tmp_path / "training.tfrecord-00000-of-00001"
    write_records(records, [scenario_proto(f"{index:016x}").SerializeToString() for index in (5, 6)])
    assert open_scenes(tmp_path).ids == store.ids
    source = open_scenes(records)
    assert source.ids == [f"{index:016x}" for index in (5, 6)]
    assert_same(source.get(f"{6:016x}"), make_scene(6))
    write_records(records, [scenario_proto("same").SerializeToString()] * 2)
    with pytest.raises(UserError, match="scenario same occurs more than once"):
        open_scenes(records)


def test_collate_pads() -> None:
    scenes = [make_scene(1), make_scene(2, agents=6), make_scene(3, agents=1)]
    batch = collate(scenes, multiple=8)
    assert batch.agents.position.shape == (3, 8, 91, 3)
    assert not batch.agents.valid[0, 3:].any()
    assert (batch.agents.id[2, 1:] == -1).all()
    assert batch.simulated.sum(-1).tolist() == [int(scene.simulated.sum()) for scene in scenes]
    for row, scene in enumerate(scenes):
        agents, points = len(scene.agents.id), len(scene.map.point)
        assert torch.equal(batch.agents.position[row, :agents], scene.agents.position)
        assert torch.equal(batch.map.point[row, :points], scene.map.point)
        assert torch.equal(batch.lights.state[row, : len(scene.lights.lane_id)], scene.lights.state)
    with pytest.raises(ValueError, match="different lengths"):
        collate([make_scene(1), make_scene(2, steps=11)])


def test_padding_points_at_nothing() -> None:
    """What names something else is -1 in padding, everything else 0."""
    rng = np.random.default_rng(1)
    batch = collate([random_scene(rng, [5, 6, 7, 8, 9], 11), random_scene(rng, [1, 2, 3, 4, 5], 11)])
    names = {"id", "point_feature", "feature_id", "link_source", "link_target", "lane_id"}
    for part in (batch.agents, batch.map, batch.lights):
        for field in dataclasses.fields(part):
            padding = getattr(part, field.name)[1, -4:]
            assert (padding == (-1 if field.name in names else 0)).all(), field.name


def test_a_store_is_known_by_its_content(tmp_path: Path) -> None:
    """Not by where it lies, nor when it was written."""
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        write_shard(folder / shard_name("training", 0, 1), [hand_made([Mover(x=float(seed))])])
    digests = [content_digest(str(folder)) for folder in folders]
    assert digests[0] == digests[1] != digests[2]
    write_shard(folders[1] / shard_name("training", 1, 2), [hand_made([Mover(x=2.0)])])
    assert content_digest(str(folders[1])) != digests[0]


def test_a_store_knows_where_it_comes_from(tmp_path: Path) -> None:
    lost = Rejected("b", "3", "proto", "no message")
    for index, origin in enumerate((Origin(("a",)), Origin(("b",), (lost,)))):
        write_shard(
            tmp_path / shard_name("training", index, 2),
            [make_scene(index)],
            partial(Origin, origin.files, origin.rejected),
        )
    assert SceneStore(tmp_path).origin == Origin(("a", "b"), (lost,))


def test_a_part_of_a_store_is_told(store: SceneStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / shard_name("training", 0, 2)).unlink()
    with pytest.raises(
        UserError, match="1 of 2 shards of training are missing: training-00000-of-00002; run tokenize"
    ):
        SceneStore(tmp_path)
    monkeypatch.setenv("SPACER_PARTIAL", "1")
    assert len(SceneStore(tmp_path)) == 1
    write_shard(tmp_path / shard_name("testing", 0, 1), [make_scene(1)])
    with pytest.raises(UserError, match=r"shards of several stores \(testing, training\)"):
        SceneStore(tmp_path)


def test_stores_that_share_scenarios_are_told(store: SceneStore, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shared = store[1]
    write_shard(other / shard_name("validation", 0, 1), [dataclasses.replace(shared, scenario_id="new"), shared])
    with pytest.raises(UserError, match=f"1 of its scenarios are in {other} too .{shared.scenario_id}."):
        check_disjoint(store, SceneStore(other))
    write_shard(other / shard_name("validation", 0, 1), [dataclasses.replace(shared, scenario_id="new")])
    check_disjoint(store, SceneStore(other))


@pytest.mark.parametrize(
    ("ids", "shared"),
    [
        (("nuscenes-scene-1@0080", "nuscenes-scene-2@0000"), 1),
        (("nuscenes-scene-1@0000", "x"), 1),
        (("nuscenes-scene-2@0000", "nuscenes-scene-1"), 1),
        (("nuscenes-scene-2@0000", "nuscenes-scene-10@0000"), 0),
        (("nuscenes-scene-1@home", "nuscenes-scene-1@080"), 0),
    ],
)
def test_windows_of_a_recording_are_not_in_two_stores(
    store: SceneStore, tmp_path: Path, ids: tuple[str, str], shared: int
) -> None:
    for name, of_store in (("training", ("nuscenes-scene-1@0000", "nuscenes-scene-1@0160")), ("validation", ids)):
        scenes = [dataclasses.replace(store[0], scenario_id=one) for one in of_store]
        write_shard(tmp_path / name / shard_name(name, 0, 1), scenes)
    one, other = SceneStore(tmp_path / "validation"), SceneStore(tmp_path / "training")
    assert len(seen_scenes(scene_digests(other.ids), one.ids)) == shared
    if not shared:
        check_disjoint(one, other)
        return
    with pytest.raises(
        UserError, match=rf"{shared} of its scenarios are (of recordings that are )?in .*training too"
    ):
        check_disjoint(one, other)
