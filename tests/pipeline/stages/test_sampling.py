"""Baselines against closed form; shards that depend on nothing but scenes and seed."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from data.tfrecord import write_records
from data.womd import parse_scenario
from pipeline.agents.baselines import ConstantVelocity, LogReplay
from pipeline.stages.sample import SampleConfig, run_sample
from tests.builders import scenario_proto

CONFIG = SampleConfig(agent="constant_velocity", rollouts=2, shard_scenarios=2, workers=1)


def test_log_gives_the_recorded_states_and_zeros() -> None:
    scene = parse_scenario(scenario_proto(agents=4).SerializeToString())
    states = LogReplay().rollouts(scene, 3, 0)
    assert states.shape == (3, 4, 80, 4)
    assert torch.equal(states[1, 0, :, :3], scene.agents.position[0, 11:])
    # The second agent is recorded from step 3 to 87.
    assert (states[:, 1, 77:] == 0).all()
    assert (states[:, 1, :77, 0] > 0).all()


def test_constant_velocity_is_a_straight_line() -> None:
    scene = parse_scenario(scenario_proto(agents=3, steps=11).SerializeToString())
    states = ConstantVelocity().rollouts(scene, 2, 0)
    for row, speed in enumerate((5.0, 6.0, 7.0)):
        start = 4000 + 12 * row + speed
        for step in (0, 39, 79):
            assert float(states[1, row, step, 0]) == pytest.approx(start + speed * 0.1 * (step + 1), abs=1e-3)
            assert float(states[1, row, step, 1]) == -2500.0
            assert float(states[1, row, step, 3]) == 0.0


def test_simulated_are_those_valid_now() -> None:
    proto = scenario_proto(agents=3)
    proto.tracks[1].states[10].valid = False
    scene = parse_scenario(proto.SerializeToString())
    assert ConstantVelocity().rollouts(scene, 1, 0).shape[1] == 2


@pytest.fixture
def scenarios(tmp_path: Path) -> str:
    records = [scenario_proto(f"s{index}", agents=1 + index).SerializeToString() for index in range(5)]
    write_records(tmp_path / "validation.tfrecord-00000-of-00001", records)
    return str(tmp_path / "validation.tfrecord-00000-of-00001")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.binproto-*")}


def test_bytes_do_not_depend_on_workers_or_interruptions(scenarios: str, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    run_sample(CONFIG, scenarios=scenarios, out=one)
    run_sample(dataclasses.replace(CONFIG, workers=2), scenarios=scenarios, out=two)
    assert len(content(one)) == 3
    assert content(one) == content(two)
    (two / "rollouts.binproto-00001-of-00003").unlink()
    kept = (two / "rollouts.binproto-00000-of-00003").stat().st_mtime_ns
    run_sample(CONFIG, scenarios=scenarios, out=two)
    assert content(one) == content(two)
    assert (two / "rollouts.binproto-00000-of-00003").stat().st_mtime_ns == kept


_SCRIPT = """
import sys, time
from pathlib import Path
from pipeline.agents.baselines import ConstantVelocity
from pipeline.stages.sample import SampleConfig, run_sample
plain = ConstantVelocity.rollouts
def slow(*arguments):
    time.sleep(0.2)
    return plain(*arguments)
ConstantVelocity.rollouts = slow
config = SampleConfig(agent="constant_velocity", rollouts=2, shard_scenarios=2, workers=1)
run_sample(config, scenarios=sys.argv[1], out=Path(sys.argv[2]))
"""


def test_kill_and_resume(scenarios: str, tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    run_sample(CONFIG, scenarios=scenarios, out=whole)
    root = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT, scenarios, str(out)], cwd=root)
    first = out / "rollouts.binproto-00000-of-00003"
    try:
        deadline = time.monotonic() + 60
        # The second shard has been begun and lies half-written under a temporary name.
        while not (first.exists() and list(out.glob(".*.part"))):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    assert [path.name for path in out.glob("rollouts*")] == [first.name]
    kept = first.stat().st_mtime_ns
    run_sample(CONFIG, scenarios=scenarios, out=out)
    assert content(out) == content(whole)
    assert first.stat().st_mtime_ns == kept
    assert not list(out.glob(".*.part"))


def test_changed_scenarios_are_noticed(tmp_path: Path) -> None:
    out, other = tmp_path / "out", tmp_path / "other"
    path = tmp_path / "testing.tfrecord-00000-of-00001"
    contents = []
    for speed, folder in ((0, out), (30, out), (30, other)):
        # Same path, same scenario id, other content.
        proto = scenario_proto("s", agents=1, steps=11)
        proto.tracks[0].states[10].velocity_y = speed
        write_records(path, [proto.SerializeToString()])
        run_sample(CONFIG, scenarios=str(path), out=folder)
        contents.append(content(folder))
    assert contents[0] != contents[1]
    assert contents[1] == contents[2]


def test_other_settings_replace_what_is_there(scenarios: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_sample(CONFIG, scenarios=scenarios, out=out)
    before = content(out)
    run_sample(dataclasses.replace(CONFIG, agent="log"), scenarios=scenarios, out=out)
    assert content(out) != before
    run_sample(dataclasses.replace(CONFIG, shard_scenarios=5), scenarios=scenarios, out=out)
    assert sorted(content(out)) == ["rollouts.binproto-00000-of-00001"]


def test_files_from_elsewhere_are_not_touched(scenarios: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("rollouts.binproto-00000-of-00001", "submission.binproto"):
        (out / name).write_text("precious")
        with pytest.raises(UserError, match=f"{name}: not written by this stage; choose another --out"):
            run_sample(CONFIG, scenarios=scenarios, out=out)
        assert (out / name).read_text() == "precious"
        (out / name).unlink()
        run_sample(CONFIG, scenarios=scenarios, out=out)


def test_a_checkpoint_that_is_not_used_is_said(
    scenarios: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.ckpt").touch()
    run_sample(CONFIG, scenarios=scenarios, checkpoint=tmp_path / "x.ckpt", out=tmp_path / "o")
    said = f"warning: --checkpoint {tmp_path / 'x.ckpt'}: not used by --agent {CONFIG.agent}"
    assert said in capsys.readouterr().err


def test_clear_errors(scenarios: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean policy"):
        run_sample(dataclasses.replace(CONFIG, agent="polcy"), scenarios=scenarios, out=tmp_path / "o")
    with pytest.raises(UserError, match="--agent policy needs --checkpoint FILE"):
        run_sample(dataclasses.replace(CONFIG, agent="policy"), scenarios=scenarios, out=tmp_path / "o")
    with pytest.raises(UserError, match="--workers -1: expected 0 or more"):
        run_sample(dataclasses.replace(CONFIG, workers=-1), scenarios=scenarios, out=tmp_path / "o")
    with pytest.raises(UserError, match="no such file"):
        run_sample(CONFIG, scenarios=scenarios, checkpoint=tmp_path / "x.ckpt", out=tmp_path / "o")
    short = tmp_path / "testing.tfrecord-00000-of-00001"
    write_records(short, [scenario_proto("t", steps=11).SerializeToString()])
    with pytest.raises(UserError, match="scenario t: 11 steps; the log agent needs a future"):
        run_sample(dataclasses.replace(CONFIG, agent="log"), scenarios=str(short), out=tmp_path / "o")
