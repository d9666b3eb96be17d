"""Rollouts in archives: the same to every command as the files in them, and damage named."""

from __future__ import annotations

import gzip
import io
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from data.errors import IncompleteError, UserError
from data.scenes_source import open_scenes
from data.tfrecord import write_records
from pipeline.evaluation.official_metric import _find
from pipeline.stages.evaluate import EvaluateConfig, run_evaluate
from pipeline.stages.package import PackageConfig, run_package
from pipeline.stages.sample import SampleConfig, run_sample
from pipeline.viewing.report_scenes import find_rollouts, read_entry
from submission.members import file_version, open_members, read_at
from submission.protos import read_rollouts, rollout_files
from submission.validate import validate_archive
from tests.builders import scenario_proto

METADATA = Path(__file__).parents[2] / "submission" / "metadata.example.yaml"
CONFIG = EvaluateConfig(workers=1)
SUFFIXES = (".tar.gz", ".tgz", ".tar")


def pack(archive: Path, files: dict[str, bytes]) -> Path:
    mode = "w" if archive.name.endswith(".tar") else "w:gz"
    with tarfile.open(archive, mode) as tar:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    protos = [scenario_proto(f"{index:016x}", agents=2 + index) for index in range(3)]
    write_records(folder / "validation.tfrecord-00000-of-00001", [proto.SerializeToString() for proto in protos])
    run_sample(
        SampleConfig(agent="constant_velocity", shard_scenarios=2, workers=1),
        scenarios=str(folder),
        out=folder / "rollouts",
    )
    shards = {f"deep/{file.name}": file.read_bytes() for file in rollout_files(folder / "rollouts")}
    # What programs of an operating system add, and people.
    others = {"deep/._x.binproto-00000-of-00002": bytes(900), "README.txt": b"An entry to the challenge.\n"}
    for suffix in SUFFIXES:
        pack(folder / f"entry{suffix}", {**others, **shards})
    return folder


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_archive_is_scored_and_packed_as_its_files_are(made: Path, tmp_path: Path, suffix: str) -> None:
    archive = made / f"entry{suffix}"
    found = {one.scenario_id: one for one in read_rollouts(archive)}
    expected = list(read_rollouts(made / "rollouts"))
    assert sorted(found) == sorted(one.scenario_id for one in expected)
    for one in expected:
        assert torch.equal(found[one.scenario_id].states, one.states)
    figures = [
        run_evaluate(CONFIG, scenarios=made, rollouts=place, out=tmp_path / name, show=False)
        for name, place in (("a", archive), ("b", made / "rollouts"))
    ]
    assert figures[0] == figures[1]
    assert figures[0]["scenarios"] == 3
    for name, place in (("a", archive), ("b", made / "rollouts")):
        config = PackageConfig(workers=1)
        run_package(config, rollouts=place, scenarios=made, metadata=METADATA, out=tmp_path / f"{name}.tar.gz")
    assert (tmp_path / "a.tar.gz").read_bytes() == (tmp_path / "b.tar.gz").read_bytes()
    # The report, and the cross-check against Waymo's code.
    wanted = [one.scenario_id for one in expected[1:]]
    entries = find_rollouts(archive, wanted)
    for one in expected[1:]:
        assert torch.equal(read_entry(entries[one.scenario_id]).states, one.states)
    assert set(_find(str(archive), set(wanted))) == set(wanted)


