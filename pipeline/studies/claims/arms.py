"""An arm of an experiment: self-play with some options changed, then sampled, scored and compared with a reference.

A folder holds an arm: ``training/``, ``scores_*`` and ``result.json``, written last: with it the arm is done.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from data.files import read_json, sha256_of, write_json
from data.scenes_source import content_digest, open_scenes
from models.reference.agent import ReferenceAgent
from pipeline.agents.policy_agent import open_policy
from pipeline.execution.devices import find_devices
from pipeline.execution.manifest import differences, plain
from pipeline.execution.result_cache import keep_settings, refuse_changes
from pipeline.execution.tables import numbers, read_table
from pipeline.run.presets import override, read_settings
from pipeline.selfplay.anchor import SceneDivergence, mean_divergence, scene_divergences
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.selfplay.training import POLICY_FILE
from pipeline.stages.evaluate import EvaluateConfig, run_evaluate
from pipeline.stages.sample import SampleConfig, run_sample
from pipeline.stages.selfplay import run_selfplay

RESULT_FILE, _RECIPE_FILE = "result.json", "recipe.json"
_WHAT = "what an arm left"
# How a result is computed may change; what is computed may not.
_FREE = {"selfplay": ("workers", "tensorboard", "checkpoint_every"), "evaluate": ("workers", "devices", "cache")}


@dataclass(frozen=True)
class Arm:
    """What is changed, by name.

    Attributes:
        name: of the arm, and of its folder.
        overrides: options of self-play by dotted name.
        settings: a file in ``pipeline/run/configs/selfplay`` that lies below the overrides.
        reference: which reference it is anchored to, by its name in the study.
        targets: whose likelihoods count when it is judged, see ``EvaluateConfig.targets``.
        watched: look at held-out scenes in the course of its training.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    settings: str | None = None
    reference: str = "run"
    targets: tuple[str, ...] = ("all",)
    watched: bool = False

    def config(self, base: SelfPlayConfig) -> SelfPlayConfig:
        """The options of its training.

        Raises:
            UserError: an override that is no option.
        """
        below = read_settings(self.settings) if self.settings else {}
        return override(base, {**below, **self.overrides})


# A policy cloned from the log, by its settings in pipeline/run/configs/selfplay.
CLONE = "clone"
ANCHORED = {"ppo.alpha": 0.0, "ppo.beta": 0.1}
_PLAIN = {"ppo.alpha": 0.0, "ppo.beta": 0.0, "ppo.compared": True}
_ALL_TARGETS = ("all", "vehicle", "vru")
SPACER = Arm("spacer beta 0.1", ANCHORED, targets=_ALL_TARGETS, watched=True)
PLAIN = Arm("beta 0", _PLAIN, targets=_ALL_TARGETS, watched=True)
BETAS = tuple(Arm(f"beta {beta:g}", {"ppo.alpha": 0.0, "ppo.beta": beta}) for beta in (0.01, 1.0))
ALPHAS = tuple(Arm(f"alpha {alpha:g}", {"ppo.alpha": alpha, "ppo.beta": 0.0}) for alpha in (0.001, 0.01, 0.1))
PPO = Arm("ppo", {**_PLAIN, "ppo.goal_dropout": 0.0})
NO_GOAL = Arm("no goal reward", {**ANCHORED, "reward.goal": 0.0})
SHOWN = Arm("goals always shown", {**ANCHORED, "ppo.goal_dropout": 0.0})
ONE_HEAD = Arm("one head", {**ANCHORED, "policy.per_type": False}, targets=_ALL_TARGETS)
# Other people's methods, and variants of ours, by their files in pipeline/run/configs/selfplay.
HR_PPO = Arm("hr-ppo", settings="hr_ppo", reference=CLONE)
VARIANTS = (
    Arm("kl only", settings="kl_only"),
    Arm("forward kl", settings="forward_kl"),
    Arm("history", ANCHORED, "history"),
    Arm("large", ANCHORED, "large"),
    Arm("beta 0.1, alpha 0.001", {"ppo.alpha": 0.001, "ppo.beta": 0.1}),
)
VEHICLES = Arm("vehicles only", {**ANCHORED, "ppo.controlled": "vehicles"}, targets=_ALL_TARGETS)


