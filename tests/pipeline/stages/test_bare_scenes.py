"""Scenes without a map, without lanes or without road edges, from records to an archive that Waymo accepts."""

from __future__ import annotations

import dataclasses
import tarfile
from pathlib import Path

import pytest
import torch
from waymo_open_dataset.protos import scenario_pb2
from waymo_open_dataset.protos import sim_agents_submission_pb2 as pb
from waymo_open_dataset.utils.sim_agents import submission_specs

from data.scene import LightState
from data.scenes_source import open_scenes
from data.tfrecord import write_records
from models.policy import save_policy
from models.reference.checkpoint import save_reference
from pipeline.stages.package import PackageConfig, run_package
from pipeline.stages.sample import SampleConfig, run_sample
from pipeline.stages.tokenize import TokenizeConfig, run_tokenize
from pipeline.stages.validate import ValidateConfig, run_validate
from tests.builders import scenario_proto
from tests.models.reference.conftest import make_model
from tests.pipeline.conftest import VIEW, make_policy
from tests.submission.test_archive import EXAMPLE


def without(number: int, *kinds: str) -> scenario_pb2.Scenario:
    """A scenario of the test split that lacks some kinds of map features; its lights stay where they are."""
    proto = scenario_proto(f"{number:016x}", steps=11, agents=3)
    kept = [feature for feature in proto.map_features if feature.WhichOneof("feature_data") not in kinds]
    del proto.map_features[:]
    proto.map_features.extend(kept)
    return proto


EVERYTHING = ("lane", "road_edge", "crosswalk", "stop_sign")
PROTOS = [
    without(0),
    without(1, *EVERYTHING),
    without(2, "lane"),
    without(3, "road_edge"),
    without(4, "lane", "road_edge", "crosswalk"),
    scenario_proto(f"{5:016x}", steps=11, agents=1, with_map=False, with_lights=False),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scenes and both models."""
    folder = tmp_path_factory.mktemp("bare")
    raw = folder / "testing"
    raw.mkdir()
    write_records(raw / "testing.tfrecord-00000-of-00001", [proto.SerializeToString() for proto in PROTOS])
    figures = run_tokenize(TokenizeConfig(workers=1), data=str(raw), split="testing", out=folder / "store")
    assert figures["scenes"] == len(PROTOS)
    model = make_model(2)
    save_reference(folder / "reference.ckpt", model)
    save_policy(folder / "policy.ckpt", make_policy(model.vocabulary), model.vocabulary, dataclasses.asdict(VIEW))
    return folder


@pytest.mark.parametrize("agent", ["reference", "policy", "constant_velocity"])
def test_bare_scenes_are_simulated_and_accepted(store: Path, agent: str, tmp_path: Path) -> None:
    scenarios, archive = store / "store", tmp_path / "submission.tar.gz"
    run_sample(
        SampleConfig(agent=agent, workers=1),
        scenarios=scenarios,
        checkpoint=None if agent == "constant_velocity" else store / f"{agent}.ckpt",
        out=tmp_path / "rollouts",
    )
    run_package(PackageConfig(), rollouts=tmp_path / "rollouts", scenarios=scenarios, metadata=EXAMPLE, out=archive)
    figures = run_validate(ValidateConfig(), archive=archive, scenarios=str(scenarios))
    assert (figures["accepted"], figures["defects"]) == (len(PROTOS), 0)
    with tarfile.open(archive, "r:gz") as tar:
        (member,) = tar.getmembers()
        content = tar.extractfile(member)
        assert content is not None
        submission = pb.SimAgentsChallengeSubmission.FromString(content.read())
    by_id = {rollouts.scenario_id: rollouts for rollouts in submission.scenario_rollouts}
    for proto in PROTOS:
        submission_specs.validate_scenario_rollouts(by_id[proto.scenario_id], proto)


def test_lights_of_lanes_that_are_not_there_are_kept(store: Path) -> None:
    scene = open_scenes(store / "store")[1]
    assert scene.scenario_id == PROTOS[1].scenario_id
    assert len(scene.map.kind) == 0
    assert int(scene.lights.state[0, 10]) == LightState.STOP
    assert torch.equal(scene.lights.observed[0], torch.arange(11) >= 2)
