"""``evaluate`` on rollouts in the files that other programs write: their names, and both kinds of messages."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb

from data.scenes_source import open_scenes
from data.tfrecord import write_records
from pipeline.agents.baselines import ConstantVelocity
from pipeline.command.cli import main
from submission.protos import Rollouts, to_proto
from tests.builders import scenario_proto

Files = dict[str, bytes]
_COUNT = 4


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("validation")
    protos = [scenario_proto(f"{index:016x}", agents=2 + index).SerializeToString() for index in range(_COUNT)]
    write_records(folder / "validation.tfrecord-00000-of-00001", protos)
    return folder


@pytest.fixture(scope="module")
def messages(scenarios: Path) -> list[Any]:
    """``ScenarioRollouts`` of constant velocity."""
    agent = ConstantVelocity()
    return [
        to_proto(Rollouts(str(scene.scenario_id), scene.agents.id[scene.simulated], agent.rollouts(scene, 32, 0)))
        for scene in open_scenes(str(scenarios))
    ]


def submission(messages: list[Any]) -> bytes:
    """With metadata, which other programs put into every shard."""
    return pb.SimAgentsChallengeSubmission(
        scenario_rollouts=messages,
        submission_type=pb.SimAgentsChallengeSubmission.SIM_AGENTS_SUBMISSION,
        account_name="someone@example.com",
        unique_method_name="theirs",
        authors=["A", "B"],
        num_model_parameters="7M",
        acknowledge_complies_with_closed_loop_requirement=True,
    ).SerializeToString()


def tutorial(messages: list[Any]) -> Files:
    """Two scenarios in shard 0, and one in each of two others of 150; shards without scenarios have metadata."""
    shards = {0: messages[:2], 7: messages[2:3], 149: messages[3:], 75: []}
    return {f"submission.binproto-{index:05}-of-00150": submission(held) for index, held in shards.items()}


def catk(messages: list[Any]) -> Files:
    """Numbers without a total."""
    return {f"submission.binproto-{index:05}": submission([one]) for index, one in enumerate(messages)}


def archived(messages: list[Any]) -> Files:
    """CAT-K's archive, which adds the total to the names."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, data in catk(messages).items():
            member = tarfile.TarInfo(f"{name}-of-{len(messages):05}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return {"wosac_submission.tar.gz": file.getvalue()}


def scenestreamer(messages: list[Any]) -> Files:
    names = [f"submission.binproto-tmp{index}9c1de2b-06cd-4a3c-bbcb-3b3aa0d9b7de" for index in range(len(messages))]
    return {name: submission([one]) for name, one in zip(names, messages, strict=True)}


def one_file(messages: list[Any]) -> Files:
    return {"submission.binproto": submission(messages)}


def by_scenario(messages: list[Any]) -> Files:
    return {f"{one.scenario_id}.binproto": one.SerializeToString() for one in messages}


def single_messages_in_shards(messages: list[Any]) -> Files:
    total = len(messages)
    return {f"r.binproto-{index:05}-of-{total:05}": one.SerializeToString() for index, one in enumerate(messages)}


@pytest.fixture(scope="module")
def score(scenarios: Path) -> Callable[[str, Path], dict[str, Any]]:
    """The report of the command on a folder, file or glob."""

    def evaluated(rollouts: str, out: Path) -> dict[str, Any]:
        given = ["--scenarios", str(scenarios), "--rollouts", rollouts, "--out", str(out), "--workers", "1"]
        assert main(["evaluate", *given]) == 0
        report: dict[str, Any] = json.loads((out / "metrics.json").read_text())
        return report

    return evaluated


@pytest.fixture(scope="module")
def expected(messages: list[Any], score: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("expected")
    ((name, data),) = one_file(messages).items()
    (folder / name).write_bytes(data)
    report: dict[str, Any] = score(str(folder / name), folder / "score")
    assert report["scenarios"] == _COUNT
    return report


@pytest.mark.parametrize(
    "written", [tutorial, catk, archived, scenestreamer, one_file, by_scenario, single_messages_in_shards]
)
@pytest.mark.parametrize("how", ["folder", "glob"])
def test_files_of_other_programs_have_the_same_score(
    written: Callable[[list[Any]], Files], how: str, messages: list[Any], expected: Any, score: Any, tmp_path: Path
) -> None:
    folder = tmp_path / "rollouts"
    folder.mkdir()
    for name, data in written(messages).items():
        (folder / name).write_bytes(data)
    # What programs leave beside them.
    (folder / "metrics.csv").write_text("")
    given = folder if how == "folder" else folder / ("*.tar.gz" if written is archived else "*.binproto*")
    report = score(str(given), tmp_path / "score")
    assert report["metrics"] == expected["metrics"]
    assert report["scenarios"] == _COUNT
    assert not report["broken"]
