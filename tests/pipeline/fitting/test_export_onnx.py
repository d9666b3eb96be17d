"""ONNX files give the logits of torch, for other sizes than they were traced with."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from data.errors import UserError
from data.scene import CURRENT_INDEX
from data.store import shard_name, write_shard
from data.tokenizer import scene_origin
from models.policy import Policy, PolicyConfig, save_policy
from models.reference.agent import ReferenceAgent
from models.reference.checkpoint import save_reference
from pipeline.bench.onnx import open_session, step_feeds
from pipeline.fitting.export import ExportConfig, run_export
from pipeline.fitting.export_onnx import export_reference_onnx
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy

onnx = pytest.importorskip("onnx")
EXAMPLE = Path(__file__).resolve().parents[3] / "scripts" / "examples" / "onnx_rollout.py"


@pytest.fixture(scope="module")
def agent() -> ReferenceAgent:
    """Of decided opinions, so that a wrong input shows."""
    model = make_model(2)
    with torch.no_grad():
        model.token_weight.normal_(std=0.5)
        model.relations.light.normal_()
    return ReferenceAgent(model)


@pytest.fixture(scope="module")
def exported(agent: ReferenceAgent, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the command writes it, with the inputs of a scene."""
    folder = tmp_path_factory.mktemp("onnx")
    save_reference(folder / "reference.ckpt", agent.model)
    write_shard(folder / shard_name("validation", 0, 1), [random_scene(0, agents=17)])
    figures = run_export(
        ExportConfig(onnx=True, scenarios=str(folder)), checkpoint=folder / "reference.ckpt", out=folder / "out"
    )
    assert str(folder / "out" / "reference_step.onnx") in str(figures["onnx"])
    return folder / "out"


def run(graph: Path, feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    session = open_session(graph)
    assert {name: list(feeds[name].shape) for name in feeds} == {
        each.name: [size if isinstance(size, int) else feeds[each.name].shape[axis] for axis, size in
                    enumerate(each.shape)] for each in session.get_inputs()
    }  # fmt: skip
    outputs = session.run(None, {name: tensor.numpy() for name, tensor in feeds.items()})
    return {each.name: torch.from_numpy(value) for each, value in zip(session.get_outputs(), outputs)}


def test_a_model_has_no_dropout_after_its_export(tmp_path: Path) -> None:
    model = make_model(2).train()
    export_reference_onnx(tmp_path, model)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    "config", [PolicyConfig(), PolicyConfig(row_layers=1, gelu=True, own_critic=True)], ids=str
)
def test_the_policy(vocabulary, config, tmp_path) -> None:
    torch.manual_seed(1)
    policy = Policy(config, make_policy(vocabulary).features, vocabulary.ends).eval()
    torch.nn.init.normal_(policy.actor.weight, std=0.3)
    save_policy(tmp_path / "policy.ckpt", policy, vocabulary, vars(VIEW))
    run_export(ExportConfig(onnx=True), checkpoint=tmp_path / "policy.ckpt", out=tmp_path)
    assert [each.version for each in onnx.load(tmp_path / "policy.onnx").opset_import if not each.domain] == [18]
    ego, neighbour, road = policy.features
    for agents, others, segments in ((9, 4, 12), (1, 1, 3)):
        feeds = {
            "ego": torch.randn(agents, ego),
            "neighbour": torch.randn(agents, others, neighbour),
            "neighbour_seen": torch.rand(agents, others) < 0.5,
            "road": torch.randn(agents, segments, road),
            "road_seen": torch.rand(agents, segments) < 0.5,
            "type": torch.arange(agents) % 3,
            "motion": torch.rand(agents, 3),
        }
        feeds["road_seen"][0] = False
        with torch.no_grad():
            expected, _ = policy(*feeds.values())
        torch.testing.assert_close(run(tmp_path / "policy.onnx", feeds)["logits"], expected, atol=1e-4, rtol=0)


