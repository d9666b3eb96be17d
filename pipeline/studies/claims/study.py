"""The experiments behind the claims: every arm and reference is run once, whichever claims ask for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from data.store import SceneStore
from pipeline.evaluation.scoring import TARGETS, with_targets
from pipeline.evaluation.statistics import Array
from pipeline.execution.console import hushed, say
from pipeline.run.presets import override
from pipeline.run.run_folder import RunFolder
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.selfplay.training import POLICY_FILE
from pipeline.stages.evaluate import EvaluateConfig
from pipeline.stages.selfplay import run_selfplay
from pipeline.studies.claims.arms import (
    CLONE,
    RESULT_FILE,
    Arm,
    ArmResult,
    Judged,
    Trial,
    is_done,
    judge_reference,
    mode_name,
    reference_recipe,
    run_arm,
)
from pipeline.studies.claims.config import ClaimsConfig, ReferenceSpec
from pipeline.studies.claims.inputs import judged_scenes, reference_checkpoint, train_reference
from submission.realism import buckets, load_config

# How the run's own reference is named.
OWN_REFERENCE = "run"
_DECISIONS = 40
_WATCHED_ROLLOUTS = 8
_FIELDS = {
    "realism": "metametric",
    "minade": "min_average_displacement_error",
    "collision": "simulated_collision_rate",
    "off_road": "simulated_offroad_rate",
}
_BUCKETS = {
    "kinematic": "kinematic_metrics",
    "interactive": "interactive_metrics",
    "map": "map_based_metrics",
}
_DIVERGENCE = ("kl", "entropy", "log_likelihood")


@dataclass(frozen=True)
class Study:
    """One experiment of all claims.

    Attributes:
        config: the scale. inputs: of the run. out: folder of everything. seed: of the first training of every arm.
    """

    config: ClaimsConfig
    inputs: RunFolder
    out: Path
    seed: int = 0
    _known: dict[str, ArmResult] = field(default_factory=dict, repr=False)

    @cached_property
    def scenarios(self) -> Path:
        """Store of the scenes that all is judged on."""
        return judged_scenes(self.inputs.store("validation"), self.config.scenes, self.out / "scenes")

    @cached_property
    def scenes(self) -> list[str]:
        """Their ids, in the order of all tables."""
        return list(SceneStore(self.scenarios).ids)

    @cached_property
    def present_targets(self) -> set[str]:
        """Names of targets of which there is an agent in at least two of the scenes."""
        found = dict.fromkeys(TARGETS, 0)
        for scene in SceneStore(self.scenarios):
            for name in TARGETS:
                narrowed = with_targets(scene, name)
                found[name] += bool((narrowed.evaluated & narrowed.simulated).any())
        return {name for name, count in found.items() if count >= 2}

    @property
    def sampling_mode(self) -> str:
        """The sampling mode that verdicts are of: the paper's, if it is among those tried."""
        return mode_name(5 if 5 in self.config.sampling_modes else self.config.sampling_modes[0])

    @property
    def sampling_modes(self) -> list[str]:
        return [mode_name(top_k) for top_k in self.config.sampling_modes]

    def judged(self, targets: Iterable[str] = ("all",)) -> Judged:
        """How everything is judged."""
        return Judged(
            scenarios=str(self.scenarios),
            rollouts=self.config.rollouts,
            sampling_modes=tuple(self.config.sampling_modes),
            evaluate=EvaluateConfig(
                metric=self.config.metric,
                # As on the leaderboard of 2024, whose figures the paper's are.
                ttc_all_types=self.config.metric == "2024",
                workers=self.config.workers,
                device=self.config.device,
                devices=self.config.devices,
            ),
            targets=tuple(name for name in targets if name in self.present_targets),
            keep_rollouts=False,
        )

    @cached_property
    def _specs(self) -> dict[str, ReferenceSpec]:
        return {spec.name: spec for spec in [*self.config.reference_specs, *self.config.vocabulary_specs]}

    def reference(self, name: str) -> Path:
        """Checkpoint of a reference by name; trains it if it is not there."""
        if name == OWN_REFERENCE:
            return self.inputs.reference
        if name == CLONE:
            return self._clone()
        return train_reference(self._specs[name], self.config, self.inputs, self._references)

    def _clone(self) -> Path:
        """A policy cloned from the log, to which HR-PPO is anchored; trains it if it is not there."""
        folder = self._references / CLONE
        if not (folder / POLICY_FILE).exists():
            config = Arm(CLONE, settings=CLONE).config(self._base)
            run_selfplay(
                config,
                scenes=self.inputs.store("training"),
                reference=self.inputs.reference,
                out=folder,
                seed=self.seed,
            )
        return folder / POLICY_FILE

    @property
    def _base(self) -> SelfPlayConfig:
        """What all arms share."""
        return override(self.config.selfplay, {"agent_steps": self.config.agent_steps})

    @property
    def _references(self) -> Path:
        return self.out / "references"

    def _is_trained(self, name: str) -> bool:
        if name == CLONE:
            return (self._references / CLONE / POLICY_FILE).exists()
        return name == OWN_REFERENCE or reference_checkpoint(self._specs[name], self._references).exists()

    def is_done(self, arms: Iterable[Arm], references: Iterable[str] = ()) -> bool:
        """Whether nothing of these is left to do."""
        for name in references:
            if not self._is_trained(name):
                return False
            if not is_done(self._reference_folder(name), reference_recipe(self.judged(), self.reference(name))):
                return False
        return all(self._is_trained(arm.reference) and self._arm_is_done(arm) for arm in arms)

    def _arm_is_done(self, arm: Arm) -> bool:
        folders = [self.folder(arm, seed) for seed in range(self.config.seeds)]
        # Recipes take a moment: none is made of an arm that was not started.
        return all((folder / RESULT_FILE).exists() for folder in folders) and all(
            is_done(folder, self.trial(arm, seed).recipe()) for seed, folder in enumerate(folders)
        )

    def trial(self, arm: Arm, seed: int) -> Trial:
        """An arm's training with a seed, and how it is judged; its reference is trained if it is not there."""
        config = arm.config(self._base)
        if arm.watched:
            infos = SceneStore(self.inputs.store("training")).infos
            agents = sum(info.simulated for info in infos) / len(infos)
            updates = config.agent_steps / (config.worlds * agents * _DECISIONS)
            every = max(1, int(updates / max(1, self.config.evaluations)))
            config = replace(config, evaluate_every=every, evaluate_rollouts=_WATCHED_ROLLOUTS)
        anchor = self.reference(arm.reference)
        return Trial(
            config=config,
            seed=self.seed + seed,
            training=self.inputs.store("training"),
            anchor=anchor,
            reference=self.inputs.reference if arm.reference == CLONE else anchor,
            judged=self.judged(arm.targets),
            validation=self.scenarios if arm.watched else None,
        )

    def folder(self, arm: Arm, seed: int) -> Path:
        name = arm.name.replace(" ", "_").replace("+", "and")
        return self.out / "arms" / f"{name}_{self.seed + seed}"

    def run(self, title: str, arms: Iterable[Arm], references: Iterable[str] = ()) -> int:
        """Run arms that are not done, with every seed, and judge references; a line for each.

        Args:
            title: stands before every line. arms, references: by name each of them once.

        Returns:
            How many were not done before.
        """
        tasks: list[tuple[str, Path, Callable[[], ArmResult]]] = [
            (f"reference {name}", self._reference_folder(name), partial(self.reference_result, name))
            for name in references
        ]
        tasks += [
            (f"{arm.name}, seed {self.seed + seed}", self.folder(arm, seed), partial(self.result, arm, seed))
            for seed in range(self.config.seeds)
            for arm in arms
        ]
        ran = 0
        for number, (name, folder, work) in enumerate(tasks, 1):
            done, started = (folder / RESULT_FILE).exists(), time.perf_counter()
            with contextlib.nullcontext() if self.config.verbose else hushed():
                result = work()
            realism = result.values["reports"][self.sampling_mode]["metrics"]["metametric"]
            spent = "was done" if done else f"{time.perf_counter() - started:.0f} s"
            say(f"{title} [{number}/{len(tasks)}] {name}: {spent}, realism {realism:.3f}")
            ran += not done
        return ran

    def result(self, arm: Arm, seed: int) -> ArmResult:
        """Of one training; runs it if it is not done."""
        key = f"{arm.name}/{seed}"
        if key not in self._known:
            self._known[key] = run_arm(self.trial(arm, seed), self.folder(arm, seed))
        return self._known[key]

    def results(self, arm: Arm) -> list[ArmResult]:
        """Of all seeds."""
        return [self.result(arm, seed) for seed in range(self.config.seeds)]

    def _reference_folder(self, name: str) -> Path:
        return self._references / name.replace(" ", "_") / "judged"

    def reference_result(self, name: str) -> ArmResult:
        """Of a reference that drives itself; judges it if that is not done."""
        key = f"reference {name}"
        if key not in self._known:
            folder = self._reference_folder(name)
            self._known[key] = judge_reference(self.judged(), self.reference(name), folder)
        return self._known[key]

    def table(self, arm: Arm, field: str, mode: str | None = None, targets: str = "all") -> Array:
        """[S, N] a figure of an arm, trainings by scenes, NaN where a scene does not have it.

        Args:
            field: realism, kinematic, interactive, map, minade, collision or off_road; kl, entropy or
                log_likelihood, which do not depend on the sampling mode.
            mode: of sampling; that of verdicts by default. targets: whose likelihoods count.
        """
        return self._table(self.results(arm), field, mode or self.sampling_mode, targets)

    def reference_table(self, name: str, field: str, mode: str | None = None) -> Array:
        """[1, N] a figure of a reference that drives itself."""
        return self._table([self.reference_result(name)], field, mode or self.sampling_mode, "all")

    def _table(self, results: list[ArmResult], field: str, mode: str, targets: str) -> Array:
        rows = []
        for result in results:
            if field in _DIVERGENCE:
                values = {
                    name: getattr(part, field) / part.covered
                    for name, part in result.divergences.items()
                    if part.covered
                }
            elif targets not in self.present_targets:
                values = {}
            else:
                values = {name: self._figure(row, field) for name, row in result.scenes(mode, targets).items()}
            rows.append([values.get(scene, np.nan) for scene in self.scenes])
        return np.array(rows)

    def _figure(self, row: dict[str, float], field: str) -> float:
        if field in _FIELDS:
            return row[_FIELDS[field]]
        return buckets(row, load_config(self.config.metric))[_BUCKETS[field]]
