"""Files and records of other kinds: named as what they are, with what to do, by every reader that may meet them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from waymo_open_dataset.protos import motion_submission_pb2, scenario_pb2
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from data.errors import UserError
from data.scenes_source import open_scenes
from data.store import write_shard
from data.tfrecord import HEAD, BrokenRecord, other_kind, read_records, write_records
from data.womd import RecordError, parse_scenario
from submission.protos import read_rollouts
from tests.builders import scenario_proto


def field(number: int, payload: bytes) -> bytes:
    """A length-delimited field by hand: lengths of one or two bytes."""
    size = len(payload)
    length = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
    return bytes([number << 3 | 2]) + length + payload


def tf_example(extra: int) -> bytes:
    """features { feature { key value { float_list { value } } } ... }, of which the first key comes first."""
    entries = [("scenario/id", field(1, field(1, b"637f20cafde22ff8" + b"x" * extra)))]
    entries += [(f"state/past/{name}", field(2, field(1, bytes(400)))) for name in "xyz"]
    return field(1, b"".join(field(1, field(1, name.encode()) + field(2, value)) for name, value in entries))


def rollouts_message() -> pb.ScenarioRollouts:
    message = pb.ScenarioRollouts(scenario_id="637f20cafde22ff8")
    message.joint_scenes.add().simulated_trajectories.add(object_id=1, center_x=[0.0] * 80)
    return message


def tfrecord(folder: Path) -> bytes:
    write_records(folder / "made", [scenario_proto(agents=2).SerializeToString()])
    return (folder / "made").read_bytes()


def zipped(content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("validation.tfrecord-00000-of-00001", content)
    return file.getvalue()


def tarred(content: bytes, name: str = "validation.tfrecord-00000-of-00001") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


def checkpoint() -> bytes:
    file = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, file)
    return file.getvalue()


def array() -> bytes:
    file = io.BytesIO()
    np.save(file, np.zeros(3))
    return file.getvalue()


PAGE = (
    b"<!DOCTYPE html>\n<html><head><title>403</title></head><body>Your client may not get this URL.</body></html>"
)
# What it is, what is said of it, and what to do.
FILES = {
    "gzip": (lambda c: gzip.compress(c), "gzip-compressed", "gunzip it"),
    "zlib": (lambda c: zlib.compress(c), "zlib-compressed", "without compression"),
    "zstd": (lambda c: pa.Codec("zstd").compress(c, asbytes=True), "zstd-compressed", "unzstd"),
    "lz4": (lambda c: pa.Codec("lz4").compress(c, asbytes=True), "lz4-compressed", "unlz4"),
    "bzip2": (lambda c: bz2.compress(c), "bzip2-compressed", "bunzip2"),
    "xz": (lambda c: lzma.compress(c), "xz-compressed", "unxz"),
    "zip": (zipped, "a zip archive", "unpack it"),
    "checkpoint": (lambda c: checkpoint(), "a checkpoint", "give it as one"),
    "pickle": (lambda c: pickle.dumps({"a": 1}), "a Python pickle", "the dataset itself"),
    "numpy": (lambda c: array(), "a NumPy array", "the dataset itself"),
    "page": (lambda c: PAGE, "an HTML page", "download the file again"),
    "page in small letters": (lambda c: b"\n <html lang=en><body>moved", "an HTML page", "download the file again"),
    "bucket": (
        lambda c: b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        "an XML text",
        "download",
    ),
    "json": (lambda c: json.dumps({"error": {"code": 404}}).encode(), "a JSON text", "download the file again"),
    "lfs": (
        lambda c: b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n",
        "LFS",
        "git lfs pull",
    ),
    "text": (
        lambda c: b"No such object: waymo_open_dataset_motion_v_1_3_0/x\n",
        "a text",
        "download the file again",
    ),
    "sidecar": (lambda c: b"\x00\x05\x16\x07" + bytes(4000), "macOS", "delete"),
    "empty": (lambda c: b"", "empty (0 bytes)", "download it again"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_of_other_kinds_are_named_with_the_mend(name: str, tmp_path: Path) -> None:
    make, what, mend = FILES[name]
    data = make(tfrecord(tmp_path))
    path = tmp_path / "x.tfrecord-00000-of-00001"
    path.write_bytes(data)
    (broken,) = read_records(path)
    assert isinstance(broken, BrokenRecord)
    rollouts = tmp_path / "x.binproto"
    rollouts.write_bytes(data)
    with pytest.raises(UserError) as caught:
        list(read_rollouts(rollouts))
    with pytest.raises(UserError) as opened:
        open_scenes(path)
    assert str(opened.value) == f"{path.as_uri()}: record 0: {broken.reason}"
    for said in (broken.reason, str(caught.value)):
        assert what in said
        assert mend in said
        assert "CRC" not in said
        assert "\n" not in said
    assert "not a TFRecord" in broken.reason
    assert "not rollouts" in str(caught.value)


def test_kinds_are_named_in_whole_sentences() -> None:
    """A bare name, an article and a name, or what was done to the file: nothing before it."""
    for name, (make, what, _) in FILES.items():
        said = other_kind(make(b"content")[:HEAD], "a TFRecord")
        assert said is not None
        begins = {"lfs": "a Git LFS pointer", "sidecar": "a sidecar that macOS writes"}.get(name, what)
        assert said.startswith(f"{begins}, not a TFRecord: "), name


def test_a_text_is_known_by_sixteen_characters() -> None:
    assert other_kind(b"No such object.\n", "a TFRecord") is not None
    assert other_kind(b"No such object.", "a TFRecord") is None
    assert other_kind(b"No such object.\x00", "a TFRecord") is None


SUBMISSION = "submission.binproto-00000-of-00001"


# Of these, rollouts are read, or looked for.
@pytest.mark.parametrize(
    ("content", "told"),
    [
        (tarred(b"x"), "a tar archive, not a TFRecord: unpack it"),
        (gzip.compress(tarred(b"x")), "a tar archive, not a TFRecord: unpack it"),
        (gzip.compress(tarred(b"x", SUBMISSION)), "a submission archive, not a TFRecord: give it as --rollouts"),
        (bytes(4000), "zeros, not a TFRecord: most likely an unfinished download; download the file again"),
        (
            scenario_proto(agents=2).SerializeToString(),
            "a bare Scenario proto, not a TFRecord: write it with a TFRecord writer",
        ),
    ],
)
def test_what_holds_no_records_is_named(content: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "x.tfrecord").write_bytes(content)
    (broken,) = read_records(tmp_path / "x.tfrecord")
    assert isinstance(broken, BrokenRecord)
    assert broken.reason == told


def test_scenarios_and_rollouts_given_for_one_another(tmp_path: Path) -> None:
    single = rollouts_message()
    submission = pb.SimAgentsChallengeSubmission(scenario_rollouts=[single], account_name="me@lab.org")
    for message in (single, submission):
        path = tmp_path / "x.binproto-00000-of-00001"
        path.write_bytes(message.SerializeToString())
        with pytest.raises(UserError, match=r"rollouts of a scenario, not a TFRecord: give them as --rollouts"):
            open_scenes(path)
    records = tmp_path / "x.tfrecord-00000-of-00001"
    records.write_bytes(tfrecord(tmp_path))
    with pytest.raises(UserError, match=r"a TFRecord file, not rollouts .*: give scenarios as --scenarios"):
        list(read_rollouts(records))
    scene = parse_scenario(scenario_proto(agents=2).SerializeToString())
    shard = tmp_path / "validation-00000-of-00001.scenes.parquet"
    write_shard(shard, [scene])
    with pytest.raises(
        UserError, match=r"a shard of a scene store .*: give the folder of the store as --scenarios"
    ):
        list(read_rollouts(shard))
    with pytest.raises(UserError, match="a shard of a scene store"):
        open_scenes(shard)
    # A whole scenario that is no record of a file, and an entry to another challenge.
    for message in (
        scenario_proto(agents=2),
        motion_submission_pb2.MotionChallengeSubmission(account_name="a@b.cd"),
    ):
        path.write_bytes(message.SerializeToString())
        with pytest.raises(UserError, match=r"holds no ScenarioRollouts|not a protobuf message|not rollouts"):
            list(read_rollouts(path))


@pytest.mark.parametrize("extra", range(8))
def test_tf_examples_are_named_whatever_their_length(extra: int) -> None:
    """One length in eight parses as a Scenario of many timestamps."""
    with pytest.raises(
        RecordError, match=r"^a tf\.Example, not a Scenario proto: download the folder scenario/"
    ) as caught:
        parse_scenario(tf_example(extra))
    assert caught.value.code == "kind"


def test_records_of_other_datasets_are_named() -> None:
    context = field(1, b"10017090168044687777_6380_000_6400_000") + field(2, bytes(30))
    frame = field(1, context) + b"\x10\x01"
    for record in (frame, field(1, frame)):
        with pytest.raises(RecordError, match="a frame of another Waymo dataset"):
            parse_scenario(record)
    for message in (rollouts_message(), pb.SimAgentsChallengeSubmission(scenario_rollouts=[rollouts_message()])):
        with pytest.raises(
            RecordError, match="rollouts of a scenario, not a Scenario proto: give them as --rollouts"
        ):
            parse_scenario(message.SerializeToString())


def test_what_is_right_is_no_other_kind(tmp_path: Path) -> None:
    for steps, agents in ((91, 1), (91, 40), (11, 3)):
        record = scenario_proto(steps=steps, agents=agents).SerializeToString()
        assert other_kind(record[:HEAD], "a Scenario proto") is None
        write_records(tmp_path / "x", [record])
        assert other_kind((tmp_path / "x").read_bytes()[:HEAD], "a TFRecord") is None
    # Timestamps packed, as proto3 libraries write them, begin as a tf.Example does.
    proto = scenario_proto(agents=1)
    packed = field(1, np.array(proto.timestamps_seconds).tobytes())
    proto.ClearField("timestamps_seconds")
    assert parse_scenario(packed + proto.SerializeToString()).num_steps == 91
    assert other_kind(b"\xff\xfe\xfd" * 30, "a TFRecord") is None
    # A field whose text is not as long as it says is no name of a scenario.
    assert other_kind(b"\x0a\x05hello there\x12" + bytes(20), "a TFRecord") is None
    # A defect of a scenario keeps its own name.
    broken = scenario_pb2.Scenario(scenario_id="x")
    with pytest.raises(RecordError, match="timestamps_seconds: 0 steps"):
        parse_scenario(broken.SerializeToString())
