"""Baselines in the same trainer: each does what its name says."""

from __future__ import annotations

import copy
import csv
import dataclasses
from functools import partial
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.errors import UserError
from data.store import shard_name, write_shard
from data.tokenizer import apply_token
from models.policy import PolicyConfig, load_policy, save_policy
from models.reference.agent import ReferenceAgent
from models.reference.checkpoint import save_reference
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.command.options import command_parser
from pipeline.evaluation.motion import FIGURES
from pipeline.run.presets import CONFIGS
from pipeline.selfplay import training
from pipeline.selfplay.anchor import LogScorer, PolicyScorer, sampled_tokens
from pipeline.selfplay.config import PPOConfig, SelfPlayConfig
from pipeline.selfplay.rollout import Executed, Given, collect
from pipeline.simulator.episode import Simulator
from pipeline.simulator.world import build_world
from pipeline.stages.selfplay import run_selfplay
from tests.models.reference.conftest import make_model
from tests.models.scenes import random_scene
from tests.pipeline.conftest import VIEW, make_policy
from tests.pipeline.simulator.test_step import arcs
from tests.scenes import Mover, hand_made

CONFIG = SelfPlayConfig(
    agent_steps=1200,
    worlds=2,
    pool=3,
    tensorboard=False,
    policy=PolicyConfig(embedding=16, hidden=32),
    view=VIEW,
    ppo=PPOConfig(minibatch=128, learning_rate=3e-3, epochs=2),
)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("data")
    scenes = [random_scene(seed, agents=agents) for seed, agents in ((0, 6), (1, 4), (2, 5))]
    for split in ("training", "validation"):
        (folder / split).mkdir()
        named = [dataclasses.replace(scene, scenario_id=f"{split}{number}") for number, scene in enumerate(scenes)]
        write_shard(folder / split / shard_name(split, 0, 1), named)
    save_reference(folder / "reference.ckpt", make_model(2))
    return {
        "scenes": folder / "training",
        "reference": folder / "reference.ckpt",
        "validation": folder / "validation",
    }


def rows(out: Path) -> list[dict[str, float]]:
    table = csv.DictReader((out / "metrics.csv").open())
    return [{name: float(value) for name, value in row.items() if value} for row in table]


def with_ppo(config: SelfPlayConfig = CONFIG, **changes) -> SelfPlayConfig:
    return dataclasses.replace(config, ppo=dataclasses.replace(config.ppo, **changes))


def taught(**changes) -> SelfPlayConfig:
    """Nothing but the forward KL to the anchor is learnt."""
    weights = dict.fromkeys(("surrogate_weight", "value_weight", "entropy_weight"), 0.0)
    return with_ppo(dataclasses.replace(CONFIG, agent_steps=6000, **changes), **weights, beta=1.0, kl="forward")


def test_a_cloned_policy_says_what_the_log_does(data, tmp_path) -> None:
    """And then is the anchor of HR-PPO, for a policy that sees the same."""
    run_selfplay(taught(driver="log", anchor="log"), **data, out=tmp_path / "clone", seed=0)
    found = rows(tmp_path / "clone")
    assert found[-1]["kl"] < 0.7 * found[0]["kl"]
    # The log's actions say nothing about it.
    assert "kl_moving" not in found[-1]
    anchored = dict(data, reference=tmp_path / "clone" / "policy.ckpt")
    figures = run_selfplay(with_ppo(beta=0.01, kl="forward"), **anchored, out=tmp_path / "hr", seed=0)
    assert figures["reference_coverage"] == 1.0
    assert figures["kl"] > 0
    blind = dataclasses.replace(CONFIG, view=dataclasses.replace(VIEW, show_light=False))
    with pytest.raises(UserError, match="sees other things"):
        run_selfplay(blind, **anchored, out=tmp_path / "blind", seed=0)


