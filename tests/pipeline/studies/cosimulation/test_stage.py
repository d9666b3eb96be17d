"""The command from end to end on a tiny world with an untrained policy, and its errors."""

from __future__ import annotations

import dataclasses
import faulthandler
import json
import os
import signal
from pathlib import Path

import pytest
from PIL import Image

from data.errors import UserError
from data.vocabulary import Vocabulary
from models.policy import Policy, save_policy
from models.reference.checkpoint import save_reference
from pipeline.command.cli import main
from pipeline.studies.cosimulation import command as cosimulation
from pipeline.studies.cosimulation.command import CosimulationConfig, drive_scene, run_cosimulation
from tests.models.reference.conftest import make_model
from tests.pipeline.conftest import VIEW

CONFIG = CosimulationConfig(worlds=1, seconds=1.0, warm_up=15.0, share=0.3, workers=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, policy: Policy, vocabulary: Vocabulary) -> Path:
    path = tmp_path_factory.mktemp("policy") / "policy.ckpt"
    save_policy(path, policy, vocabulary, dataclasses.asdict(VIEW))
    return path


def test_a_world_from_end_to_end(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    reference = tmp_path / "reference.ckpt"
    save_reference(reference, make_model(2))
    figures = run_cosimulation(CONFIG, policy=checkpoint, reference=reference, out=out, seed=1)
    assert figures["worlds"] == 1
    assert figures["largest_deviation_m"] < 0.01
    assert "constant velocity" in capsys.readouterr().out
    result = json.loads((out / "cosimulation.json").read_text())
    assert set(result["drivers"]) == {"sumo", "replay", "policy", "constant_velocity", "reference"}
    assert {found["sums"]["vehicles"] for found in result["drivers"].values()} == {figures["vehicles"]}
    assert result["drivers"]["sumo"]["progress"]["value"] == 1.0
    with Image.open(out / "world.png") as sheet:
        assert sheet.width == 5 * 320
    assert (out / "world.mp4").stat().st_size > 1000
    # What is finished stays, and what is missing is made again with the same numbers.
    world = out / "worlds" / "0000.json"
    before, text = world.stat().st_mtime_ns, world.read_text()
    run_cosimulation(CONFIG, policy=checkpoint, reference=reference, out=out, seed=1)
    assert world.stat().st_mtime_ns == before
    world.unlink()
    run_cosimulation(CONFIG, policy=checkpoint, reference=reference, out=out, seed=1)
    assert world.read_text() == text
    with pytest.raises(UserError, match=r"other settings \(share .*\): start over with --fresh"):
        run_cosimulation(
            dataclasses.replace(CONFIG, share=0.5), policy=checkpoint, reference=reference, out=out, seed=1
        )


def test_a_drive_is_a_scene(area, own) -> None:
    scene = drive_scene(area, own)
    steps = own.pose.shape[1] - 1
    assert scene.num_steps == 11 + steps
    assert scene.agents.is_sdc.nonzero().flatten().tolist() == own.taken.tolist()
    row = int(own.taken[0])
    wanted = own.pose[row, -1, :2] + own.world.origin[0]
    assert scene.agents.position[row, -1, :2].tolist() == pytest.approx(wanted.tolist())
    assert scene.agents.valid[:, 10].tolist() == own.present[:, 0].tolist()


def test_a_crash_of_sumo_costs_the_network_and_is_told(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cosimulation._attempt

    def crashing(task, attempt):
        if attempt == 0:
            faulthandler.disable()
            os.kill(os.getpid(), signal.SIGSEGV)
        return real(task, attempt)

    monkeypatch.setattr(cosimulation, "_attempt", crashing)
    config = dataclasses.replace(CONFIG, film=-1)
    assert run_cosimulation(config, policy=checkpoint, out=tmp_path, seed=2)["networks_refused"] == 1
    assert "SUMO crashed (SIGSEGV)" in json.loads((tmp_path / "worlds" / "0000.json").read_text())["refusals"][0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--policy", "nowhere.ckpt"], "nowhere.ckpt"),
        (["--policy", "nowhere.ckpt", "--share", "0"], "--share 0.0: expected a number above 0"),
        (["--policy", "nowhere.ckpt", "--worlds", "0"], "--worlds 0: expected 1 or more"),
        (["--policy", "nowhere.ckpt", "--film", "6"], "--film 6: expected one of the 6 worlds"),
        (["--policy", "nowhere.ckpt", "--warm-up", "1"], "--warm_up 1.0: expected 5 s or more"),
    ],
)
def test_mistakes_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sumo", *arguments, "--out", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert error.count("\n") == 1


def test_without_sumo_it_says_so(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sumo", None)
    with pytest.raises(UserError, match="needs the packages eclipse-sumo and libsumo"):
        run_cosimulation(CONFIG, policy=checkpoint, out=tmp_path, seed=1)


def test_whoever_is_killed_gets_no_other_network(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cosimulation, "_attempt", lambda task, attempt: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match="SIGKILL often means too little memory"):
        run_cosimulation(CONFIG, policy=checkpoint, out=tmp_path, seed=2)
