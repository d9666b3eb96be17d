"""An export is the model, readable without this project."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from data.batch import collate
from data.errors import UserError
from data.vocabulary import Vocabulary
from models.reference.checkpoint import load_reference, save_reference
from models.reference.config import ReferenceConfig
from models.reference.network import Reference
from models.reference.recording import scene_inputs
from pipeline.fitting.export import ExportConfig, run_export
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene


def imported(folder: Path) -> Reference:
    """The model of an export, read as another program would."""
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == "spacer-reference/2"
    tensors = load_file(folder / "model.safetensors")
    assert tensors.pop("trained_on").dtype == torch.int64
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    words = {name: tensors.pop(f"vocabulary.{name}") for name in ("poses", "box", "tolerance")}
    model = Reference(ReferenceConfig(**config["model"]), Vocabulary.from_state_dict(words))
    model.load_state_dict(tensors)
    return model.eval()


@pytest.mark.parametrize("token_steps", [2, 5])
def test_an_export_is_the_model(token_steps, tmp_path):
    model = make_model(token_steps)
    save_reference(tmp_path / "reference.ckpt", model, {"stage": "test"})
    run_export(ExportConfig(), checkpoint=tmp_path / "reference.ckpt", out=tmp_path)
    again = imported(tmp_path)
    # The folder is read as the file in it.
    assert torch.equal(load_reference(tmp_path).token_weight, again.token_weight)
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
    near = imported(tmp_path / "out").state_dict()["token_weight"]
    torch.testing.assert_close(near, fast_model.state_dict()["token_weight"], atol=0.02, rtol=0.01)


def test_unknown_types_are_refused():
    with pytest.raises(UserError, match="float32, bfloat16"):
        ExportConfig("int4")


def test_what_is_no_checkpoint_is_refused(tmp_path):
    for content, message in (([1], "some other file"), ({"kind": "policy", "format": 1}, "another version")):
        torch.save(content, tmp_path / "x.ckpt")
        with pytest.raises(UserError, match=message):
            run_export(ExportConfig(), checkpoint=tmp_path / "x.ckpt", out=tmp_path / "out")
