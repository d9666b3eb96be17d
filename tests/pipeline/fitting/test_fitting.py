"""Pretraining and fine-tuning: they learn, and a killed run that is started again ends with the same bytes."""

from __future__ import annotations

import csv
import dataclasses
import math

import pytest
import torch

from data.batch import collate
from data.errors import UserError
from data.store import SceneStore, shard_name, write_shard
from data.tokenizer import apply_token, match_token
from models.reference.augmentation import AugmentationConfig
from models.reference.checkpoint import load_reference
from models.reference.config import ReferenceConfig
from models.reference.loss import loss_mask, smoothed_targets, token_figures, token_loss
from models.reference.recording import scene_inputs
from pipeline.bench.launches import LaunchCounter
from pipeline.fitting import FitConfig, fit, recorder
from pipeline.fitting.module import FitModule
from pipeline.stages.finetune import ClosedLoopLoss, roll_out, run_finetune
from pipeline.stages.pretrain import PretrainConfig, run_pretrain
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.fitting.conftest import FINETUNE, FIT, MODEL, PRETRAIN


class Killed(BaseException):
    """Stands for a kill between two steps."""


def kill_at(monkeypatch, step):
    """Let training die when it is about to do this step."""
    original = FitModule.training_step

    def dying(self, batch, batch_idx):
        if self.global_step == step:
            raise Killed
        return original(self, batch, batch_idx)

    monkeypatch.setattr(FitModule, "training_step", dying)


def check_killed_finetuning(config, arguments, folder, monkeypatch):
    """Killed in the fourth step and started again, it ends with the bytes of ``folder/whole``."""
    with monkeypatch.context() as patch:
        kill_at(patch, 3)
        with pytest.raises(Killed):
            run_finetune(config, **arguments, out=folder / "killed", seed=1)
    run_finetune(config, **arguments, out=folder / "killed", seed=1)
    for name in ("reference.ckpt", "metrics.csv"):
        assert (folder / "whole" / name).read_bytes() == (folder / "killed" / name).read_bytes(), name


@pytest.mark.parametrize("step", [1, 4, 7])
def test_killed_pretraining_ends_with_the_same_bytes(data, pretrained, tmp_path, monkeypatch, step):
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            run_pretrain(PRETRAIN, **data, out=tmp_path, seed=5)
    assert not (tmp_path / "reference.ckpt").exists()
    torch.rand(100)
    run_pretrain(PRETRAIN, **data, out=tmp_path, seed=5)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in pretrained.iterdir())
    for name in ("reference.ckpt", "metrics.csv"):
        assert (tmp_path / name).read_bytes() == (pretrained / name).read_bytes(), name


def test_killed_between_training_and_the_final_file(data, pretrained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(fit, "save_reference", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            run_pretrain(PRETRAIN, **data, out=tmp_path, seed=5)
    run_pretrain(PRETRAIN, **data, out=tmp_path, seed=5)
    assert (tmp_path / "reference.ckpt").read_bytes() == (pretrained / "reference.ckpt").read_bytes()


def test_a_finished_training_is_not_repeated(data, pretrained, monkeypatch):
    kill_at(monkeypatch, 0)
    figures = run_pretrain(PRETRAIN, **data, out=pretrained, seed=5)
    assert set(figures) >= {"training_loss", "validation_cross_entropy", "validation_top1", "validation_min_ade_m"}
    assert 0 < figures["validation_realism"] < 1


def test_an_interrupted_training_with_other_settings_is_refused(data, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            run_pretrain(PRETRAIN, **data, out=tmp_path, seed=5)
    with pytest.raises(UserError, match="other settings"):
        run_pretrain(PRETRAIN, **data, out=tmp_path, seed=6)


def test_keep_goes_on_with_other_settings(data, tmp_path, monkeypatch):
    """The weights and moments of the checkpoint, the rates of now, and a fingerprint that needs no --keep again."""
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            run_pretrain(PRETRAIN, **data, out=tmp_path, seed=5)
    begun = torch.load(tmp_path / "training.ckpt", weights_only=True)
    assert begun["global_step"] > 0

    def changed(**fields):
        return dataclasses.replace(PRETRAIN, fit=dataclasses.replace(PRETRAIN.fit, **fields))

    with pytest.raises(UserError, match=r"steps are done already, fit\.steps is 1"):
        run_pretrain(changed(steps=1, warmup_steps=0), **data, out=tmp_path, seed=5, keep=True)
    other = dataclasses.replace(PRETRAIN, model=dataclasses.replace(PRETRAIN.model, hidden=2 * MODEL.hidden))
    with pytest.raises(UserError, match="the checkpoint of another network"):
        run_pretrain(other, **data, out=tmp_path, seed=5, keep=True)
    slow = changed(learning_rate=1e-4, steps=PRETRAIN.fit.steps + 2)
    with monkeypatch.context() as patch:
        kill_at(patch, 6)
        with pytest.raises(Killed):
            run_pretrain(slow, **data, out=tmp_path, seed=5, keep=True)
    run_pretrain(slow, **data, out=tmp_path, seed=5)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, slow.fit.steps + 1))
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates[: begun["global_step"]]) > 1e-3
    assert max(rates[begun["global_step"] :]) <= 1e-4


