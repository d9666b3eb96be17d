"""The claim that needs no training: a reference's likelihood tells human from other driving."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from data.files import sha256_of
from data.scenes_source import content_digest
from data.vocabulary import TYPE_NAMES
from pipeline.evaluation.statistics import Array, Method, Over, correlation, difference, mean
from pipeline.execution.devices import Devices, find_devices
from pipeline.execution.engine import EngineConfig
from pipeline.execution.result_cache import is_kept, run_kept
from pipeline.studies.claims.figures import scatter_figure
from pipeline.studies.claims.likelihood import LikelihoodTask, kind_names, score_scene
from pipeline.studies.claims.report import Report, Row, above, render_rows
from pipeline.studies.claims.study import Study

LIKELIHOOD = "likelihood"
_TITLE = "Likelihood under the reference as a measure of human-likeness"
_SAYS = (
    "The reference finds what humans did likelier than the same disturbed, and that likelier than naive motion; "
    "and what it finds likely, the realism metric finds real."
)
_METHODS: dict[str, Method] = {"Pearson": "pearson", "Spearman": "spearman"}
_NEARNESS_OVER: dict[Over, str] = {"groups": "over kinds", "within": "in each scene"}
_OVER: dict[Over, str] = {
    "groups": "over kinds of futures (means over scenes)",
    "within": "over kinds of futures, in each scene (mean over scenes)",
    "scenes": "over scenes, in each kind (mean over kinds)",
    "all": "over all scenes and kinds together",
}


def _tasks(study: Study, device: str) -> list[LikelihoodTask]:
    """A task for each of the study's scenes."""
    config, inputs = study.config, study.inputs
    scenarios = str(study.scenarios.absolute())
    one = LikelihoodTask(
        scenarios=scenarios,
        digest=content_digest(scenarios),
        index=0,
        reference=inputs.reference.absolute(),
        policy=inputs.policy.absolute(),
        levels=tuple(config.levels),
        rollouts=config.likelihood_rollouts,
        scored=config.likelihood_scored,
        metric=config.metric,
        seed=study.seed,
        checkpoints=(sha256_of(inputs.reference), sha256_of(inputs.policy)),
        device=device,
    )
    return [replace(one, index=index) for index in range(len(study.scenes))]


def _devices(study: Study) -> Devices:
    return find_devices(study.config.device, count=study.config.devices)


def is_measured(study: Study) -> bool:
    """Whether nothing is left to do."""
    folder = study.out / LIKELIHOOD
    if not folder.is_dir() or study.inputs.checkpoint("policy") is None:
        return False
    return is_kept(_tasks(study, _devices(study).name), folder)


def measure_likelihood(study: Study) -> list[dict[str, Any]]:
    """One result for each of the study's scenes, in order (see ``score_scene``); earlier results are read."""
    devices, workers = _devices(study), study.config.workers
    tasks = _tasks(study, devices.name)
    rows = run_kept(score_scene, tasks, study.out / LIKELIHOOD, LIKELIHOOD, workers, EngineConfig(), devices)
    return [result for (result,) in rows]


def _table(results: Sequence[dict[str, Any]], kinds: Sequence[str], field: str) -> Array:
    """[G, N] means of log-likelihood of all or of one type, coverage, or realism; NaN where a scene has none."""

    def figure(values: dict[str, Any]) -> float:
        if field in ("realism", "coverage"):
            return float(values.get(field, np.nan))
        part = values if field == "likelihood" else values["types"][field]
        return part["sum"] / part["count"] if part["count"] else float("nan")

    return np.array([[figure(result["kinds"][kind]) for result in results] for kind in kinds])


def likelihood_report(study: Study) -> Report:
    """Measure, and decide."""
    results = measure_likelihood(study)
    levels = study.config.levels
    kinds = kind_names(levels)
    likelihood, realism = (_table(results, kinds, field) for field in ("likelihood", "realism"))
    fields = {"likelihood": likelihood, "realism": realism}
    fields |= {name: _table(results, kinds, name) for name in (*TYPE_NAMES, "coverage")}
    rows = [
        Row(kind, "", {name: mean(values[index : index + 1]) for name, values in fields.items()})
        for index, kind in enumerate(kinds)
    ]
    by_name = {kind: likelihood[index : index + 1] for index, kind in enumerate(kinds)}
    ranked = kinds[: len(levels) + 2]
    statements = [
        above(f"{first} is likelier than {second}, nats a decision", difference(by_name[first], by_name[second]))
        for first, second in pairwise(ranked)
    ]
    statements.append(
        above(
            "log is likelier than constant velocity, nats a decision",
            difference(by_name["log"], by_name["constant velocity"]),
        )
    )
    statements.append(
        above(
            "in a scene, likelihood and realism rank kinds of futures alike (Spearman)",
            correlation(likelihood, realism, "spearman", "within", study.seed),
        )
    )
    points = {kind: (likelihood[index], realism[index]) for index, kind in enumerate(kinds)}
    return Report(
        LIKELIHOOD,
        _TITLE,
        _SAYS,
        statements,
        render_rows(rows, "future"),
        rows,
        [
            f"Moving agents alone; {study.config.likelihood_rollouts} futures of each kind for the metric, of "
            f"which {study.config.likelihood_scored} for the likelihood; deterministic futures are repeated.",
            *_correlations(likelihood, realism, study.seed),
            _typicality(likelihood, realism, kinds, study.seed),
        ],
        {LIKELIHOOD: scatter_figure(rows, points)},
    )


def _correlations(likelihood: Array, realism: Array, seed: int) -> list[str]:
    """Of likelihood with realism, in words."""
    notes = []
    for over, text in _OVER.items():
        found = [
            f"{name} {correlation(likelihood, realism, method, over, seed).cell(2)}"
            for name, method in _METHODS.items()
        ]
        notes.append(f"Correlation with realism {text}: {', '.join(found)}.")
    return notes


def _typicality(likelihood: Array, realism: Array, kinds: Sequence[str], seed: int) -> str:
    """How a measure fares that takes what is too likely for as odd as what is too unlikely: how far a likelihood is
    from that of the reference's own futures in the same scene."""
    own = kinds.index("reference")
    others = [index for index in range(len(kinds)) if index != own]
    nearness = -np.abs(likelihood - likelihood[own])
    parts = [
        f"{text} {correlation(nearness[others], realism[others], 'spearman', over, seed).cell(2)}"
        for over, text in _NEARNESS_OVER.items()
    ]
    return (
        "Instead of the likelihood, its nearness to that of the reference's own futures in the scene, and realism "
        f"(Spearman, all kinds but the reference): {', '.join(parts)}."
    )
