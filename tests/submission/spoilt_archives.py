"""Ways to spoil a good archive, each with what validation must say of it."""

from __future__ import annotations

import bz2
import gzip
import io
import math
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from submission.metadata import Metadata

__all__ = ["FILLED", "SPOILT", "Spoilt", "packed"]

# What an entry says of itself.
FILLED = Metadata(
    account_name="a.turing@uni.edu",
    unique_method_name="TrafficNet",
    authors=["Alan Turing", "Grace Hopper"],
    affiliation="University of Somewhere",
    description="Plans with your usual transformer; p < 0.05 in all of 3 > 2 runs.",
    method_link="https://arxiv.org/abs/2510.18060",
    uses_lidar_data=False,
    uses_camera_data=False,
    uses_public_model_pretraining=False,
    num_model_parameters="117K",
    acknowledge_complies_with_closed_loop_requirement=True,
)
NAME = "submission.binproto-00000-of-00001"


@dataclass(frozen=True)
class Spoilt:
    """One way.

    Attributes:
        title: what is wrong. said: part of a line of the verdict. make: the archive, from a good one's message.
        suspicion: the server accepts it.
    """

    title: str
    said: str
    make: Callable[[bytes], bytes]
    suspicion: bool = False


def packed(files: list[tuple[str, bytes]], kind: bytes = tarfile.REGTYPE, mode: str = "w:gz") -> bytes:
    """A tar of some members, those of another kind than files without content."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:  # type: ignore[call-overload]
        for name, data in files:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            member.size = len(data) if kind == tarfile.REGTYPE else 0
            tar.addfile(member, io.BytesIO(data) if member.size else None)
    return buffer.getvalue()


def _changed(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def make(data: bytes) -> bytes:
        submission = pb.SimAgentsChallengeSubmission.FromString(data)
        change(submission)
        return packed([(NAME, submission.SerializeToString())])

    return make


def _named(*names: str) -> Callable[[bytes], bytes]:
    """The scenarios divided among files of these names."""

    def make(data: bytes) -> bytes:
        files = []
        for index, name in enumerate(names):
            part = pb.SimAgentsChallengeSubmission.FromString(data)
            rollouts = list(part.scenario_rollouts)
            del part.scenario_rollouts[:]
            part.scenario_rollouts.extend(rollouts[index :: len(names)])
            files.append((name, part.SerializeToString()))
        return packed(files)

    return make


def _scene(submission: Any, number: int = 4) -> Any:
    return submission.scenario_rollouts[1].joint_scenes[number]


def _object(submission: Any, scene: int = 4) -> Any:
    return _scene(submission, scene).simulated_trajectories[1]


def _again(items: Any) -> None:
    items.add().CopyFrom(items[0])


def _set(name: str, value: Any) -> Callable[[bytes], bytes]:
    return _changed(lambda submission: setattr(submission, name, value))


def _without(name: str) -> Callable[[bytes], bytes]:
    return _changed(lambda submission: submission.ClearField(name))


def _value(name: str, step: int, value: float) -> Callable[[bytes], bytes]:
    return _changed(lambda submission: getattr(_object(submission), name).__setitem__(step, value))


def _moved(name: str, change: Callable[[int], float]) -> Callable[[bytes], bytes]:
    """An object whose coordinate has something added to it at each step."""

    def move(submission: Any) -> None:
        values = getattr(_object(submission), name)
        for step in range(len(values)):
            values[step] += change(step)

    return _changed(move)


def _frozen(submission: Any) -> None:
    """All joint scenes of a scenario the same."""
    for number in range(1, 32):
        _scene(submission, number).CopyFrom(_scene(submission, 0))


def _everywhere(change: Callable[[Any, int], None]) -> Callable[[bytes], bytes]:
    """All trajectories changed, each with the number of its joint scene."""

    def make(submission: Any) -> None:
        for rollouts in submission.scenario_rollouts:
            for number, joint in enumerate(rollouts.joint_scenes):
                for trajectory in joint.simulated_trajectories:
                    change(trajectory, number)

    return _changed(make)


def _turned(trajectory: Any, number: int) -> None:
    trajectory.heading[:] = [math.remainder(value + math.pi / 2, 2 * math.pi) for value in trajectory.heading]


def _late(trajectory: Any, number: int) -> None:
    values = list(trajectory.center_x)
    trajectory.center_x[:] = [2 * values[0] - values[1], *values[:-1]]


def _six(submission: Any) -> None:
    """Six futures instead of 32."""
    for number in range(6, 32):
        _scene(submission, number).CopyFrom(_scene(submission, number % 6))


def _rename(submission: Any) -> None:
    for number, rollouts in enumerate(submission.scenario_rollouts):
        rollouts.scenario_id = f"x{number}"


def _shorten(submission: Any) -> None:
    del _object(submission).heading[1:]


_META = "acknowledge_complies_with_closed_loop_requirement"
SPOILT = (
    Spoilt(
        "31 joint scenes",
        "31 joint scenes, expected 32",
        _changed(lambda s: s.scenario_rollouts[1].joint_scenes.pop()),
    ),
    Spoilt("33 joint scenes", "33 joint scenes", _changed(lambda s: _again(s.scenario_rollouts[1].joint_scenes))),
    Spoilt(
        "an object is missing",
        "joint scene 4: object 107 is missing",
        _changed(lambda s: _scene(s).simulated_trajectories.pop(1)),
    ),
    Spoilt(
        "a foreign object",
        "object 999 is not to be simulated",
        _changed(lambda s: setattr(_object(s), "object_id", 999)),
    ),
    Spoilt(
        "an object twice", "object 100 occurs 2 times", _changed(lambda s: _again(_scene(s).simulated_trajectories))
    ),
    Spoilt("79 steps", "center_y has 79 values, expected 80", _changed(lambda s: _object(s).center_y.pop())),
    Spoilt("81 steps", "center_z has 81 values, expected 80", _changed(lambda s: _object(s).center_z.append(0))),
    Spoilt("one heading for all steps", "heading has 1 values, expected 80", _changed(_shorten)),
    Spoilt("NaN", "center_z is NaN or infinite at step 5", _value("center_z", 5, float("nan"))),
    Spoilt("infinity", "center_x is NaN or infinite at step 7", _value("center_x", 7, float("inf"))),
    Spoilt("a heading in degrees", "heading is 90.000 at step 9", _value("heading", 9, 90.0)),
    Spoilt("a heading beyond pi", "heading is 3.300 at step 9", _value("heading", 9, 3.3)),
    Spoilt(
        "a scenario is missing",
        "scenario 0000000000000002 is missing",
        _changed(lambda s: s.scenario_rollouts.pop()),
    ),
    Spoilt(
        "a scenario twice",
        "scenario 0000000000000000 occurs more than once",
        _changed(lambda s: _again(s.scenario_rollouts)),
    ),
    Spoilt(
        "a foreign scenario",
        "scenario abc is not in the evaluated set",
        _changed(lambda s: setattr(s.scenario_rollouts[0], "scenario_id", "abc")),
    ),
    Spoilt("another split altogether", "none of its 3 scenarios is in the evaluated set", _changed(_rename)),
    Spoilt("no submission type", "submission_type is not SIM_AGENTS_SUBMISSION", _without("submission_type")),
    Spoilt("number of parameters not given", "num_model_parameters", _without("num_model_parameters")),
    Spoilt("use of lidar not given", "uses_lidar_data is not set", _without("uses_lidar_data")),
    Spoilt("an account that is no address", "account_name is 'me'", _set("account_name", "me")),
    Spoilt("closed loop not acknowledged", f"{_META} is not true", _without(_META)),
    Spoilt("metadata differ between shards", "metadata differs from that of", lambda data: _two_entries(data)),
    Spoilt("an unknown field", "unknown field 99", lambda data: packed([(NAME, data + b"\x9a\x06\x01?")])),
    Spoilt(
        "a shard is missing",
        "shard 00001 of 00002 is missing",
        lambda data: packed([("s.binproto-00000-of-00002", data)]),
    ),
    Spoilt(
        "a shard beyond the count",
        "shard 00002 of 00002 is beyond the count",
        _named("s.binproto-00000-of-00002", "s.binproto-00002-of-00002"),
    ),
    Spoilt(
        "counts that disagree",
        "shard names disagree on the number of shards: [2, 3]",
        _named("s.binproto-00000-of-00002", "s.binproto-00001-of-00003"),
    ),
    Spoilt(
        "a name the server does not match",
        "notes.txt: expected a name such as",
        lambda data: packed([("notes.txt", data)]),
    ),
    Spoilt(
        "a path that climbs",
        "../s.binproto: path leads out of the archive",
        lambda data: packed([("../s.binproto", data)]),
    ),
    Spoilt(
        "an absolute path",
        "/etc/s.binproto: path leads out of the archive",
        lambda data: packed([("/etc/s.binproto", data)]),
    ),
    Spoilt("a symbolic link", "not a regular file", lambda data: packed([(NAME, b"")], tarfile.SYMTYPE)),
    Spoilt("a hard link", "not a regular file", lambda data: packed([(NAME, b"")], tarfile.LNKTYPE)),
    Spoilt("a device", "not a regular file", lambda data: packed([(NAME, b"")], tarfile.CHRTYPE)),
    Spoilt("an upload that was cut", "damaged or truncated", lambda data: packed([(NAME, data)])[:-2000]),
    Spoilt("a byte that flipped", "damaged or truncated", lambda data: _flipped(packed([(NAME, data)]))),
    Spoilt(
        "a plain .tar", "a plain .tar; the server wants a .tar.gz", lambda data: packed([(NAME, data)], mode="w")
    ),
    Spoilt("no archive at all", "not a gzip file", lambda data: b"hello"),
    Spoilt(
        "another compression",
        "bzip2-compressed, not a gzip file; the server wants a .tar.gz",
        lambda data: bz2.compress(packed([(NAME, data)], mode="w")),
    ),
    Spoilt(
        "a gzip in a gzip",
        "inside the gzip: gzip-compressed, not a tar",
        lambda data: gzip.compress(packed([(NAME, data)])),
    ),
    Spoilt(
        "a sidecar of macOS",
        "._s: a sidecar that macOS writes, not a shard: leave it out of the archive",
        lambda data: packed([(NAME, data), ("._s", bytes((0, 5, 22, 7, 0, 2, 0, 0)) + b"Mac OS X")]),
    ),
    Spoilt(
        "rollouts without a submission around them",
        "holds no metadata, so it is no submission: pack its rollouts with `package`",
        lambda data: packed(
            [(NAME, pb.SimAgentsChallengeSubmission.FromString(data).scenario_rollouts[0].SerializeToString())]
        ),
    ),
    Spoilt(
        "gzip of a shard", "inside the gzip: rollouts of a scenario, not a tar", lambda data: gzip.compress(data)
    ),
    Spoilt("gzip of something else", "damaged or truncated", lambda data: gzip.compress(b"\x01" * 2000)),
    Spoilt("a member that is no message", f"{NAME}:", lambda data: packed([(NAME, b"this is not a proto")])),
    Spoilt("an empty archive", "the archive holds no files", lambda data: packed([])),
    Spoilt("a declared size of a terabyte", "the rest was not checked", lambda data: _announced(2**40)),
    Spoilt(
        "data behind the end",
        "data after the end of the tar",
        lambda data: gzip.compress(packed([(NAME, data)], mode="w") + bytes(40_000_000)),
    ),
    Spoilt(
        "a jump",
        "joint scene 4: object 107: jumps 60.0 m at step 40",
        _moved("center_y", lambda step: 60.0 * (step >= 40)),
        True,
    ),
    Spoilt("not where it is now", "object 107: jumps", _moved("center_x", lambda step: 500.0), True),
    Spoilt(
        "heights of another frame",
        "object 107: changes its height by 30.0 m at step 0",
        _moved("center_z", lambda step: 30.0),
        True,
    ),
    Spoilt(
        "sinking into the ground",
        "m above or below where it started at step",
        _moved("center_z", lambda step: -0.5 * step),
        True,
    ),
    Spoilt("futures all the same", "all 32 joint scenes are the same", _changed(_frozen), True),
    Spoilt("six futures instead of 32", "only 6 of 32 joint scenes differ", _changed(_six), True),
    Spoilt("headings of another zero", "headings are turned by 90 degrees", _everywhere(_turned), True),
    Spoilt("a step late", "rollouts begin one step late", _everywhere(_late), True),
    Spoilt(
        "metadata of a template", "affiliation is 'YOUR_AFFILIATION'", _set("affiliation", "YOUR_AFFILIATION"), True
    ),
    Spoilt(
        "models that were not used",
        "public_model_names is ['SMART'], but uses_public_model_pretraining is false",
        _changed(lambda s: s.public_model_names.append("SMART")),
        True,
    ),
)


def _two_entries(data: bytes) -> bytes:
    other = pb.SimAgentsChallengeSubmission.FromString(data)
    del other.scenario_rollouts[1:]
    first = pb.SimAgentsChallengeSubmission.FromString(data)
    del first.scenario_rollouts[0]
    other.unique_method_name = "another"
    return packed(
        [
            ("s.binproto-00000-of-00002", first.SerializeToString()),
            ("s.binproto-00001-of-00002", other.SerializeToString()),
        ]
    )


def _flipped(content: bytes) -> bytes:
    changed = bytearray(content)
    changed[len(changed) // 2] ^= 0x55
    return bytes(changed)


def _announced(size: int) -> bytes:
    member = tarfile.TarInfo(NAME)
    member.size = size
    return gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(10_000))
