"""The realism metric on a device: how long, and how much memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from pipeline.bench.gpu.inputs import Inputs
from pipeline.bench.metric import larger_map, noisy_rollouts
from pipeline.bench.rows import Row, seconds_on
from submission.realism import load_config, prepare_scene, score_states
from submission.realism.score import align

__all__ = ["metric"]


def metric(inputs: Inputs) -> Iterator[Row]:
    """The largest scene, as it is and with ten times its map."""
    scene = max(inputs.scenes, key=lambda scene: int(scene.simulated.sum()))
    config, rollouts = load_config("2025"), inputs.scale.rollouts
    for times in (1, 10):
        larger = larger_map(scene, times) if times > 1 else scene
        about = f"metric, {rollouts} futures, {int(scene.simulated.sum())} agents, map {times} times"
        context = prepare_scene(larger)
        states = align(context, larger.agents.id[larger.simulated], noisy_rollouts(larger, rollouts))
        context, states = context.to(inputs.device), states.to(inputs.device)
        inputs.start_memory()
        work = partial(score_states, context, states, config)
        work()
        seconds = seconds_on(inputs.device, work, inputs.scale.repeats)
        yield Row(about, 1000 * seconds, "ms", 125 if times == 1 else None)
        yield Row(f"{about}: largest memory", inputs.peak_gb(), "GB", 4.5 if times == 10 else None)
