"""Joint futures as tensors and as Waymo's protos (sim_agents_submission.proto), and files of them.

A shard ``NAME.binproto-00000-of-00004`` is one serialized ``SimAgentsChallengeSubmission``. Its repeated field
``scenario_rollouts`` is written and read one message at a time, so a whole shard is never in memory. Shards of
``sample`` have no metadata; ``package`` adds it. A file may also hold a single ``ScenarioRollouts``.
"""

from __future__ import annotations

import glob as globbing
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from google.protobuf.message import DecodeError
from torch import Tensor
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from data.completeness import series_of
from data.errors import UserError
from data.geometry import wrap_angle
from data.places import open_path
from data.scene import FUTURE_STEPS
from submission.members import open_members

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_ROLLOUTS_FIELD = 1
_SCENE_FIELD = 2
_EXPECTED = "ScenarioRollouts or SimAgentsChallengeSubmission messages"
_ARCHIVES = (".tar.gz", ".tgz", ".tar")
_COORDINATES = ("center_x", "center_y", "center_z", "heading")


@dataclass(frozen=True)
class Rollouts:
    """R joint futures of A agents of one scenario.

    Attributes:
        scenario_id: of the scenario.
        agent_id: [A] int64, ``Track.id``.
        states: [R, A, 80, 4] float32: x, y, z in metres (box centre, frame of the scenario), heading in radians.
    """

    scenario_id: str
    agent_id: Tensor
    states: Tensor

    def of(self, ids: Sequence[int]) -> Tensor | None:
        """The states of objects in the order of their ids; None where these are not exactly the agents."""
        rows = {agent_id: row for row, agent_id in enumerate(self.agent_id.tolist())}
        return self.states[:, [rows[agent_id] for agent_id in ids]] if sorted(rows) == sorted(ids) else None


def to_proto(rollouts: Rollouts) -> Any:
    """A ``ScenarioRollouts`` message, headings wrapped to [-pi, pi).

    Raises:
        UserError: NaN or infinity, naming scenario and object.
        ValueError: wrong shapes.
    """
    states, ids = rollouts.states, rollouts.agent_id
    if states.shape[1:] != (len(ids), FUTURE_STEPS, 4):
        raise ValueError(f"states {tuple(states.shape)} for {len(ids)} agents")
    if not bool(torch.isfinite(states).all()):
        agent = int((~torch.isfinite(states)).any(3).any(2).any(0).nonzero()[0])
        raise UserError(
            f"scenario {rollouts.scenario_id}: object {int(ids[agent])}: simulated state is NaN or infinite"
        )
    heading = states[..., 3]
    # A heading in range keeps its bits, since the modulo would round it.
    heading = torch.where((heading >= -math.pi) & (heading < math.pi), heading, wrap_angle(heading))
    values = (
        torch.cat((states[..., :3], heading.unsqueeze(-1)), dim=-1).movedim(-1, 2).contiguous()
    )  # [R, A, 4, 80]
    names = ids.tolist()
    message = pb.ScenarioRollouts(scenario_id=rollouts.scenario_id)
    for scene in values.tolist():
        joint = message.joint_scenes.add()
        for agent_id, rows in zip(names, scene, strict=True):
            joint.simulated_trajectories.add(
                object_id=agent_id, center_x=rows[0], center_y=rows[1], center_z=rows[2], heading=rows[3]
            )
    return message


