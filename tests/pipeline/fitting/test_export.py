"""What is exported is the model, readable without this project, and damaged files are named."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from data.batch import collate
from data.errors import UserError
from models.reference.checkpoint import save_reference
from models.reference.recording import scene_inputs
from pipeline.fitting.export import ExportConfig, export_reference, import_reference, run_export
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene


@pytest.mark.parametrize("token_steps", [2, 5])
def test_round_trip(token_steps, tmp_path):
    model = make_model(token_steps)
    export_reference(tmp_path, model, {"stage": "test"})
    again = import_reference(tmp_path).eval()
    inputs = scene_inputs(collate([random_scene(0)]), model.vocabulary)
    assert torch.equal(again(inputs), model(inputs))
    assert again.vocabulary.token_steps == model.vocabulary.token_steps


def test_the_command_writes_files_that_say_what_they_are(tmp_path):
    fast_model = make_model(5)
    save_reference(tmp_path / "reference.ckpt", fast_model, {"stage": "pretrain"})
    figures = run_export(ExportConfig("bfloat16"), checkpoint=tmp_path / "reference.ckpt", out=tmp_path / "out")
    assert figures["weights"] == str(tmp_path / "out" / "model.safetensors")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["token_seconds"] == 0.5
    assert config["notes"]["stage"] == "pretrain"
    assert config["parameters"] == sum(p.numel() for p in fast_model.parameters())
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert file.get_tensor("token_weight").dtype == torch.bfloat16
        assert file.get_tensor("vocabulary.poses").dtype == torch.float32
    near = import_reference(tmp_path / "out").state_dict()["token_weight"]
    torch.testing.assert_close(near, fast_model.state_dict()["token_weight"], atol=0.02, rtol=0.01)


@pytest.mark.parametrize("spoil", ["missing", "cut", "format", "json", "shape"])
def test_damaged_exports_are_named(tmp_path, spoil):
    fast_model = make_model(5)
    export_reference(tmp_path, fast_model, {})
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    content = json.loads(config.read_text())
    if spoil == "missing":
        config.unlink()
    elif spoil == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif spoil == "format":
        config.write_text(json.dumps({**content, "format": "else"}))
    elif spoil == "json":
        config.write_text("{")
    else:
        content["model"]["hidden"] = 32
        config.write_text(json.dumps(content))
    with pytest.raises(UserError, match=str(tmp_path)):
        import_reference(tmp_path)


def test_unknown_types_are_refused():
    with pytest.raises(UserError, match="float32, bfloat16"):
        ExportConfig("int4")
