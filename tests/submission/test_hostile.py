"""Archives that are damaged, or made to harm: each is a list of defects, never a crash or an extracted file."""

from __future__ import annotations

import gzip
import io
import resource
import tarfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from data.scenes_source import SceneSource, open_scenes
from data.tfrecord import write_records
from pipeline.stages.package import PackageConfig, run_package
from pipeline.stages.sample import SampleConfig, run_sample
from submission import validate
from submission.checks import examine
from submission.protos import encode_field
from submission.validate import Verdict, validate_archive
from tests.builders import scenario_proto

EXAMPLE = Path(__file__).parents[2] / "submission" / "metadata.example.yaml"
NAME = "submission.binproto-{:05d}-of-{:05d}"
# Magic, method, flags, time, extra flags and system: of these only the first four bytes mean anything.
_GZIP_HEADER = 10


class Made:
    """A good archive, its tar, its two submission messages and the scenarios it is for."""

    def __init__(self, folder: Path) -> None:
        records = [scenario_proto(f"{index:016x}", steps=11, agents=2) for index in range(2)]
        write_records(folder / "testing.tfrecord-00000-of-00001", [r.SerializeToString() for r in records])
        self.source: SceneSource = open_scenes(folder)
        run_sample(SampleConfig(agent="constant_velocity", workers=1), scenarios=str(folder), out=folder / "r")
        path = folder / "submission.tar.gz"
        run_package(PackageConfig(), rollouts=folder / "r", scenarios=str(folder), metadata=EXAMPLE, out=path)
        self.archive = path.read_bytes()
        self.tar = gzip.decompress(self.archive)
        with tarfile.open(fileobj=io.BytesIO(self.tar)) as tar:
            data = tar.extractfile(tar.getmembers()[0]).read()  # type: ignore[union-attr]
        self.halves = [pb.SimAgentsChallengeSubmission.FromString(data) for _ in range(2)]
        del self.halves[0].scenario_rollouts[1]
        del self.halves[1].scenario_rollouts[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return Made(tmp_path_factory.mktemp("made"))


def verdict_of(made: Made, path: Path, content: bytes) -> Verdict:
    path.write_bytes(content)
    return validate_archive(path, made.source, lambda count: None)


def packed(files: list[tuple[str, bytes]], change: Callable[[tarfile.TarInfo], Any] = lambda member: None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            change(member)
            tar.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return buffer.getvalue()


def shards(made: Made, names: list[str] | None = None) -> list[tuple[str, bytes]]:
    names = names or [NAME.format(index, 2) for index in range(2)]
    return [(name, half.SerializeToString()) for name, half in zip(names, made.halves, strict=True)]


def test_good_archives_have_no_defects(made: Made, tmp_path: Path) -> None:
    for content in (
        made.archive,
        packed(shards(made)),
        packed(shards(made, ["full/path/" + NAME.format(index, 2) for index in range(2)])),
        packed(shards(made, ["a.binproto", "b.binproto"])),
    ):
        verdict = verdict_of(made, tmp_path / "x.tar.gz", content)
        assert (verdict.defects, verdict.scenarios, verdict.accepted) == ([], 2, 2)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damage_goes_unnoticed(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    """Every cut and every changed byte, the checksum at the very end included."""
    # As in an archive that is larger than what is read at once.
    monkeypatch.setattr(validate, "_BLOCK", 512)
    content = bytearray(made.archive)
    if data.draw(st.booleans(), label="cut"):
        del content[data.draw(st.integers(0, len(content) - 1), label="length") :]
    else:
        places = st.integers(_GZIP_HEADER, len(content) - 1) | st.integers(len(content) - 8, len(content) - 1)
        content[data.draw(places, label="place")] ^= data.draw(st.integers(1, 255), label="bits")
    # The last deflate block may end inside a byte: its spare bits mean nothing, and changing them is no damage.
    assert verdict_of(made, tmp_path / "x.tar.gz", bytes(content)).count > 0 or gzip.decompress(content) == made.tar


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bytes_in_a_tar_or_shard_end_in_a_verdict(made: Made, tmp_path: Path, data: st.DataObject) -> None:
    """With intact gzip around it: damage that the checksum cannot show."""
    tar = bytearray(made.tar)
    for _ in range(data.draw(st.integers(1, 4), label="changes")):
        # Header of the member, and the tags and lengths at the beginning of its message.
        tar[data.draw(st.integers(0, 1200), label="place")] = data.draw(st.integers(0, 255), label="byte")
    verdict_of(made, tmp_path / "x.tar.gz", gzip.compress(bytes(tar), 1))
    junk = data.draw(st.binary(max_size=60), label="junk")
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed([(NAME.format(0, 1), junk)]))
    assert any("scenario 0000000000000001 is missing" in defect for defect in verdict.defects)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([NAME.format(0, 2), NAME.format(2, 2)], "shard 00002 of 00002 is beyond the count"),
        ([NAME.format(0, 2), NAME.format(2, 2)], "shard 00001 of 00002 is missing"),
        ([NAME.format(0, 2), NAME.format(1, 3)], "shard names disagree on the number of shards: [2, 3]"),
        ([NAME.format(0, 1), "more.binproto"], "only 1 of 2 files are numbered"),
        (["a/s.binproto", "b/s.binproto"], "s.binproto occurs 2 times"),
        (["s.binproto", "t.binproto.gz"], "t.binproto.gz: expected a name such as"),
        (["/etc/s.binproto", "t.binproto"], "/etc/s.binproto: path leads out of the archive"),
        (["x/../../s.binproto", "t.binproto"], "x/../../s.binproto: path leads out of the archive"),
    ],
)
def test_names(made: Made, tmp_path: Path, names: list[str], text: str) -> None:
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed(shards(made, names)))
    assert any(text in defect for defect in verdict.defects), verdict.defects


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices(made: Made, tmp_path: Path, kind: bytes) -> None:
    def change(member: tarfile.TarInfo) -> None:
        member.type, member.linkname, member.size = kind, "/etc/passwd", 0

    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed([(NAME.format(0, 1), b"")], change))
    assert any("not a regular file" in defect for defect in verdict.defects)