def from_proto(message: Any, where: str) -> Rollouts:
    """Tensors of a ``ScenarioRollouts`` message; every joint scene must hold the same objects.

    Args:
        message: the proto. where: its file, for errors.

    Raises:
        UserError: no scenes, objects that repeat or differ between scenes, arrays that are not 80 long, or values
            that are not finite.
    """
    where = f"{where}: scenario {message.scenario_id or '(no id)'}"
    if not message.joint_scenes:
        raise UserError(f"{where}: no joint scenes")
    ids = [trajectory.object_id for trajectory in message.joint_scenes[0].simulated_trajectories]
    row_of = {agent_id: row for row, agent_id in enumerate(ids)}
    if len(row_of) != len(ids):
        twice = next(value for value in ids if ids.count(value) > 1)
        raise UserError(f"{where}: joint scene 0: object {twice} occurs more than once")
    states = np.empty((len(message.joint_scenes), len(ids), 4, FUTURE_STEPS), dtype=np.float32)
    for number, scene in enumerate(message.joint_scenes):
        own_ids = [trajectory.object_id for trajectory in scene.simulated_trajectories]
        if own_ids != ids and sorted(own_ids) != sorted(ids):
            odd = sorted(set(own_ids) ^ set(ids)) or sorted(own_ids)
            raise UserError(f"{where}: joint scene {number}: its objects differ from scene 0's (object {odd[0]})")
        for trajectory in scene.simulated_trajectories:
            target = states[number, row_of[trajectory.object_id]]
            for column, name in enumerate(_COORDINATES):
                values = getattr(trajectory, name)
                if len(values) != FUTURE_STEPS:
                    raise UserError(
                        f"{where}: joint scene {number}: object {trajectory.object_id}: {name} has "
                        f"{len(values)} values, expected {FUTURE_STEPS}"
                    )
                target[column] = values
    if not np.isfinite(states).all():
        number, row, column, step = np.argwhere(~np.isfinite(states))[0].tolist()
        what = f"{_COORDINATES[column]} is NaN or infinite at step {step}"
        raise UserError(f"{where}: joint scene {number}: object {ids[row]}: {what}")
    return Rollouts(
        scenario_id=message.scenario_id,
        agent_id=torch.tensor(ids, dtype=torch.int64),
        states=torch.from_numpy(np.moveaxis(states, 2, 3).copy()),
    )


@dataclass(frozen=True)
class Wire:
    """One top-level field of a serialized message."""

    number: int
    kind: int
    payload: bytes

    def encode(self) -> bytes:
        """The serialized field, with the shortest varints."""
        tag = _varint(self.number << 3 | self.kind)
        return tag + (_varint(len(self.payload)) if self.kind == _LENGTH else b"") + self.payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        out.append(low | (0x80 if value else 0))
        if not value:
            return bytes(out)


def encode_field(number: int, payload: bytes) -> bytes:
    """A length-delimited field, as ``SerializeToString`` writes a nested message."""
    return Wire(number, _LENGTH, payload).encode()


def _read_varint(file: IO[bytes], first: bytes, where: str) -> int:
    value, shift, byte = 0, 0, first
    while True:
        if not byte:
            raise UserError(f"{where}: truncated, ends inside a number")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
        shift += 7
        if shift > 63:
            raise UserError(f"{where}: not a protobuf message")
        byte = file.read(1)


def read_fields(file: IO[bytes], where: str, size: int) -> Iterator[Wire]:
    """Stream the top-level fields of a serialized message.

    Args:
        file: at its start. where: name in errors.
        size: of the message, bytes; a longer field is an error before memory is allocated.

    Raises:
        UserError: truncated, or not a protobuf message.
    """
    while byte := file.read(1):
        tag = _read_varint(file, byte, where)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise UserError(f"{where}: not a protobuf message")
        if kind == _VARINT:
            yield Wire(number, kind, _varint(_read_varint(file, file.read(1), where)))
            continue
        if kind == _LENGTH:
            length = _read_varint(file, file.read(1), where)
        elif kind in (_FIXED64, _FIXED32):
            length = 8 if kind == _FIXED64 else 4
        else:
            raise UserError(f"{where}: not a protobuf message")
        if length > size:
            raise UserError(f"{where}: truncated, a field of {length} bytes in a file of {size}")
        payload = file.read(length)
        if len(payload) < length:
            raise UserError(f"{where}: truncated, the file ends {length - len(payload)} bytes early")
        yield Wire(number, kind, payload)


def _head(fields: Iterator[Wire]) -> tuple[list[Wire], bool]:
    """The first two fields, and whether they are of a ``ScenarioRollouts`` and not of a submission."""
    head = list(itertools.islice(fields, 2))
    # Field 2 of a ScenarioRollouts is a message; that of a submission is an enum.
    return head, any((field.number, field.kind) == (_SCENE_FIELD, _LENGTH) for field in head)


