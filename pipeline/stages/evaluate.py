"""Stage ``evaluate``: rollouts against the log, by the realism meta-metric."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.completeness import Origin, some
from data.errors import IncompleteError, UserError
from data.files import remove_leftovers, sha256_of, write_json, write_text
from data.places import is_remote, open_path
from data.scenes_source import content_digest, open_scenes
from pipeline.agents.leaks import check_rollouts
from pipeline.evaluation.motion import motion_figures, motion_intervals
from pipeline.evaluation.scoring import TARGETS, ScoringTask, score_file
from pipeline.evaluation.statistics import mean_intervals
from pipeline.evaluation.tables import loss_table, print_losses
from pipeline.execution.devices import Count, find_devices
from pipeline.execution.engine import EngineConfig
from pipeline.execution.result_cache import code_version, run_kept
from pipeline.execution.tables import csv_table, interval_cell
from pipeline.run.run_folder import Run
from submission.checks import ROLLOUTS
from submission.protos import rollout_files
from submission.realism import METRIC_FIELDS, buckets, load_config, mean_metrics
from submission.suspicion import Suspicion, Tally

_PARTS = "parts"
_METRICS, _TABLE, _MOTION = "metrics.json", "per_scenario.csv", "motion.csv"
# Of each kind of agent.
_RATES = {"collision": "collision", "off-road": "offroad", "red light": "traffic_light_violation"}
# So many scenarios without a score are listed for people; metrics.json has all.
_LISTED = 20


@dataclass(frozen=True)
class EvaluateConfig:
    """The metric.

    Args:
        metric: 2025, 2024 or 2025_scenario_gen.
        metric_config: an own textproto in the same format, instead of ``metric``.
        ttc_all_types: time to collision counts for all types as on the 2024 leaderboard, not for vehicles alone.
        targets: whose likelihoods count, among the agents that a scenario wants evaluated: all of them, vehicle, or
            vru for pedestrians and cyclists, of which time to collision then counts too, since there is nothing
            else. Scenarios without any of these do not count; they are listed.
        mended: score without the documented defects of Waymo's code too, to see what they cost.
        diagnose: write diagnosis.csv: what every agent and feature lost, worst scenarios first.
        allow_broken: damaged or unknown rollouts are a warning; the rest counts.
        allow_unscorable: scenarios that cannot be scored are a warning; the rest counts.
        allow_trained: score rollouts of scenarios that their agent was trained on, too.
        cache: folder where prepared scenes are kept for the next evaluation.
        official: cross-check some scenarios against Waymo's own code (minutes for each scenario).
        official_scenarios: how many.
        workers: processes; 0 for one per core, or per GPU.
        device: of the metric: cpu, cuda, cuda:N, mps, or auto for a GPU where there is one.
        devices: GPUs among which the files are dealt out; auto for all of this machine.
    """

    metric: str = "2025"
    metric_config: Path | None = None
    ttc_all_types: bool = False
    targets: str = "all"
    mended: bool = False
    diagnose: bool = False
    allow_broken: bool = False
    allow_unscorable: bool = False
    allow_trained: bool = False
    cache: Path | None = None
    official: bool = False
    official_scenarios: int = 1
    workers: int = 0
    device: str = "auto"
    devices: Count = "auto"

    def __post_init__(self) -> None:
        if self.targets not in TARGETS:
            raise UserError(f"evaluate.targets is {self.targets!r}; choose one of {', '.join(TARGETS)}")
        if self.official and self.targets != "all":
            raise UserError("evaluate.official compares all targets; leave --targets out")

    @property
    def metric_name(self) -> str:
        """Name or path of the configuration, as ``load_config`` takes it."""
        return str(self.metric_config or self.metric)


def _collect(
    config: EvaluateConfig, scenarios: str, rollouts: str, out: Path, engine: EngineConfig
) -> list[dict[str, Any]]:
    """Rows of all files, those of an earlier interrupted run included."""
    digest, code = content_digest(scenarios), code_version(__name__)
    devices = find_devices(config.device, count=config.devices)
    # Prepared scenes belong to these scenarios and this code.
    cache = (
        None
        if config.cache is None
        else config.cache.absolute() / hashlib.sha256(f"{digest}/{code}".encode()).hexdigest()
    )
    tasks = [
        ScoringTask(
            file=file,
            scenarios=scenarios,
            digest=digest,
            metric=config.metric_name,
            ttc_all_types=config.ttc_all_types or config.targets == "vru",
            mended=config.mended,
            targets=config.targets,
            losses=config.diagnose,
            cache=cache,
            version=f"{file.stat().st_size if is_remote(file) else sha256_of(file)}/{code}",
            device=devices.name,
        )
        for file in rollout_files(rollouts)
    ]
    parts = run_kept(score_file, tasks, out / _PARTS, "evaluate", config.workers, engine, devices, unit=" file")
    return [row for part in parts for row in part]


def run_evaluate(
    config: EvaluateConfig,
    *,
    scenarios: str | Path,
    rollouts: str | Path,
    out: Path,
    seed: int = 0,
    show: bool = True,
    engine: EngineConfig = EngineConfig(),
) -> dict[str, float]:
    """Score rollouts with the realism meta-metric and write metrics.json, per_scenario.csv and motion.csv.

    Args:
        config: of the stage.
        scenarios: WOMD TFRecords or an ingested store, with futures.
        rollouts: file, folder, glob, archive or URL of ScenarioRollouts or SimAgentsChallengeSubmission messages.
        out: folder of the results.
        seed: of the bootstrap and of the sample for --official.
        show: print the table of buckets and fields.
        engine: who scores.

    Raises:
        UserError: a scenario that is scored twice or that its agent was trained on, or nothing that can be scored.
        IncompleteError: once everything is written: rollouts that are damaged, unknown or of wrong objects, unless
            ``allow_broken``; scenarios that cannot be scored, unless ``allow_unscorable``.
    """
    scenarios, out = str(open_path(scenarios)), out.absolute()
    metric = load_config(config.metric_name)
    if not config.allow_trained:
        check_rollouts(rollouts)
    out.mkdir(parents=True, exist_ok=True)
    found = _collect(config, scenarios, str(rollouts), out, engine)
    broken = [row["broken"] for row in found if "broken" in row]
    # Scenarios whose rollouts are there and are no good.
    spoilt = [row["of"] for row in found if row.get("of")]
    for line in _shortened(broken):
        print(f"warning: {line}", file=sys.stderr)
    rows = sorted((row for row in found if "broken" not in row), key=lambda row: row["scenario_id"])
    ids = [row["scenario_id"] for row in rows]
    if len(set(ids)) != len(ids):
        twice = next(name for name in ids if ids.count(name) > 1)
        raise UserError(f"{rollouts}: scenario {twice} occurs more than once")
    suspicions = Tally()
    for row in rows:
        for found_one in row.get("suspicions", ()):
            suspicions.add(f"scenario {row['scenario_id']}", Suspicion(**found_one))
    scored = [row for row in rows if "values" in row]
    reasons = {row["scenario_id"]: row["reason"] for row in rows if "reason" in row}
    left_out = [row["scenario_id"] for row in rows if row.get("expected")]
    known = open_scenes(scenarios).ids
    missing = sorted({*known} - {*ids, *spoilt})
    _warn(rows, missing, len(known), _absence(rollouts))
    if not scored:
        print("\n".join(_listed(reasons)), file=sys.stderr)
        # Results of an earlier run in this folder are not those of this one.
        for name in (_METRICS, _TABLE, _MOTION):
            (out / name).unlink(missing_ok=True)
        why = [*(f"{name}: {reason}" for name, reason in reasons.items()), *broken] or ["no rollouts"]
        more = f"; and {len(why) - 1} more" if len(why) > 1 else ""
        raise UserError(f"{rollouts}: no scenario can be scored ({why[0]}{more})")
    values, motion = [row["values"] for row in scored], [row["motion"] for row in scored]
    metrics, moved = mean_metrics(values), motion_figures(motion)
    report: dict[str, Any] = {
        "scenarios": len(scored),
        "metric": config.metric_name,
        "metrics": metrics,
        "buckets": buckets(metrics, metric),
        "motion": moved,
        "intervals": {**mean_intervals(values, seed), **motion_intervals(motion, seed)},
        "rates_by_kind": _rates_by_kind(scored),
        "unscorable": {name: reason for name, reason in reasons.items() if name not in left_out},
        "without_targets": left_out,
        "without_rollouts": len(missing),
        "broken": broken,
        "broken_scenarios": spoilt,
        "suspicions": suspicions.lines(),
    }
    if config.mended:
        report["mended"] = mean_metrics([row["mended"] for row in scored])
    if config.diagnose:
        write_text(out / "diagnosis.csv", csv_table(loss_table(scored)))
    if config.official:
        from pipeline.evaluation.official_metric import largest_differences

        report["official"] = largest_differences(config, scenarios, str(rollouts), scored, seed)
    write_json(out / _METRICS, report)
    table = ([row["scenario_id"], *(json.dumps(row["values"][name]) for name in METRIC_FIELDS)] for row in scored)
    write_text(out / _TABLE, csv_table([["scenario_id", *METRIC_FIELDS], *table]))
    table = ([row["scenario_id"], *map(json.dumps, row["motion"].values())] for row in scored)
    write_text(out / _MOTION, csv_table([["scenario_id", *motion[0]], *table]))
    # Only a run that is interrupted needs them.
    shutil.rmtree(out / _PARTS)
    remove_leftovers(out)
    if show:
        suspicions.show()
        _print_report(report)
        if config.diagnose:
            print_losses(scored)
    _complain(config, report, out / _METRICS)
    return {
        "scenarios": len(scored),
        "unscorable": len(report["unscorable"]),
        **{name: round(metrics[name], 6) for name in METRIC_FIELDS},
        **{name: round(value, 6) for name, value in moved.items()},
    }


def evaluate_run(run: Run) -> dict[str, Any]:
    """The stage of a run: every agent on the validation scenarios."""
    figures: dict[str, Any] = {}
    for agent in run.config.agents:
        found = run_evaluate(
            # One scene must not cost a run its scores; what has none is in its table and figures.
            dataclasses.replace(run.config.evaluate, allow_unscorable=True),
            scenarios=str(run.store("validation")),
            rollouts=str(run.rollouts(agent)),
            out=run.scores(agent),
            seed=run.config.seed,
            show=False,
            engine=run.engine,
        )
        figures |= {f"{agent}_{name}": value for name, value in found.items()}
    return figures


def _complain(config: EvaluateConfig, report: Mapping[str, Any], written: Path) -> None:
    """Raises IncompleteError where something has no score that should have one."""
    faults, options = [], []
    if report["broken"] and not config.allow_broken:
        whose = f"scenarios {some(report['broken_scenarios'])}; " if len(report["broken_scenarios"]) > 1 else ""
        faults.append(f"{len(report['broken'])} rollouts cannot be scored ({whose}{report['broken'][0]})")
        options.append("--allow-broken")
    if report["unscorable"] and not config.allow_unscorable:
        name, reason = next(iter(report["unscorable"].items()))
        faults.append(f"{len(report['unscorable'])} scenarios cannot be scored ({name}: {reason})")
        options.append("--allow-unscorable")
    advice = f"mend them, or accept that with {' '.join(options)}" if options else "please report it"
    for name, why in report.get("official", {}).get("refused", {}).items():
        faults.append(f"scenario {name} is scored here and not by Waymo's code ({why})")
    if faults:
        raise IncompleteError(f"{'; '.join(faults)}; {written} holds the rest; {advice}")


def _rates_by_kind(scored: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Rates of all evaluated agents of a kind together, and how many there are, by kind."""
    kinds: dict[str, dict[str, float]] = {}
    for row in scored:
        for kind, sums in row["kinds"].items():
            total = kinds.setdefault(kind, dict.fromkeys(sums, 0))
            for name, value in sums.items():
                total[name] += value
    return {
        kind: {name: value if name == "agents" else value / total["agents"] for name, value in total.items()}
        for kind, total in sorted(kinds.items())
    }


