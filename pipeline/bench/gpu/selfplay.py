"""Self-play with the paper's settings: rates, phases, memory, and the extra cost of new scenes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch

from models.reference.agent import ReferenceAgent
from models.reference.known_scenes import encode_scenes
from pipeline.bench.gpu.inputs import Inputs, or_too_large
from pipeline.bench.rows import Row, seconds_on
from pipeline.bench.selfplay import Track
from pipeline.selfplay.anchor import ReferenceScorer
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.rollout import Scorer
from pipeline.simulator.step import decisions
from pipeline.simulator.world import build_world, stack_worlds

# Estimates for 300 worlds on an H100 from reading the code: seconds by phase of an update.
_AUDIT = {"drive": 0.25, "reference": 0.6, "learn": 1.2}


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
    # As in the processes that build worlds: many threads would only wait for one another.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    build = seconds_on(
        torch.device("cpu"),
        lambda: [build_world(s, inputs.vocabulary, inputs.paper.view.listed_segments) for s in scenes],
    ) / len(scenes)
    torch.set_num_threads(threads)
    started = time.perf_counter()
    stacked = stack_worlds(inputs.built)
    stack = (time.perf_counter() - started) / len(inputs.built)
    copy = seconds_on(inputs.device, lambda: inputs.moved(stacked)) / len(inputs.built)
    scenes = inputs.scenes[: min(worlds, len(inputs.scenes))]
    encode = seconds_on(inputs.device, lambda: encode_scenes(anchor.reference, scenes, 9)) / len(scenes)
    yield Row(f"{about}: a scene: world built", build, "CPU s", 0.18 if audited else None)
    yield Row(f"{about}: a scene: world stacked and copied", 1000 * (stack + copy), "ms")
    yield Row(f"{about}: a scene: map encoded", 1000 * encode, "ms", 10.0 if audited else None)


def recorded(inputs: Inputs) -> Iterator[Row]:
    """Episodes and updates as CUDA graphs against the same without."""
    if not inputs.on_gpu:
        return
    paper, rows = inputs.paper, inputs.names(inputs.scale.worlds[0])
    words, size = inputs.vocabulary.to(inputs.device), replace(paper.policy, dropout=0.0)
    track = Track(inputs.resident, rows, words, paper.view, False, inputs.scale.minibatch, size)
    results = []
    for is_recorded in (False, True):
        config = PPOConfig(minibatch=track.minibatch, epochs=2, beta=0.0)
        policy, learner, driver = track.trainer(config, recorded=is_recorded)
        generator = torch.Generator().manual_seed(0)
        actions, figures = [], {}
        for _ in range(3):
            uniform = torch.rand(decisions(inputs.vocabulary) + 2, *track.world.types.shape, generator=generator)
            rollout = driver.collect(rows, track.world, None, uniform.to(inputs.device), None)
            actions.append(rollout.actions[:, : rollout.agents].clone())
            figures = learner.update(rollout, generator)
        results.append((actions, figures, list(policy.parameters())))
    (actions, figures, weights), (others, alike, moved) = results
    for number, (one, two) in enumerate(zip(actions, others, strict=True)):
        name = f"graphs: actions that differ in update {number + 1}, of {one.numel():,}"
        yield Row(name, int((one != two).sum()), "actions")
    apart = max(abs(figures[name] - alike[name]) for name in figures)
    yield Row("graphs: largest difference of the figures of update 3", apart, "")
    change = sum(float((a - b).detach().square().sum()) for a, b in zip(weights, moved, strict=True)) ** 0.5
    norm = sum(float(a.detach().square().sum()) for a in weights) ** 0.5
    yield Row("graphs: difference of the weights after 3 updates", 100 * change / norm, "% of their norm")


def plain(inputs: Inputs) -> Iterator[Row | str]:
    """Several numbers of worlds, that of the paper first."""
    paper = inputs.paper.worlds
    for worlds in sorted(inputs.scale.worlds, key=lambda count: abs(count - paper)):
        yield from or_too_large(f"{worlds} worlds", _measured(inputs, worlds, False))


def compiled(inputs: Inputs) -> Iterator[Row]:
    """Compiled simulator, policy and learner, with the number of worlds nearest to the paper's."""
    worlds = min(inputs.scale.worlds, key=lambda count: abs(count - inputs.paper.worlds))
    yield from _measured(inputs, worlds, True)