def holds_one_scenario(file: IO[bytes], where: str, size: int) -> bool:
    """Whether a seekable file at its start holds a single ``ScenarioRollouts``; rewinds it."""
    _, single = _head(read_fields(file, where, size))
    file.seek(0)
    return single


def scenario_rollouts_messages(file: IO[bytes], where: str, size: int) -> Iterator[tuple[Any, list[Wire]]]:
    """Stream the ``ScenarioRollouts`` of a file of either kind; it need not be seekable.

    Yields:
        (message, fields): ``fields`` is the list of the submission's other fields, which is complete at the end and
        empty for a single ``ScenarioRollouts``.

    Raises:
        UserError: damaged, or not a submission. A submission without rollouts is accepted.
    """
    fields = read_fields(file, where, size)
    others: list[Wire] = []
    head, single = _head(fields)
    if single:
        yield parse_rollouts(b"".join(field.encode() for field in (*head, *fields)), where), others
        return
    for field in itertools.chain(head, fields):
        if (field.number, field.kind) == (_ROLLOUTS_FIELD, _LENGTH):
            yield parse_rollouts(field.payload, where), others
        else:
            others.append(field)
    check_submission(others, where)


def check_submission(others: list[Wire], where: str) -> None:
    """Check that the fields of a file other than rollouts are those of a submission.

    A shard of metadata only is accepted; the tutorial writes them where there are more shards than scenarios.

    Raises:
        UserError: they are not.
    """
    try:
        message = pb.SimAgentsChallengeSubmission.FromString(b"".join(field.encode() for field in others))
    except DecodeError as error:
        raise UserError(f"{where}: holds no {_EXPECTED}") from error
    if others and not message.ListFields():
        raise UserError(f"{where}: holds no {_EXPECTED}")


def parse_rollouts(data: bytes, where: str) -> Any:
    """A ``ScenarioRollouts`` message.

    Raises:
        UserError: ``data`` is not one, or its scenario id is not UTF-8.
    """
    try:
        message = pb.ScenarioRollouts.FromString(data)
    except DecodeError as error:
        raise UserError(f"{where}: holds no {_EXPECTED}") from error
    # The parser returns bytes where a string is not UTF-8.
    if not isinstance(message.scenario_id, str):
        raise UserError(f"{where}: scenario id {message.scenario_id!r} is not UTF-8")
    return message


def file_messages(file: Path) -> Iterator[tuple[Any, str]]:
    """Stream the ``ScenarioRollouts`` of a file or of the shards in an archive, each with a name for errors.

    Raises:
        UserError: damaged, or a file of another kind.
    """
    for member in open_members(file):
        for message, _ in scenario_rollouts_messages(member.handle, member.where, member.size):
            yield message, member.where


def rollout_files(path: str | Path) -> list[Path]:
    """Files of a path or URL: itself, all ``*.binproto*`` of a folder, or what a local glob matches, sorted.

    A file may be an archive (``submission.members``). Archives in a folder are used if it has no other files.

    Raises:
        UserError: no files, or in a folder an unfinished file or a shard that occurs twice.
    """
    root = open_path(path)
    if root.is_dir():
        names = [file for file in root.iterdir() if not file.name.startswith(".")]
        files = [file for file in names if ".binproto" in file.name]
        series_of(sorted(file.name for file in files))
        files = files or [file for file in names if file.name.endswith(_ARCHIVES)]
    elif root.is_file():
        files = [root]
    else:
        files = [Path(name) for name in globbing.glob(str(path)) if Path(name).is_file()]
    if not files:
        raise UserError(f"{path}: no rollouts; expected files such as rollouts.binproto-00000-of-00004")
    return sorted(files, key=str)


def read_rollouts(path: str | Path) -> Iterator[Rollouts]:
    """Stream the rollouts of a file, a folder of shards or a glob.

    Raises:
        UserError: no files, damaged, or inconsistent (see ``from_proto``).
    """
    empty = True
    for file in rollout_files(path):
        for message, where in file_messages(file):
            empty = False
            yield from_proto(message, where)
    if empty:
        raise UserError(f"{path}: holds no {_EXPECTED}")