def test_a_cloned_policy_scores_each_decision_of_each_agent(policy, vocabulary) -> None:
    """A policy scores itself as it drove: the log-probability of an action is that of its scores."""
    world = build_world(random_scene(1, agents=3), vocabulary, VIEW.road_segments)
    uniform = torch.rand(42, *world.types.shape, generator=torch.Generator().manual_seed(2))
    scored = partial(PolicyScorer(policy).scores, [1], world)
    rollout = collect(policy, Simulator(vocabulary, VIEW), world, scored, PPOConfig(beta=0.1), uniform)
    assert rollout.log_reference is not None
    assert rollout.log_reference.shape == (40, 3, vocabulary.size)
    own = rollout.log_reference.gather(-1, rollout.actions.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(own, rollout.logprobs, atol=1e-5, rtol=1e-5)


def test_labels_are_the_logs_tokens(policy, vocabulary) -> None:
    """Tokens executed from the logged poses lead to the logged poses, within what the vocabulary resolves."""
    world = build_world(random_scene(0), vocabulary, VIEW.road_segments)
    tokens = world.log_ids
    uniform = torch.rand(42, *world.types.shape)
    kept: list[Executed] = []

    def score(driven: Executed) -> torch.Tensor:
        kept.append(driven)
        return LogScorer(vocabulary.size).scores([], world, driven)

    episode = collect(policy, Simulator(vocabulary, VIEW), world, score, PPOConfig(), uniform, Given(tokens, True))
    assert torch.equal(episode.actions, tokens[kept[0].agent_index].T)
    # The log was replayed, not the tokens.
    torch.testing.assert_close(kept[0].poses[0, :, 1:], world.log[0, :, 1::2])
    assert episode.log_reference is not None
    label = episode.log_reference.gather(-1, episode.actions.unsqueeze(-1)).squeeze(-1)
    assert (label[episode.covered] == 0).all()
    there = torch.cat((world.exists[..., None], world.log_valid[:, :, 1::2]), -1)
    both = (there[..., 1:] & there[..., :-1])[kept[0].agent_index].T
    assert torch.equal(episode.covered, both)
    assert both.any()


def test_logged_tokens_begin_at_the_current_step() -> None:
    """At 9 m/s every decision goes 1.8 m, which is nearest to the token of 2 m; half a decision would be nearer to
    none."""
    vocabulary = arcs()
    world = build_world(hand_made([Mover(speed=9.0), Mover(x=60.0)]), vocabulary, 4)
    assert world.log_ids.tolist() == [[[1] * 40, [0] * 40]]


def test_distillation_lowers_the_kl_and_nothing_else(data, tmp_path) -> None:
    config = with_ppo(surrogate_weight=0.0, value_weight=0.0, entropy_weight=0.0, beta=1.0)
    run_selfplay(dataclasses.replace(config, agent_steps=4000), **data, out=tmp_path, seed=0)
    found = rows(tmp_path)
    assert found[-1]["kl"] < 0.8 * found[0]["kl"]


def test_beta_and_learning_rate_change_over_the_training() -> None:
    ppo = PPOConfig(beta=1.0, beta_final=0.2, learning_rate=1e-3, final_rate=0.1)
    assert [round(ppo.kl_weight_at(progress), 6) for progress in (0.0, 0.5, 1.0, 1.2)] == [1.0, 0.6, 0.2, 0.2]
    assert [ppo.learning_rate_at(progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx([1e-3, 5.5e-4, 1e-4])
    assert PPOConfig(beta=0.5).kl_weight_at(0.9) == 0.5
    assert not PPOConfig(beta=0.0).anchored
    assert PPOConfig(beta=0.0, beta_final=0.1).anchored
    for wrong in ({"kl": "both"}, {"epochs": 0}, {"goal_dropout": 1.5}):
        with pytest.raises(UserError, match=f"ppo.{next(iter(wrong))}"):
            PPOConfig(**wrong)


def test_a_student_with_history_and_a_larger_one(data, tmp_path) -> None:
    wide = PolicyConfig(embedding=32, hidden=64, dropout=0.0)
    config = dataclasses.replace(CONFIG, view=dataclasses.replace(VIEW, history=4), policy=wide, agent_steps=300)
    run_selfplay(config, **data, out=tmp_path, seed=0)
    policy, _, view = load_policy(tmp_path / "policy.ckpt")
    assert view["history"] == 4
    assert policy.features[0] == 17 + 16


def test_the_best_policy_is_kept(data, tmp_path) -> None:
    config = dataclasses.replace(CONFIG, evaluate_every=2, evaluate_scenes=2, evaluate_rollouts=2, tensorboard=True)
    run_selfplay(config, **data, out=tmp_path, seed=0)
    found = rows(tmp_path)
    assert [number % 2 == 1 or number == len(found) - 1 for number in range(len(found))] == [
        "evaluation_realism" in row for row in found
    ]
    assert {f"evaluation_{name}" for name in FIGURES} | {"kl_moving", "log_likelihood_moving"} <= set(found[-1])
    assert load_policy(tmp_path / "best.ckpt")[0].actions == load_policy(tmp_path / "policy.ckpt")[0].actions
    assert [path.name.startswith("events") for path in (tmp_path / "tensorboard").iterdir()] == [True]
    written = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert {"ppo/clip_fraction", "anchor/kl", "events/collision_rate"} <= set(written.Tags()["scalars"])
    assert_seconds_add_up(written, [float(row["agent_steps"]) for row in found])


def assert_seconds_add_up(written: EventAccumulator, agent_steps: list[float]) -> None:
    """Of every update: worlds, the phases of a collection, and learning take no longer than all of it."""
    tags = [tag for tag in written.Tags()["scalars"] if tag.startswith("seconds/")]
    assert {"seconds/seconds_worlds", "seconds/seconds_learn"} < set(tags)
    phases = [[one.value for one in written.Scalars(tag)] for tag in tags]
    assert min(map(min, phases)) > 0
    speed = [one.value for one in written.Scalars("speed/steps_per_second")]
    steps = [after - before for before, after in zip([0.0, *agent_steps], agent_steps)]
    for number, (parts, rate) in enumerate(zip(zip(*phases, strict=True), speed, strict=True)):
        assert sum(parts) < 1.01 * steps[number] / rate, number


# Realism and speed ratio of one evaluation after the other.
STANDING_IS_MOST_REAL = ((0.7, 0.1), (0.5, 0.8), (0.6, 0.75), (0.55, 0.95), (0.9, 0.69))


@pytest.mark.parametrize(
    ("least", "best", "says"),
    [
        (0.7, 2, None),
        (0.0, 4, None),
        (0.9, 3, None),
        (
            1.5,
            3,
            "no evaluated policy keeps 1.5 of the log's speed (--evaluate_least_speed); best.ckpt is the fastest",
        ),
    ],
)
def test_the_best_policy_drives(
    data, tmp_path, monkeypatch, capsys: pytest.CaptureFixture[str], least: float, best: int, says: str | None
) -> None:
    """The most real one of those that are fast enough, or the fastest; also after an interruption."""
    script = list(STANDING_IS_MOST_REAL)
    weights: list[dict[str, torch.Tensor]] = []

    def scripted(agent: PolicyAgent, *_: object) -> dict[str, float]:
        if len(weights) == 3 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        realism, speed = script[len(weights)]
        weights.append(copy.deepcopy(agent.policy.state_dict()))
        return {"realism": realism, "speed_ratio_8s": speed, "standing": 0.25}

    monkeypatch.setattr(training, "closed_loop_figures", scripted)
    # An update has some 400 decisions.
    config = dataclasses.replace(
        CONFIG, evaluate_every=1, checkpoint_every=1, evaluate_least_speed=least, agent_steps=1900
    )
    with pytest.raises(KeyboardInterrupt):
        run_selfplay(config, **data, out=tmp_path / "o", seed=0)
    found = run_selfplay(config, **data, out=tmp_path / "o", seed=0)
    assert len(weights) == len(script)
    kept = load_policy(tmp_path / "o" / "best.ckpt")[0].state_dict()
    assert all(torch.equal(kept[name], value) for name, value in weights[best].items())
    realism, speed = script[best]
    assert (found["best_realism"], found["best_speed_ratio_8s"], found["best_standing"]) == (realism, speed, 0.25)
    assert found["best_agent_steps"] == rows(tmp_path / "o")[best]["agent_steps"]
    assert found["best_is_fast_enough"] == float(says is None)
    said = capsys.readouterr().err
    assert "--evaluate_least_speed" not in said if says is None else says in said
    with pytest.raises(UserError, match=r"selfplay.evaluate_least_speed is -0.1; it must be at least 0"):
        SelfPlayConfig(evaluate_least_speed=-0.1)


VARIANTS = sorted((CONFIGS / "selfplay").glob("*.yaml"))


@pytest.mark.parametrize("path", VARIANTS, ids=lambda path: path.stem)
def test_files_of_variants_change_what_they_name(path: Path) -> None:
    parser = command_parser("selfplay", run_selfplay, SelfPlayConfig, {}, "")
    needed = ["--scenes", "a", "--reference", "b", "--out", "c"]
    plain, changed = (
        parser.instantiate_classes(parser.parse_args(arguments + needed))
        for arguments in ([], ["--config", str(path)])
    )
    assert any(getattr(plain, name) != getattr(changed, name) for name in ("ppo", "driver", "view", "policy"))
    assert (changed.ppo.beta == 0) == path.stem.startswith("ppo")
    assert changed.view == plain.view or path.stem == "history"


def test_there_are_all_variants() -> None:
    names = {path.stem for path in VARIANTS}
    assert names == {"clone", "forward_kl", "history", "hr_ppo", "kl_only", "large", "ppo", "ppo_dropout", "recipe"}


@pytest.mark.parametrize("driver", ["log", "reference"])
def test_a_reference_is_distilled_where_others_drive_and_self_play_starts_from_it(data, tmp_path, driver) -> None:
    run_selfplay(taught(driver=driver), **data, out=tmp_path / "distilled", seed=0)
    found = rows(tmp_path / "distilled")
    assert found[-1]["kl"] < 0.7 * found[0]["kl"]
    assert "kl_moving" not in found[-1]
    start = tmp_path / "distilled" / "policy.ckpt"
    run_selfplay(CONFIG, **data, out=tmp_path / "started", seed=0, start=start)
    run_selfplay(CONFIG, **data, out=tmp_path / "fresh", seed=0)
    started, fresh = rows(tmp_path / "started")[0], rows(tmp_path / "fresh")[0]
    assert started["kl"] < 0.9 * fresh["kl"]
    assert set(load_policy(start)[0].trained_on.tolist()) <= set(
        load_policy(tmp_path / "started" / "policy.ckpt")[0].trained_on.tolist()
    )


def test_what_a_policy_cannot_start_from_is_named(data, tmp_path) -> None:
    start = tmp_path / "policy.ckpt"
    vocabulary = ReferenceAgent.from_checkpoint(data["reference"]).vocabulary
    save_policy(start, make_policy(vocabulary), vocabulary, dataclasses.asdict(VIEW))
    with pytest.raises(UserError, match=r"it has policy.embedding 64, policy.hidden 128; give the same --policy"):
        run_selfplay(CONFIG, **data, out=tmp_path / "net", start=start)
    blind = dataclasses.replace(CONFIG, view=dataclasses.replace(VIEW, show_light=False))
    with pytest.raises(UserError, match=r"it has view.show_light True; give the same --view"):
        run_selfplay(blind, **data, out=tmp_path / "view", start=start)
    other = dataclasses.replace(vocabulary, poses=vocabulary.poses + 0.1)
    save_policy(start, make_policy(vocabulary), other, dataclasses.asdict(VIEW))
    with pytest.raises(UserError, match="its tokens are not those of the reference"):
        run_selfplay(CONFIG, **data, out=tmp_path / "words", start=start)
    with pytest.raises(UserError, match="choose one of policy, log, reference"):
        SelfPlayConfig(driver="nobody")
    with pytest.raises(UserError, match="give --driver log"):
        SelfPlayConfig(anchor="log")


def test_tokens_of_a_reference_are_those_that_it_drives_by(reference) -> None:
    scenes = [random_scene(0, agents=3), random_scene(1, agents=5)]
    uniform = torch.rand(40, 2, 6, generator=torch.Generator().manual_seed(3))
    tokens = sampled_tokens(reference, scenes, uniform)
    for row, scene in enumerate(scenes):
        driver = ReferenceDriver(reference)
        drive, agents = driver.start(driver.prepare(scene), 1), int(scene.simulated.sum())
        world = build_world(scene, reference.vocabulary, 4)
        assert not tokens[row, agents:].any()
        pose = world.pose
        for number in range(40):
            moved, _ = drive.step(uniform[number, row : row + 1, :agents])
            executed = apply_token(reference.vocabulary, pose, tokens[row : row + 1, :agents, number], world.types)
            torch.testing.assert_close(executed, moved, atol=1e-3, rtol=1e-5)
            drive.observe(moved)
            pose = moved[:, :, -1]


def test_an_update_ends_where_the_policy_moved_too_far(data, tmp_path) -> None:
    for target, epochs in ((0.0, 2.0), (1e-9, 1.0)):
        figures = run_selfplay(with_ppo(target_kl=target), **data, out=tmp_path / str(target), seed=0)
        assert figures["epochs"] == epochs
        assert figures["policy_change"] > 1e-6
