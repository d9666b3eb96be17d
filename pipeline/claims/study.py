"""The experiments behind the claims: every arm and reference is run once, whichever claims ask for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from data.store import SceneStore
from pipeline.claims.arms import (
    RESULT_FILE,
    Arm,
    ArmResult,
    Judged,
    Trial,
    arm_folder,
    judge_reference,
    run_arm,
    way_name,
)
from pipeline.claims.config import ClaimsConfig
from pipeline.claims.inputs import RunInputs, judged_scenes
from pipeline.claims.intervals import Array
from pipeline.claims.overrides import override
from pipeline.claims.references import train_reference
from pipeline.console import hushed, say
from pipeline.scoring import TARGETS, with_targets
from pipeline.stages.evaluation import EvaluateConfig
from submission.realism import buckets, load_config

__all__ = ["OWN_REFERENCE", "Study"]

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
    inputs: RunInputs
    out: Path
    seed: int = 0
    _known: dict[str, ArmResult] = field(default_factory=dict, repr=False)

    @cached_property
    def scenarios(self) -> Path:
        """Store of the scenes that all is judged on."""
        return judged_scenes(self.inputs.validation, self.config.scenes, self.out / "scenes")

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
    def way(self) -> str:
        """The way of drawing that verdicts are of: the paper's, if it is among those tried."""
        return way_name(5 if 5 in self.config.ways else self.config.ways[0])

    @property
    def ways(self) -> list[str]:
        return [way_name(top_k) for top_k in self.config.ways]

    def judged(self, targets: Iterable[str] = ("all",)) -> Judged:
        """How everything is judged."""
        return Judged(
            scenarios=str(self.scenarios),
            rollouts=self.config.rollouts,
            ways=tuple(self.config.ways),
            evaluate=EvaluateConfig(
                metric=self.config.metric,
                # As on the leaderboard of 2024, whose figures the paper's are.
                ttc_all_types=self.config.metric == "2024",
                workers=self.config.workers,
            ),
            targets=tuple(name for name in targets if name in self.present_targets),
            keep_rollouts=False,
        )

    def reference(self, name: str) -> Path:
        """Checkpoint of a reference by name; trains it if it is not there."""
        if name == OWN_REFERENCE:
            return self.inputs.reference
        specs = {spec.name: spec for spec in [*self.config.reference_specs, *self.config.vocabulary_specs]}
        return train_reference(specs[name], self.config, self.inputs, self.out / "references")

    def trial(self, arm: Arm, seed: int) -> Trial:
        """An arm's training with a seed, and how it is judged; its reference is trained if it is not there."""
        config = arm.config(override(self.config.selfplay, {"agent_steps": self.config.agent_steps}))
        if arm.watched:
            infos = SceneStore(self.inputs.training).infos
            agents = sum(info.simulated for info in infos) / len(infos)
            updates = config.agent_steps / (config.worlds * agents * _DECISIONS)
            every = max(1, int(updates / max(1, self.config.evaluations)))
            config = replace(config, evaluate_every=every, evaluate_rollouts=_WATCHED_ROLLOUTS)
        anchor = self.reference(arm.reference)
        return Trial(
            config=config,
            seed=self.seed + seed,
            training=self.inputs.training,
            anchor=anchor,
            reference=anchor,
            judged=self.judged(arm.targets),
            validation=self.scenarios if arm.watched else None,
        )

    def folder(self, arm: Arm, seed: int) -> Path:
        return arm_folder(self.out / "arms", arm.name, self.seed + seed)

    def run(self, arms: Iterable[Arm], references: Iterable[str] = ()) -> int:
        """Run arms that are not done, with every seed, and judge references; a line for each.

        Returns:
            How many were not done before.
        """
        wanted = list({arm.name: arm for arm in arms}.values())
        names = list(dict.fromkeys(references))
        total, number, ran = len(wanted) * self.config.seeds + len(names), 0, 0
        for name in names:
            number += 1
            done = (self._reference_folder(name) / RESULT_FILE).exists()
            ran += not done
            self._say(f"[{number}/{total}] reference {name}", done, lambda name=name: self.reference_result(name))
        for seed in range(self.config.seeds):
            for arm in wanted:
                number += 1
                done = (self.folder(arm, seed) / RESULT_FILE).exists()
                ran += not done
                title = f"[{number}/{total}] {arm.name}, seed {self.seed + seed}"
                self._say(title, done, lambda arm=arm, seed=seed: self.result(arm, seed))
        return ran

    def _say(self, title: str, done: bool, work: object) -> None:
        started = time.perf_counter()
        with contextlib.nullcontext() if self.config.verbose else hushed():
            result: ArmResult = work()  # type: ignore[operator]
        realism = result.values["reports"][self.way]["metrics"]["metametric"]
        spent = "was done" if done else f"{time.perf_counter() - started:.0f} s"
        say(f"{title}: {spent}, realism {realism:.3f}")

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
        return self.out / "references" / name.replace(" ", "_") / "judged"

    def reference_result(self, name: str) -> ArmResult:
        """Of a reference that drives itself; judges it if that is not done."""
        key = f"reference {name}"
        if key not in self._known:
            folder = self._reference_folder(name)
            self._known[key] = judge_reference(self.judged(), self.reference(name), folder)
        return self._known[key]

    def table(self, arm: Arm, field: str, way: str | None = None, targets: str = "all") -> Array:
        """[S, N] a figure of an arm, trainings by scenes, NaN where a scene does not have it.

        Args:
            field: realism, kinematic, interactive, map, minade, collision or off_road; kl, entropy or
                log_likelihood, which do not depend on the way of drawing.
            way: of drawing; that of verdicts by default. targets: whose likelihoods count.
        """
        return self._table(self.results(arm), field, way or self.way, targets)

    def reference_table(self, name: str, field: str, way: str | None = None) -> Array:
        """[1, N] a figure of a reference that drives itself."""
        return self._table([self.reference_result(name)], field, way or self.way, "all")

    def _table(self, results: list[ArmResult], field: str, way: str, targets: str) -> Array:
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
                values = {name: self._figure(row, field) for name, row in result.scenes(way, targets).items()}
            rows.append([values.get(scene, np.nan) for scene in self.scenes])
        return np.array(rows)

    def _figure(self, row: dict[str, float], field: str) -> float:
        if field in _FIELDS:
            return row[_FIELDS[field]]
        return buckets(row, load_config(self.config.metric))[_BUCKETS[field]]
