"""Train self-play with several settings and seeds, and compare the policies on held-out scenes.

    python scripts/studies/ablate.py runs/demo --steps 300000 --seeds 3 --out runs/ablation \
        --variant "two layers" --variant "one layer" policy.row_layers=1

Settings are those of the preset scratch on one core, and those given; ``start=FILE`` begins with a policy, where
``{seed}`` stands for the seed. A finished training is not repeated. ``--train`` ends after the trainings, for a
machine whose GPU has better to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from data.files import write_json
from data.store import SceneStore
from pipeline.agents.catalogue import make_agent
from pipeline.agents.closed_loop import closed_loop_figures
from pipeline.execution.tables import render_table
from pipeline.run.presets import leaves, load_preset, override
from pipeline.run.run_folder import RunFolder
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.selfplay.pool import held_out_scenes
from pipeline.stages.selfplay import run_selfplay

_FIGURES = (
    ("evaluation_realism", "realism"),
    ("evaluation_min_ade_m", "minADE, m"),
    ("evaluation_speed_ratio_8s", "speed ratio, 8 s"),
    ("evaluation_standing", "standing"),
    ("evaluation_collision_rate", "collision"),
    ("evaluation_off_road_rate", "off-road"),
    ("kl", "KL"),
    ("cpu_seconds", "CPU s"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run with stages up to pretrain")
    parser.add_argument("--steps", type=int, default=300_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scenes", type=int, default=24, help="held-out scenes")
    parser.add_argument("--rollouts", type=int, default=8, help="of each")
    parser.add_argument("--all", nargs="*", default=[], metavar="OPTION=VALUE", help="of all variants")
    parser.add_argument("--train", action="store_true", help="without the log's and the reference's figures")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variant", nargs="+", action="append", metavar="NAME OPTION=VALUE", required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    run = RunFolder.opened(options.run)
    base = dataclasses.replace(
        override(SelfPlayConfig(), leaves(load_preset("scratch")["selfplay"])),
        agent_steps=options.steps,
        evaluate_every=1_000_000,
        evaluate_scenes=options.scenes,
        evaluate_rollouts=options.rollouts,
        tensorboard=False,
        device="cpu",
        devices=1,
    )
    rows = [["settings", *(title for _, title in _FIGURES)]]
    for title, *settings in options.variant:
        changes = dict(setting.split("=", 1) for setting in (*options.all, *settings))
        start = changes.pop("start", None)
        config = override(base, changes)
        results = [
            trained(
                config,
                run,
                options.out / f"{title.replace(' ', '-')}-{seed}",
                seed,
                Path(start.format(seed=seed)) if start else None,
            )
            for seed in range(options.seeds)
        ]
        cells = [title]
        for name, _ in _FIGURES:
            values = [result[name] for result in results if name in result]
            mean = sum(values) / max(1, len(values))
            cells.append(f"{mean:.3g} ({min(values):.3g} to {max(values):.3g})" if values else "")
        rows.append(cells)
        print(render_table(rows), flush=True)
    if options.train:
        return
    held_out = held_out_scenes(
        run.needed("tokenize/validation"), base, SceneStore(run.needed("tokenize/training")), run.reference
    )
    for place, name in enumerate(("log", "reference"), 1):
        agent = make_agent(name, run.reference)
        found = closed_loop_figures(agent, held_out, options.rollouts, 0)
        figures = {f"evaluation_{figure}": value for figure, value in found.items()}
        rows.insert(place, [name, *(f"{figures[name]:.3g}" if name in figures else "" for name, _ in _FIGURES)])
    print(render_table(rows), flush=True)


def trained(config: SelfPlayConfig, run: RunFolder, out: Path, seed: int, start: Path | None) -> dict[str, float]:
    """The last figures of a training."""
    saved = out / "result.json"
    if not saved.is_file():
        started = time.process_time()
        result = run_selfplay(
            config,
            scenes=run.needed("tokenize/training"),
            reference=run.reference,
            out=out,
            seed=seed,
            validation=run.needed("tokenize/validation"),
            start=start,
        )
        write_json(saved, {**result, "cpu_seconds": time.process_time() - started})
    figures: dict[str, float] = json.loads(saved.read_text())
    return figures


if __name__ == "__main__":
    main()