def _shortened(lines: list[str]) -> list[str]:
    return lines[:_LISTED] + ([f"and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else [])


def _listed(reasons: Mapping[str, str]) -> list[str]:
    return [f"    {line}" for line in _shortened([f"{name}  {reason}" for name, reason in reasons.items()])]


def _absence(rollouts: str | Path) -> str:
    """Which shards of a folder of rollouts are missing by their names; of several folders it is not known."""
    if not open_path(rollouts).is_dir():
        return ""
    return Origin(tuple(file.name for file in rollout_files(rollouts))).absence


def _warn(rows: list[dict[str, Any]], missing: list[str], known: int, absence: str) -> None:
    odd = [row for row in rows if row["joint_scenes"] != ROLLOUTS]
    if odd:
        first = odd[0]
        print(
            f"warning: {len(odd)} scenarios have not {ROLLOUTS} joint scenes "
            f"({first['scenario_id']} has {first['joint_scenes']})",
            file=sys.stderr,
        )
    if missing:
        print(
            f"warning: {len(missing)} of {known} scenarios have no rollouts and do not count "
            f"({missing[0]} for one){absence and '; '}{absence}",
            file=sys.stderr,
        )
    for rest, what in ((False, "cannot be scored"), (True, "have none of the targets and do not count")):
        some = [row for row in rows if "reason" in row and row.get("expected", False) == rest]
        if some:
            first = some[0]
            print(
                f"warning: {len(some)} scenarios {what} ({first['scenario_id']}: {first['reason']})",
                file=sys.stderr,
            )


def _print_report(report: Mapping[str, Any]) -> None:
    intervals = report["intervals"]
    print(f"{report['scenarios']} scenarios, metric {report['metric']}")
    for text, lines in (
        ("cannot be scored", _listed(report["unscorable"])),
        ("have none of the targets", _listed(dict.fromkeys(report["without_targets"], ""))),
        ("damaged or unknown rollouts", _listed(dict.fromkeys(report["broken"], ""))),
    ):
        if lines:
            print("\n".join([f"  {text}:", *lines]))
    if report["without_rollouts"]:
        print(f"  {report['without_rollouts']} scenarios without rollouts")
    for name, value in report["buckets"].items():
        print(f"  {name:42} {value:.4f}")
    for name in METRIC_FIELDS:
        low, high = intervals[name]
        mended = f"   mended {report['mended'][name]:.4f}" if "mended" in report else ""
        print(f"  {name:42} {report['metrics'][name]:.4f}   95% interval {low:.4f} .. {high:.4f}{mended}")
    for name, value in report["motion"].items():
        print(f"  {name:42} {interval_cell(value, intervals.get(name), 4)}")
    for kind, rates in report["rates_by_kind"].items():
        line = ", ".join(f"{name} {rates[f'simulated_{field}_rate']:.4f}" for name, field in _RATES.items())
        print(f"  {rates['agents']:>7} evaluated: {kind:11} {line}")
    if "official" in report:
        print(f"  largest differences to Waymo's code on {', '.join(report['official']['scenarios'])}:")
        for name, value in report["official"]["differences"].items():
            print(f"    {name:40} {value:.1e}")
        for name, why in report["official"]["refused"].items():
            print(f"    {name} has no figures by Waymo's code: {why}")