def test_headers_with_nonsense_for_numbers(made: Made, tmp_path: Path) -> None:
    def change(member: tarfile.TarInfo) -> None:
        member.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}

    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed([(NAME.format(0, 1), b"many\n" * 200)], change))
    assert "damaged or truncated: bad header" in verdict.defects[0]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [2**40, 2**70])
def test_announced_sizes_are_not_waited_for(made: Made, tmp_path: Path, size: int) -> None:
    member = tarfile.TarInfo(NAME.format(0, 1))
    member.size = size
    content = gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
    verdict = verdict_of(made, tmp_path / "x.tar.gz", content)
    assert any("not read" in defect for defect in verdict.defects)
    assert any("the rest was not checked" in defect for defect in verdict.defects)


def test_a_bomb_takes_neither_time_nor_memory(made: Made, tmp_path: Path) -> None:
    """A gigabyte of zeros in a megabyte, and one that announces so much that it is not even skipped."""
    member = tarfile.TarInfo(NAME.format(0, 1))
    member.size = 10**9
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    content = packer.compress(member.tobuf()) + b"".join(packer.compress(bytes(10**7)) for _ in range(100))
    content += packer.flush()
    assert len(content) < 1_100_000
    before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    verdict = verdict_of(made, tmp_path / "x.tar.gz", content)
    # Of this process, whatever else the machine does.
    assert time.process_time() - started < 30
    assert any("1000 MB, expected less than 500; not read" in defect for defect in verdict.defects)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_nothing_is_extracted(made: Made, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    files = [*shards(made), (str(tmp_path / "evil.binproto"), b"x"), ("../evil.binproto", b"x")]
    verdict_of(made, folder / "x.tar.gz", packed(files))
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["x.tar.gz"]


def test_shards_must_tell_the_same_of_the_entry(made: Made, tmp_path: Path) -> None:
    (first, one), (second, two) = shards(made)
    other = pb.SimAgentsChallengeSubmission.FromString(two)
    other.unique_method_name = "another"
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed([(first, one), (second, other.SerializeToString())]))
    assert verdict.defects == [f"{second}: metadata differs from that of {first}"]
    extra = two + encode_field(4, b"again") + encode_field(99, b"?")
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed([(first, one), (second, extra)]))
    assert f"{second}: unique_method_name occurs 2 times" in verdict.defects
    assert f"{second}: unknown field 99" in verdict.defects


def test_metadata_that_is_no_text(made: Made, tmp_path: Path) -> None:
    (name, data), second = shards(made)
    for old, field in ((b"SPACeR", "unique_method_name"), (b"First Author", "authors")):
        spoilt = data.replace(old, b"\xff" * len(old), 1)
        assert spoilt != data
        verdict = verdict_of(made, tmp_path / "x.tar.gz", packed([(name, spoilt), second]))
        assert f"{name}: {field} is not UTF-8" in verdict.defects


def test_a_file_of_one_scenario_lacks_its_metadata(made: Made, tmp_path: Path) -> None:
    single = made.halves[1].scenario_rollouts[0].SerializeToString()
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed([shards(made)[0], (NAME.format(1, 2), single)]))
    assert verdict.accepted == 2
    assert verdict.defects == [
        f"{NAME.format(1, 2)}: holds no metadata, so it is no submission: pack its rollouts with `package`"
    ]


def test_endings(made: Made, tmp_path: Path) -> None:
    end = len(made.tar.rstrip(b"\0")) // 512 * 512 + 512
    for content, text in (
        (gzip.compress(made.tar[:end]), "the tar has no end"),
        (gzip.compress(made.tar + b"more"), "or data after it"),
        (made.archive + b"more", "damaged or truncated"),
        (gzip.compress(made.tar + bytes(40_000_000)), "data after the end of the tar"),
    ):
        verdict = verdict_of(made, tmp_path / "x.tar.gz", content)
        assert text in verdict.defects[0]


