"""Stage ``evaluate``: rollouts against the log, by the realism meta-metric."""

from __future__ import annotations

import csv
import io
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from data.errors import UserError
from data.files import read_json, sha256_of, write_json, write_text
from data.scenes_source import SceneSource, content_digest, open_scenes
from pipeline.code_version import code_version
from pipeline.parallel import run_tasks, worker_count
from pipeline.progress import bar
from submission.checks import ROLLOUTS
from submission.protos import from_proto, rollout_files, scenario_rollouts_messages
from submission.realism import METRIC_FIELDS, bootstrap_intervals, buckets, load_config, mean_metrics, prepare_scene
from submission.realism.score import score

__all__ = ["EvaluateConfig", "run_evaluate"]

_PARTS = "parts"
_RECIPE = "recipe.json"


@dataclass(frozen=True)
class EvaluateConfig:
    """The metric.

    Args:
        metric: 2025, 2024, 2025_scenario_gen, or the path of a textproto in the same format.
        ttc_all_types: time to collision counts for all types as on the 2024 leaderboard, not for vehicles alone.
        mended: without the documented defects of Waymo's code; not comparable with the leaderboard.
        official: cross-check some scenarios against Waymo's own code (minutes for each scenario).
        official_scenarios: how many.
        workers: processes; 0 for one per core.
    """

    metric: str = "2025"
    ttc_all_types: bool = False
    mended: bool = False
    official: bool = False
    official_scenarios: int = 1
    workers: int = 0


@dataclass(frozen=True)
class _Task:
    """One file of rollouts to score."""

    file: Path
    scenarios: str
    digest: str
    config: EvaluateConfig
    target: Path


@lru_cache(maxsize=1)
def _source(scenarios: str, digest: str) -> SceneSource:
    """Opened once in a process; ``digest`` tells changed files apart."""
    return open_scenes(scenarios)


def _score_file(task: _Task) -> list[dict[str, Any]]:
    """Score every scenario of a file; rows are kept in ``task.target`` for a run that is interrupted."""
    source, config = _source(task.scenarios, task.digest), task.config
    metric = load_config(config.metric)
    known = set(source.ids)
    rows = []
    with task.file.open("rb") as handle:
        for message, _ in scenario_rollouts_messages(handle, str(task.file), task.file.stat().st_size):
            if message.scenario_id not in known:
                raise UserError(f"{task.file}: scenario {message.scenario_id} is not in {task.scenarios}")
            rollouts = from_proto(message, str(task.file))
            scene = source.get(rollouts.scenario_id)
            row: dict[str, Any] = {"scenario_id": rollouts.scenario_id, "joint_scenes": len(rollouts.states)}
            if scene.unscorable_reason is None:
                context = prepare_scene(scene, bug_compatible=not config.mended)
                try:
                    result = score(context, rollouts.agent_id, rollouts.states, metric, config.ttc_all_types)
                except ValueError as error:
                    raise UserError(f"{task.file}: {error}") from error
                row["values"] = {name: float(value) for name, value in result.values.items()}
            else:
                row["reason"] = scene.unscorable_reason
            rows.append(row)
    write_json(task.target, rows)
    return rows


def _collect(config: EvaluateConfig, scenarios: str, rollouts: str, out: Path) -> Iterator[dict[str, Any]]:
    """Rows of all files, those of an earlier interrupted run included."""
    files, digest = rollout_files(rollouts), content_digest(scenarios)
    recipe = {
        "files": {file.name: sha256_of(file) for file in files},
        "metric": [config.metric, config.ttc_all_types, config.mended],
        "scenarios": digest,
        "code": code_version(__name__),
    }
    parts = out / _PARTS
    if not (parts / _RECIPE).exists() or read_json(parts / _RECIPE) != recipe:
        for stale in parts.glob("*.json"):
            stale.unlink()
        parts.mkdir(parents=True, exist_ok=True)
        write_json(parts / _RECIPE, recipe)
    tasks = [_Task(file, scenarios, digest, config, parts / f"{file.name}.json") for file in files]
    todo = [task for task in tasks if not task.target.exists()]
    with bar("evaluate", len(tasks), " file", initial=len(tasks) - len(todo)) as progress:
        for _ in run_tasks(_score_file, todo, worker_count(config.workers)):
            progress.update()
    for task in tasks:
        yield from read_json(task.target)


