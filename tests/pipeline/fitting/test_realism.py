"""Fine-tuning on the realism metric: its reward is the evaluator's, its gradient the analytic one."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from data.errors import UserError
from data.store import SceneStore, shard_name, write_shard
from models.reference.checkpoint import load_reference
from models.reference.engine import Rollout
from models.reference.inputs import SceneInputs
from models.reference.network import Reference
from pipeline.bench.launches import LaunchCounter
from pipeline.fitting import realism
from pipeline.fitting.batches import SceneKey
from pipeline.fitting.realism import (
    RealismConfig,
    RealismLoss,
    advantages,
    policy_gradient,
    rewarded,
    sample,
    scored_states,
)
from pipeline.fitting.scored import ScoredInputs, ScoredScenes
from pipeline.stages.finetune import FinetuneConfig, run_finetune
from submission.realism import COMPONENTS, load_config, prepare_scene, score
from submission.realism.features import compute_features
from submission.realism.score import score_features
from tests.models.reference.conftest import make_model
from tests.pipeline.fitting.conftest import FIT
from tests.pipeline.fitting.test_fitting import check_killed_finetuning

REALISM = RealismConfig(rollouts=4)
CONFIG = FinetuneConfig(method="realism", realism=REALISM, fit=dataclasses.replace(FIT, max_agents=6, steps=4))


def loaded(
    data: dict[str, Path], model: Reference, rows: list[int], step: int = 0, rollouts: int = 4
) -> ScoredInputs:
    """A batch as the loader makes it."""
    plain = dataclasses.replace(FIT.augment, mirror=0.0, history_drop=0.0, noise=0.0)
    fit = dataclasses.replace(FIT, max_agents=6, augment=plain)
    store = SceneStore(data["scenes"])
    scenes = ScoredScenes(
        store, range(len(store)), model.vocabulary, model.config, fit, seed=3, margin=math.inf, rollouts=rollouts
    )
    return scenes.batch([scenes[SceneKey(row, step, False)] for row in rows])


def test_the_reward_is_the_evaluators_score(data):
    """The same rollouts, scored as entries are: by agent id, from the scene of the store."""
    model = make_model(5)
    batch = loaded(data, model, [0, 3])
    rollout = sample(model, batch)
    _, rewards = RealismLoss(REALISM, make_model(5))._paid(batch, rollout)
    for row, (scored, states) in enumerate(zip(batch.scenes, scored_states(batch.scenes, rollout), strict=True)):
        scene = SceneStore(data["scenes"]).get(str(scored.scene.scenario_id))
        by_id = scored.context.agent_id.argsort()
        again = score(prepare_scene(scene), scored.context.agent_id[by_id], states[:, by_id], load_config("2025"))
        assert float(rewards[row]) == pytest.approx(float(again.values["metametric"]), abs=1e-6)


def test_held_out_components_are_not_rewarded(data):
    model = make_model(5)
    batch = loaded(data, model, [1])
    rollout = sample(model, batch)
    config = RealismConfig(rollouts=4, held_out=["collision_indication", "time_to_collision"], metric="2024")
    weights = rewarded(config)
    assert weights["collision_indication"] == weights["time_to_collision"] == 0
    assert sum(weights.values()) == pytest.approx(1)
    year = load_config("2024").weights
    assert weights["linear_speed"] / weights["distance_to_road_edge"] == pytest.approx(
        year["linear_speed"] / year["distance_to_road_edge"]
    )
    (states,) = scored_states(batch.scenes, rollout)
    context = batch.scenes[0].context
    values = score(context, context.agent_id, states, load_config("2024")).values
    expected = sum(weight * float(values[f"{name}_likelihood"]) for name, weight in weights.items())
    _, rewards = RealismLoss(config, make_model(5))._paid(batch, rollout)
    assert float(rewards[0]) == pytest.approx(expected, abs=1e-6)


def test_only_evaluated_agents_are_paid(data):
    model = make_model(5)
    batch = loaded(data, model, [0, 3])
    payment, _ = RealismLoss(REALISM, make_model(5))._paid(batch, sample(model, batch))
    for row, scored in zip(payment, batch.scenes, strict=True):
        paid = row.abs().sum((0, 2)) > 0
        evaluated = scored.scene.evaluated & scored.scene.simulated
        assert bool(paid.any())
        assert not bool((paid & ~evaluated).any())


def test_payments_have_mean_zero_for_an_agent_and_keep_their_proportions():
    generator = torch.Generator().manual_seed(0)
    gain = torch.randn(3, 5, 2, 4, generator=generator)
    gain[:, :, 1] *= 1e-3
    weights = torch.tensor([0.5, 0.0, 0.5])
    payment = advantages(gain, weights)
    torch.testing.assert_close(payment.mean(0), torch.zeros(2, 4), atol=1e-6, rtol=0)
    assert float(payment.square().mean()) == pytest.approx(1)
    assert float(payment[:, 1].abs().max()) < 0.01 * float(payment[:, 0].abs().max())
    assert torch.equal(advantages(torch.zeros(3, 5, 2, 4), weights), torch.zeros(5, 2, 4))
    changed = gain.clone()
    changed[1] = 100
    assert torch.equal(advantages(changed, weights), payment)


class TwoTokens(torch.nn.Module):
    """One agent, one decision between two tokens, with the logits (a, 0)."""

    def __init__(self, logit: float) -> None:
        super().__init__()
        self.logit = torch.nn.Parameter(torch.tensor(logit))

    def encode_batch(self, inputs: SceneInputs) -> Any:
        return Encoding(torch.zeros(1))

    def forward(self, inputs: SceneInputs, encoding: Any = None) -> Tensor:
        rows = inputs.tokens.ids.shape
        return torch.stack((self.logit, torch.zeros(()))).expand(*rows, 2)


@dataclasses.dataclass
class Encoding:
    feature: Tensor


@pytest.mark.parametrize("limit", [1, 4096])
@pytest.mark.parametrize("kl_weight", [0.0, 0.7])
def test_the_gradient_of_a_toy_is_the_analytic_one(data, monkeypatch, limit, kl_weight):
    """d/da of the mean of payment times log-probability is p - 1 or p; of the KL it is p (1 - p) (a - b)."""
    monkeypatch.setattr(realism, "_MAX_TOKENS", limit)
    inputs = loaded(data, make_model(5), [0]).inputs
    inputs = dataclasses.replace(
        inputs,
        learnt=torch.ones(1, 1, dtype=torch.bool),
        agents=type(inputs.agents)(
            *(getattr(inputs.agents, name)[:, :1] for name in ("types", "size", "simulated"))
        ),
        tokens=type(inputs.tokens)(*(value[:, :1] for value in vars(inputs.tokens).values())),
    )
    a, b = 0.4, -0.3
    model, start = TwoTokens(a), TwoTokens(b)
    ids = torch.tensor([0, 1, 1, 0, 0]).view(1, 5, 1, 1)
    payment = torch.tensor([1.0, -2.0, 0.5, 0.3, 0.2]).view(1, 5, 1, 1)
    rollout = Rollout(ids, torch.zeros(1, 5, 1, 1, 5, 3))
    loss, found = policy_gradient(
        cast(Reference, model), cast(Reference, start), inputs, rollout, payment, kl_weight
    )
    loss.backward()
    p, q = (1 / (1 + math.exp(-x)) for x in (a, b))
    score_function = [(1 - p) if token == 0 else -p for token in ids.flatten().tolist()]
    wanted = -sum(w * s for w, s in zip(payment.flatten().tolist(), score_function, strict=True)) / 5
    wanted += kl_weight * p * (1 - p) * (a - b)
    assert model.logit.grad is not None
    assert float(model.logit.grad) == pytest.approx(wanted, rel=1e-5)
    divergence = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    assert float(found) == pytest.approx(divergence, rel=1e-5)
    assert start.logit.grad is None


@pytest.mark.parametrize("frozen", [True, False])
def test_several_passes_give_the_gradient_of_one(data, monkeypatch, frozen):
    """Also of the map encoder, through features that all passes share."""
    gradients = []
    for limit in (1, 10**9):
        monkeypatch.setattr(realism, "_MAX_TOKENS", limit)
        model = make_model(5).requires_grad_(True)
        model.map_encoder.requires_grad_(not frozen)
        loss, count, _ = RealismLoss(dataclasses.replace(REALISM, kl_weight=0.5), make_model(5))(
            model, loaded(data, model, [0, 3])
        )
        (loss * count).backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
        assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    for several, one in zip(*gradients, strict=True):
        assert several is not None
        torch.testing.assert_close(several, one, atol=1e-3, rtol=1e-3)


def test_the_model_is_its_own_start_at_first_and_drops_nothing_out(data):
    """Sampled step by step without dropout, so the paid log-probabilities must be those of that network."""
    model = make_model(5, dataclasses.replace(make_model(5).config, dropout=0.5))
    start = make_model(5, model.config)
    model.train().requires_grad_(True)
    _, _, figures = RealismLoss(REALISM, start)(model, loaded(data, model, [0]))
    assert float(figures["kl_to_start"]) == pytest.approx(0, abs=1e-6)
    assert model.training


@pytest.fixture(scope="module")
def arguments(data, pretrained) -> dict[str, Any]:
    return {
        "scenes": data["scenes"],
        "validation": data["validation"],
        "checkpoint": pretrained / "reference.ckpt",
    }


def table(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / "metrics.csv").open()))


def test_killed_finetuning_on_realism_ends_with_the_same_weights(arguments, tmp_path, monkeypatch):
    figures = run_finetune(CONFIG, **arguments, out=tmp_path / "whole", seed=1)
    assert set(figures) >= {
        "reward",
        "kl_to_start",
        "validation_realism",
        "validation_min_ade_m",
        "validation_speed_ratio_8s",
        "validation_diversity_m",
        *(f"validation_{name}_likelihood" for name in COMPONENTS),
    }
    assert figures["validation_diversity_m"] > 0
    check_killed_finetuning(CONFIG, arguments, tmp_path, monkeypatch)
    files = (arguments["checkpoint"], tmp_path / "whole" / "reference.ckpt")
    before, after = (load_reference(path).state_dict() for path in files)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("layers.") for name in changed)
    assert not any(name.startswith(("map_encoder.", "token.", "agent.", "no_token")) for name in changed)


def reward_of(data: dict[str, Path], checkpoint: Path) -> float:
    """Mean reward of the training scenes with draws that no training had."""
    model = load_reference(checkpoint).eval()
    loss = RealismLoss(REALISM, load_reference(checkpoint))
    batch = loaded(data, model, [0, 1, 2, 3, 4, 5], step=10_000, rollouts=16)
    return float(loss._paid(batch, sample(model, batch))[1].mean())


def test_training_on_the_reward_raises_it(data, arguments, tmp_path):
    fit = dataclasses.replace(
        CONFIG.fit, steps=16, batch_size=3, learning_rate=4e-3, validate_every=16, checkpoint_every=16
    )
    config = dataclasses.replace(CONFIG, fit=fit, realism=RealismConfig(rollouts=8, kl_weight=0.0))
    before = reward_of(data, arguments["checkpoint"])
    run_finetune(config, **{**arguments, "validation": None}, out=tmp_path, seed=2)
    after = reward_of(data, tmp_path / "reference.ckpt")
    # Draws of its own, so that 0 would be no change; .03 here.
    assert after > before + 0.015


def test_a_strong_divergence_term_holds_the_model(data, arguments, tmp_path):
    fit = dataclasses.replace(CONFIG.fit, steps=5, learning_rate=3e-3)
    divergences = []
    for kl_weight in (0.0, 30.0):
        config = dataclasses.replace(CONFIG, fit=fit, realism=RealismConfig(rollouts=4, kl_weight=kl_weight))
        out = tmp_path / str(kl_weight)
        run_finetune(config, **{**arguments, "validation": None}, out=out, seed=2)
        divergences.append(float(table(out)[-1]["kl_to_start"]))
    assert divergences[1] < 0.3 * divergences[0]


def test_a_step_on_a_gpu_waits_for_heights_alone(data):
    """All other numbers stay on the device: without the look-up of heights, comparing all pairs, nothing waits."""
    model = make_model(5).requires_grad_(True)
    batch = loaded(data, model, [0, 3])
    loss = RealismLoss(REALISM, make_model(5))
    states = scored_states(batch.scenes, sample(model.eval(), batch))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(realism, "scored_states", lambda *_: states)
        patch.setattr(
            realism,
            "score_states",
            lambda context, own, config: score_features(
                context, compute_features(context, own, exhaustive=True), config
            ),
        )
        with LaunchCounter() as counter:
            value, _, _ = loss(model, batch)
            value.backward()
    assert not counter.waits, counter.waits


def test_scenes_that_cannot_be_scored_are_left_out_or_named(data, arguments, tmp_path):
    few = dataclasses.replace(CONFIG, fit=dataclasses.replace(CONFIG.fit, max_agents=1))
    with pytest.raises(UserError, match=r"fit\.max_agents is 1: 1 of the agents .*raise it"):
        run_finetune(few, **{**arguments, "validation": None}, out=tmp_path / "few", seed=1)
    bare = [
        dataclasses.replace(scene, map=dataclasses.replace(scene.map, kind=torch.ones_like(scene.map.kind)))
        for scene in SceneStore(data["scenes"])
    ]
    write_shard(tmp_path / "bare" / shard_name("training", 0, 1), bare)
    with pytest.raises(UserError, match="none of its 6 scenes can be scored"):
        run_finetune(
            CONFIG,
            scenes=tmp_path / "bare",
            checkpoint=arguments["checkpoint"],
            out=tmp_path / "out",
            seed=1,
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rollouts": 1}, r"realism\.rollouts is 1; leaving one out needs at least 2"),
        ({"kl_weight": -0.1}, r"realism\.kl_weight is -0\.1; it must be at least 0"),
        ({"metric": "2023"}, r"realism\.metric is '2023'; choose one of 2025, 2024"),
        ({"held_out": ["speed"]}, r"realism\.held_out: 'speed' is none of linear_speed"),
        (
            {"held_out": [name for name in COMPONENTS if name != "traffic_light_violation"], "metric": "2024"},
            r"realism\.held_out: nothing with a weight is left",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        rewarded(RealismConfig(**options))


def test_an_unknown_method_is_named():
    with pytest.raises(UserError, match="--method dpo: choose one of closed_loop, realism"):
        FinetuneConfig(method="dpo")
