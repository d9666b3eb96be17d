"""The steps of the check, the most important ones first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from pipeline.bench.gpu.inputs import Inputs
from pipeline.bench.metric import larger_map, noisy_rollouts
from pipeline.bench.rows import Row, seconds_on
from submission.realism import load_config, prepare_scene, score_states
from submission.realism.score import align


@dataclass(frozen=True)
class Step:
    """A list of checks, ``MODULE:FUNCTION`` in this package, which fail independently.

    Attributes:
        limit: time limit, seconds. needs: seconds of the budget that must be left to start it.
        spoils: it changes settings or may leave the GPU in a bad state, so its worker is not used again.
    """

    name: str
    checks: tuple[str, ...]
    limit: float
    needs: float
    spoils: bool = False


STEPS = (
    Step("machine", ("machine:versions", "machine:ceilings"), 40, 0),
    Step(
        "agreement",
        (
            "agreement:simulator",
            "agreement:policy",
            "agreement:teacher_forcing",
            "agreement:decoding",
            "agreement:tokens",
            "agreement:metric",
            "agreement:learning",
            "agreement:paths",
            "agreement:aligned",
        ),
        120,
        15,
    ),
    # Lightning makes the whole process deterministic, which is slower.
    Step("resume", ("resume:selfplay", "resume:fit", "resume:finetune"), 140, 40, spoils=True),
    Step("self-play", ("selfplay:recorded", "selfplay:plain"), 120, 20),
    Step("a training of self-play", ("learning:selfplay",), 150, 60, spoils=True),
    Step("training and anchor", ("reference:training", "reference:anchor"), 90, 20),
    Step("futures and metric", ("steps:metric", "reference:futures"), 90, 20),
    Step(
        "launches and waits",
        (
            "waits:decision",
            "waits:update",
            "waits:preparing",
            "waits:training",
            "waits:decoding",
            "waits:metric",
        ),
        90,
        20,
    ),
    Step("graph", ("machine:fake", "machine:graph"), 40, 10, spoils=True),
    Step("self-play, compiled", ("selfplay:compiled",), 150, 60),
    Step("training, compiled", ("reference:training_compiled",), 150, 60),
    Step("futures, compiled", ("reference:futures_compiled",), 120, 50),
)


def metric(inputs: Inputs) -> Iterator[Row]:
    """Time and memory of the metric for the largest scene, and for it with ten times its map."""
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