def run_evaluate(
    config: EvaluateConfig, *, scenarios: str, rollouts: str, out: Path, seed: int = 0, show: bool = True
) -> dict[str, float]:
    """Score rollouts with the realism meta-metric and write metrics.json and per_scenario.csv.

    Args:
        config: of the stage.
        scenarios: WOMD TFRecords or an ingested store, with futures.
        rollouts: file, folder or glob of ScenarioRollouts or SimAgentsChallengeSubmission messages.
        out: folder of the results.
        seed: of the bootstrap and of the sample for --official.
        show: print the table of buckets and fields.

    Raises:
        UserError: damaged files, a scenario that is unknown or scored twice, wrong objects, nothing to score.
    """
    scenarios = str(scenarios)
    metric = load_config(config.metric)
    out.mkdir(parents=True, exist_ok=True)
    rows = sorted(_collect(config, scenarios, str(rollouts), out), key=lambda row: row["scenario_id"])
    ids = [row["scenario_id"] for row in rows]
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"{rollouts}: scenario {twice} occurs more than once")
    _warn(rows, open_scenes(scenarios).ids)
    scored = [row for row in rows if "values" in row]
    if not scored:
        raise UserError(f"{rollouts}: no scenario can be scored ({rows[0]['reason'] if rows else 'no rollouts'})")
    values = [row["values"] for row in scored]
    metrics = mean_metrics(values)
    report = {
        "scenarios": len(scored),
        "metric": config.metric,
        "mended": config.mended,
        "metrics": metrics,
        "buckets": buckets(metrics, metric),
        "intervals": bootstrap_intervals(values, seed),
        "unscorable": {row["scenario_id"]: row["reason"] for row in rows if "reason" in row},
    }
    if config.official:
        from pipeline.official_metric import largest_differences

        report["official"] = largest_differences(config, scenarios, str(rollouts), scored, seed)
    write_json(out / "metrics.json", report)
    _write_table(out / "per_scenario.csv", scored)
    # Only a run that is interrupted needs them.
    shutil.rmtree(out / _PARTS)
    if show:
        _print_report(report)
    return {"scenarios": len(scored), **{name: round(metrics[name], 6) for name in METRIC_FIELDS}}


def _warn(rows: list[dict[str, Any]], known: list[str]) -> None:
    odd = [row for row in rows if row["joint_scenes"] != ROLLOUTS]
    if odd:
        first = odd[0]
        print(
            f"warning: {len(odd)} scenarios have not {ROLLOUTS} joint scenes "
            f"({first['scenario_id']} has {first['joint_scenes']})",
            file=sys.stderr,
        )
    missing = set(known) - {row["scenario_id"] for row in rows}
    if missing:
        print(
            f"warning: {len(missing)} of {len(known)} scenarios have no rollouts and do not count "
            f"({min(missing)} for one)",
            file=sys.stderr,
        )
    unscorable = [row for row in rows if "reason" in row]
    if unscorable:
        first = unscorable[0]
        print(
            f"warning: {len(unscorable)} scenarios cannot be scored ({first['scenario_id']}: {first['reason']})",
            file=sys.stderr,
        )


def _write_table(path: Path, scored: list[dict[str, Any]]) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["scenario_id", *METRIC_FIELDS])
    writer.writerows(
        [row["scenario_id"], *(json.dumps(row["values"][name]) for name in METRIC_FIELDS)] for row in scored
    )
    write_text(path, table.getvalue())


def _print_report(report: Mapping[str, Any]) -> None:
    intervals = report["intervals"]
    print(f"{report['scenarios']} scenarios, metric {report['metric']}{', mended' if report['mended'] else ''}")
    for name, value in report["buckets"].items():
        print(f"  {name:42} {value:.4f}")
    for name in METRIC_FIELDS:
        low, high = intervals[name]
        print(f"  {name:42} {report['metrics'][name]:.4f}   95% interval {low:.4f} .. {high:.4f}")
    if "official" in report:
        print(f"  largest differences to Waymo's code on {', '.join(report['official']['scenarios'])}:")
        for name, value in report["official"]["differences"].items():
            print(f"    {name:40} {value:.1e}")