@dataclass(frozen=True)
class Judged:
    """How policies are judged, the same for all arms of an experiment.

    Attributes:
        scenarios: records or store with futures.
        rollouts: futures of each. sampling_modes: ``top_k`` of each, 0 for all tokens.
        evaluate: the metric. targets: whose likelihoods count, see ``EvaluateConfig.targets``.
        keep_rollouts: leave them on the disk.
    """

    scenarios: str
    rollouts: int = 32
    sampling_modes: tuple[int, ...] = (0, 5)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    targets: tuple[str, ...] = ("all",)
    keep_rollouts: bool = True

    def recipe(self) -> dict[str, Any]:
        """As plain values."""
        evaluate = dataclasses.asdict(self.evaluate)
        for name in _FREE["evaluate"]:
            del evaluate[name]
        return plain(
            {
                "scenarios": _digest(self.scenarios),
                "rollouts": self.rollouts,
                "ways": self.sampling_modes,
                "targets": self.targets,
                "evaluate": evaluate,
            }
        )


@dataclass(frozen=True)
class Trial:
    """An arm with everything that decides its result.

    Attributes:
        config: of the training. seed: of the training.
        training: store to train on. validation: store for evaluations in between, if any are configured.
        anchor: checkpoint that it is anchored to. reference: that it is compared with at the end.
        judged: how it is judged.
    """

    config: SelfPlayConfig
    seed: int
    training: Path
    anchor: Path
    reference: Path
    judged: Judged
    validation: Path | None = None

    def recipe(self) -> dict[str, Any]:
        """As plain values; equal recipes give equal results."""
        selfplay = dataclasses.asdict(self.config)
        for name in _FREE["selfplay"]:
            del selfplay[name]
        return {
            "selfplay": plain(selfplay),
            "seed": self.seed,
            "training": _digest(str(self.training)),
            "anchor": sha256_of(self.anchor),
            "reference": sha256_of(self.reference),
            **self.judged.recipe(),
        }


@lru_cache(maxsize=16)
def _digest(scenarios: str) -> str:
    """Nothing that an experiment reads changes while it runs."""
    return content_digest(scenarios)


def mode_name(top_k: int) -> str:
    return f"top {top_k}" if top_k else "all"


@dataclass(frozen=True)
class ArmResult:
    """What an arm came to.

    Attributes:
        folder: of the arm. values: of ``result.json``: ``reports`` by sampling mode (what ``evaluate`` wrote),
            ``training`` (the last row of its table), ``measured`` (see ``divergence``).
    """

    folder: Path
    values: Mapping[str, Any]

    def scenes(self, mode: str, targets: str = "all") -> dict[str, dict[str, float]]:
        """Fields of the metric by scenario id."""
        _, rows = read_table(_scores(self.folder, mode, targets) / "per_scenario.csv")
        return {row["scenario_id"]: numbers(row) for row in rows}

    @cached_property
    def divergences(self) -> dict[str, SceneDivergence]:
        """By scenario id."""
        return {name: SceneDivergence(**part) for name, part in self.values["measured_scenes"].items()}

    @cached_property
    def curve(self) -> list[dict[str, float]]:
        """Rows of the training's table."""
        return _rows(self.folder)


def judge_reference(judged: Judged, checkpoint: Path, folder: Path) -> ArmResult:
    """Sample a reference in every sampling mode and score it, or find that done; the result has no training.

    Raises:
        UserError: the folder holds a result of other settings; or as the stages.
    """
    recipe = reference_recipe(judged, checkpoint)
    return _once(folder, recipe, lambda: {"reports": judge_rollouts(judged, "reference", checkpoint, folder)})


def _once(folder: Path, recipe: Mapping[str, Any], work: Callable[[], dict[str, Any]]) -> ArmResult:
    """The result in a folder, worked out if it is not there yet."""
    done = folder / RESULT_FILE
    if done.exists():
        values = read_json(done)
        refuse_changes(folder, values.get("recipe", {}), recipe, _WHAT)
    else:
        keep_settings(folder / _RECIPE_FILE, recipe, _WHAT)
        values = {**work(), "recipe": recipe}
        write_json(done, values)
    return ArmResult(folder, values)


