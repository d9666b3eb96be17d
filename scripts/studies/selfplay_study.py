"""SPACeR against its baselines: each trained, sampled and scored, and one table of all.

    python scripts/studies/selfplay_study.py --training runs/store/training --scenarios womd/validation \\
        --reference runs/finetune/reference.ckpt --out runs/study --steps 3000000

``--training`` is a store; ``--scenarios`` are TFRecords or a store with futures. Every policy is sampled from its
whole distribution and from its five likeliest tokens, 32 futures a scenario. DIR keeps all, so that an interrupted
study goes on; ``--list`` shows what would run, ``--table`` prints what is done and runs nothing.

Prints two Markdown tables. In the first, intervals are of scenarios (bootstrap), and seeds are rows of their own;
KL, entropy and log-likelihood are those of one more episode in each scenario, in which all agents are driven and
see their goals. The second has the differences of every variant from the first of ``--against`` that is there, all
tokens drawn, scenario by scenario: scenarios are resampled for both alike, trainings (where there are several) for
each.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pipeline.evaluation.statistics import difference
from pipeline.evaluation.tables import interval_cell, markdown_table
from pipeline.run.presets import leaves, load_preset
from pipeline.stages.evaluate import EvaluateConfig
from pipeline.stages.selfplay import POLICY_FILE, SelfPlayConfig, run_selfplay
from pipeline.studies.claims.arms import RESULT_FILE, Arm, ArmResult, Judged, Trial, arm_folder, run_arm, way_name
from pipeline.studies.claims.overrides import override

# What is trained with more than one seed comes first.
_VARIANTS = {
    arm.name: arm
    for arm in (
        Arm("spacer beta 0.1", {"ppo.beta": 0.1}),
        Arm("ppo", settings="ppo"),
        Arm("ppo + goal dropout", settings="ppo_dropout"),
        Arm("kl only", settings="kl_only"),
        Arm("spacer beta 0.01", {"ppo.beta": 0.01}),
        Arm("spacer beta 1", {"ppo.beta": 1.0}),
        Arm("spacer beta 0.1 alpha 0.001", {"ppo.beta": 0.1, "ppo.alpha": 0.001}),
        Arm("forward kl", settings="forward_kl"),
        Arm("history", {"ppo.beta": 0.1}, "history"),
        Arm("large", {"ppo.beta": 0.1}, "large"),
        Arm("hr-ppo", settings="hr_ppo"),
    )
}
_SEVERAL_SEEDS = ("spacer beta 0.1", "ppo")
_WAYS = (0, 5)
# Name and digits.
_COMPARED = {
    "metametric": ("realism", 3),
    "min_average_displacement_error": ("minADE, m", 2),
    "simulated_collision_rate": ("collision", 3),
    "simulated_offroad_rate": ("off-road", 3),
}
_HEADER = ["trained", "seed", "drawn", "realism", "kinematic", "interactive", "map", "minADE, m", "collision"]
_HEADER += ["off-road", "KL", "entropy", "log-likelihood"]
_CLONE = Arm("clone", settings="clone")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--training", type=Path, required=True, help="store to train on")
    parser.add_argument("--scenarios", required=True, help="to judge on")
    parser.add_argument("--reference", type=Path, required=True, help="reference.ckpt")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything")
    parser.add_argument("--preset", default="womd", help="settings that all share")
    parser.add_argument("--steps", type=int, default=3_000_000, help="agent-steps of each training")
    parser.add_argument("--seeds", type=int, default=3, help=f"of {' and '.join(_SEVERAL_SEEDS)}; others have one")
    parser.add_argument("--variants", nargs="+", default=list(_VARIANTS), help=f"of {', '.join(_VARIANTS)}")
    parser.add_argument("--options", nargs="*", default=[], help="further options of selfplay, as name=value")
    parser.add_argument("--workers", type=int, default=0, help="processes of sampling and scoring; 0 one per core")
    parser.add_argument("--against", nargs="+", default=["ppo", "spacer beta 0.1"], help="what others differ from")
    parser.add_argument("--list", action="store_true", help="only say what would run")
    parser.add_argument("--table", action="store_true", help="only print what is done")
    options = parser.parse_args(arguments)
    for option, names in (("--variants", options.variants), ("--against", options.against)):
        if wrong := [name for name in names if name not in _VARIANTS]:
            parser.error(f"{option} {wrong[0]}: expected some of {', '.join(_VARIANTS)}")
    if odd := [option for option in options.options if "=" not in option]:
        parser.error(f"--options {odd[0]}: expected name=value")
    runs = [(name, 0) for name in options.variants]
    runs += [
        (name, seed) for seed in range(1, options.seeds) for name in options.variants if name in _SEVERAL_SEEDS
    ]
    rows: list[list[str]] = []
    results: dict[str, list[ArmResult]] = defaultdict(list)
    for name, seed in runs:
        folder = arm_folder(options.out, name, seed)
        done = (folder / RESULT_FILE).exists()
        if options.list:
            print(f"{name}, seed {seed}: {'done' if done else 'to do'}")
            continue
        if options.table and not done:
            continue
        if not done:
            print(f"{name}, seed {seed} ...", file=sys.stderr, flush=True)
        result = run_arm(_trial(_VARIANTS[name], seed, options), folder)
        results[name].append(result)
        rows += _cells(name, seed, result)
    if rows:
        print(markdown_table([_HEADER, *rows]))
    compared = _differences(results, options.against)
    if compared:
        print("\n" + compared)
    return 0


def _config(arm: Arm, options: Any) -> SelfPlayConfig:
    """The arm's settings, then the options that all share, then the arm's own."""
    base = override(SelfPlayConfig(), leaves(load_preset(options.preset)["selfplay"]))
    shared = dict(option.split("=", 1) for option in options.options)
    own = Arm(arm.name, {"agent_steps": options.steps, **shared, **arm.overrides}, arm.settings)
    return own.config(base)


def _trial(arm: Arm, seed: int, options: Any) -> Trial:
    anchor = options.reference
    if arm.name == "hr-ppo":
        cloned = options.out / f"{_CLONE.name}_{seed}"
        anchor = cloned / POLICY_FILE
        if not anchor.exists():
            config = _config(_CLONE, options)
            run_selfplay(config, scenes=options.training, reference=options.reference, out=cloned, seed=seed)
    judged = Judged(options.scenarios, ways=_WAYS, evaluate=EvaluateConfig(workers=options.workers))
    return Trial(_config(arm, options), seed, options.training, anchor, options.reference, judged)


def _cells(name: str, seed: int, result: ArmResult) -> list[list[str]]:
    """A row for each way of sampling."""
    rows = []
    for way in map(way_name, _WAYS):
        report = result.values["reports"][way]
        metrics, buckets = report["metrics"], report["buckets"]
        rows.append(
            [
                name,
                str(seed),
                way,
                interval_cell(metrics["metametric"], report["intervals"]["metametric"]),
                *(f"{buckets[f'{bucket}_metrics']:.3f}" for bucket in ("kinematic", "interactive", "map_based")),
                f"{metrics['min_average_displacement_error']:.2f}",
                f"{metrics['simulated_collision_rate']:.3f}",
                f"{metrics['simulated_offroad_rate']:.3f}",
                *(f"{result.values['measured'][figure]:.2f}" for figure in ("kl", "entropy", "log_likelihood")),
            ]
        )
    return rows


def _differences(results: dict[str, list[ArmResult]], against: list[str]) -> str:
    """A table of differences from the first of some variants that has results; nothing where there is no other."""
    base = next((name for name in against if results.get(name)), None)
    others = [name for name in results if name != base]
    if base is None or not others:
        return ""
    scores = {name: [result.scenes(way_name(0)) for result in trained] for name, trained in results.items()}
    scenarios = sorted(scores[base][0])
    rows = []
    for name in others:
        cells = [name, str(len(results[name]))]
        for field, (_, digits) in _COMPARED.items():
            first, second = (
                np.array([[scenes[scenario][field] for scenario in scenarios] for scenes in scores[arm]])
                for arm in (name, base)
            )
            found = difference(first, second)
            cells.append(interval_cell(found.value, (found.low, found.high), digits, signed=True))
        rows.append(cells)
    return markdown_table(
        [[f"against {base} ({len(results[base])})", "trainings", *(name for name, _ in _COMPARED.values())], *rows]
    )


if __name__ == "__main__":
    from pipeline.execution.allocator import keep_freed_memory

    keep_freed_memory()
    sys.exit(main())
