"""SPACeR against its baselines: each trained, sampled and scored, and one table of all.

    python scripts/selfplay_study.py --training runs/store/training --scenarios womd/validation \\
        --reference runs/finetune/reference.ckpt --out runs/study --steps 3000000

``--training`` is a store; ``--scenarios`` are TFRecords or a store with futures. Every policy is sampled from its
whole distribution and from its five likeliest tokens, 32 futures a scenario. DIR keeps all, so that an interrupted
study goes on; ``--list`` shows what would run. Prints a Markdown table; intervals are of scenarios (bootstrap), and
seeds are rows of their own. KL, entropy and log-likelihood are those of one more episode in each scenario, in which
all agents are driven and see their goals.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.files import read_json, write_json
from data.scenes_source import open_scenes
from models.policy import load_policy
from models.reference.agent import ReferenceAgent
from pipeline.options import command_parser, load_preset
from pipeline.selfplay.divergence import divergence
from pipeline.selfplay.observation import ObservationConfig
from pipeline.stages.evaluation import EvaluateConfig, run_evaluate
from pipeline.stages.sampling import SampleConfig, run_sample
from pipeline.stages.selfplay import SelfPlayConfig, run_selfplay

_CONFIGS = Path(__file__).resolve().parents[1] / "pipeline" / "configs" / "selfplay"
# Name to (file of settings, further options); what is trained with more than one seed comes first.
_VARIANTS: dict[str, tuple[str | None, list[str]]] = {
    "spacer beta 0.1": (None, ["--ppo.beta", "0.1"]),
    "ppo": ("ppo", []),
    "ppo + goal dropout": ("ppo_dropout", []),
    "kl only": ("kl_only", []),
    "spacer beta 0.01": (None, ["--ppo.beta", "0.01"]),
    "spacer beta 1": (None, ["--ppo.beta", "1.0"]),
    "spacer beta 0.1 alpha 0.001": (None, ["--ppo.beta", "0.1", "--ppo.alpha", "0.001"]),
    "forward kl": ("forward_kl", []),
    "history": ("history", ["--ppo.beta", "0.1"]),
    "large": ("large", ["--ppo.beta", "0.1"]),
    "hr-ppo": ("hr_ppo", []),
}
_SEVERAL_SEEDS = ("spacer beta 0.1", "ppo")
_WAYS = {"all": 0, "top 5": 5}
_CLONE = "clone"


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
    parser.add_argument("--list", action="store_true", help="only say what would run")
    options = parser.parse_args(arguments)
    wrong = [name for name in options.variants if name not in _VARIANTS]
    if wrong:
        parser.error(f"--variants {wrong[0]}: expected some of {', '.join(_VARIANTS)}")
    runs = [(name, 0) for name in options.variants]
    runs += [
        (name, seed) for seed in range(1, options.seeds) for name in options.variants if name in _SEVERAL_SEEDS
    ]
    rows = []
    for name, seed in runs:
        folder = options.out / f"{name.replace(' ', '_').replace('+', 'and')}_{seed}"
        done = folder / "result.json"
        if options.list:
            print(f"{name}, seed {seed}: {'done' if done.exists() else 'to do'}")
            continue
        if not done.exists():
            print(f"{name}, seed {seed} ...", file=sys.stderr, flush=True)
            write_json(done, _run(name, seed, folder, options))
        result = read_json(done)
        if "measured" not in result:
            result["measured"] = _measured(folder, options)
            write_json(done, result)
        rows += _cells(name, seed, result)
    if rows:
        print(_markdown(rows))
    return 0


def _config(name: str, options: Any) -> SelfPlayConfig:
    file, extra = _VARIANTS.get(name, (_CLONE, []))
    parser = command_parser("selfplay", run_selfplay, SelfPlayConfig, load_preset(options.preset)["selfplay"], "")
    given = ["--config", str(_CONFIGS / f"{file}.yaml")] if file else []
    needed = ["--scenes", "a", "--reference", "b", "--out", "c", "--agent_steps", str(options.steps)]
    shared = [f"--{option}" for option in options.options]
    parsed = parser.instantiate_classes(parser.parse_args([*given, *needed, *shared, *extra]))
    return SelfPlayConfig(**{field: getattr(parsed, field) for field in SelfPlayConfig.__dataclass_fields__})


def _run(name: str, seed: int, folder: Path, options: Any) -> dict[str, Any]:
    """Train, sample in every way and score."""
    reference = options.reference
    if name == "hr-ppo":
        cloned = options.out / f"{_CLONE}_{seed}"
        reference = cloned / "policy.ckpt"
        if not reference.exists():
            run_selfplay(
                _config(_CLONE, options),
                scenes=options.training,
                reference=options.reference,
                out=cloned,
                seed=seed,
            )
    training = folder / "training"
    checkpoint = training / "policy.ckpt"
    if not checkpoint.exists():
        run_selfplay(_config(name, options), scenes=options.training, reference=reference, out=training, seed=seed)
    reports = {}
    for way, top_k in _WAYS.items():
        rollouts, scores = folder / f"rollouts_top_{top_k}", folder / f"scores_top_{top_k}"
        sampling = SampleConfig(agent="policy", top_k=top_k, workers=options.workers)
        run_sample(sampling, scenarios=options.scenarios, checkpoint=checkpoint, out=rollouts, seed=0)
        run_evaluate(
            EvaluateConfig(workers=options.workers),
            scenarios=options.scenarios,
            rollouts=str(rollouts),
            out=scores,
            show=False,
        )
        reports[way] = read_json(scores / "metrics.json")
    last = list(csv.DictReader((training / "metrics.csv").open()))[-1]
    return {"reports": reports, "training": {name: float(value) for name, value in last.items() if value}}


def _measured(folder: Path, options: Any) -> dict[str, float]:
    """KL to the reference, entropy and log-likelihood on the scenarios it is judged on, with all agents driven."""
    policy, _, view = load_policy(folder / "training" / "policy.ckpt")
    scenes = list(open_scenes(options.scenarios))
    return divergence(
        policy, ReferenceAgent.from_checkpoint(options.reference), scenes, ObservationConfig(**view), seed=0
    )


def _cells(name: str, seed: int, result: dict[str, Any]) -> list[list[str]]:
    """A row for each way of sampling."""
    rows = []
    for way, report in result["reports"].items():
        metrics, buckets = report["metrics"], report["buckets"]
        low, high = report["intervals"]["metametric"]
        rows.append(
            [
                name,
                str(seed),
                way,
                f"{metrics['metametric']:.3f} [{low:.3f}, {high:.3f}]",
                *(f"{buckets[f'{bucket}_metrics']:.3f}" for bucket in ("kinematic", "interactive", "map_based")),
                f"{metrics['min_average_displacement_error']:.2f}",
                f"{metrics['simulated_collision_rate']:.3f}",
                f"{metrics['simulated_offroad_rate']:.3f}",
                *(f"{result['measured'][figure]:.2f}" for figure in ("kl", "entropy", "log_likelihood")),
            ]
        )
    return rows


def _markdown(rows: list[list[str]]) -> str:
    header = ["trained", "seed", "drawn", "realism", "kinematic", "interactive", "map", "minADE, m", "collision"]
    header += ["off-road", "KL", "entropy", "log-likelihood"]
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    from pipeline.allocator import keep_freed_memory

    keep_freed_memory()
    sys.exit(main())
