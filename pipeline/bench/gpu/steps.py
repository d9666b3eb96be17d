"""The steps of the check, by value: what would be worst not to know comes first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from pipeline.bench.gpu.inputs import Inputs
from pipeline.bench.metric import larger_map, noisy_rollouts
from pipeline.bench.rows import Row, seconds_on
from submission.realism import load_config, prepare_scene, score_states
from submission.realism.score import align

__all__ = ["STEPS", "Step", "metric"]


@dataclass(frozen=True)
class Step:
    """Some checks, ``MODULE:FUNCTION`` in this package, each of which may fail alone.

    Attributes:
        limit: seconds after which the step is ended. needs: seconds without which it is not begun.
        spoils: it leaves settings or a broken card behind, so that its process is not used again.
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
    # Lightning leaves the whole process deterministic, which is slower.
    Step("resume", ("resume:selfplay", "resume:fit", "resume:finetune"), 140, 40, spoils=True),
    Step("self-play", ("selfplay:plain",), 120, 20),
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
    Step("futures, compiled", ("reference:futures_compiled",), 120, 50),
)


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
