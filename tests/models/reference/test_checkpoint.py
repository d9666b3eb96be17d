"""Checkpoints are self-contained, and other files are refused by name."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from data.batch import collate
from data.errors import UserError
from models.checkpoints import read_any_checkpoint
from models.reference.agent import ReferenceAgent
from models.reference.checkpoint import load_reference, read_notes, save_reference
from models.reference.config import SIZES, size_preset
from models.reference.loss import loss_mask, token_loss
from models.reference.network import Reference
from models.reference.recording import scene_inputs
from pipeline.agents.reference_agent import ReferenceDriver
from tests.models.scenes import random_scene


def test_a_checkpoint_restores_the_model(model, tmp_path):
    path = tmp_path / "reference.ckpt"
    save_reference(path, model, {"steps": 3, "figures": {"loss": 0.5}})
    loaded = load_reference(path)
    assert loaded.config == model.config
    assert torch.equal(loaded.vocabulary.poses, model.vocabulary.poses)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert read_notes(path) == {"steps": 3, "figures": {"loss": 0.5}}
    scene = random_scene(0)
    assert torch.equal(
        ReferenceDriver.from_checkpoint(path).rollouts(scene, 2, 0),
        ReferenceDriver(ReferenceAgent(model)).rollouts(scene, 2, 0),
    )


def test_what_checkpoints_rest_on_and_do_not_hold(model):
    """Wavelengths are made from numbers in the code: with others, stored weights would read another world."""
    config, relations = model.config, model.relations
    for encoder, reach, octaves in (
        (relations.time, 32.0, 7),
        (relations.map, config.map_radius, 7),
        (relations.agent, config.agent_radius, 7),
        (model.map_encoder.relation, config.piece_radius, 5),
    ):
        assert encoder.reach == reach
        # From twice the reach down by halves, in radians a metre.
        lengths = 2 * math.pi / encoder.frequency
        along = 2 * reach / 2.0 ** torch.arange(octaves)
        torch.testing.assert_close(lengths, torch.stack((along, along.flip(0))).repeat(1, 2))
        assert not any(name.startswith("frequency") for name in encoder.state_dict())


def test_equal_models_give_equal_bytes(fast_model, tmp_path):
    save_reference(tmp_path / "a.ckpt", fast_model)
    save_reference(tmp_path / "b.ckpt", fast_model)
    assert (tmp_path / "a.ckpt").read_bytes() == (tmp_path / "b.ckpt").read_bytes()


def test_an_untrained_reference_is_named(fast_model, tmp_path, capsys):
    fresh = Reference(fast_model.config, fast_model.vocabulary)
    save_reference(tmp_path / "fresh.ckpt", fresh)
    load_reference(tmp_path / "fresh.ckpt")
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path / 'fresh.ckpt'}: untrained")
    optimizer = torch.optim.AdamW(fresh.parameters(), lr=1e-6)
    inputs = scene_inputs(collate([random_scene(0)]), fresh.vocabulary)
    mask = loss_mask(inputs)
    token_loss(fresh(inputs), inputs.target)[mask].mean().backward()
    optimizer.step()
    save_reference(tmp_path / "trained.ckpt", fresh)
    load_reference(tmp_path / "trained.ckpt")
    assert capsys.readouterr().err == ""


def test_other_files_are_refused(fast_model, tmp_path):
    (tmp_path / "text.ckpt").write_text("hello")
    torch.save({"kind": "policy", "format": 1}, tmp_path / "policy.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    fast_model.vocabulary.save(tmp_path / "vocabulary.pt")
    save_reference(tmp_path / "good.ckpt", fast_model)
    content = torch.load(tmp_path / "good.ckpt", weights_only=True)
    torch.save({**content, "format": 99}, tmp_path / "newer.ckpt")
    torch.save({**content, "config": {**content["config"], "hidden": 32}}, tmp_path / "shape.ckpt")
    torch.save({**content, "config": {"unheard": 1}}, tmp_path / "config.ckpt")
    good = (tmp_path / "good.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(good[:5000])
    middle = len(good) // 2
    (tmp_path / "flipped.ckpt").write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    first, weight = next(iter(content["weights"].items()))
    torch.save({**content, "weights": {**content["weights"], first: weight * torch.nan}}, tmp_path / "nan.ckpt")
    for name, message in (
        ("none.ckpt", "no such checkpoint"),
        ("text.ckpt", "not a checkpoint"),
        ("cut.ckpt", "not a checkpoint"),
        ("flipped.ckpt", "damaged"),
        ("nan.ckpt", f"{first} is NaN or infinite"),
        ("policy.ckpt", "checkpoint of a policy"),
        ("list.ckpt", "some other file"),
        ("vocabulary.pt", "a motion vocabulary, expected a checkpoint of a reference"),
        ("newer.ckpt", "format 99"),
        ("shape.ckpt", "another version"),
        ("config.ckpt", "another version"),
    ):
        with pytest.raises(UserError, match=message) as error:
            load_reference(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=f"{first} is NaN or infinite"):
        read_any_checkpoint(tmp_path / "nan.ckpt")


@pytest.mark.parametrize(
    ("size", "millions"), [("micro", 0.32), ("nano", 1.1), ("mini", 3.2), ("tiny", 7.2), ("large", 32)]
)
def test_sizes_have_the_parameters_they_are_named_for(fast_model, size, millions):
    poses = fast_model.vocabulary.poses[:, :1].repeat(1, 200, 1, 1)
    vocabulary = dataclasses.replace(fast_model.vocabulary, poses=poses)
    model = Reference(SIZES[size], vocabulary)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.05)


def test_larger_sizes_have_more_heads_and_see_more():
    """What the number of parameters does not tell."""
    seen = {name: (c.heads, c.piece_neighbours, c.map_neighbours, c.agent_neighbours) for name, c in SIZES.items()}
    assert seen == {
        "micro": (4, 8, 32, 12),
        "nano": (4, 12, 40, 16),
        "mini": (8, 16, 48, 24),
        "tiny": (8, 16, 64, 32),
        "large": (12, 24, 96, 48),
    }
    # Layers, width and layers of the map, as docs/reference.md has them; the smallest is too small to overfit.
    assert [(c.hidden, c.layers, c.map_layers) for c in SIZES.values()] == [
        (64, 2, 1), (128, 2, 1), (160, 4, 2), (208, 6, 2), (384, 8, 3),
    ]  # fmt: skip
    assert [c.dropout for c in SIZES.values()] == [0.0, 0.1, 0.1, 0.1, 0.1]
    assert all(16 <= config.hidden // config.heads <= 32 for config in SIZES.values())


def test_unknown_sizes_are_refused():
    with pytest.raises(UserError, match="micro"):
        size_preset("huge")
