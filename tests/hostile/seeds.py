"""Good files for every reader, from which bad ones are made: of hand-made scenes alone."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import torch

from data.receipts import Receipt
from data.store import shard_name, write_shard
from data.tfrecord import write_records
from data.vocabulary import VocabularyConfig, build_vocabulary
from data.womd import parse_scenario
from models.policy import Policy, PolicyConfig, save_policy
from models.reference.checkpoint import save_reference
from models.reference.config import ReferenceConfig
from models.reference.network import Reference
from pipeline.agents.baselines import ConstantVelocity
from pipeline.simulator.observation import ObservationConfig, feature_sizes
from submission.metadata import load_metadata, metadata_message
from submission.protos import Rollouts, encode_field, to_proto
from tests.builders import scenario_proto
from tests.other_formats import gpudrive_text, nuscenes_record, to_pickle

__all__ = ["make_seeds"]

_EXAMPLE = Path(__file__).parents[2] / "submission" / "metadata.example.yaml"


def make_seeds(folder: Path) -> dict[str, bytes]:
    """Content of a good file for each reader; ``folder`` is for files on the way."""
    torch.manual_seed(0)
    proto = scenario_proto("0" * 16, steps=11, agents=2)
    record = proto.SerializeToString(deterministic=True)
    scene = parse_scenario(record)
    write_records(folder / "x.tfrecord", [b"first", b"", record[:100]])
    write_shard(folder / shard_name("testing", 0, 1), [scene])
    long = parse_scenario(scenario_proto("1" * 16, agents=2).SerializeToString())
    words = build_vocabulary([long], VocabularyConfig(size=4, max_segments=200), 0)
    words.save(folder / "vocabulary.pt")
    view = ObservationConfig(neighbours=2, road_segments=2)
    small = Policy(PolicyConfig(embedding=2, hidden=4), feature_sizes(view), words.ends)
    save_policy(folder / "policy.ckpt", small, words, vars(view))
    network = Reference(ReferenceConfig(hidden=8, heads=1, relation=8, layers=1, map_layers=1), words)
    save_reference(folder / "reference.ckpt", network)
    states = ConstantVelocity().rollouts(scene, 2, 0)
    message = to_proto(Rollouts("0" * 16, scene.agents.id[scene.simulated], states)).SerializeToString(
        deterministic=True
    )
    shard = metadata_message(load_metadata(_EXAMPLE)).SerializeToString(deterministic=True)
    shard += encode_field(1, message)
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as packed:
        member = tarfile.TarInfo("submission.binproto-00000-of-00001")
        member.size = len(shard)
        packed.addfile(member, io.BytesIO(shard))
    receipt = vars(Receipt(7, "0" * 64, "source", 1))
    manifest = {
        "stage": "sample",
        "id": "0",
        "recipe": {"config": {}, "seed": 0, "code": "", "inputs": {}},
        "figures": {},
        "seconds": 1.0,
        "peak_memory_mb": 1.0,
        "outputs": {},
    }
    return {
        "tfrecord": (folder / "x.tfrecord").read_bytes(),
        "scenario": record,
        "scenarionet": to_pickle(nuscenes_record(91)),
        "gpudrive": gpudrive_text(proto),
        "store": (folder / shard_name("testing", 0, 1)).read_bytes(),
        "rollouts": encode_field(1, message),
        "message": message,
        "metadata": _EXAMPLE.read_bytes(),
        "config": b"shard_mb: 300\nsplit_mb: 0\nengine:\n  kind: local\n  retries: 2\n",
        "vocabulary": (folder / "vocabulary.pt").read_bytes(),
        "policy": (folder / "policy.ckpt").read_bytes(),
        "reference": (folder / "reference.ckpt").read_bytes(),
        "bookkeeping": json.dumps({**manifest, **receipt}).encode(),
        "archive": tar.getvalue(),
    }
