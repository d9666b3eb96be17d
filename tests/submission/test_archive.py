"""From sampled rollouts to an archive that Waymo's validator accepts, and every way to spoil one."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from waymo_open_dataset.protos import scenario_pb2
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb
from waymo_open_dataset.utils.sim_agents import submission_specs

from data.errors import UserError
from data.scenes_source import open_scenes
from data.tfrecord import read_records, write_records
from pipeline.stages import package as packaging_stage
from pipeline.stages.package import PackageConfig, run_package
from pipeline.stages.sample import SampleConfig, run_sample
from pipeline.stages.tokenize import TokenizeConfig, run_tokenize
from pipeline.stages.validate import ValidateConfig, run_validate
from submission.archive import Entry, Shard, assemble, compression_ratio, index_rollouts, plan_shards, write_part
from submission.metadata import load_metadata
from submission.protos import rollout_files
from submission.validate import validate_archive
from tests.builders import scenario_proto
from tests.submission.spoilt_archives import FILLED, SPOILT, Spoilt, packed

EXAMPLE = Path(__file__).parents[2] / "submission" / "metadata.example.yaml"
PROTOS = [scenario_proto(f"{index:016x}", steps=11, agents=2 + index) for index in range(3)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with scenarios, rollouts of constant velocity, and their archive."""
    folder = tmp_path_factory.mktemp("made")
    write_records(folder / "testing.tfrecord-00000-of-00001", [proto.SerializeToString() for proto in PROTOS])
    config = SampleConfig(agent="constant_velocity", shard_scenarios=2, workers=1)
    run_sample(config, scenarios=str(folder), out=folder / "rollouts", seed=0)
    package(folder, folder / "submission.tar.gz")
    return folder


def package(folder: Path, out: Path, rollouts: Path | None = None) -> dict[str, float]:
    metadata = folder / "metadata.yaml"
    metadata.write_text(yaml.safe_dump(dataclasses.asdict(FILLED)))
    return run_package(
        PackageConfig(), rollouts=rollouts or folder / "rollouts", scenarios=str(folder), metadata=metadata, out=out
    )


def members(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive, "r:gz") as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]


def test_waymos_validator_accepts_every_scenario(made: Path) -> None:
    ((name, data),) = members(made / "submission.tar.gz").items()
    assert name == "submission.binproto-00000-of-00001"
    submission = pb.SimAgentsChallengeSubmission.FromString(data)
    assert [r.scenario_id for r in submission.scenario_rollouts] == [p.scenario_id for p in PROTOS]
    for rollouts, proto in zip(submission.scenario_rollouts, PROTOS, strict=True):
        # The full proto, not the one that our own check rebuilds.
        submission_specs.validate_scenario_rollouts(rollouts, proto)
    report = made / "report.json"
    figures = run_validate(ValidateConfig(), archive=made / "submission.tar.gz", scenarios=str(made), report=report)
    assert (figures["accepted"], figures["defects"]) == (3, 0)
    assert '"defects": 0' in report.read_text()


def test_bytes_do_not_depend_on_how_the_rollouts_are_stored(made: Path, tmp_path: Path) -> None:
    other = tmp_path / "rollouts"
    other.mkdir()
    shards = sorted((made / "rollouts").glob("*.binproto-*"), reverse=True)
    messages = [
        r for s in shards for r in pb.SimAgentsChallengeSubmission.FromString(s.read_bytes()).scenario_rollouts
    ]
    for index, message in enumerate(messages):
        (other / f"r{index}.binproto").write_bytes(message.SerializeToString(deterministic=True))
    package(made, tmp_path / "submission.tar.gz", other)
    assert (tmp_path / "submission.tar.gz").read_bytes() == (made / "submission.tar.gz").read_bytes()


