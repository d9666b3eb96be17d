"""Launches and waits of the host in every hot path."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch

from models.reference.agent import ReferenceAgent
from models.reference.inputs import select_agents
from models.reference.known_scenes import encode_scenes
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.bench.gpu.inputs import Inputs
from pipeline.bench.gpu.selfplay import anchored
from pipeline.bench.launches import LaunchCounter, kernels, reported_waits
from pipeline.bench.metric import larger_map, noisy_rollouts
from pipeline.bench.reference import TrainingStep
from pipeline.bench.rows import Row
from pipeline.selfplay.rollout import act
from pipeline.simulator.episode import Simulator
from submission.realism import load_config, prepare_scene, score_states


def _counted(
    inputs: Inputs,
    name: str,
    work: Callable[[], object],
    launches: float | None = None,
    waits: float | None = None,
    profiled: bool = False,
) -> Iterator[Row | str]:
    """Launches and waits of a path; ``launches`` and ``waits`` are estimates from reading the code, for a call."""
    work()  # allocates buffers and loads libraries
    with LaunchCounter(inputs.device) as counter:
        work()
    yield Row(f"{name}: operators launched", counter.launched, "", launches)
    yield Row(f"{name}: waits of the host, by operator", counter.waited, "", waits)
    places = counter.waits
    if inputs.on_gpu:
        with reported_waits() as reported:
            work()
        yield Row(f"{name}: waits of the host, as CUDA reports them", reported.total(), "", waits)
        places = counter.waits + reported
        if profiled:
            seen = kernels(work)
            yield Row(f"{name}: kernels and copies on the GPU", seen.count, "", launches)
            yield Row(f"{name}: time of the clock", 1000 * seen.seconds, "ms")
            yield Row(f"{name}: the GPU busy", 100 * seen.busy / seen.seconds, "%")
            yield from (f"{name}: {line}" for line in seen.longest)
    yield from (f"{name}: waits {count} x {place}" for place, count in places.most_common(6))


@torch.no_grad()
def decision(inputs: Inputs) -> Iterator[Row | str]:
    """Observation, policy and step, once for the worlds of an update."""
    words, view = inputs.vocabulary.to(inputs.device), inputs.paper.view
    world = inputs.world(inputs.scale.worlds[0])
    net, seen_by_net = inputs.policy()
    simulator, other = Simulator(words, view), Simulator(words, seen_by_net)
    for one in (simulator, other):
        one.reset(world, world.exists, torch.zeros_like(world.exists))
    step = partial(simulator.step, torch.zeros_like(world.types))
    yield from _counted(inputs, "observe", simulator.observe, 161, 1, True)
    yield from _counted(inputs, "policy", partial(act, net, other.observe()), 41, 1, True)
    yield from _counted(inputs, "step and events", step, 383, 2, True)


def update(inputs: Inputs) -> Iterator[Row | str]:
    """A whole update of self-play with anchor."""
    track, score, _ = anchored(inputs, inputs.scale.worlds[0])
    yield from _counted(inputs, "an update, all of it", track.learn(score, 1), None, None, True)
    once, twice = (_launches(inputs, track.learn(None, epochs)) for epochs in (1, 2))
    batches = max(1, round(int(track.world.exists.sum()) * 40 / track.minibatch))
    yield Row("a minibatch: operators launched", (twice[0] - once[0]) / batches, "", 245)
    yield Row("a minibatch: waits of the host, by operator", (twice[1] - once[1]) / batches, "", 4)


def _launches(inputs: Inputs, work: Callable[[], object]) -> tuple[int, int]:
    with LaunchCounter(inputs.device) as counter:
        work()
    return counter.launched, counter.waited


def preparing(inputs: Inputs) -> Iterator[Row | str]:
    """Encoding of maps for the anchor, as for every new scene."""
    agent = ReferenceAgent(inputs.network(inputs.scale.sizes[0]))
    scenes = inputs.scenes[: inputs.scale.compared]
    work = partial(encode_scenes, agent, scenes, 9)
    yield from _counted(inputs, f"{len(scenes)} scenes prepared for the anchor", work, None, None, True)


def training(inputs: Inputs) -> Iterator[Row | str]:
    """A training step of the reference."""
    step = TrainingStep(
        inputs.scenes[: inputs.scale.batch], inputs.network(inputs.scale.sizes[0]), inputs.vocabulary
    )
    ready = step.copied()
    yield from _counted(inputs, "training: forward", partial(step.loss, ready), 877, 0, True)
    yield from _counted(inputs, "training: a whole step", step, 877 + 823, 0, True)


@torch.no_grad()
def decoding(inputs: Inputs) -> Iterator[Row | str]:
    """Futures of a scene by the reference and by the policy."""
    scene, rollouts = inputs.scenes[0], inputs.scale.rollouts
    agent = ReferenceAgent(inputs.network(inputs.scale.sizes[0]))
    steps = agent.unroll(agent.prepare(scene), rollouts)

    def step() -> None:
        steps.execute(steps.logits().argmax(-1))

    yield from _counted(inputs, "a decoding step of the reference", step, None, 3, True)
    work = partial(ReferenceDriver(agent).rollouts, scene, rollouts, 0)
    yield from _counted(inputs, f"{rollouts} futures of the reference", work, 27500, None)
    net, view = inputs.policy()
    work = partial(PolicyAgent(net, inputs.vocabulary, view).rollouts, scene, rollouts, 0)
    yield from _counted(inputs, f"{rollouts} futures of the policy", work)


def metric(inputs: Inputs) -> Iterator[Row | str]:
    """The metric of a scene without the features of the log, and with a map of ten times the size."""
    for title, times, launches in (("the metric", 1, None), ("the metric, map 10 times", 10, 8000)):
        scene = larger_map(inputs.scenes[0], times)
        scene = select_agents(scene, scene.simulated.nonzero().flatten())
        context = inputs.moved(prepare_scene(scene))
        states = noisy_rollouts(scene, inputs.scale.rollouts).to(inputs.device)
        work = partial(score_states, context, states, load_config("2025"))
        yield from _counted(inputs, title, work, launches, 0, True)
