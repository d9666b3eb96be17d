"""Speed and memory of the reference: training, scores of the anchor, and futures, by size and precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from data.scene import Scene
from models.reference.agent import ReferenceAgent
from pipeline.agents.agent import Agent
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.bench.gpu.inputs import Inputs, or_too_large
from pipeline.bench.reference import TrainingStep
from pipeline.bench.rows import Row, seconds_on
from pipeline.selfplay.anchor import ReferenceScorer
from pipeline.simulator.world import decision_poses

# Estimates for an H100 from reading the code: agent-tokens per second of training.
_TRAINING = {"mini": 600_000.0, "tiny": 270_000.0}


def training(inputs: Inputs) -> Iterator[Row | str]:
    """Training steps on prepared recordings, in float32 and in bfloat16, with the time of each phase."""
    for size in inputs.scale.sizes:
        for title, precision in (("bf16", torch.bfloat16), ("float32", None)):
            about = f"training {size}, {inputs.scale.batch} scenes, {title}"
            yield from or_too_large(about, _trained(inputs, size, precision, about))


def training_compiled(inputs: Inputs) -> Iterator[Row | str]:
    """Training steps in bfloat16, compiled as by ``fit.compile``."""
    for size in inputs.scale.sizes:
        about = f"training {size}, {inputs.scale.batch} scenes, bf16, compiled"
        yield from or_too_large(about, _trained(inputs, size, torch.bfloat16, about, compiled=True))


def _trained(
    inputs: Inputs, size: str, precision: torch.dtype | None, about: str, compiled: bool = False
) -> Iterator[Row]:
    inputs.start_memory()
    scenes, model = inputs.scenes[: inputs.scale.batch], inputs.network(size)
    if compiled:
        model.compile(fullgraph=True, dynamic=True)
    step = TrainingStep(scenes, model, inputs.vocabulary, precision)
    first = seconds_on(inputs.device, step)
    if compiled:
        yield Row(f"{about}: first call", first, "s")
    seconds = seconds_on(inputs.device, step, inputs.scale.repeats)
    known = _TRAINING.get(size) if precision is not None else None
    yield Row(about, step.tokens / seconds, "agent-tokens/s", known)
    yield from (Row(f"{about}: {phase}", 1000 * spent, "ms") for phase, spent in step.seconds.items())
    yield Row(f"{about}: largest memory of a scene", inputs.peak_gb() / len(scenes), "GB")


def anchor(inputs: Inputs) -> Iterator[Row]:
    """The anchor's scores of an episode with cached maps: float32, TF32, bfloat16."""
    worlds = min(inputs.scale.worlds, key=lambda count: abs(count - inputs.paper.worlds))
    world, names = inputs.world(worlds), inputs.names(worlds)
    executed = world.log_ids
    poses = decision_poses(world.pose, world.log, inputs.vocabulary.token_steps)
    present = world.exists.unsqueeze(-1).expand(poses.shape[:-1])
    count = int(world.exists.sum()) * executed.shape[-1]
    for size in inputs.scale.sizes:
        scorer = ReferenceScorer(ReferenceAgent(inputs.network(size)), inputs.scenes.__getitem__)
        about = f"anchor {size}, {worlds} worlds"

        def work(scorer: ReferenceScorer = scorer) -> Tensor:
            return scorer.log_probs(names, world, executed, poses, world.exists, present)

        def rate(work: Callable[[], Tensor] = work) -> float:
            inputs.start_memory()
            work()
            return count / seconds_on(inputs.device, work, inputs.scale.repeats)

        yield Row(f"{about}, float32", rate(), "agent-steps/s")
        yield Row(f"{about}: largest memory", inputs.peak_gb(), "GB")
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            yield Row(f"{about}, TF32", rate(), "agent-steps/s")
        finally:
            torch.set_float32_matmul_precision(before)
        with torch.autocast(inputs.device.type, torch.bfloat16):
            yield Row(f"{about}, bf16", rate(), "agent-steps/s")


def _reference_agent(inputs: Inputs, size: str, compiled: bool) -> ReferenceDriver:
    return ReferenceDriver(ReferenceAgent(inputs.network(size), compiled))


def _futures(inputs: Inputs, compiled: bool) -> Iterator[Row]:
    net, view = inputs.policy()
    agents: dict[str, Callable[[], Agent]] = {
        "policy": lambda: PolicyAgent(net, inputs.vocabulary, view, compiled=compiled)
    }
    for size in inputs.scale.sizes:
        agents[size] = partial(_reference_agent, inputs, size, compiled)
    count, rollouts = inputs.scale.compared, inputs.scale.rollouts
    alone, several = inputs.scenes[:count], inputs.scenes[: 4 * count]
    for name, make in agents.items():
        inputs.start_memory()
        agent = make()

        def one_by_one(agent: Agent = agent) -> list[Tensor]:
            return [agent.rollouts(scene, rollouts, 0) for scene in alone]

        def together(agent: Agent = agent) -> list[tuple[Scene, Tensor]]:
            return list(agent.rollouts_of(several, rollouts, 0))

        about = f"{rollouts} futures by {name}{', compiled' if compiled else ''}"
        if compiled:
            first = partial(agent.rollouts, alone[0], rollouts, 0)
            yield Row(f"{about}: first scene", seconds_on(inputs.device, first), "s")
        estimate = {False: 4.5, True: 11.0}[compiled] if name == "mini" else None
        for how, work, scenes in ((", one by one", one_by_one, alone), ("", together, several)):
            work()
            yield Row(f"{about}{how}", len(scenes) / seconds_on(inputs.device, work), "scenes/s", estimate)
        yield Row(f"{about}: largest memory", inputs.peak_gb(), "GB")


def futures(inputs: Inputs) -> Iterator[Row]:
    """Sampling of complete sets of futures."""
    yield from _futures(inputs, False)


def futures_compiled(inputs: Inputs) -> Iterator[Row]:
    """The same, compiled."""
    yield from _futures(inputs, True)