def test_options_that_only_say_how_are_free_to_change(data, pretrained, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            run_pretrain(PRETRAIN, **data, out=tmp_path, seed=5)
    fit = dataclasses.replace(PRETRAIN.fit, checkpoint_every=3, cache_scenes=1)
    run_pretrain(dataclasses.replace(PRETRAIN, fit=fit), **data, out=tmp_path, seed=5)
    assert (tmp_path / "reference.ckpt").read_bytes() == (pretrained / "reference.ckpt").read_bytes()


def test_killed_finetuning_ends_with_the_same_bytes(data, pretrained, tmp_path, monkeypatch):
    arguments = {
        "scenes": data["scenes"],
        "validation": data["validation"],
        "checkpoint": pretrained / "reference.ckpt",
    }
    figures = run_finetune(FINETUNE, **arguments, out=tmp_path / "whole", seed=1)
    assert figures["validation_top5"] >= figures["validation_top1"]
    check_killed_finetuning(FINETUNE, arguments, tmp_path, monkeypatch)


def test_finetuning_leaves_the_encoders_alone(data, pretrained, tmp_path):
    arguments = {"scenes": data["scenes"], "validation": None, "checkpoint": pretrained / "reference.ckpt"}
    run_finetune(FINETUNE, **arguments, out=tmp_path, seed=1)
    before, after = (load_reference(p / "reference.ckpt").state_dict() for p in (pretrained, tmp_path))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("layers.") for name in changed)
    assert not any(name.startswith(("map_encoder.", "token.", "agent.", "no_token")) for name in changed)


