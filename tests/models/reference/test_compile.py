"""The compiled network is the network: no graph breaks in training and rollout, and the same figures."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from data.batch import collate
from data.scene import until_now
from data.tokenizer import scene_origin
from models.reference import engine
from models.reference.engine import Engine
from models.reference.inputs import known_lights
from models.reference.loss import loss_mask, token_loss
from models.reference.recording import scene_inputs
from models.sampling import SamplingConfig, draw
from tests.models.reference.conftest import CONFIG, make_model, roll_out
from tests.models.scenes import random_scene

SMALL = dataclasses.replace(CONFIG, layers=1, map_layers=1)


@pytest.fixture(autouse=True)
def forget():
    """Compilations of one test must not count for the limits of another."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def gradients(model, forward, scenes):
    inputs = scene_inputs(collate(scenes), model.vocabulary)
    mask = loss_mask(inputs)
    logits = forward(inputs)
    model.zero_grad()
    token_loss(logits, inputs.target)[mask].mean().backward()
    return logits[mask].detach(), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def logits_of(roller, scene):
    """[R, A, 16, K] of a rollout."""
    model, batch = roller.model, collate([until_now(scene)])
    inputs = scene_inputs(batch, model.vocabulary)
    uniform = torch.rand(3, 16, len(scene.agents.id), generator=torch.Generator().manual_seed(0))
    encoding = model.encode_map(inputs.pieces, scene_origin(batch))
    lights = known_lights(batch.lights.state, batch.lights.observed, 9)
    unrolling = roller.begin(encoding, inputs.agents, inputs.tokens, lights, 3)
    return roll_out(
        unrolling, 16, lambda step, logits: draw(logits, uniform[:, step], unrolling.types, SamplingConfig())
    )[0]


def test_training_is_one_graph_for_all_sizes():
    model = make_model(5, SMALL).requires_grad_(True)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend="eager")
    for scenes in ([random_scene(0), random_scene(1, agents=4)], [random_scene(2, agents=9), random_scene(3)]):
        expected, expected_gradients = gradients(model, model, scenes)
        found, found_gradients = gradients(model, compiled, scenes)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        assert found_gradients.keys() == expected_gradients.keys()
        for name, gradient in expected_gradients.items():
            torch.testing.assert_close(found_gradients[name], gradient, atol=1e-4, rtol=1e-3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@torch.no_grad()
def test_fused_map_encoder_gives_the_same_for_all_sizes():
    model = make_model(5, SMALL)
    compiled = torch.compile(model.encode_map, fullgraph=True, dynamic=True)
    for scenes in ([random_scene(0), random_scene(1, agents=4)], [random_scene(2, agents=9), random_scene(3)]):
        pieces, origin = scene_inputs(collate(scenes), model.vocabulary).pieces, torch.zeros(len(scenes), 2)
        expected, found = model.encode_map(pieces, origin), compiled(pieces, origin)
        valid = expected.valid
        torch.testing.assert_close(found.feature[valid], expected.feature[valid], atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_fused_rollouts_give_the_same_for_all_sizes():
    model = make_model(5, SMALL)
    plain, fused = Engine(model), Engine(model, compiled=True)
    for scene in (random_scene(0, agents=5), random_scene(1, agents=11)):
        torch.testing.assert_close(logits_of(fused, scene), logits_of(plain, scene), atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_a_step_of_a_rollout_is_one_graph_for_all_steps(monkeypatch):
    original = torch.compile
    monkeypatch.setattr(engine.torch, "compile", lambda *a, **k: original(*a, **k, backend="eager"))
    model = make_model(5, SMALL)
    plain, fused = Engine(model), Engine(model, compiled=True)
    # Sizes that are no others by chance, which compiled code would take for the same.
    for scene in (random_scene(0, agents=5), random_scene(1, agents=11), random_scene(2, agents=7)):
        torch.testing.assert_close(logits_of(fused, scene), logits_of(plain, scene), atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