def test_a_folder_of_an_archive_alone_is_that_archive(made: Path, tmp_path: Path) -> None:
    copy = shutil.copy(made / "entry.tar.gz", tmp_path)
    assert rollout_files(tmp_path) == [Path(copy)]
    shutil.copy(rollout_files(made / "rollouts")[0], tmp_path)
    assert [file.name for file in rollout_files(tmp_path)] == ["rollouts.binproto-00000-of-00002"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_archive_is_named_and_what_comes_before_counts(made: Path, tmp_path: Path, suffix: str) -> None:
    whole = (made / f"entry{suffix}").read_bytes()
    damaged = tmp_path / f"entry{suffix}"
    damaged.write_bytes(whole[: len(whole) * 9 // 10 if suffix == ".tar" else len(whole) - 200])
    with pytest.raises(UserError, match=r"entry\.\w+.*(truncated|damaged archive)") as caught:
        list(read_rollouts(damaged))
    assert "\n" not in str(caught.value)
    with pytest.raises(IncompleteError, match=r"1 rollouts cannot be scored .*(truncated|damaged archive)"):
        run_evaluate(CONFIG, scenarios=made, rollouts=damaged, out=tmp_path / "o", show=False)
    damaged.write_bytes(whole[:20])
    with pytest.raises(UserError, match=r"entry\.\w+"):
        list(read_rollouts(damaged))


def test_archives_of_other_things_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    pack(path, {"validation.tfrecord-00000-of-00001": b"x" * 700})
    with pytest.raises(UserError, match="the archive holds no rollouts; expected names such as submission"):
        list(read_rollouts(path))
    pack(path, {"a.binproto": b"<html>gone</html>" * 9})
    with pytest.raises(UserError, match=r"a\.binproto"):
        list(read_rollouts(path))
    path.write_bytes(gzip.compress(b"no tar at all" * 99))
    with pytest.raises(UserError, match=r"gzip-compressed, not rollouts .*: gunzip it"):
        list(read_rollouts(path))
    header = bytearray(pack(tmp_path / "y.tar", {"a.binproto": bytes(600)}).read_bytes())
    header[1024 + 512 : 1024 + 1024] = b"\x01" * 512
    (tmp_path / "y.tar").write_bytes(header)
    with pytest.raises(UserError, match=r"y\.tar"):
        list(read_rollouts(tmp_path / "y.tar"))


def test_bytes_of_an_archive_are_found_again(made: Path, tmp_path: Path) -> None:
    """Out of order, in an archive that needs more than one block of gzip, and anew when the file has changed."""
    contents = {f"{n}.binproto": bytes([n]) * 3_000_000 for n in range(4)}
    for suffix in SUFFIXES:
        file = pack(tmp_path / f"x{suffix}", contents)
        spots = {member.where.rpartition(" ")[2]: member for member in open_members(file)}
        for name in ("3.binproto", "0.binproto", "2.binproto"):
            assert spots[name].size == 3_000_000
            assert read_at(file, spots[name].offset + 2_999_999, 9)[:1] == contents[name][:1]
        before = file_version(file)
        pack(file, {"0.binproto": b"y" * 1000})
        assert file_version(file) != before
        for only in open_members(file):
            assert read_at(file, only.offset, 5) == b"yyyyy"
            assert only.handle.read() == b"y" * 1000


def test_shards_of_metadata_alone_belong_to_a_set(made: Path, tmp_path: Path) -> None:
    """The tutorial writes 150 shards, whatever the number of scenarios."""
    head = pb.SimAgentsChallengeSubmission(submission_type=1, account_name="a@b.cd", unique_method_name="m")
    for number, file in enumerate(rollout_files(made / "rollouts")):
        shard = pb.SimAgentsChallengeSubmission.FromString(file.read_bytes())
        shard.MergeFrom(head)
        (tmp_path / f"s.binproto-{number:05d}-of-00004").write_bytes(shard.SerializeToString())
    for number in (2, 3):
        (tmp_path / f"s.binproto-{number:05d}-of-00004").write_bytes(head.SerializeToString())
    assert len(list(read_rollouts(tmp_path))) == 3
    found = run_evaluate(CONFIG, scenarios=made, rollouts=tmp_path, out=tmp_path / "o", show=False)
    assert found["scenarios"] == 3
    archive = pack(tmp_path / "s.tar.gz", {file.name: file.read_bytes() for file in rollout_files(tmp_path)})
    verdict = validate_archive(archive, open_scenes(made), lambda count: None)
    assert not [text for text in verdict.defects if "holds no" in text or "missing" in text]
    assert verdict.accepted == 3
    # Alone they are nothing to score, and no rollouts.
    only = tmp_path / "only"
    only.mkdir()
    (only / "s.binproto").write_bytes(head.SerializeToString())
    with pytest.raises(UserError, match="holds no ScenarioRollouts"):
        list(read_rollouts(only))
    with pytest.raises(UserError, match=r"no scenario can be scored \(no rollouts\)"):
        run_evaluate(CONFIG, scenarios=made, rollouts=only, out=tmp_path / "p", show=False)
    with pytest.raises(UserError, match="3 of 3 scenarios are missing"):
        run_package(
            PackageConfig(workers=1), rollouts=only, scenarios=made, metadata=METADATA, out=tmp_path / "t.tar.gz"
        )
