"""Self-play with the paper's settings: rates, phases, memory, and the extra cost of new scenes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import torch

from models.reference.agent import ReferenceAgent
from pipeline.bench.gpu.inputs import Inputs, or_too_large
from pipeline.bench.rows import Row, seconds_on
from pipeline.bench.selfplay import Track
from pipeline.selfplay.anchor import ReferenceScorer
from pipeline.selfplay.rollout import Scorer
from pipeline.simulator.world import build_world, stack_worlds

__all__ = ["anchored", "compiled", "plain"]

# Estimates for 300 worlds on an H100 from reading the code: seconds by phase of an update, and agent-steps/s.
_AUDIT = {"drive": 0.25, "reference": 0.6, "learn": 1.2}
_AUDIT_RATE = 7000.0


def anchored(inputs: Inputs, worlds: int, is_compiled: bool = False) -> tuple[Track, Scorer, ReferenceScorer]:
    """Worlds with the paper's settings, and an anchor with random weights."""
    paper, names = inputs.paper, inputs.names(worlds)
    words = inputs.vocabulary.to(inputs.device)
    track = Track(inputs.resident, names, words, paper.view, is_compiled, inputs.scale.minibatch, paper.policy)
    anchor = ReferenceScorer(ReferenceAgent(inputs.network(inputs.scale.sizes[0])), inputs.scenes.__getitem__)
    return track, partial(anchor.scores, names, track.world), anchor


def _measured(inputs: Inputs, worlds: int, is_compiled: bool) -> Iterator[Row]:
    about = f"{worlds} worlds{', compiled' if is_compiled else ''}"
    inputs.start_memory()
    track, score, anchor = anchored(inputs, worlds, is_compiled)
    epochs, audited = inputs.scale.epochs, worlds == inputs.paper.worlds and not is_compiled
    steps = track.steps
    yield Row(f"{about}: agent-steps of an update", steps, "", 420_000 if worlds == inputs.paper.worlds else None)
    rate = "agent-steps/s"
    for name, work in (
        ("simulator and observations alone", track.simulate),
        ("policy in the loop", track.learn(None, 0)),
        (f"trained, {epochs} epochs", track.learn(None, epochs)),
    ):
        started = time.perf_counter()
        work()
        if is_compiled:
            yield Row(f"{about}: {name}, first call", time.perf_counter() - started, "s")
        yield Row(f"{about}: {name}", steps / seconds_on(inputs.device, work, inputs.scale.repeats), rate)
    work = track.learn(score, epochs)
    work()
    again = seconds_on(inputs.device, work, inputs.scale.repeats)
    yield Row(f"{about}: trained and anchored to {inputs.scale.sizes[0]}, maps known", steps / again, rate)
    for name, seconds in track.phases.items():
        estimate = _AUDIT.get(name) if audited else None
        yield Row(f"{about}: {name}", seconds, "s", estimate)
    yield Row(f"{about}: largest memory", inputs.peak_gb(), "GB")
    # What a scene costs once in a training: its world built and moved, its map encoded.
    scenes = inputs.scenes[: inputs.scale.compared]
    build = seconds_on(
        torch.device("cpu"),
        lambda: [build_world(s, inputs.vocabulary, inputs.paper.view.road_segments) for s in scenes],
    ) / len(scenes)
    started = time.perf_counter()
    stacked = stack_worlds(inputs.built)
    stack = (time.perf_counter() - started) / len(inputs.built)
    copy = seconds_on(inputs.device, lambda: inputs.moved(stacked)) / len(inputs.built)
    anchor._known.clear()
    known = range(min(worlds, len(inputs.scenes)))
    encode = seconds_on(inputs.device, lambda: [anchor._prepared(name) for name in known]) / len(known)
    yield Row(f"{about}: a scene: world built", build, "CPU s", 0.18 if audited else None)
    yield Row(f"{about}: a scene: world stacked and copied", 1000 * (stack + copy), "ms")
    yield Row(f"{about}: a scene: map encoded", 1000 * encode, "ms", 10.0 if audited else None)


def plain(inputs: Inputs) -> Iterator[Row | str]:
    """Several numbers of worlds, that of the paper first."""
    paper = inputs.paper.worlds
    for worlds in sorted(inputs.scale.worlds, key=lambda count: abs(count - paper)):
        yield from or_too_large(f"{worlds} worlds", _measured(inputs, worlds, False))


def compiled(inputs: Inputs) -> Iterator[Row]:
    """Compiled simulator, policy and learner, with the number of worlds nearest to the paper's."""
    worlds = min(inputs.scale.worlds, key=lambda count: abs(count - inputs.paper.worlds))
    yield from _measured(inputs, worlds, True)