def _scores(folder: Path, mode: str, targets: str) -> Path:
    """Where the scores of a sampling mode are."""
    suffix = "" if targets == "all" else f"_{targets}"
    return folder / f"scores_{'top_0' if mode == 'all' else mode.replace(' ', '_')}{suffix}"


def _rows(folder: Path) -> list[dict[str, float]]:
    return [numbers(row) for row in read_table(folder / "training" / "metrics.csv")[1]]


def is_done(folder: Path, recipe: Mapping[str, Any]) -> bool:
    """Whether a folder holds the result of a recipe (of ``Trial`` or ``reference_recipe``)."""
    done = folder / RESULT_FILE
    return done.exists() and not differences(read_json(done).get("recipe"), recipe)


def reference_recipe(judged: Judged, checkpoint: Path) -> dict[str, Any]:
    """Everything that decides the result of ``judge_reference``."""
    return {"reference": sha256_of(checkpoint), **judged.recipe()}


def run_arm(trial: Trial, folder: Path) -> ArmResult:
    """Train, sample in every sampling mode, score and measure; what is there already is not done again.

    Raises:
        UserError: the folder holds a result of other settings; or as the stages.
    """
    return _once(folder, trial.recipe(), lambda: _train_and_score(trial, folder) | _measure(trial, folder))


def _train_and_score(trial: Trial, folder: Path) -> dict[str, Any]:
    training = folder / "training"
    checkpoint = training / POLICY_FILE
    if not checkpoint.exists():
        run_selfplay(
            trial.config,
            scenes=trial.training,
            reference=trial.anchor,
            out=training,
            validation=trial.validation,
            seed=trial.seed,
        )
    reports = judge_rollouts(trial.judged, "policy", checkpoint, folder)
    return {"reports": reports, "training": _rows(folder)[-1]}


def judge_rollouts(judged: Judged, agent: str, checkpoint: Path | None, folder: Path) -> dict[str, Any]:
    """Sample an agent in every sampling mode and score it.

    Returns:
        What ``evaluate`` wrote of all targets, by sampling mode.
        Reports of the other targets, and scores by scene, are in the folder (``ArmResult.scenes``).
    """
    reports: dict[str, Any] = {}
    for top_k in judged.sampling_modes:
        mode = mode_name(top_k)
        rollouts = folder / f"rollouts_top_{top_k}"
        if not all((_scores(folder, mode, name) / "metrics.json").exists() for name in judged.targets):
            sampling = SampleConfig(
                agent=agent,
                rollouts=judged.rollouts,
                top_k=top_k,
                workers=judged.evaluate.workers,
                device=judged.evaluate.device,
                devices=judged.evaluate.devices,
            )
            run_sample(sampling, scenarios=judged.scenarios, checkpoint=checkpoint, out=rollouts, seed=0)
        for targets in judged.targets:
            scores = _scores(folder, mode, targets)
            if not (scores / "metrics.json").exists():
                run_evaluate(
                    dataclasses.replace(judged.evaluate, targets=targets, allow_unscorable=True),
                    scenarios=judged.scenarios,
                    rollouts=str(rollouts),
                    out=scores,
                    show=False,
                )
        if not judged.keep_rollouts:
            shutil.rmtree(rollouts, ignore_errors=True)
        reports[mode] = read_json(_scores(folder, mode, judged.targets[0]) / "metrics.json")
    return reports


def _measure(trial: Trial, folder: Path) -> dict[str, Any]:
    """KL to the reference, entropy and log-likelihood on the scenarios it is judged on, with all agents driven."""
    policy, _, view = open_policy(folder / "training" / POLICY_FILE)
    device = find_devices(trial.judged.evaluate.device).name
    scenes = list(open_scenes(trial.judged.scenarios))
    reference = ReferenceAgent.from_checkpoint(trial.reference, device=device)
    parts = scene_divergences(policy.to(device), reference, scenes, view, seed=0)
    by_scene = {str(scene.scenario_id): dataclasses.asdict(part) for scene, part in zip(scenes, parts, strict=True)}
    return {"measured": mean_divergence(parts), "measured_scenes": by_scene}
