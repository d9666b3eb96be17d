"""Hot paths launch few operators and never wait for the device; no tensor is made on a device by accident."""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from data.batch import collate
from data.scene import Scene
from models.reference.agent import ReferenceAgent
from models.reference.loss import loss_mask, token_loss
from models.reference.network import Reference
from models.reference.recording import scene_inputs
from models.sampling import SamplingConfig, draw
from pipeline.agents.agent import Agent
from pipeline.agents.catalogue import LEARNT
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.bench.launches import LaunchCounter
from submission.realism import load_config, objects, prepare_scene, red_light, road_edge, score_states
from submission.realism.features import compute_features
from submission.realism.score import score_features
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy
from tests.submission.realism.branches import BRANCHES

ROOT = Path(__file__).resolve().parents[3]
# Functions that make tensors from Python numbers in each pass, or on the CPU, with the reason.
MAKES_TENSORS = {
    "_edges": "of the metric's configuration, kept for each device",
    "_constants": "likewise",
    "_weights": "likewise",
    "_cells": "of the search by pruning, which is for CPUs",
    "retokenisation_error": "statistics over scenes on a CPU",
    "scene_digests": "numbers of a checkpoint",
    "choose": "row numbers of an update's scenes",
    "log_probs": "likewise",
    "take": "likewise",
    "collect": "likewise",
    "minibatches": "sizes of the minibatches, once an epoch",
    "rows": "the order of the transitions, made on the CPU so that all devices have the same",
    "train": "counts of an update",
}
# Worlds are built on the CPU.
BUILT_ON_THE_CPU = ("pipeline/simulator/world.py", "pipeline/simulator/environment.py", "models/portable.py")
HOT = (
    "models",
    "submission/realism",
    "data/tokenizer.py",
    "data/map_pieces.py",
    "pipeline/simulator",
    "pipeline/selfplay",
)
MAKERS = {"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "zeros"}


def counted(work: Callable[[], object]) -> LaunchCounter:
    """The second call, since the first makes what is kept."""
    work()
    with LaunchCounter() as counter:
        work()
    return counter


@pytest.fixture(scope="module")
def model() -> Reference:
    return make_model(2)


def test_a_training_step_of_the_reference(model: Reference) -> None:
    inputs = scene_inputs(collate([random_scene(0), random_scene(1)]), model.vocabulary)
    trained = make_model(2).train().requires_grad_(True)

    def step() -> None:
        mask = loss_mask(inputs)
        ((token_loss(trained(inputs), inputs.target) * mask).sum() / mask.sum()).backward()

    counter = counted(step)
    assert not counter.waits
    assert counter.launched < 1360


def test_encoding_a_map_that_was_cut(model: Reference) -> None:
    pieces = scene_inputs(collate([random_scene(0), random_scene(1)]), model.vocabulary).pieces
    counter = counted(lambda: model.encode_map(pieces, torch.zeros(2, 2)))
    assert not counter.waits
    assert counter.launched < 160


def test_waits_for_maps_are_for_all_scenes_of_a_batch(model: Reference) -> None:
    agent = ReferenceAgent(model)
    one, many = (collate([random_scene(seed) for seed in range(count)]) for count in (1, 8))
    alone, together = (counted(partial(agent.encode_map, batch)) for batch in (one, many))
    assert together.waited == alone.waited < 25
    assert together.launched <= alone.launched + 2 < 400


def test_a_decoding_step(model: Reference) -> None:
    agent = ReferenceAgent(model)
    unrolling = agent.unroll(agent.prepare(random_scene(0)), 3)
    config = SamplingConfig(temperature=(0.9, 1.0, 1.0), top_k=(5, 0, 0), top_p=0.9)

    def step() -> None:
        logits = unrolling.logits()
        unrolling.execute(draw(logits, torch.zeros_like(logits[..., 0]), unrolling.types, config))

    # The first step of each second also looks up the map.
    for _ in range(5):
        counter = counted(step)
        assert not counter.waits
        assert counter.launched < 500


@pytest.mark.parametrize("name", LEARNT)
def test_futures_of_several_scenes_launch_hardly_more_than_those_of_one(
    name: str, model: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReferenceAgent, "prepare", lambda self, *given: self.prepare_together(given))
    agent: Agent = ReferenceDriver(ReferenceAgent(model))
    if name == "policy":
        agent = PolicyAgent(make_policy(model.vocabulary), model.vocabulary, VIEW)
    agent.joins_scenes = True
    scenes = [random_scene(seed) for seed in range(6)]

    def launched(some: list[Scene]) -> int:
        return counted(lambda: list(agent.rollouts_of(some, 2, 0))).launched

    alone, together = launched(scenes[:1]), launched(scenes)
    # The ground's heights and the worlds of the policy are made scene by scene, on the CPU.
    assert together < 2.5 * alone


@pytest.mark.parametrize("name", ["mixed_traffic", "lights"])
def test_the_metric_without_pruning(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (objects, red_light, road_edge):
        monkeypatch.setattr(module, "block_elements", lambda device: 1 << 22)
    scene, states = BRANCHES[name]()
    context, config = prepare_scene(scene), load_config("2025")
    counter = counted(lambda: score_features(context, compute_features(context, states, exhaustive=True), config))
    assert not counter.waits
    assert counter.launched < 600
    # Tensors without values: nothing reads one.
    meta = score_states(context.to("meta"), states.to("meta"), config)
    assert meta.values["metametric"].device.type == "meta"


def _made(path: Path) -> list[tuple[str, str, str]]:
    """Path, function and call wherever a tensor is made of numbers, or without saying on which device."""
    found = []
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        for call in ast.walk(function):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            name, named = call.func.attr, {keyword.arg for keyword in call.keywords}
            of_torch = ast.unparse(call.func.value) == "torch"
            # Random numbers are drawn on the CPU, the same for every device.
            nowhere = of_torch and name in MAKERS and not named & {"device", "generator"}
            if nowhere or name == "new_tensor" or (of_torch and name == "tensor"):
                found.append((str(path.relative_to(ROOT)), function.name, ast.unparse(call)))
    return found


def test_tensors_are_made_where_they_are_needed() -> None:
    """Made of Python numbers they are copied, which waits; without a device they are on the CPU."""
    made = []
    for name in HOT:
        top = ROOT / name
        for path in sorted(top.rglob("*.py") if top.is_dir() else [top]):
            made += _made(path)
    assert made  # the scan finds what it looks for
    wrong = [
        (path, function, call)
        for path, function, call in made
        if function != "__init__" and function not in MAKES_TENSORS and path not in BUILT_ON_THE_CPU
    ]
    assert not wrong
