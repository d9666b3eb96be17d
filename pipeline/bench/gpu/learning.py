"""A short training of self-play as users run it, and how the policy gets better."""

from __future__ import annotations

import csv
import dataclasses
import shutil
import time
from collections.abc import Iterator

from pipeline.bench.gpu.inputs import Inputs
from pipeline.bench.rows import Row
from pipeline.run.presets import leaves, load_preset, override, read_settings
from pipeline.selfplay.config import SelfPlayConfig
from pipeline.selfplay.training import POLICY_FILE
from pipeline.stages.selfplay import run_selfplay

# Evaluations on the way, and the figures shown of each.
_EVALUATIONS = 3
_FIGURES = {
    "evaluation_realism": "realism",
    "evaluation_min_ade_m": "minADE, m",
    "evaluation_speed_ratio_8s": "speed ratio after 8 s",
    "evaluation_standing": "share standing",
    "evaluation_collision_rate": "collision rate",
    "evaluation_off_road_rate": "off-road rate",
    "collision_rate": "collision rate in training",
    "off_road_rate": "off-road rate in training",
    "goal_rate": "goal rate in training",
    "kl": "KL to the reference, nats",
}


def selfplay(inputs: Inputs) -> Iterator[Row]:
    """Distillation and self-play by the recipe on all scenes of the data; the policy is kept."""
    scale = inputs.scale
    worlds = scale.learning_worlds
    updates = max(1, scale.learning_steps // (worlds * 28 * (80 // inputs.vocabulary.token_steps)))
    recipe = read_settings("recipe")
    # Distillation in a tenth of the steps, in minibatches that a GPU is fast with.
    large = {"ppo.minibatch": scale.minibatch, "distill.minibatch": scale.minibatch // 4}
    steps = {"agent_steps": scale.learning_steps, "distill.agent_steps": scale.learning_steps // 10}
    config = dataclasses.replace(
        override(SelfPlayConfig(), {**leaves(load_preset("gpu")["selfplay"]), **recipe, **large, **steps}),
        worlds=worlds,
        pool=0,
        workers=scale.workers,
        checkpoint_every=max(1, updates // 2),
        evaluate_every=max(1, updates // _EVALUATIONS),
        evaluate_scenes=4,
        evaluate_rollouts=8,
        tensorboard=False,
        # It would take minutes, more than it saves here.
        compile=False,
        device=inputs.device.type,
    )
    out, started = inputs.scratch / "learning", time.perf_counter()
    validation = inputs.data / "validation"
    figures = run_selfplay(
        config,
        scenes=inputs.store_folder,
        reference=inputs.reference_file,
        out=out,
        seed=0,
        validation=validation if validation.is_dir() else None,
    )
    seconds = time.perf_counter() - started
    about = f"{worlds} worlds"
    yield Row(f"{about}: agent-steps", figures["agent_steps"], "")
    yield Row(f"{about}: all of it", seconds, "s")
    rate = figures["agent_steps"] / seconds
    yield Row(f"{about}: rate with worlds, maps, compilation and evaluations", rate, "agent-steps/s")
    with (out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    shown = [row for row in rows if row.get("evaluation_realism")]
    for row in [rows[0], *shown]:
        for name, title in _FIGURES.items():
            if row.get(name):
                yield Row(
                    f"after {float(row['agent_steps']) / 1e6:.2f} M agent-steps: {title}", float(row[name]), ""
                )
    for name in (POLICY_FILE, "metrics.csv"):
        shutil.copyfile(out / name, inputs.out / f"learning_{name}")
