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
from pipeline.simulator.step import decisions
from pipeline.simulator.world import build_world, stack_worlds

__all__ = ["anchored", "compiled", "plain"]

# Estimates for 300 worlds on an H100 from reading the code: seconds by phase of an update, and agent-steps/s.
_AUDIT = {"drive": 0.25, "reference": 0.6, "learn": 1.2}
_AUDIT_RATE = 7000.0


def anchored(inputs: Inputs, worlds: int, is_compiled: bool = False) -> tuple[Track, Scorer, ReferenceScorer]:
    """Worlds with the paper's settings, and an anchor with random weights."""
    paper, names = inputs.paper, inputs.names(worlds)
    world, words = inputs.world(worlds), inputs.vocabulary.to(inputs.device)
    track = Track(world, words, paper.view, is_compiled, inputs.scale.minibatch, paper.policy)
    anchor = ReferenceScorer(ReferenceAgent(inputs.network(inputs.scale.sizes[0])), inputs.scenes.__getitem__)
    return track, partial(anchor.scores, names, world), anchor


def _measured(inputs: Inputs, worlds: int, is_compiled: bool) -> Iterator[Row]:
    about = f"{worlds} worlds{', compiled' if is_compiled else ''}"
    inputs.start_memory()
    track, score, anchor = anchored(inputs, worlds, is_compiled)
    epochs, audited = inputs.scale.epochs, worlds == inputs.paper.worlds and not is_compiled
    steps = int(track.world.exists.sum()) * decisions(inputs.vocabulary)
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
    drive = sum(track.phases[name] for name in ("observe", "policy", "simulate"))
    for name, seconds in {**track.phases, "drive (observe, policy, simulate)": drive}.items():
        estimate = _AUDIT.get(name.split()[0]) if audited else None
        yield Row(f"{about}: {name}", seconds, "s", estimate)
    yield Row(f"{about}: largest memory", inputs.peak_gb(), "GB")
    # The costs of a world that is not cached: building, stacking, copying, and encoding its map.
    scenes = inputs.scenes[: inputs.scale.compared]
    build = seconds_on(
        torch.device("cpu"),
        lambda: [build_world(s, inputs.vocabulary, inputs.paper.view.road_segments) for s in scenes],
    ) / len(scenes)
    parts = [inputs.built[name] for name in inputs.names(worlds)]
    started = time.perf_counter()
    stacked = stack_worlds(parts)
    stack = time.perf_counter() - started
    copy = seconds_on(inputs.device, lambda: inputs.moved(stacked))
    yield Row(f"{about}: a world built", build, "CPU s", 0.18 if audited else None)
    yield Row(f"{about}: worlds stacked on the host and copied", stack + copy, "s", 3.0 if audited else None)
    known = min(worlds, len(inputs.scenes))
    anchor._known.clear()
    encode = seconds_on(inputs.device, lambda: [anchor._prepared(name) for name in range(known)]) * worlds / known
    yield Row(f"{about}: maps encoded, if all scenes are new", encode, "s", 3.0 if audited else None)
    whole = build * worlds + stack + copy + encode + again
    estimate = _AUDIT_RATE if audited else None
    yield Row(f"{about}: trained and anchored, all scenes new, built by one process", steps / whole, rate, estimate)


def plain(inputs: Inputs) -> Iterator[Row | str]:
    """Several numbers of worlds, that of the paper first."""
    paper = inputs.paper.worlds
    for worlds in sorted(inputs.scale.worlds, key=lambda count: abs(count - paper)):
        yield from or_too_large(f"{worlds} worlds", _measured(inputs, worlds, False))


def compiled(inputs: Inputs) -> Iterator[Row]:
    """Compiled simulator, policy and learner, with the number of worlds nearest to the paper's."""
    worlds = min(inputs.scale.worlds, key=lambda count: abs(count - inputs.paper.worlds))
    yield from _measured(inputs, worlds, True)