def test_nothing_of_time_or_machine_is_in_the_archive(made: Path) -> None:
    archive = made / "submission.tar.gz"
    # RFC 1952: method 8, no flags (so no file name), time 0.
    assert archive.read_bytes()[:8] == b"\x1f\x8b\x08\0\0\0\0\0"
    with tarfile.open(archive, "r:gz") as tar:
        (member,) = tar.getmembers()
    assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
    assert member.mode == 0o644


def test_too_little_disk_space_is_said_before(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"x\.tar\.gz: needs about .* GB while it is made, 0\.00 GB are free"):
        package(made, tmp_path / "x.tar.gz")
    # What was checked is remembered for the next try.
    assert [path.name for path in tmp_path.iterdir()] == [".x.tar.gz.parts"]


@pytest.mark.parametrize("step", ["index_rollouts", "write_part", "assemble"])
def test_a_killed_package_goes_on_with_what_is_left(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    whole = getattr(packaging_stage, step)
    calls: list[Any] = []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 2 or step != "index_rollouts":
            raise KeyboardInterrupt
        return whole(*arguments)

    def counted(*arguments: Any) -> Any:
        calls.append(arguments)
        return whole(*arguments)

    out = tmp_path / "x.tar.gz"
    with monkeypatch.context() as patched:
        patched.setattr(packaging_stage, step, interrupted)
        with pytest.raises(KeyboardInterrupt):
            package(made, out)
    assert [path.name for path in tmp_path.iterdir()] == [".x.tar.gz.parts"]
    calls.clear()
    monkeypatch.setattr(packaging_stage, step, counted)
    package(made, out)
    # One of the two files had been checked.
    assert len(calls) == 1
    assert out.read_bytes() == (made / "submission.tar.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.tar.gz", "x.tar.gz.sha256"]


def test_large_ids(tmp_path: Path) -> None:
    """Track ids are int32; neither float32 (24 bits) nor anything smaller may carry them."""
    proto = scenario_proto("f" * 16, steps=11, agents=3)
    ids = [2**31 - 1, 2**31 - 2, 16_777_217]
    for track, value in zip(proto.tracks, ids, strict=True):
        track.id = value
    write_records(tmp_path / "testing.tfrecord-00000-of-00001", [proto.SerializeToString()])
    run_sample(
        SampleConfig(agent="constant_velocity", workers=1), scenarios=str(tmp_path), out=tmp_path / "rollouts"
    )
    package(tmp_path, tmp_path / "x.tar.gz")
    ((_, data),) = members(tmp_path / "x.tar.gz").items()
    (rollouts,) = pb.SimAgentsChallengeSubmission.FromString(data).scenario_rollouts
    submission_specs.validate_scenario_rollouts(rollouts, proto)
    assert {t.object_id for t in rollouts.joint_scenes[31].simulated_trajectories} == set(ids)


@pytest.mark.womd
def test_real_scenarios(womd: Path, tmp_path: Path) -> None:
    shard = sorted((womd / "testing").glob("*.tfrecord-*"))[0]
    records = [record for record in itertools.islice(read_records(str(shard)), 3) if isinstance(record, bytes)]
    write_records(tmp_path / "testing.tfrecord-00000-of-00001", records)
    run_sample(
        SampleConfig(agent="constant_velocity", workers=1), scenarios=str(tmp_path), out=tmp_path / "rollouts"
    )
    package(tmp_path, tmp_path / "x.tar.gz")
    figures = run_validate(ValidateConfig(), archive=tmp_path / "x.tar.gz", scenarios=str(tmp_path))
    assert (figures["accepted"], figures["defects"]) == (3, 0)
    ((_, data),) = members(tmp_path / "x.tar.gz").items()
    submission = pb.SimAgentsChallengeSubmission.FromString(data)
    for rollouts, record in zip(submission.scenario_rollouts, records, strict=True):
        submission_specs.validate_scenario_rollouts(rollouts, scenario_pb2.Scenario.FromString(record))


def test_small_shards(made: Path, tmp_path: Path) -> None:
    files = rollout_files(made / "rollouts")
    entries = [entry for file in files for entry in index_rollouts(file, lambda message, where: None)]
    shards = plan_shards(entries, b"", 1)
    assert [len(shard.entries) for shard in shards] == [1, 1, 1]
    parts = [tmp_path / shard.name for shard in shards]
    for shard, part in zip(shards, parts, strict=True):
        write_part(shard, part)
    out = tmp_path / "x.tar.gz"
    digest = assemble(out, parts, lambda count: None)
    assert digest == hashlib.sha256(out.read_bytes()).hexdigest()
    found = members(out)
    assert list(found) == [f"submission.binproto-{i:05d}-of-00003" for i in range(3)]
    assert [len(data) for data in found.values()] == [shard.size for shard in shards]
    # As tarfile itself would have written it.
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in found.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o644
            tar.addfile(member, io.BytesIO(data))
    assert gzip.decompress(out.read_bytes()) == plain.getvalue()


def test_shards_hold_as_much_as_they_may_with_their_metadata(made: Path) -> None:
    files = rollout_files(made / "rollouts")
    entries = [entry for file in files for entry in index_rollouts(file, lambda message, where: None)]
    metadata = bytes(1000)
    two = len(metadata) + sum(entry.encoded_length for entry in entries[:2])
    for limit, expected in ((two, [2, 1]), (two - 1, [1, 1, 1]), (two - len(metadata), [1, 1, 1])):
        shards = plan_shards(entries, metadata, limit)
        assert [len(shard.entries) for shard in shards] == expected
        assert all(shard.size <= limit for shard in shards if len(shard.entries) > 1)
    assert plan_shards(entries, metadata, two)[0].size == two


def test_the_size_is_estimated_before(made: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    figures = package(made, tmp_path / "x.tar.gz")
    said = capfd.readouterr().err
    assert re.search(r"3 scenarios, 1 shards, 0\.00 GB, about 0\.00 GB compressed", said)
    files = rollout_files(made / "rollouts")
    entries = [entry for file in files for entry in index_rollouts(file, lambda message, where: None)]
    expected = figures["uncompressed_mb"] * compression_ratio(entries)
    assert expected == pytest.approx(figures["archive_mb"], rel=0.2)


def test_sums_and_pieces_for_an_upload_in_parts(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "x.tar.gz"
    monkeypatch.setattr(packaging_stage, "_MEGABYTE", 1000)
    run_package(PackageConfig(split_mb=7), rollouts=made / "rollouts", scenarios=made, metadata=EXAMPLE, out=out)
    whole = out.read_bytes()
    pieces = sorted(tmp_path.glob("x.tar.gz.part-*"))
    assert [piece.stat().st_size for piece in pieces] == [7000] * (len(whole) // 7000) + [len(whole) % 7000]
    assert b"".join(piece.read_bytes() for piece in pieces) == whole
    checked = subprocess.run(
        ["sha256sum", "--check", "x.tar.gz.sha256"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert checked.stdout.splitlines() == [f"{name}: OK" for name in ["x.tar.gz", *(p.name for p in pieces)]]


def test_rollouts_that_change_meanwhile_are_noticed(made: Path, tmp_path: Path) -> None:
    file = shutil.copy(rollout_files(made / "rollouts")[0], tmp_path / "r.binproto")
    entries = tuple(index_rollouts(Path(file), lambda message, where: None))
    data = bytearray(Path(file).read_bytes())
    data[-1] ^= 1
    Path(file).write_bytes(data)
    with pytest.raises(UserError, match=r"r\.binproto: changed while it was read"):
        write_part(Shard("name", b"", entries), tmp_path / "part")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["r.binproto"]


@pytest.fixture(scope="module")
def good(made: Path) -> bytes:
    """The submission message of a good archive whose 32 joint scenes differ, as an agent's do."""
    ((_, data),) = members(made / "submission.tar.gz").items()
    submission = pb.SimAgentsChallengeSubmission.FromString(data)
    for rollouts in submission.scenario_rollouts:
        for number, joint in enumerate(rollouts.joint_scenes):
            for trajectory in joint.simulated_trajectories:
                trajectory.center_x[79] += 0.001 * number
    return submission.SerializeToString()


def test_a_good_archive_is_neither_wrong_nor_suspicious(made: Path, good: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(packed([("submission.binproto-00000-of-00001", good)]))
    verdict = validate_archive(path, open_scenes(made), lambda count: None)
    assert (verdict.count, verdict.suspected, verdict.accepted) == (0, 0, 3)


def test_there_are_thirty_ways_and_more() -> None:
    assert len({spoilt.title for spoilt in SPOILT}) == len(SPOILT) >= 30


@pytest.mark.parametrize("spoilt", SPOILT, ids=lambda spoilt: spoilt.title)
def test_every_defect_is_named(made: Path, good: bytes, tmp_path: Path, spoilt: Spoilt) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(spoilt.make(good))
    verdict = validate_archive(path, open_scenes(made), lambda count: None)
    said = verdict.suspicions if spoilt.suspicion else verdict.defects
    assert any(spoilt.said in line for line in said), (verdict.defects, verdict.suspicions)
    if spoilt.suspicion:
        assert verdict.count == 0
        return
    with pytest.raises(UserError, match="defects"):
        run_validate(ValidateConfig(), archive=path, scenarios=str(made))


def test_a_report_replaces_nothing_but_a_report(made: Path, tmp_path: Path) -> None:
    archive = tmp_path / "submission.tar.gz"
    archive.write_bytes(before := (made / "submission.tar.gz").read_bytes())
    report, other = tmp_path / "report.json", tmp_path / "metadata.json"
    other.write_text("{}")
    for _ in range(2):
        run_validate(ValidateConfig(), archive=archive, scenarios=str(made), report=report)
    for taken in (archive, other, tmp_path):
        with pytest.raises(UserError, match=f"--report {re.escape(str(taken))}: no report"):
            run_validate(ValidateConfig(), archive=archive, scenarios=str(made), report=taken)
    assert archive.read_bytes() == before


def test_suspicions_fail_if_one_wants(made: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # Constant velocity gives the same future 32 times.
    archive = made / "submission.tar.gz"
    figures = run_validate(ValidateConfig(json=True), archive=archive, scenarios=str(made))
    assert (figures["defects"], figures["suspicions"], len(figures["suspicion_list"])) == (0, 3, 3)
    place = "submission.binproto-00000-of-00001: scenario"
    assert (
        f"suspicious: joint scenes are repeated (3 scenarios): {place} 0000000000000000: all 32 joint scenes "
        f"are the same; {place} 0000000000000001: all 32" in capfd.readouterr().err
    )
    with pytest.raises(UserError, match=r"3 suspicions \(--strict\)"):
        run_validate(ValidateConfig(strict=True, json=True), archive=archive, scenarios=str(made))
    assert json.loads(capfd.readouterr().out)["suspicions"] == 3


def test_package_says_what_is_suspicious(
    made: Path, good: bytes, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rollouts = tmp_path / "rollouts"
    rollouts.mkdir()
    spoilt = next(spoilt for spoilt in SPOILT if spoilt.title == "headings of another zero")
    for name, content in (("good", packed([("x", good)])), ("turned", spoilt.make(good))):
        archive = tmp_path / f"{name}.tar.gz"
        archive.write_bytes(content)
        ((_, data),) = members(archive).items()
        (rollouts / "r.binproto").write_bytes(data)
        package(made, tmp_path / "out.tar.gz", rollouts)
        said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("suspicious: ")]
        if name == "good":
            assert said == []
            continue
        (line,) = said
        # 32 joint scenes of two, three and four objects.
        assert "headings are turned by 90 degrees (288 of 288 trajectories in 3 scenarios): scenario 0" in line
    run_package(
        PackageConfig(), rollouts=made / "rollouts", scenarios=made, metadata=EXAMPLE, out=tmp_path / "e.tar.gz"
    )
    assert f"suspicious: metadata is not filled in: {EXAMPLE}: account_name is" in capfd.readouterr().err


def test_the_recorded_future_is_recognised(tmp_path: Path) -> None:
    proto = scenario_proto("f" * 16, agents=3)
    write_records(tmp_path / "validation.tfrecord-00000-of-00001", [proto.SerializeToString()])
    config = SampleConfig(agent="log", workers=1)
    run_sample(config, scenarios=tmp_path, out=tmp_path / "rollouts")
    package(tmp_path, tmp_path / "x.tar.gz")
    verdict = validate_archive(tmp_path / "x.tar.gz", open_scenes(tmp_path), lambda count: None)
    assert any("32 joint scenes follow the recorded future of all" in line for line in verdict.suspicions)


def test_the_split_that_was_taken_is_named(made: Path, tmp_path: Path) -> None:
    for split, protos in (
        ("testing", [scenario_proto("f" * 16, steps=11)]),
        # Its scenarios have futures; ids are all that matters here.
        ("validation", [scenario_proto(proto.scenario_id) for proto in PROTOS]),
    ):
        folder = tmp_path / "raw" / split
        folder.mkdir(parents=True)
        write_records(folder / f"{split}.tfrecord-00000-of-00001", [p.SerializeToString() for p in protos])
        run_tokenize(TokenizeConfig(workers=1), data=str(folder), split=split, out=tmp_path / "store" / split)
    with pytest.raises(UserError, match="defects"):
        run_validate(
            ValidateConfig(),
            archive=made / "submission.tar.gz",
            scenarios=str(tmp_path / "store" / "testing"),
            report=tmp_path / "report.json",
        )
    lines = json.loads((tmp_path / "report.json").read_text())["list"]
    assert any(re.search("3 scenarios are those of .*store/validation: the wrong split", line) for line in lines)


def test_package_refuses_incomplete_rollouts(made: Path, tmp_path: Path) -> None:
    part = tmp_path / "part"
    part.mkdir()
    shard = sorted((made / "rollouts").glob("*.binproto-*"))[0]
    (part / shard.name).write_bytes(shard.read_bytes())
    out = tmp_path / "x.tar.gz"
    with pytest.raises(UserError, match="1 of 3 scenarios are missing: 0000000000000002"):
        package(made, out, part)
    (part / "again.binproto").write_bytes(shard.read_bytes())
    with pytest.raises(UserError, match="0000000000000000 occurs more than once"):
        package(made, out, part)
    assert not out.exists()
    with pytest.raises(UserError, match="the server takes a"):
        package(made, tmp_path / "x.tar")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"uses_lidar": True}, "unknown field uses_lidar; did you mean uses_lidar_data?"),
        ({"uses_lidar_data": "no way"}, "uses_lidar_data is 'no way', expected true or false"),
        ({"account_name": "me"}, "account_name is 'me'"),
        ({"authors": "Me"}, "authors is 'Me', expected a list"),
        ({"authors": []}, "authors: expected at least one name"),
        ({"num_model_parameters": "many"}, "num_model_parameters is 'many'"),
        ({"num_model_parameters": "1.5M"}, "num_model_parameters is '1.5M', expected an integer with K, M, B or T"),
        ({"uses_public_model_pretraining": True}, "public_model_names is empty"),
        ({"acknowledge_complies_with_closed_loop_requirement": False}, "is not true"),
        ({"description": None}, "description is None, expected a text"),
        ({"method_link": ...}, "field method_link is missing"),
    ],
)
def test_metadata_errors(tmp_path: Path, change: dict[str, Any], text: str) -> None:
    values = yaml.safe_load(EXAMPLE.read_text()) | change
    path = tmp_path / "metadata.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not ...}))
    with pytest.raises(UserError) as caught:
        load_metadata(path)
    assert text in str(caught.value)


def test_metadata_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "metadata.json"
    path.write_text(json.dumps(yaml.safe_load(EXAMPLE.read_text())))
    assert load_metadata(path) == load_metadata(EXAMPLE)


def test_metadata_that_unfolds_without_end(tmp_path: Path) -> None:
    nests = ["&a [x, x]"] + [f"&{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in itertools.pairwise("abcdefghijkl")]
    values = yaml.safe_load(EXAMPLE.read_text())
    del values["account_name"]
    path = tmp_path / "metadata.yaml"
    path.write_text(yaml.safe_dump(values) + f"account_name: [{', '.join(nests)}]\n")
    with pytest.raises(UserError, match=r"account_name is .*, expected a text") as caught:
        load_metadata(path)
    assert len(str(caught.value)) < 500


def test_metadata_never_builds_objects(tmp_path: Path) -> None:
    path = tmp_path / "metadata.yaml"
    path.write_text("account_name: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match="not valid YAML"):
        load_metadata(path)
    assert dataclasses.is_dataclass(load_metadata(EXAMPLE))


def entries_of(folder: Path, payloads: list[bytes]) -> list[Entry]:
    """Payloads one after the other in a file."""
    file = folder / "payloads"
    file.write_bytes(b"".join(payloads))
    found, offset = [], 0
    for number, payload in enumerate(payloads):
        found.append(Entry(str(number), file, offset, len(payload), hashlib.sha256(payload).hexdigest()))
        offset += len(payload)
    return found


def test_shards_are_filled_to_their_limit_and_not_beyond(tmp_path: Path) -> None:
    """Tag and length of each scenario count: three of 200 take 609 bytes."""
    entries = entries_of(tmp_path, [b"x" * 200] * 4)
    for limit, expected in ((609, [3, 1]), (608, [2, 2]), (203, [1, 1, 1, 1]), (812, [4])):
        shards = plan_shards(entries, b"", limit)
        assert [len(shard.entries) for shard in shards] == expected
        assert all(shard.size <= limit for shard in shards)


def test_a_part_is_another_if_anything_in_it_is(tmp_path: Path) -> None:
    one, two = entries_of(tmp_path, [b"one", b"two"])
    shard = Shard("a", b"metadata", (one, two))
    others = [
        Shard("b", b"metadata", (one, two)),
        Shard("a", b"other", (one, two)),
        Shard("a", b"metadata", (two, one)),
        Shard("a", b"metadata", (one,)),
        Shard("a", b"metadata", (one, dataclasses.replace(two, digest=one.digest))),
    ]
    assert len({part.digest for part in (shard, *others)}) == 6
    assert Shard("a", b"metadata", (one, dataclasses.replace(two, offset=9))).digest == shard.digest


def test_compression_is_tried_on_scenarios_spread_over_all(tmp_path: Path) -> None:
    """The first eight of 64 hardly compress, the others do."""
    noise = [hashlib.sha256(bytes([number])).digest() * 1 for number in range(8)]
    ratio = compression_ratio(entries_of(tmp_path, [*noise, *([bytes(32)] * 56)]))
    assert ratio < 0.6
    assert compression_ratio(entries_of(tmp_path, noise)) > 1


def test_a_member_that_fills_its_blocks_is_not_padded(tmp_path: Path) -> None:
    """512 bytes with tag and length; behind a block of zeros readers would look for no other member."""
    parts = []
    for name in ("x.binproto", "y.binproto"):
        shard = Shard(name, b"", tuple(entries_of(tmp_path, [b"y" * 509])))
        assert shard.size == 512
        parts.append(tmp_path / f"part-{name}")
        write_part(shard, parts[-1])
    assemble(tmp_path / "x.tar.gz", parts, lambda count: None)
    assert len(gzip.decompress((tmp_path / "x.tar.gz").read_bytes())) == tarfile.RECORDSIZE
    found = {name: len(data) for name, data in members(tmp_path / "x.tar.gz").items()}
    assert found == {"x.binproto": 512, "y.binproto": 512}


def ingested(folder: Path, records: list[bytes]) -> tuple[str, Path]:
    """A store of testing without the records that are rejected, and its rollouts."""
    write_records(folder / "testing" / "testing.tfrecord-00000-of-00001", records)
    config = TokenizeConfig(workers=1, allow_rejected=True)
    run_tokenize(config, data=str(folder), split="testing", out=folder / "store")
    sampling = SampleConfig(agent="constant_velocity", workers=1)
    run_sample(sampling, scenarios=folder / "store", out=folder / "rollouts", seed=0)
    return str(folder / "store"), folder / "rollouts"


def test_records_that_were_rejected_are_lacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = [proto.SerializeToString() for proto in PROTOS]
    store, rollouts = ingested(tmp_path, [good[0], b"no scenario", *good[1:]])
    out = tmp_path / "x.tar.gz"
    told = r"1 record was rejected at ingest \(testing.tfrecord-00000-of-00001: record 1: "

    def pack() -> dict[str, float]:
        return run_package(PackageConfig(), rollouts=rollouts, scenarios=store, metadata=EXAMPLE, out=out)

    with pytest.raises(UserError, match=f"{told}.*--partial"):
        pack()
    with monkeypatch.context() as patched:
        patched.setenv("SPACER_PARTIAL", "1")
        assert pack()["rejected"] == 1
    report = tmp_path / "report.json"
    with pytest.raises(UserError, match="1 defects"):
        run_validate(ValidateConfig(), archive=out, scenarios=store, report=report)
    found = json.loads(report.read_text())
    assert found["rejected"] == 1
    assert re.search(f"x.tar.gz: holds 3 scenarios, but {told}", found["list"][0])
    monkeypatch.setenv("SPACER_PARTIAL", "1")
    figures = run_validate(ValidateConfig(), archive=out, scenarios=store)
    # All futures of constant velocity are the same, in each of three scenarios; the metadata is the example's.
    assert (figures["defects"], figures["suspicions"]) == (0, 5)


def test_a_duplicate_that_was_rejected_is_not_lacking(tmp_path: Path) -> None:
    good = [proto.SerializeToString() for proto in PROTOS]
    store, rollouts = ingested(tmp_path, [*good, good[0]])
    out = tmp_path / "x.tar.gz"
    run_package(PackageConfig(), rollouts=rollouts, scenarios=store, metadata=EXAMPLE, out=out)
    assert run_validate(ValidateConfig(), archive=out, scenarios=store)["defects"] == 0


def test_a_part_of_the_split_is_repeated(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = made / "testing.tfrecord-00000-of-00001"
    part = tmp_path / "testing.tfrecord-00007-of-00150"
    part.write_bytes(source.read_bytes())
    out = tmp_path / "x.tar.gz"
    options: dict[str, Any] = {"rollouts": made / "rollouts", "metadata": EXAMPLE, "out": out}
    with pytest.raises(UserError, match="149 of 150 shards of testing are missing"):
        run_package(PackageConfig(), scenarios=str(tmp_path), **options)
    # A file that is named is a choice; the entry is a part all the same.
    assert run_package(PackageConfig(), scenarios=str(part), **options)["missing_shards"] == 149
    assert "149 of 150 shards of testing are missing" in capfd.readouterr().err
    report = tmp_path / "report.json"
    figures = run_validate(ValidateConfig(), archive=out, scenarios=str(part), report=report)
    assert (figures["defects"], figures["missing_shards"]) == (0, 149)
    told = (
        "x.tar.gz: holds a part of the split: 3 of the 44920 scenarios that this split of WOMD has; "
        "149 of 150 shards of testing are missing"
    )
    assert json.loads(report.read_text())["suspicion_list"][-1].startswith(told)
    with pytest.raises(UserError, match="5 suspicions"):
        run_validate(ValidateConfig(strict=True), archive=out, scenarios=str(part))
