"""Self-play's unit: controlled, valid agents times decisions executed per second (agent-steps/s)."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from data.tfrecord import read_records
from data.vocabulary import VocabularyConfig, build_vocabulary
from data.womd import parse_scenario
from models.policy import Policy, PolicyConfig
from pipeline.bench.rows import Row, record_files
from pipeline.selfplay.observation import ObservationConfig, feature_sizes
from pipeline.selfplay.ppo import PPOConfig, collect
from pipeline.selfplay.reward import RewardConfig
from pipeline.selfplay.worlds import build_world, stack_worlds

__all__ = ["bench"]

_WORLDS = 16


def bench() -> list[Row]:
    with tempfile.TemporaryDirectory() as folder:
        kind, files = record_files(Path(folder))
        records = [record for _, record in zip(range(_WORLDS), read_records(files[0])) if isinstance(record, bytes)]
    scenes = [parse_scenario(record) for record in records]
    vocabulary = build_vocabulary(scenes, VocabularyConfig(max_segments=20_000), 0)
    view = ObservationConfig()
    world = stack_worlds([build_world(scene, vocabulary, view.road_segments) for scene in scenes])
    policy = Policy(PolicyConfig(), feature_sizes(view), vocabulary.size).eval()
    settings = (vocabulary, None, PPOConfig(beta=0.0), RewardConfig(), view)
    collect(policy, world, *settings, torch.Generator().manual_seed(0))
    started = time.process_time()
    episode = collect(policy, world, *settings, torch.Generator().manual_seed(1))
    seconds = time.process_time() - started
    name = f"policy in the loop, {len(scenes)} worlds, {kind}"
    return [Row(name, episode.transitions / seconds, "agent-steps/CPU s")]
