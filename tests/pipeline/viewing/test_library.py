"""Scenarios and rollouts are found, and found again, without being kept."""

from __future__ import annotations

import resource
import shutil
import tarfile
import zlib
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.store import SceneStore
from data.tfrecord import write_records
from data.womd import parse_scenario
from pipeline.viewing.library import Catalogue, Filter
from pipeline.viewing.shelves import RecordShelf, RolloutShelf, StoreShelf, open_shelf
from submission.protos import read_rollouts
from tests.builders import scenario_proto


@pytest.fixture
def records(tmp_path: Path) -> Path:
    path = tmp_path / "data" / "validation.tfrecord-00000-of-00001"
    protos = [
        scenario_proto(
            f"{index:016x}", agents=1 + index, with_lights=index % 2 == 0, steps=11 if index == 3 else 91
        )
        for index in range(5)
    ]
    write_records(path, [proto.SerializeToString() for proto in protos])
    return path


def catalogue_of(path: Path, *shelves, scores=None) -> Catalogue:
    catalogue = Catalogue(open_shelf(str(path)), shelves, scores)
    catalogue.find()
    return catalogue


def test_records_are_listed_as_they_are_and_read_again(records: Path) -> None:
    found = list(RecordShelf(str(records.parent)).find())
    assert [one.outline.scenario_id for one in found if one.outline] == [f"{index:016x}" for index in range(5)]
    for index, one in enumerate(found):
        scene = RecordShelf(str(records)).scene(one.key)
        proto = scenario_proto(
            f"{index:016x}", agents=1 + index, with_lights=index % 2 == 0, steps=11 if index == 3 else 91
        )
        exact = parse_scenario(proto.SerializeToString())
        assert scene.scenario_id == exact.scenario_id
        assert torch.equal(scene.agents.position, exact.agents.position)
        assert one.outline is not None
        assert one.outline.agents == int(exact.simulated.sum())
        assert one.outline.pedestrians == int((exact.agents.type[exact.simulated] == 2).sum())
        assert one.outline.lights == len(exact.lights.lane_id)
        assert one.outline.steps == exact.num_steps


def test_a_store_says_the_same_as_its_records(made_run: Path) -> None:
    from_store = list(StoreShelf(made_run / "tokenize" / "validation").find())
    from_records = list(RecordShelf(str(made_run.parent / "womd" / "validation")).find())
    assert [one.outline for one in from_store] == [one.outline for one in from_records]


def test_broken_records_and_repeated_ids_are_told_and_the_rest_is_shown(records: Path) -> None:
    good = records.read_bytes()
    again = records.with_name("validation-again.tfrecord")
    again.write_bytes(good[:-40] + b"\0" * 40)
    write_records(records.with_name("validation-none.tfrecord"), [b"no scenario", b""])
    catalogue = catalogue_of(records.parent)
    page = catalogue.page(Filter(), 0, 100)
    assert page.complete
    assert page.found == 5
    text = "\n".join(page.defects)
    assert text.count("occurs more than once") == 4
    assert "record 4: CRC" in text
    assert "validation-none.tfrecord: record 0: " in text
    assert "record 1: scenario_id is empty" in text
    assert catalogue.scene(f"{4:016x}").num_steps == 91


def test_filters(records: Path) -> None:
    scores = {f"{0:016x}": 0.9, f"{1:016x}": 0.2, f"{4:016x}": 0.5}
    catalogue = catalogue_of(records, scores=scores)

    def ids(**wanted) -> list[int]:
        return [int(row["id"], 16) for row in catalogue.page(Filter(**wanted), 0, 100).rows]

    assert ids() == [0, 1, 2, 3, 4]
    assert ids(text="0004") == [4]
    assert ids(text="nothing") == []
    assert ids(least_agents=3) == [2, 3, 4]
    assert ids(kinds=("pedestrian",)) == [2, 3, 4]
    assert ids(kinds=("cyclist",)) == []
    assert ids(lights=True) == [0, 2, 4]
    assert ids(lights=False) == [1, 3]
    assert ids(least_score=0.4, most_score=0.6) == [4]
    assert ids(sort="score")[:3] == [1, 4, 0]
    assert ids(sort="agents") == [4, 3, 2, 1, 0]
    page = catalogue.page(Filter(), 1, 2)
    assert [row["agents"] for row in page.rows] == [2, 3]
    assert page.matching == 5


