"""The stage: it learns, goes on after an interruption with the same bytes, and names what is wrong."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from data.errors import UserError
from data.scene import AgentType
from data.store import shard_name, write_shard
from models.checkpoints import scene_digests, seen_scenes, trained_on
from models.policy import PolicyConfig, load_policy
from models.reference.checkpoint import save_reference
from pipeline.selfplay import training
from pipeline.selfplay.config import DistillConfig, PPOConfig, SelfPlayConfig
from pipeline.selfplay.driver import Driver
from pipeline.selfplay.learner import Learner
from pipeline.selfplay.training import POLICY_FILE
from pipeline.stages.selfplay import run_selfplay
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW
from tests.scenes import Mover, hand_made

CONFIG = SelfPlayConfig(
    agent_steps=2000,
    worlds=2,
    pool=3,
    checkpoint_every=1,
    tensorboard=False,
    policy=PolicyConfig(embedding=16, hidden=32),
    view=VIEW,
    ppo=PPOConfig(minibatch=128, learning_rate=3e-3, epochs=2, beta=1.0),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    (folder / "training").mkdir()
    scenes = [random_scene(seed, agents=agents) for seed, agents in ((0, 6), (1, 4), (2, 5))]
    write_shard(folder / "training" / shard_name("training", 0, 1), scenes)
    save_reference(folder / "reference.ckpt", make_model(2))
    return {"scenes": folder / "training", "reference": folder / "reference.ckpt"}


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed")
    figures = run_selfplay(CONFIG, **data, out=out, seed=1)
    assert figures["agent_steps"] >= 2000
    assert figures["kl"] < figures["first_kl"]
    return out


def test_the_table_has_a_row_for_each_update(undisturbed) -> None:
    rows = list(csv.DictReader((undisturbed / "metrics.csv").open()))
    assert len(rows) >= 5
    steps = [float(row["agent_steps"]) for row in rows]
    assert steps == sorted(set(steps))
    assert steps[-2] < 2000 <= steps[-1]
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in row if name.endswith("_rate"))
    assert float(rows[-1]["reference_coverage"]) == 1.0
    assert sorted(path.name for path in undisturbed.iterdir()) == ["metrics.csv", POLICY_FILE]


def test_the_policy_says_what_it_and_its_reference_were_trained_on(data, undisturbed, tmp_path) -> None:
    pool = [f"random{seed}" for seed in range(3)]
    assert seen_scenes(trained_on(undisturbed / POLICY_FILE), [*pool, "another"]) == pool
    model = make_model(2)
    model.trained_on = scene_digests(["of the reference"])
    save_reference(tmp_path / "reference.ckpt", model)
    config = dataclasses.replace(CONFIG, agent_steps=1)
    run_selfplay(config, scenes=data["scenes"], reference=tmp_path / "reference.ckpt", out=tmp_path, seed=1)
    names = [*pool, "of the reference"]
    assert seen_scenes(trained_on(tmp_path / POLICY_FILE), [*names, "another"]) == names


def interrupt(monkeypatch, after: int) -> None:
    """Let self-play die in its (after + 1)th update."""
    calls = []

    def update(*arguments):
        calls.append(1)
        if len(calls) > after:
            raise KeyboardInterrupt
        return original(*arguments)

    original = Learner.update
    monkeypatch.setattr(Learner, "update", update)


@pytest.mark.parametrize(("every", "after"), [(1, 1), (1, 4), (2, 3), (3, 2)])
def test_a_resumed_run_ends_with_the_same_bytes(data, undisturbed, tmp_path, monkeypatch, every, after) -> None:
    config = dataclasses.replace(CONFIG, checkpoint_every=every)
    plain = tmp_path / "plain"
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(KeyboardInterrupt):
            run_selfplay(config, **data, out=plain, seed=1)
    assert not (plain / POLICY_FILE).exists()
    assert (plain / "training.pt").exists() == (after >= every)
    run_selfplay(config, **data, out=plain, seed=1)
    for name in (POLICY_FILE, "metrics.csv"):
        assert (plain / name).read_bytes() == (undisturbed / name).read_bytes(), name
    assert not (plain / "training.pt").exists()


DISTILLED = dataclasses.replace(
    CONFIG,
    agent_steps=600,
    distill=DistillConfig(agent_steps=1500, minibatch=64, learning_rate=3e-3),
    ppo=dataclasses.replace(CONFIG.ppo, running_scale=True),
)


def test_distillation_comes_first_and_is_resumed_too(data, tmp_path, monkeypatch) -> None:
    """Interrupted in each of the two parts, and right between them; the scale of returns goes on as well."""
    whole = tmp_path / "whole"
    run_selfplay(DISTILLED, **data, out=whole, seed=1)
    rows = list(csv.DictReader((whole / "metrics.csv").open()))
    driven = [bool(row["kl_moving"]) for row in rows]
    steps = [float(row["agent_steps"]) for row in rows]
    assert driven == [False] * driven.count(False) + [True] * driven.count(True)
    last = driven.index(True) - 1
    assert steps[last - 1] < 1500 <= steps[last]
    assert steps[-2] < 2100 <= steps[-1]
    # Only the KL is learnt from at first.
    assert float(rows[last]["kl"]) < 0.8 * float(rows[0]["kl"])
    for after in (1, last + 1, len(rows) - 1):
        out = tmp_path / str(after)
        with monkeypatch.context() as patch:
            interrupt(patch, after)
            with pytest.raises(KeyboardInterrupt):
                run_selfplay(DISTILLED, **data, out=out, seed=1)
        run_selfplay(DISTILLED, **data, out=out, seed=1)
        for name in (POLICY_FILE, "metrics.csv"):
            assert (out / name).read_bytes() == (whole / name).read_bytes(), (after, name)


def test_distillation_learns_nothing_but_the_forward_kl() -> None:
    """Whatever self-play learns from, and at its own pace."""
    paid = ("surrogate_weight", "value_weight", "entropy_weight", "alpha", "target_kl")
    weights: dict[str, Any] = dict.fromkeys(paid, 0.3)
    ppo = PPOConfig(**weights, beta=0.5, beta_final=0.1, kl="reverse", epochs=5, clip=0.3)
    distill = DistillConfig(agent_steps=100, epochs=2, minibatch=32, learning_rate=0.02, driver="reference")
    first, second = dataclasses.replace(CONFIG, ppo=ppo, distill=distill).phases
    assert (first.driver, first.begin, first.end) == ("reference", 0, 100)
    assert (second.driver, second.begin, second.end) == ("policy", 100, 2100)
    assert second.ppo == ppo
    own = {name: value for name, value in vars(distill).items() if name not in ("agent_steps", "driver")}
    alone = {"beta": 1.0, "beta_final": None, "kl": "forward"}
    assert vars(first.ppo) == vars(ppo) | dict.fromkeys(paid, 0.0) | own | alone


def test_plain_self_play_may_start_from_a_distilled_policy(data, tmp_path) -> None:
    """The anchor is asked as long as it is learnt from, and not afterwards."""
    plain = dataclasses.replace(DISTILLED, ppo=dataclasses.replace(DISTILLED.ppo, beta=0.0))
    run_selfplay(plain, **data, out=tmp_path, seed=1)
    coverage = [float(row["reference_coverage"]) for row in csv.DictReader((tmp_path / "metrics.csv").open())]
    assert (coverage[0], coverage[-1]) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"driver": "policy"}, "distill.driver is 'policy'; choose one of log, reference"),
        ({"agent_steps": -1}, "distill.agent_steps is -1; it must be at least 0"),
    ],
)
def test_impossible_distillation_is_named(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        DistillConfig(**changes)


def test_the_optimiser_goes_on_where_the_weights_are(data, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run_selfplay(CONFIG, **data, out=tmp_path, seed=1)

    class Elsewhere(Fabric):
        """A device that is not the CPU, as a GPU is not; tensors there hold nothing."""

        @property
        def device(self) -> torch.device:
            return torch.device("meta")

    found: list[set[str]] = []

    def enter(state, *arguments):
        original(state, *arguments)
        moments = [t for one in state.learner.optimizer.state.values() for name, t in one.items() if name != "step"]
        found.append({tensor.device.type for tensor in [*state.policy.parameters(), *moments]})
        raise KeyboardInterrupt

    original, load = training._State.enter, training.load_anchor
    monkeypatch.setattr(training._State, "enter", enter)
    monkeypatch.setattr(training, "load_anchor", lambda path, device: load(path, torch.device("cpu")))
    with pytest.raises(KeyboardInterrupt):
        training.train(Elsewhere(accelerator="cpu"), CONFIG, **data, out=tmp_path, seed=1)
    assert found == [{"meta"}]


def test_another_seed_gives_another_policy(data, undisturbed, tmp_path) -> None:
    run_selfplay(dataclasses.replace(CONFIG, agent_steps=1), **data, out=tmp_path, seed=2)
    other, _, _ = load_policy(tmp_path / POLICY_FILE)
    first, _, view = load_policy(undisturbed / POLICY_FILE)
    assert not torch.equal(other.actor.weight, first.actor.weight)
    assert view == dataclasses.asdict(VIEW)


def test_an_interrupted_run_with_other_settings_is_refused(data, tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            run_selfplay(CONFIG, **data, out=tmp_path, seed=1)
    with pytest.raises(UserError, match="other settings or data"):
        run_selfplay(CONFIG, **data, out=tmp_path, seed=3)
    # Another length, seed and rate, from where it stopped; of another net nothing can be kept.
    wider = dataclasses.replace(CONFIG, policy=dataclasses.replace(CONFIG.policy, hidden=2 * CONFIG.policy.hidden))
    with pytest.raises(UserError, match="the checkpoint of another network"):
        run_selfplay(wider, **data, out=tmp_path, seed=1, keep=True)
    torn = (tmp_path / "training.pt").read_bytes()
    kept = dataclasses.replace(CONFIG, ppo=dataclasses.replace(CONFIG.ppo, learning_rate=1e-5))
    run_selfplay(kept, **data, out=tmp_path, seed=3, keep=True)
    rows = list(csv.DictReader((tmp_path / "metrics.csv").open()))
    assert float(rows[-1]["agent_steps"]) >= CONFIG.agent_steps
    assert not (tmp_path / "training.pt").exists()
    (tmp_path / "training.pt").write_bytes(torn[:100])
    with pytest.raises(UserError, match="damaged checkpoint"):
        run_selfplay(CONFIG, **data, out=tmp_path, seed=1)


@pytest.mark.parametrize(
    "ppo",
    [
        {"beta": 0.0},
        {"vehicles_only": True},
        {"beta": 0.0, "alpha": 0.01},
        {"controlled": "moving"},
        {"controlled": "one"},
    ],
    ids=["plain", "vehicles", "alpha", "moving", "one"],
)
def test_variants_run(data, tmp_path, ppo) -> None:
    config = dataclasses.replace(CONFIG, agent_steps=200, ppo=dataclasses.replace(CONFIG.ppo, **ppo))
    figures = run_selfplay(config, **data, out=tmp_path, seed=0)
    assert (figures["reference_coverage"] > 0) == (ppo != {"beta": 0.0})
    assert figures["agent_steps"] % 40 == 0
    if ppo.get("controlled") == "one":
        # Two worlds with one agent each.
        assert figures["agent_steps"] == figures["updates"] * 2 * 40


def test_vehicles_only_is_a_name_for_controlled_vehicles(data, tmp_path) -> None:
    for name, ppo in (("a", {"vehicles_only": True}), ("b", {"controlled": "vehicles"})):
        config = dataclasses.replace(CONFIG, agent_steps=200, ppo=dataclasses.replace(CONFIG.ppo, **ppo))
        run_selfplay(config, **data, out=tmp_path / name, seed=0)
    for file in (POLICY_FILE, "metrics.csv"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with pytest.raises(UserError, match="contradicts"):
        dataclasses.replace(CONFIG.ppo, vehicles_only=True, controlled="one")
    with pytest.raises(UserError, match="choose one of all, moving"):
        dataclasses.replace(CONFIG.ppo, controlled="two")


def test_comparing_with_the_reference_changes_nothing_but_the_figures(data, tmp_path) -> None:
    tables = {}
    for compared in (False, True):
        ppo = dataclasses.replace(CONFIG.ppo, beta=0.0, compared=compared)
        config = dataclasses.replace(CONFIG, agent_steps=600, ppo=ppo)
        run_selfplay(config, **data, out=tmp_path / str(compared), seed=0)
        tables[compared] = list(csv.DictReader((tmp_path / str(compared) / "metrics.csv").open()))
    assert (tmp_path / "True" / POLICY_FILE).read_bytes() == (tmp_path / "False" / POLICY_FILE).read_bytes()
    assert all(float(row["kl"]) == 0 for row in tables[False])
    assert all(float(row["kl"]) > 0 and float(row["log_likelihood"]) < 0 for row in tables[True])


def test_bf16_changes_the_network_and_little_else(data, undisturbed, tmp_path) -> None:
    """Figures of the first update, from the same worlds and draws, within what eight bits of mantissa give."""
    config = dataclasses.replace(CONFIG, precision="bf16-mixed")
    figures = run_selfplay(config, **data, out=tmp_path, seed=1)
    half, full = (list(csv.DictReader((out / "metrics.csv").open())) for out in (tmp_path, undisturbed))
    assert half != full
    assert float(half[0]["kl"]) == pytest.approx(float(full[0]["kl"]), rel=0.1)
    assert float(half[0]["entropy"]) == pytest.approx(float(full[0]["entropy"]), rel=0.02)
    assert figures["kl"] < figures["first_kl"]
    saved, _, _ = load_policy(tmp_path / POLICY_FILE)
    assert {weight.dtype for weight in saved.parameters()} == {torch.float32}


def test_a_compiled_training_is_a_training(data, undisturbed, tmp_path, monkeypatch) -> None:
    """--compile reaches simulator, observation and policy; that compiled code computes the same: test_episode."""
    seen: list[str] = []

    def compiled(function, **options):
        seen.append(getattr(function, "func", type(function)).__name__)
        return function

    monkeypatch.setattr(torch, "compile", compiled)
    run_selfplay(dataclasses.replace(CONFIG, compile=True), **data, out=tmp_path, seed=1)
    assert seen[:2] == ["observe", "advance"]
    assert len(seen) == 3
    assert (tmp_path / "metrics.csv").read_bytes() == (undisturbed / "metrics.csv").read_bytes()


def test_all_scenes_are_tried_twice_before_nothing_moves(data, tmp_path, monkeypatch) -> None:
    parked = tmp_path / "parked"
    parked.mkdir()
    write_shard(parked / shard_name("training", 0, 1), [hand_made([Mover()])])
    collected = []

    def collect(*arguments):
        collected.append(1)
        return original(*arguments)

    original = Driver.collect
    monkeypatch.setattr(Driver, "collect", collect)
    config = dataclasses.replace(CONFIG, worlds=1, ppo=dataclasses.replace(CONFIG.ppo, controlled="moving"))
    with pytest.raises(UserError, match="no scene has a moving agent"):
        run_selfplay(config, scenes=parked, reference=data["reference"], out=tmp_path / "o", seed=0)
    assert len(collected) == 2


def test_nothing_to_learn_from_is_named(data, tmp_path) -> None:
    crowded = dataclasses.replace(CONFIG, max_agents=1)
    with pytest.raises(UserError, match="at most 1 agents"):
        run_selfplay(crowded, **data, out=tmp_path, seed=0)
    store = tmp_path / "parked"
    store.mkdir()
    parked = [hand_made([Mover(), Mover(x=9.0, speed=1.0, kind=AgentType.PEDESTRIAN)])]
    write_shard(store / shard_name("training", 0, 1), parked)
    vehicles = dataclasses.replace(CONFIG, ppo=dataclasses.replace(CONFIG.ppo, vehicles_only=True))
    with pytest.raises(UserError, match="no scene has a moving vehicle"):
        run_selfplay(vehicles, scenes=store, reference=data["reference"], out=tmp_path, seed=0)
    with pytest.raises(UserError, match="no such checkpoint"):
        run_selfplay(CONFIG, scenes=data["scenes"], reference=tmp_path / "none.ckpt", out=tmp_path, seed=0)
    with pytest.raises(UserError, match="at least 1"):
        SelfPlayConfig(worlds=0)