def test_the_reference_step_by_step(agent, exported, monkeypatch) -> None:
    """Map, view and every decoding step from the first of the history to the second second, beside torch's."""
    model, steps, views = agent.model, [], []
    look, decode = model.lookup_map, model.decode_step

    def noted_look(boundary, cache, encoding, sources, step):
        before = cache.pose_before(boundary).clone()
        look(boundary, cache, encoding, sources, step)
        view = {f"view_{name}": getattr(cache.view, name).clone() for name in ("pose", "bias", "light")}
        view |= {f"view_{number}": tensor.clone() for number, tensor in enumerate(cache.map_keys_values)}
        views.append((before, encoding, sources, step, view))

    def noted_step(boundary, cache, tables, agents, lights, step):
        feeds = step_feeds(boundary, cache, agents, lights, step)
        logits = decode(boundary, cache, tables, agents, lights, step)
        after = {"new_past_pose": cache.pose.clone(), "new_past_present": cache.present.clone()}
        after |= {f"new_past_{number}": tensor.clone() for number, tensor in enumerate(cache.keys_values)}
        steps.append((feeds, {"logits": logits, **after}))
        return logits

    monkeypatch.setattr(model, "lookup_map", noted_look)
    monkeypatch.setattr(model, "decode_step", noted_step)
    noted = ReferenceAgent(model)
    prepared = noted.prepare(random_scene(0, agents=17))
    unrolling, generator = noted.unroll(prepared, 5), torch.Generator().manual_seed(0)
    for _ in range(13):
        logits = unrolling.logits()
        unrolling.execute(torch.randint(logits.shape[-1], logits.shape[:2], generator=generator))
    assert len(steps) == 18
    assert len(views) == 4
    pieces = prepared.inputs.pieces
    of_map = {f"piece_{name}": getattr(pieces, name) for name in ("point", "pose", "kind", "subtype")}
    sources = run(exported / "reference_map.onnx", of_map)
    for number, (before, encoding, expected_sources, step, view) in enumerate(views):
        for own, expected in zip(sources.values(), expected_sources, strict=True):
            torch.testing.assert_close(own[encoding.valid], expected[encoding.valid], atol=1e-4, rtol=0)
        feeds = {"pose": step.pose, "moved": step.moved, "before": before}
        feeds |= {f"piece_{name}": getattr(encoding, name) for name in ("pose", "valid", "light")} | sources
        for name, tensor in run(exported / "reference_look.onnx", feeds).items():
            # As weights: the logarithm of one near zero is as large as its rounding.
            own, expected = (t.exp() if name == "view_bias" else t for t in (tensor, view[name]))
            torch.testing.assert_close(own, expected, atol=1e-4, rtol=0, msg=f"{name} of look {number}")
    for number, (feeds, expected) in enumerate(steps):
        for name, tensor in run(exported / "reference_step.onnx", feeds).items():
            torch.testing.assert_close(tensor, expected[name], atol=1e-4, rtol=0, msg=f"{name} of step {number}")


def test_the_example_samples_rollouts(agent, exported, monkeypatch) -> None:
    """With numpy alone: motions of the vocabulary from the current poses on, one future a rollout."""
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), str(exported), "3"])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    future = torch.from_numpy(np.load(exported / "rollouts.npy"))
    scene = random_scene(0, agents=17)
    assert future.shape == (3, int(scene.simulated.sum()), 80, 3)
    now = scene.agents.position[scene.simulated, CURRENT_INDEX, :2] - scene_origin(scene)
    place = torch.cat((now.expand(3, -1, -1).unsqueeze(2), future[:, :, 1::2, :2] - scene_origin(scene)), dim=2)
    reach = agent.vocabulary.ends[..., :2].norm(dim=-1)
    travelled = place.diff(dim=2).norm(dim=-1)
    nearest = (travelled.unsqueeze(-1) - reach.flatten()).abs().amin(-1)
    assert float(nearest.max()) < 2e-3, "each step is as long as a token"
    assert not torch.equal(future[0], future[1])


def test_what_is_missing_is_said(agent, tmp_path, monkeypatch) -> None:
    save_reference(tmp_path / "reference.ckpt", agent.model)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UserError, match=r"pip install -r requirements-dev\.txt"):
        run_export(ExportConfig(onnx=True), checkpoint=tmp_path / "reference.ckpt", out=tmp_path)
    with pytest.raises(UserError, match="add --onnx true"):
        ExportConfig(scenarios="somewhere")