def test_rollouts_are_found_in_files_and_archives(made_run: Path, tmp_path: Path) -> None:
    rollouts, store = made_run / "sample" / "validation" / "policy", made_run / "tokenize" / "validation"
    archive = tmp_path / "entry.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(rollouts.glob("*.binproto*")):
            tar.add(file, file.name)
    shelves = [RolloutShelf("files", str(rollouts)), RolloutShelf("archive", str(archive))]
    catalogue = catalogue_of(store, *shelves)
    for exact in read_rollouts(rollouts):
        found = catalogue.rollouts(exact.scenario_id)
        assert list(found) == ["files", "archive"]
        for one in found.values():
            assert torch.equal(one.states, exact.states)
            assert torch.equal(one.agent_id, exact.agent_id)
    assert all(row["rollouts"] == ["files", "archive"] for row in catalogue.page(Filter(), 0, 9).rows)
    assert catalogue.page(Filter(rollouts=True), 0, 9).matching == 4


def test_a_truncated_archive_shows_what_it_still_has(made_run: Path, tmp_path: Path) -> None:
    rollouts = made_run / "sample" / "validation" / "policy"
    archive = tmp_path / "entry.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        for file in sorted(rollouts.glob("*.binproto*")):
            tar.add(file, file.name)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 3 // 4])
    catalogue = catalogue_of(made_run / "tokenize" / "validation", RolloutShelf("entry", str(archive)))
    page = catalogue.page(Filter(), 0, 9)
    assert page.complete
    assert any("damaged archive" in text or "truncated" in text for text in page.defects), page.defects


def test_strangers_are_counted(made_run: Path, records: Path) -> None:
    shelf = RolloutShelf("policy", str(made_run / "sample" / "validation" / "policy"))
    write_records(records, [scenario_proto("f" * 16).SerializeToString()])
    page = catalogue_of(records, shelf).page(Filter(), 0, 9)
    assert page.defects == ["policy: 4 scenarios that are not among those given"]


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no TFRecord files"):
        open_shelf(str(tmp_path))
    with pytest.raises(UserError, match="no rollouts"):
        RolloutShelf("a", str(tmp_path / "nothing"))


def test_real_records_are_listed_as_they_are(womd: Path) -> None:
    path = sorted((womd / "testing").iterdir())[0]
    for found in RecordShelf(str(path)).find():
        scene = RecordShelf(str(path)).scene(found.key)
        assert found.outline is not None
        assert found.outline.agents == int(scene.simulated.sum())
        assert found.outline.lights == len(scene.lights.lane_id)


def test_stores_are_recognised(made_run: Path) -> None:
    assert isinstance(open_shelf(str(made_run / "tokenize" / "validation")), StoreShelf)
    assert len(SceneStore(made_run / "tokenize" / "validation")) == 4


def test_an_archive_that_is_a_bomb_takes_no_memory(made_run: Path, tmp_path: Path) -> None:
    """Half a megabyte of gzip in which one field of a shard is 600 MB of zeros; what comes before it is shown."""
    good = sorted((made_run / "sample" / "validation" / "policy").glob("*.binproto*"))[0].read_bytes()
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = b""
    for name, head, zeros in (("a.binproto", good, 0), ("b.binproto", b"\x0a\x80\x8c\x8d\x9e\x02", 600_000_000)):
        member = tarfile.TarInfo(name)
        member.size = len(head) + zeros
        content += packer.compress(member.tobuf() + head + bytes(-len(head) % 512 if not zeros else 0))
        content += b"".join(packer.compress(bytes(10**7)) for _ in range(zeros // 10**7))
    archive = tmp_path / "bomb.tar.gz"
    archive.write_bytes(content + packer.flush())
    assert archive.stat().st_size < 1_500_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    catalogue = catalogue_of(made_run / "tokenize" / "validation", RolloutShelf("bomb", str(archive)))
    page = catalogue.page(Filter(), 0, 9)
    assert page.complete
    assert [text for text in page.defects if "b.binproto: 600 MB, expected less than 500" in text], page.defects
    assert any(row["rollouts"] == ["bomb"] for row in page.rows)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_rollouts_that_cannot_be_read_are_told_and_the_search_ends(made_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    shutil.copytree(made_run / "sample" / "validation" / "policy", folder)
    store = made_run / "tokenize" / "validation"
    shelf = RolloutShelf("policy", str(folder))
    _, key = next(iter(shelf.find()))
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="No such file"):
        shelf.read(key)
    catalogue = catalogue_of(store, shelf)
    page = catalogue.page(Filter(), 0, 9)
    assert page.complete
    assert any("No such file" in text for text in page.defects), page.defects