def test_metrics_have_a_row_for_each_step(pretrained):
    rows = list(csv.DictReader((pretrained / "metrics.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, 9))
    assert [bool(row["validation_top5"]) for row in rows] == [step in (4, 8) for step in range(1, 9)]
    rates = [float(row["learning_rate"]) for row in rows]
    assert max(rates) == pytest.approx(3e-3)
    assert rates[-1] < rates[3]


def test_pretraining_learns(data, tmp_path):
    """Eighty steps bring the cross-entropy of the motion trained on, under other ids, far below guessing."""
    fit = dataclasses.replace(
        FIT,
        steps=80,
        batch_size=4,
        learning_rate=3e-3,
        warmup_steps=5,
        validate_every=80,
        augment=AugmentationConfig(history_drop=0.0, noise=0.0),
    )
    config = PretrainConfig(size="custom", model=ReferenceConfig(hidden=32, layers=1), fit=fit)
    again = tmp_path / "again"
    copies = [
        dataclasses.replace(scene, scenario_id=f"{scene.scenario_id}-again") for scene in SceneStore(data["scenes"])
    ]
    write_shard(again / shard_name("validation", 0, 1), copies)
    figures = run_pretrain(config, **{**data, "validation": again}, out=tmp_path, seed=0)
    assert figures["validation_cross_entropy"] < 0.75 * math.log(40)
    assert figures["validation_top5"] > 2 * 5 / 40


def test_diverged_training_is_named(data, tmp_path):
    fit = dataclasses.replace(FIT, learning_rate=1e15, gradient_clip=1e9, warmup_steps=0)
    with pytest.raises(UserError, match="diverged"):
        run_pretrain(dataclasses.replace(PRETRAIN, fit=fit), **data, out=tmp_path, seed=0)


def test_closed_loop_targets_lead_back_to_the_log():
    model = make_model(5)
    inputs = scene_inputs(collate([random_scene(0), random_scene(1, agents=3)]), model.vocabulary)
    loop = roll_out(model, inputs, top_k=4, max_error=1e6)
    first = 2
    assert torch.equal(loop.tokens.ids[..., :first], inputs.tokens.ids[..., :first])
    assert not bool(loop.mask[..., :first].any())
    assert not bool((loop.mask & ~inputs.agents.simulated.unsqueeze(-1)).any())
    # Executed tokens are chained exactly.
    types = inputs.agents.types.unsqueeze(-1).expand_as(loop.tokens.ids)
    reached = apply_token(model.vocabulary, loop.tokens.poses[:, :, :-1], loop.tokens.ids, types)[..., -1, :]
    torch.testing.assert_close(
        reached[:, :, first:][inputs.agents.simulated],
        loop.tokens.poses[:, :, first + 1 :][inputs.agents.simulated],
    )
    expected, _ = match_token(model.vocabulary, loop.tokens.poses[:, :, :-1], inputs.recorded[:, :, 1:], types)
    assert torch.equal(loop.target, expected)


def test_with_all_tokens_allowed_the_rollout_follows_the_log_whatever_the_model():
    model = make_model(5)
    inputs = scene_inputs(collate([random_scene(0)]), model.vocabulary)
    loop = roll_out(model, inputs, top_k=model.vocabulary.size, max_error=1e6)
    assert torch.equal(loop.tokens.ids[loop.mask], loop.target[loop.mask])
    error = (loop.tokens.poses[:, :, 1:, :2] - inputs.recorded[:, :, 1:, :2]).norm(dim=-1)[loop.mask]
    assert float(error.mean()) < 1.0
    strayed = roll_out(model, inputs, top_k=1, max_error=1e6)
    far = (strayed.tokens.poses[:, :, 1:, :2] - inputs.recorded[:, :, 1:, :2]).norm(dim=-1)[strayed.mask]
    assert float(far.mean()) > 2 * float(error.mean())


def test_nothing_is_learnt_far_from_the_log():
    model = make_model(5)
    inputs = scene_inputs(collate([random_scene(0)]), model.vocabulary)
    every = roll_out(model, inputs, top_k=1, max_error=1e6)
    near = roll_out(model, inputs, top_k=1, max_error=2.0)
    distance = (every.tokens.poses[:, :, :-1, :2] - inputs.recorded[:, :, :-1, :2]).norm(dim=-1)
    assert bool(near.mask.any())
    assert int(near.mask.sum()) < int(every.mask.sum())
    # The mean distance of the corners is at least that of the centres.
    assert float(distance[near.mask].max()) <= 2.0
    assert bool(near.mask[..., 2][every.mask[..., 2]].all()), "all start where the log is"


def test_closed_loop_loss_reaches_the_weights():
    model = make_model(5).requires_grad_(True)
    inputs = scene_inputs(collate([random_scene(0)]), model.vocabulary)
    loss, mask, _ = ClosedLoopLoss(top_k=4, max_error=5.0)(model, inputs)
    loss[mask].mean().backward()
    gradients = [p.grad for p in model.layers.parameters()]
    assert all(gradient is not None and bool(gradient.isfinite().all()) for gradient in gradients)


def test_loss_and_figures_by_hand():
    logits = torch.tensor([[[2.0, 0.0, -1.0], [0.0, 1.0, 0.0], [5.0, 5.0, 5.0]]])
    target, mask = torch.tensor([[0, 2, 1]]), torch.tensor([[True, True, False]])
    log_probability = logits.log_softmax(-1)
    by_hand = -log_probability[0, [0, 1, 2], [0, 2, 1]]
    torch.testing.assert_close(token_loss(logits, target)[0], by_hand)
    certain = torch.nn.functional.one_hot(target, 3).float()
    torch.testing.assert_close(token_loss(logits, target, certain)[0], by_hand)
    figures = token_figures(logits, target, mask)
    torch.testing.assert_close(figures, torch.tensor([float(by_hand[:2].sum()), 1.0, 2.0, 2.0]).double())


def test_smoothed_targets_are_distributions_near_the_true_token():
    vocabulary = make_model(5).vocabulary
    targets = smoothed_targets(vocabulary, probability=0.1, spread=0.2)
    torch.testing.assert_close(targets.sum(-1), torch.ones(3, 40))
    torch.testing.assert_close(targets.diagonal(dim1=1, dim2=2), torch.full((3, 40), 0.9), atol=1e-5, rtol=0)
    centre = vocabulary.poses[0, :, -1, :2]
    far = int((centre - centre[5]).norm(dim=-1).argmax())
    assert float(targets[0, 5, far]) < 1e-4
    exact = smoothed_targets(vocabulary, probability=0.0, spread=0.2)
    torch.testing.assert_close(exact, torch.eye(40).expand(3, 40, 40))


def test_history_has_no_loss_at_the_first_boundary():
    model = make_model(5)
    inputs = scene_inputs(collate([random_scene(0)]), model.vocabulary)
    mask = loss_mask(inputs)
    assert not bool(mask[..., 0].any())
    learnt = inputs.tokens.valid & inputs.learnt.unsqueeze(-1)
    assert torch.equal(mask[..., 1:], learnt[..., 1:])
    assert torch.equal(loss_mask(inputs, 2)[..., 2:], learnt[..., 2:])
    assert not bool(loss_mask(inputs, 2)[..., :2].any())


@pytest.mark.parametrize("changes", [{"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_impossible_settings_are_refused(changes):
    with pytest.raises(UserError):
        FitConfig(**changes)


def test_the_average_of_weights_is_kept(data, tmp_path):
    """With a decay of 0.5 over three steps: after the first w1, then (w1 + w2) / 2, then (w1 + w2 + 2 w3) / 4."""
    fit = dataclasses.replace(FIT, steps=3)
    weights = []
    for steps in (1, 2, 3):
        # The schedule must not depend on where the training ends.
        config = dataclasses.replace(PRETRAIN, fit=dataclasses.replace(fit, steps=steps, final_rate=1.0))
        run_pretrain(config, **data, out=tmp_path / f"{steps}", seed=5)
        weights.append(load_reference(tmp_path / f"{steps}" / "reference.ckpt").state_dict())
    averaging = dataclasses.replace(PRETRAIN, fit=dataclasses.replace(fit, final_rate=1.0, ema=0.5))
    run_pretrain(averaging, **data, out=tmp_path / "average", seed=5)
    average = load_reference(tmp_path / "average" / "reference.ckpt").state_dict()
    for name, tensor in average.items():
        one, two, three = (state[name] for state in weights)
        torch.testing.assert_close(tensor, (one + two + 2 * three) / 4, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("step", [4, 7])
def test_killed_with_average_augmentation_and_loaders_ends_with_the_same_bytes(data, tmp_path, monkeypatch, step):
    augment = AugmentationConfig(time_shift=4, agent_drop=0.1, noise=0.2)
    fit = dataclasses.replace(FIT, ema=0.9, augment=augment, workers=1, rollout_every=4)
    config = dataclasses.replace(PRETRAIN, fit=fit)
    run_pretrain(config, **data, out=tmp_path / "whole", seed=5)
    with monkeypatch.context() as patch:
        kill_at(patch, step)
        with pytest.raises(Killed):
            run_pretrain(config, **data, out=tmp_path / "killed", seed=5)
    run_pretrain(config, **data, out=tmp_path / "killed", seed=5)
    for name in ("reference.ckpt", "metrics.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_losses_read_later_are_the_same(data, pretrained, tmp_path, monkeypatch):
    """As on a GPU: in the table and the curves nothing is missing, and a checkpoint holds what was done."""
    monkeypatch.setattr(recorder, "_read_every", lambda device: 5)
    with monkeypatch.context() as patch:
        kill_at(patch, 5)
        with pytest.raises(Killed):
            run_pretrain(PRETRAIN, **data, out=tmp_path, seed=5)
    run_pretrain(PRETRAIN, **data, out=tmp_path, seed=5)
    for name in ("reference.ckpt", "metrics.csv"):
        assert (tmp_path / name).read_bytes() == (pretrained / name).read_bytes(), name


@pytest.fixture
def counters(monkeypatch):
    """Launches and waits of each step: loss, gradient, optimiser and moving average."""
    original, counters = FitModule.optimizer_step, []

    def counted(self, *args, **kwargs):
        with LaunchCounter() as counter:
            original(self, *args, **kwargs)
        counters.append(counter)

    monkeypatch.setattr(FitModule, "optimizer_step", counted)
    return counters


def test_a_step_neither_tokenises_nor_waits(data, tmp_path, counters):
    """The loader has augmented and tokenised."""
    config = dataclasses.replace(PRETRAIN, fit=dataclasses.replace(FIT, steps=2, ema=0.9))
    run_pretrain(config, **data, out=tmp_path, seed=5)
    assert len(counters) == 2
    for counter in counters:
        assert not counter.waits
        assert "cummax" not in counter.launches  # of the lights before a step, in each tokenised batch
        assert counter.launched < 3100


def test_a_closed_loop_step_does_not_wait(data, pretrained, tmp_path, counters):
    scenes = {name: data[name] for name in ("scenes", "validation")}
    config = dataclasses.replace(FINETUNE, fit=dataclasses.replace(FINETUNE.fit, steps=2))
    run_finetune(config, **scenes, checkpoint=pretrained / "reference.ckpt", out=tmp_path, seed=5)
    assert len(counters) == 2
    for counter in counters:
        assert not counter.waits
        assert counter.launched < 11_700


def test_realism_of_sampled_futures_is_logged_at_intervals(data, tmp_path):
    config = dataclasses.replace(PRETRAIN, fit=dataclasses.replace(FIT, rollout_every=4))
    figures = run_pretrain(config, **data, out=tmp_path, seed=5)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert [bool(row["validation_realism"]) for row in rows] == [step in (4, 8) for step in range(1, 9)]
    assert 0 < figures["validation_realism"] < 1
    assert figures["validation_realism"] == float(rows[-1]["validation_realism"])


def test_pretraining_goes_on_from_other_weights(data, pretrained, tmp_path):
    start = pretrained / "reference.ckpt"
    config = dataclasses.replace(PRETRAIN, fit=dataclasses.replace(FIT, steps=1, learning_rate=1e-9))
    run_pretrain(config, **data, start=start, out=tmp_path / "on", seed=9)
    before, after = (load_reference(path).state_dict() for path in (start, tmp_path / "on" / "reference.ckpt"))
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, atol=1e-6, rtol=0)
    other = dataclasses.replace(config, model=dataclasses.replace(MODEL, layers=1))
    with pytest.raises(UserError, match="another size or vocabulary"):
        run_pretrain(other, **data, start=start, out=tmp_path / "other", seed=9)


def test_training_in_half_precision_stays_near(data, pretrained, tmp_path):
    config = dataclasses.replace(PRETRAIN, fit=dataclasses.replace(FIT, precision="bf16-mixed", device="cpu"))
    run_pretrain(config, **data, out=tmp_path, seed=5)
    exact, near = (
        [float(row["loss"]) for row in csv.DictReader((folder / "metrics.csv").open())]
        for folder in (pretrained, tmp_path)
    )
    assert near != exact
    assert near == pytest.approx(exact, rel=0.03)
    half = dataclasses.replace(FINETUNE, fit=dataclasses.replace(FINETUNE.fit, precision="bf16-mixed"))
    paths = {name: path for name, path in data.items() if name != "vocabulary"}
    figures = run_finetune(half, **paths, checkpoint=tmp_path / "reference.ckpt", out=tmp_path / "tuned", seed=5)
    assert math.isfinite(figures["training_loss"])
