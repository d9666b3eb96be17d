"""Safetensors and JSON are checkpoints like any other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from data.errors import UserError
from models.checkpoints import checkpoint_kind, read_any_checkpoint, scene_digests, trained_on
from models.policy import Policy, PolicyConfig, load_policy, save_policy
from models.portable import CONFIG_FILE, WEIGHTS_FILE, write_portable
from models.reference.checkpoint import load_reference, read_notes, save_reference
from tests.models.reference.conftest import make_model

SEEN = scene_digests(["a", "b"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Exports of a reference and a policy."""
    model = make_model(2)
    model.trained_on = SEEN
    save_reference(tmp_path / "reference.ckpt", model, {"stage": "test"})
    torch.manual_seed(1)
    policy = Policy(PolicyConfig(embedding=8, hidden=16, own_critic=True), (6, 6, 13), model.vocabulary.ends)
    policy.trained_on = SEEN
    save_policy(tmp_path / "policy.ckpt", policy, model.vocabulary, {"neighbours": 3})
    for kind in ("reference", "policy"):
        (tmp_path / kind).mkdir()
        write_portable(tmp_path / kind, read_any_checkpoint(tmp_path / f"{kind}.ckpt"))
    return tmp_path


def test_an_export_is_loaded_as_the_checkpoint_that_it_was_made_from(folder: Path) -> None:
    paths = folder / "reference.ckpt", folder / "reference" / WEIGHTS_FILE
    before, after = map(load_reference, paths)
    assert after.config == before.config
    assert torch.equal(after.vocabulary.poses, before.vocabulary.poses)
    assert torch.equal(after.trained_on, SEEN)
    assert read_notes(paths[1]) == {"stage": "test"}
    paths = folder / "policy.ckpt", folder / "policy" / WEIGHTS_FILE
    (one, words, view), (other, same_words, same_view) = map(load_policy, paths)
    assert (one.config, one.features, view) == (other.config, other.features, same_view)
    assert torch.equal(words.box, same_words.box)
    for a, b in ((before, after), (one, other)):
        assert a.state_dict().keys() == b.state_dict().keys()
        assert all(torch.equal(tensor, b.state_dict()[name]) for name, tensor in a.state_dict().items())
    assert checkpoint_kind(paths[1]) == "policy"
    assert torch.equal(trained_on(paths[1]), SEEN)


def test_nothing_is_known_of_other_files(tmp_path: Path) -> None:
    torch.save([1], tmp_path / "x.ckpt")
    assert not len(trained_on(tmp_path / "x.ckpt"))


def test_damage_is_named(folder: Path) -> None:
    weights, config = (folder / "policy" / name for name in (WEIGHTS_FILE, CONFIG_FILE))
    content, text = weights.read_bytes(), config.read_text()
    with pytest.raises(UserError, match="a checkpoint of a policy, expected a checkpoint of a reference"):
        load_reference(weights)
    for spoilt in (content[:1000], b"hello", b""):
        weights.write_bytes(spoilt)
        with pytest.raises(UserError, match="not a checkpoint of this project, or damaged"):
            load_policy(weights)
    weights.write_bytes(content)
    for wrong in ("{", "[]", json.dumps({"format": "other"}), json.dumps({"format": "spacer-policy/2"})):
        config.write_text(wrong)
        with pytest.raises(UserError, match="not a checkpoint of this project, or damaged"):
            load_policy(weights)
    config.write_text(text.replace("spacer-policy/", "spacer-policy/9"))
    with pytest.raises(UserError, match="format 9"):
        load_policy(weights)
    config.unlink()
    with pytest.raises(UserError, match="not a checkpoint of this project, or damaged"):
        load_policy(weights)


def test_weights_may_be_kept_in_half_the_bytes(folder: Path) -> None:
    content = read_any_checkpoint(folder / "policy.ckpt")
    (folder / "half").mkdir()
    write_portable(folder / "half", content, torch.bfloat16)
    policy, words, _ = load_policy(folder / "half" / WEIGHTS_FILE)
    assert torch.equal(words.poses, content["vocabulary"]["poses"])
    for name, tensor in policy.state_dict().items():
        assert tensor.dtype == content["weights"][name].dtype
        torch.testing.assert_close(tensor, content["weights"][name], atol=1e-2, rtol=1e-2)
    assert dataclasses.asdict(policy.config) == content["config"]
