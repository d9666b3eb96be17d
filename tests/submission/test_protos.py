"""Rollouts as protos and back, and files of either kind, cut and damaged."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from data.errors import UserError
from submission.protos import Rollouts, Wire, encode_field, from_proto, read_fields, read_rollouts, to_proto


def random_rollouts(seed: int = 0, count: int = 3, agents: int = 4, name: str = "s") -> Rollouts:
    rng = np.random.default_rng(seed)
    states = torch.from_numpy(rng.normal(scale=3000, size=(count, agents, 80, 4)).astype(np.float32))
    states[..., 3] = torch.from_numpy(rng.uniform(-math.pi, math.pi, (count, agents, 80)).astype(np.float32))
    return Rollouts(name, torch.from_numpy(rng.permutation(5000)[:agents].astype(np.int64)), states)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 5))
def test_round_trip_keeps_every_bit(seed: int, count: int, agents: int) -> None:
    rollouts = random_rollouts(seed, count, agents)
    data = to_proto(rollouts).SerializeToString()
    again = from_proto(pb.ScenarioRollouts.FromString(data), "memory")
    assert again.scenario_id == rollouts.scenario_id
    assert torch.equal(again.agent_id, rollouts.agent_id)
    assert torch.equal(again.states, rollouts.states)


def test_headings_are_wrapped_and_the_others_untouched() -> None:
    rollouts = random_rollouts()
    rollouts.states[0, 0, :4, 3] = torch.tensor([math.pi + 0.5, -math.pi - 0.5, 7 * math.pi, 100.0])
    back = from_proto(to_proto(rollouts), "memory").states
    difference = back[0, 0, :4, 3].double() - rollouts.states[0, 0, :4, 3].double()
    assert torch.allclose((difference / (2 * math.pi)).round(), difference / (2 * math.pi), atol=1e-6)
    assert back[..., 3].abs().max() <= np.float32(math.pi)
    assert torch.equal(back[..., :3], rollouts.states[..., :3])
    assert torch.equal(back[1:], rollouts.states[1:])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_finite_is_refused(value: float) -> None:
    rollouts = random_rollouts()
    rollouts.states[1, 2, 30, 0] = value
    with pytest.raises(UserError, match=f"scenario s: object {int(rollouts.agent_id[2])}: simulated state is NaN"):
        to_proto(rollouts)


def test_objects_may_stand_in_any_order_but_must_agree() -> None:
    rollouts = random_rollouts(agents=3)
    message = to_proto(rollouts)
    second = message.joint_scenes[1].simulated_trajectories
    moved = pb.SimulatedTrajectory()
    moved.CopyFrom(second[0])
    del second[0]
    second.append(moved)
    assert torch.equal(from_proto(message, "f").states, rollouts.states)
    second[0].object_id = 77777
    with pytest.raises(UserError, match="f: scenario s: joint scene 1: its objects differ"):
        from_proto(message, "f")


@pytest.mark.parametrize("name", ["center_x", "heading"])
def test_wrong_lengths_are_named(name: str) -> None:
    message = to_proto(random_rollouts())
    getattr(message.joint_scenes[2].simulated_trajectories[1], name).pop()
    with pytest.raises(UserError, match=rf"joint scene 2: object \d+: {name} has 79 values, expected 80"):
        from_proto(message, "f")


def test_files_of_either_kind(tmp_path: Path) -> None:
    rollouts = [random_rollouts(index, name=f"s{index}") for index in range(3)]
    submission = pb.SimAgentsChallengeSubmission(scenario_rollouts=[to_proto(r) for r in rollouts])
    submission.account_name = "a@b.cd"
    (tmp_path / "x.binproto-00000-of-00002").write_bytes(submission.SerializeToString())
    (tmp_path / "x.binproto-00001-of-00002").write_bytes(
        to_proto(random_rollouts(9, name="s9")).SerializeToString()
    )
    (tmp_path / "sampling.json").write_text("{}")
    for path in (tmp_path, tmp_path / "x.binproto-*"):
        found = list(read_rollouts(path))
        assert [r.scenario_id for r in found] == ["s0", "s1", "s2", "s9"]
        assert torch.equal(found[1].states, rollouts[1].states)
    streamed = b"".join(encode_field(1, to_proto(r).SerializeToString()) for r in rollouts)
    assert pb.SimAgentsChallengeSubmission.FromString(streamed).scenario_rollouts[2].scenario_id == "s2"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_files_end_in_one_clear_line(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    path = tmp_path_factory.mktemp("r") / "x.binproto"
    content = bytearray(encode_field(1, to_proto(random_rollouts(count=1, agents=1)).SerializeToString()))
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(1, len(content) - 1)) :]
    else:
        # The first bytes hold tags and lengths; changing a coordinate would be no damage.
        content[data.draw(st.integers(0, 12))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(content))
    try:
        found = list(read_rollouts(path))
    except UserError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert str(path) in str(error)  # noqa: PT017
    else:
        # A flipped bit in an id is the only change that leaves a readable file.
        assert len(found) <= 1


def test_random_bytes(tmp_path: Path) -> None:
    path = tmp_path / "x.binproto"
    path.write_bytes(b"this is no proto at all")
    with pytest.raises(UserError, match=r"x\.binproto"):
        list(read_rollouts(path))
    with pytest.raises(UserError, match="no rollouts; expected files such as"):
        list(read_rollouts(tmp_path / "nothing"))
    assert io.BytesIO(encode_field(1, b"x" * 300)).read(3) == b"\x0a\xac\x02"


def test_fields_of_all_kinds_are_passed_over() -> None:
    """Numbers of 4 and 8 bytes, varints of several bytes and texts, as a later version of the proto may have."""
    wires = [
        Wire(900, 1, bytes(range(8))),
        Wire(901, 5, b"abcd"),
        Wire(902, 0, b"\xac\x02"),
        Wire(903, 2, b"x" * 300),
    ]
    data = b"".join(wire.encode() for wire in wires)
    assert list(read_fields(io.BytesIO(data), "f", len(data))) == wires
    message = pb.SimAgentsChallengeSubmission.FromString(data)
    assert message.SerializeToString() == data, "protobuf reads the same"
    for cut in (5, 13, len(data) - 1):
        with pytest.raises(UserError, match="f: truncated"):
            list(read_fields(io.BytesIO(data[:cut]), "f", cut))
