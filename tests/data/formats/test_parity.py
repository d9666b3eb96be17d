"""Real WOMD scenarios in two formats: the same scene, the same tokens, the same realism."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.completeness import Remarks
from data.formats.catalogue import FORMATS
from data.formats.reader import Reading
from data.scene import Scene
from data.tfrecord import read_records
from data.tokenizer import scene_origin, tokenize_scene
from data.vocabulary import VocabularyConfig, build_vocabulary
from data.womd import parse_scenario
from pipeline.agents.baselines import ConstantVelocity
from submission.realism import load_config, prepare_scene, score

# Format, file, and the split of the same scenario as a proto.
PAIRS = (
    ("scenarionet", "sd_training.tfrecord-00000-of-01000_2a1e44d405a6833f.pkl", "validation"),
    ("gpudrive", "tfrecord-00000-of-01000_4.json", "training"),
    ("gpudrive", "tfrecord-00000-of-01000_325.json", "training"),
    ("gpudrive", "tfrecord-00002-of-01000_407.json", "training"),
)


@pytest.fixture(scope="module", params=PAIRS, ids=[file for _, file, _ in PAIRS])
def pair(request: pytest.FixtureRequest, womd: Path) -> tuple[str, Scene, Scene]:
    """The format, the scene that its file holds, and that of the proto."""
    name, file, split = request.param
    path = womd.parent / "formats" / name / file
    if not path.exists():
        pytest.skip(f"{path} is not there: that real files of {name} give the scenes of their protos is not tested")
    (item,) = FORMATS[name].read(str(path), Reading(True), Remarks())
    assert isinstance(item.result, Scene)
    wanted = str(item.result.scenario_id).encode()
    records = (record for shard in sorted((womd / split).glob("*tfrecord*")) for record in read_records(shard))
    proto = next(record for record in records if isinstance(record, bytes) and wanted in record)
    return name, item.result, parse_scenario(proto)


def test_the_same_scene(pair: tuple[str, Scene, Scene]) -> None:
    name, one, other = pair
    assert one.scenario_id == other.scenario_id
    agents, wanted = one.agents, other.agents
    for field in ("id", "type", "valid", "is_sdc", "to_predict", "of_interest"):
        assert torch.equal(getattr(agents, field), getattr(wanted, field)), field
    valid = wanted.valid
    for field in ("position", "velocity", "size"):
        assert torch.equal(getattr(agents, field)[valid], getattr(wanted, field)[valid]), field
    # Headings of the proto were brought into [-pi, pi].
    turned = agents.heading[valid].double() - wanted.heading[valid].double()
    assert (torch.remainder(turned + torch.pi, 2 * torch.pi) - torch.pi).abs().max() < 1e-6
    for field in ("point", "point_feature", "feature_id", "kind", "subtype", "interpolating"):
        assert torch.equal(getattr(one.map, field), getattr(other.map, field)), field
    if name == "scenarionet":
        for field in ("speed_limit", "link_source", "link_kind", "link_target"):
            assert torch.equal(getattr(one.map, field), getattr(other.map, field)), field
    for field in ("lane_id", "state", "stop_point", "observed"):
        assert torch.equal(getattr(one.lights, field), getattr(other.lights, field)), field
    torch.testing.assert_close(one.timestamp, other.timestamp, rtol=0, atol=1e-6)


def test_the_same_tokens(pair: tuple[str, Scene, Scene]) -> None:
    _, one, other = pair
    vocabulary = build_vocabulary([other], VocabularyConfig(size=32, max_segments=5000), 0)
    found, wanted = (tokenize_scene(vocabulary, scene, scene_origin(scene)) for scene in (one, other))
    for field in ("ids", "valid", "pose_valid"):
        assert torch.equal(getattr(found, field), getattr(wanted, field)), field
    there = wanted.pose_valid
    torch.testing.assert_close(found.poses[there][:, :2], wanted.poses[there][:, :2], rtol=0, atol=1e-4)


def test_the_same_realism(pair: tuple[str, Scene, Scene]) -> None:
    _, one, other = pair
    states = ConstantVelocity().rollouts(other, 2, 0)
    agent_id = other.agents.id[other.simulated]
    config = load_config("2025")
    found, wanted = (score(prepare_scene(scene), agent_id, states, config).values for scene in (one, other))
    assert found.keys() == wanted.keys()
    for field, value in wanted.items():
        torch.testing.assert_close(found[field], value, rtol=0, atol=1e-5, msg=field, equal_nan=True)