def test_lengths_that_lie_take_no_memory(made: Made, tmp_path: Path) -> None:
    huge = b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f"  # field 1 of 2^63 - 1 bytes
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed([(NAME.format(0, 1), huge)]))
    assert any("truncated, a field of 9223372036854775807 bytes in a file of 10" in d for d in verdict.defects)


def test_oversized_shards_are_not_read(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "MAX_SHARD_BYTES", 1000)
    verdict = verdict_of(made, tmp_path / "x.tar.gz", made.archive)
    assert "MB, expected less than 0; not read" in verdict.defects[0]
    assert verdict.scenarios == 0


def test_defects_are_lines_that_a_terminal_can_show(made: Made, tmp_path: Path) -> None:
    spoilt = pb.SimAgentsChallengeSubmission()
    spoilt.CopyFrom(made.halves[0])
    spoilt.scenario_rollouts[0].scenario_id = "a\nb\x1b[31m"
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed([("s\r.binproto", spoilt.SerializeToString())]))
    assert "s?.binproto: scenario a?b?[31m is not in the evaluated set" in verdict.defects
    assert all(defect.isprintable() for defect in verdict.defects)


def test_ids_that_are_no_text(made: Made, tmp_path: Path) -> None:
    data = encode_field(1, b"\x0a\x02\xff\xfe")
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed([(NAME.format(0, 1), data)]))
    assert any("is not UTF-8" in defect for defect in verdict.defects)


def test_all_defects_count_but_not_all_are_kept(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = [pb.SimAgentsChallengeSubmission.FromString(half.SerializeToString()) for half in made.halves]
    for half in spoilt:
        for scene in half.scenario_rollouts[0].joint_scenes:
            for trajectory in scene.simulated_trajectories:
                trajectory.heading[3] = 4.0
    monkeypatch.setattr(validate, "MAX_LISTED", 10)
    files = [(NAME.format(index, 2), half.SerializeToString()) for index, half in enumerate(spoilt)]
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed(files))
    assert verdict.count == sum(
        32 * len(half.scenario_rollouts[0].joint_scenes[0].simulated_trajectories) for half in spoilt
    )
    assert len(verdict.defects) == 10


def test_scenarios_that_come_twice_are_accepted_once(made: Made, tmp_path: Path) -> None:
    files = [*shards(made), (NAME.format(2, 3), made.halves[0].SerializeToString())]
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed(files))
    assert (verdict.scenarios, verdict.accepted) == (3, 2)
    assert any("occurs more than once" in defect for defect in verdict.defects)


def test_defects_come_in_the_order_of_names(made: Made, tmp_path: Path) -> None:
    """Whatever the order in the archive, and whatever that of sets: 8 comes before 1 in a set of both."""
    names = [NAME.format(1, 2), NAME.format(0, 2)]
    files = shards(made, names)
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed(files * 2))
    repeated = [defect for defect in verdict.defects if "occurs 2 times" in defect]
    assert repeated == [f"{name} occurs 2 times" for name in sorted(names)]
    rollouts = made.halves[0].scenario_rollouts[0]
    scene = made.source.get(rollouts.scenario_id)
    message = pb.ScenarioRollouts.FromString(rollouts.SerializeToString())
    for joint in message.joint_scenes[:1]:
        for name, trajectory in zip((8, 1), joint.simulated_trajectories, strict=True):
            trajectory.object_id = name
    assert examine(message, scene).defects == [
        *(f"joint scene 0: object {name} is missing" for name in (100, 107)),
        *(f"joint scene 0: object {name} is not to be simulated" for name in (1, 8)),
    ]


def test_a_field_that_may_be_there_once_is_there_twice(made: Made, tmp_path: Path) -> None:
    """Protobuf takes the last one without a word; nobody knows which was meant."""
    twice = pb.SimAgentsChallengeSubmission(unique_method_name="another", authors=["A", "B"]).SerializeToString()
    files = [(NAME.format(index, 2), half.SerializeToString() + twice) for index, half in enumerate(made.halves)]
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed(files))
    assert verdict.defects == [f"{NAME.format(index, 2)}: unique_method_name occurs 2 times" for index in range(2)]


def test_the_limit_itself_is_too_large(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Smaller than 500 MB, the rules say."""
    sizes = [len(data) for _, data in shards(made)]
    monkeypatch.setattr(validate, "MAX_SHARD_BYTES", max(sizes))
    verdict = verdict_of(made, tmp_path / "x.tar.gz", packed(shards(made)))
    assert sum("not read" in defect for defect in verdict.defects) == sizes.count(max(sizes))
    monkeypatch.setattr(validate, "MAX_SHARD_BYTES", max(sizes) + 1)
    assert verdict_of(made, tmp_path / "x.tar.gz", packed(shards(made))).defects == []
