"""Parity and invariance on real scenes, whose maps have lines on top of one another and lights."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from data.batch import collate
from data.scenes_source import open_scenes
from data.tokenizer import scene_origin
from models.reference.agent import ReferenceAgent
from models.reference.inputs import keep_agents
from models.reference.recording import prune_map, scene_inputs
from tests.models.reference.test_engine import roll
from tests.transformations import move

pytestmark = pytest.mark.womd


@pytest.fixture(scope="module")
def scenes(womd: Path):
    source = open_scenes(womd, "validation")
    return [keep_agents(source[index], 12) for index in (1, 20)]


def test_step_by_step_logits_equal_teacher_forced_ones(fast_model, scenes):
    rolled, poses_of, logits, batch, inputs, encoding = roll(fast_model, scenes, rollouts=2)
    first = 2
    ids = torch.cat((inputs.tokens.ids[..., :first], rolled[:, 1]), dim=-1)
    future = inputs.agents.simulated.unsqueeze(-1).expand(-1, -1, 16)
    valid = torch.cat((inputs.tokens.valid[..., :first], future), dim=-1)
    poses = torch.cat((inputs.tokens.poses[:, :, : first + 1], poses_of[:, 1, :, :, -1]), dim=2)
    scored = ReferenceAgent(fast_model).score(encoding, batch, ids, valid, poses)[:, :, first:]
    simulated = inputs.agents.simulated
    # Tokens far from the last motion have log-probabilities of minus hundreds, to be compared relatively.
    expected = logits[:, 1].log_softmax(-1)
    torch.testing.assert_close(scored[simulated], expected[simulated], atol=1e-4, rtol=1e-5)


def test_pruned_batched_and_moved_scenes_give_the_same_logits(fast_model, scenes):
    vocabulary = fast_model.vocabulary
    together = fast_model(scene_inputs(collate(scenes), vocabulary))
    for row, scene in enumerate(scenes):
        inputs = scene_inputs(collate([scene]), vocabulary)
        logits = fast_model(inputs)
        agents = len(scene.agents.id)
        torch.testing.assert_close(together[row, :agents], logits[0], atol=1e-3, rtol=0)
        pruned = prune_map(inputs, fast_model.config, vocabulary.token_steps)
        assert pruned.pieces.kind.shape[1] < inputs.pieces.kind.shape[1]
        torch.testing.assert_close(fast_model(pruned), logits, atol=1e-3, rtol=0)
        # Near the origin, so that what is tested is the network and not float32 at some kilometres.
        origin = scene_origin(scene)
        centred = move(scene, 0.0, (-float(origin[0]), -float(origin[1])))
        still, turned = (scene_inputs(collate([s]), vocabulary) for s in (centred, move(centred, 1.0)))
        tokens = dataclasses.replace(turned.tokens, ids=still.tokens.ids, valid=still.tokens.valid)
        difference = (fast_model(dataclasses.replace(turned, tokens=tokens)) - fast_model(still)).abs()
        assert float(difference[still.tokens.valid].quantile(0.99)) < 1e-2 * float(logits.std())
