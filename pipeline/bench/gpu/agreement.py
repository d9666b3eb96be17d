"""Agreement of a device with the CPU: the largest difference of every hot path."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import torch
from lightning.fabric import Fabric
from torch import Tensor

from data.batch import collate
from data.geometry import wrap_angle
from data.scene import map_tensors
from models.reference.agent import ReferenceAgent
from models.reference.inputs import select_agents
from models.reference.recording import scene_inputs
from pipeline.agents.policy_agent import PolicyAgent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.bench.gpu.inputs import Inputs, largest
from pipeline.bench.metric import noisy_rollouts
from pipeline.bench.reference import TrainingStep
from pipeline.bench.rows import Row
from pipeline.selfplay.anchor import ReferenceScorer, mean_divergence, scene_divergences
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.learner import Learner
from pipeline.selfplay.rollout import Executed, Rollout, act, collect
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import Observation
from pipeline.simulator.reward import RewardConfig
from pipeline.simulator.step import decisions
from submission.realism import METRIC_FIELDS, load_config, prepare_scene, score, score_states
from submission.realism.score import align

_CPU = torch.device("cpu")
# Differences of log-probabilities are ignored below this probability.
_LIKELY = 1e-3
_EVENTS = ("collision", "off_road", "red_light", "goal")


def _tokens(inputs: Inputs) -> Tensor:
    """Tokens [W, A, D] of the log, a tenth of them random, so that some agents leave the road."""
    logged = inputs.world(inputs.scale.compared, _CPU).log_ids
    generator = torch.Generator().manual_seed(0)
    other = torch.randint(inputs.vocabulary.size, logged.shape, generator=generator)
    return torch.where(torch.rand(logged.shape, generator=generator) < 0.1, other, logged)


@torch.no_grad()
def _executed_on(inputs: Inputs, device: torch.device) -> tuple[Executed, Tensor]:
    """An episode with fixed tokens on a device, and its events [4, W, A, D]."""
    words, view = inputs.vocabulary.to(device), inputs.paper.view
    world, tokens = inputs.world(inputs.scale.compared, device), _tokens(inputs).to(device)
    simulator = Simulator(words, view, RewardConfig(forgive_start=False))
    simulator.reset(world, world.exists, torch.zeros_like(world.exists))
    poses, present, seen, events = [simulator.state.pose], [simulator.state.present], [], []
    for index in range(decisions(words)):
        seen.append(simulator.observe())
        _, step_events = simulator.step(tokens[..., index])
        poses.append(simulator.state.pose)
        present.append(simulator.state.present)
        events.append(torch.stack([getattr(step_events, name) for name in _EVENTS]))
    path = torch.stack(poses, 2), torch.stack(present, -1)
    joined = Observation(**{name: torch.cat([getattr(one, name) for one in seen]) for name in vars(seen[0])})
    executed = Executed(tokens, *path, world.exists, simulator.agent_index, joined)
    return executed, torch.stack(events, -1)


def simulator(inputs: Inputs) -> Iterator[Row]:
    """All decisions of an episode with fixed tokens: poses, events, observations."""
    (ours, our_events), (theirs, their_events) = _executed_on(inputs, _CPU), _executed_on(inputs, inputs.device)
    count = ours.tokens.shape[-1]
    yield Row(
        f"positions in {count} decisions with fixed tokens",
        largest(ours.poses[..., :2], theirs.poses[..., :2]),
        "m",
    )
    turned = wrap_angle(ours.poses[..., 2] - theirs.poses[..., 2].cpu())
    yield Row("headings, likewise", largest(turned, torch.zeros_like(turned)), "rad")
    for index, name in enumerate(_EVENTS):
        other = int((our_events[index] != their_events[index].cpu()).sum())
        yield Row(f"{name} flags that differ, of {int(our_events[index].sum())} raised", other, "flags")
    for name in ("ego", "neighbour", "road"):
        one, other = (getattr(executed.observations, name).cpu() for executed in (ours, theirs))
        if one.dim() == 3:
            # The order of neighbours and segments is arbitrary.
            one, other = one.sort(1).values, other.sort(1).values
        apart = (one - other).abs().flatten(1).amax(1)
        percentage = 100 * float((apart > 1e-3).double().mean())
        yield Row(f"observations of {name} that differ by more than 1e-3, of {len(one):,}", percentage, "%")
        alike = apart[apart <= 1e-3]
        yield Row(
            f"largest difference of the other observations of {name}", float(alike.max()) if len(alike) else 0.0, ""
        )


def _apart(one: Tensor, other: Tensor) -> float:
    """Largest |delta log p| of tokens with a probability above ``_LIKELY`` on one of the devices."""
    one, other = one.double().cpu(), other.double().cpu()
    return largest(one, other, torch.maximum(one, other).exp() > _LIKELY)


@torch.no_grad()
def policy(inputs: Inputs) -> Iterator[Row]:
    """Log-probabilities of the trained policy: between devices, and bfloat16 against float32."""
    world = inputs.world(inputs.scale.compared, _CPU)
    net, view = inputs.policy(_CPU)
    simulator = Simulator(inputs.vocabulary, view)
    simulator.reset(world, world.exists, torch.zeros_like(world.exists))
    seen = simulator.observe()
    logits, value = act(net, seen)
    there = inputs.moved(seen)
    net = net.to(inputs.device)
    other, other_value = act(net, there)
    yield Row(
        "policy, log p where p > 1e-3, float32", _apart(logits.log_softmax(-1), other.log_softmax(-1)), "nats"
    )
    yield Row("policy, value, float32", largest(value, other_value), "")
    with torch.autocast(inputs.device.type, torch.bfloat16):
        half, half_value = act(net, there)
    yield Row(
        "policy, log p where p > 1e-3, bf16 against float32",
        _apart(other.log_softmax(-1), half.log_softmax(-1)),
        "nats",
        0.037,
    )
    yield Row("policy, value, bf16 against float32", largest(other_value, half_value), "")


def teacher_forcing(inputs: Inputs) -> Iterator[Row]:
    """The anchor's log-probabilities of an executed episode: between devices, and at lower precision."""
    executed, _ = _executed_on(inputs, _CPU)
    world, names = inputs.world(inputs.scale.compared, _CPU), inputs.names(inputs.scale.compared)
    size = inputs.scale.sizes[0]
    parts = (executed.tokens, executed.poses, executed.controlled, executed.present)

    def scored(agent: ReferenceAgent, device: torch.device) -> Tensor:
        anchor = ReferenceScorer(agent, inputs.scenes.__getitem__)
        there = (tensor.to(device) for tensor in parts)
        return anchor.log_probs(names, inputs.moved(world, device), *there)[executed.agent_index].cpu()

    for title, ours, theirs in (
        (
            f"{size}, random weights",
            ReferenceAgent(inputs.network(size, _CPU)),
            ReferenceAgent(inputs.network(size)),
        ),
        ("trained", inputs.reference(_CPU), inputs.reference()),
    ):
        right = scored(ours, _CPU)
        yield Row(
            f"anchor, {title}: log p where p > 1e-3, float32", _apart(right, scored(theirs, inputs.device)), "nats"
        )
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high")
        try:
            quick = scored(theirs, inputs.device)
        finally:
            torch.set_float32_matmul_precision(before)
        yield Row(f"anchor, {title}: the same, TF32", _apart(right, quick), "nats")
        with torch.autocast(inputs.device.type, torch.bfloat16):
            half = scored(theirs, inputs.device)
        yield Row(f"anchor, {title}: the same, bf16", _apart(right, half), "nats")


@torch.no_grad()
def decoding(inputs: Inputs) -> Iterator[Row]:
    """Decoding with fixed tokens, then sampled futures, where a single other token gives another future."""
    scene = inputs.scenes[0]
    rollouts = inputs.scale.compared
    ours, theirs = inputs.reference(_CPU), inputs.reference()
    one, other = (agent.unroll(agent.prepare(scene), rollouts) for agent in (ours, theirs))
    generator = torch.Generator().manual_seed(0)
    apart, away = 0.0, 0.0
    for _ in range(decisions(inputs.vocabulary)):
        logits = one.logits().log_softmax(-1)
        apart = max(apart, _apart(logits, other.logits().log_softmax(-1)))
        drawn = torch.distributions.Categorical(logits=logits)
        ids = drawn.probs.flatten(0, 1).multinomial(1, generator=generator).view(logits.shape[:-1])
        one.execute(ids)
        other.execute(ids.to(inputs.device))
        away = max(away, largest(one.pose, other.pose))
    yield Row("decoding with fixed tokens: log p where p > 1e-3", apart, "nats")
    yield Row("decoding with fixed tokens: poses", away, "m, rad")
    for title, pair in (
        ("reference", (ReferenceDriver(ours), ReferenceDriver(theirs))),
        (
            "policy",
            [PolicyAgent(net, inputs.vocabulary, view) for net, view in (inputs.policy(_CPU), inputs.policy())],
        ),
    ):
        futures = [agent.rollouts(scene, rollouts, 0) for agent in pair]
        same = ((futures[0] - futures[1])[..., :2].norm(dim=-1) < 0.01).all(-1)
        yield Row(
            f"{title}: sampled futures of agents that differ by a centimetre",
            100 * float((~same).double().mean()),
            "%",
        )


def tokens(inputs: Inputs) -> Iterator[Row]:
    """Tokenisation of recorded motion."""
    scenes = [select_agents(s, s.simulated.nonzero().flatten()) for s in inputs.scenes[: inputs.scale.compared]]
    batch = collate(scenes)
    ours = scene_inputs(batch, inputs.vocabulary)
    theirs = scene_inputs(inputs.moved(batch), inputs.vocabulary.to(inputs.device))
    valid = ours.tokens.valid
    other = (ours.tokens.ids != theirs.tokens.ids.cpu()) | (valid != theirs.tokens.valid.cpu())
    yield Row(f"tokens that differ, of {int(valid.sum()):,}", int(other.sum()), "tokens")
    yield Row("poses along tokens", largest(ours.tokens.poses, theirs.tokens.poses), "m, rad")


def metric(inputs: Inputs) -> Iterator[Row | str]:
    """The realism metric: this device against this CPU, and this CPU against the scores in the prepared folder."""
    config, fixed = load_config("2025"), torch.load(inputs.data / "scores.pt", weights_only=True)
    apart, here, worst = 0.0, 0.0, ""
    for scene in inputs.scenes[: inputs.scale.compared]:
        name = str(scene.scenario_id)
        context = prepare_scene(scene)
        states = align(context, scene.agents.id[scene.simulated], noisy_rollouts(scene, inputs.scale.rollouts))
        ours = torch.stack([score_states(context, states, config).values[f] for f in METRIC_FIELDS])
        theirs = score_states(context.to(inputs.device), states.to(inputs.device), config).values
        for field, value in zip(METRIC_FIELDS, ours, strict=True):
            if (difference := largest(value, theirs[field])) >= apart:
                apart, worst = difference, f"{field} of {name}"
        if name in fixed and fixed[name]["rollouts"] == inputs.scale.rollouts:
            here = max(here, largest(ours, fixed[name]["values"]))
    yield Row("metric: largest difference of any field", apart, "", 4e-7)
    yield Row("metric: this CPU against the scores that came with the data", here, "")
    yield f"metric: the largest difference is in {worst}"


def _relative(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    """Norm of the difference of two lists of tensors, relative to that of the first."""
    pairs = [(a.detach().double().cpu(), b.detach().double().cpu()) for a, b in zip(one, other, strict=True)]
    apart = sum(float((a - b).square().sum()) for a, b in pairs)
    return (apart / max(1e-300, sum(float(a.square().sum()) for a, _ in pairs))) ** 0.5


def learning(inputs: Inputs) -> Iterator[Row]:
    """A gradient of the reference, and an update of PPO from the same episode."""
    size = inputs.scale.sizes[0]
    results = []
    for device in (_CPU, inputs.device):
        model = inputs.network(size, device).eval()
        step = TrainingStep(inputs.scenes[: inputs.scale.compared], model, inputs.vocabulary)
        loss = step.loss(step.copied())
        loss.backward()
        results.append((loss, [p.grad for p in model.parameters() if p.grad is not None]))
    (loss, gradient), (other, others) = results
    yield Row(f"training {size}: loss, float32", largest(loss, other), "nats")
    yield Row(f"training {size}: gradient, float32", 100 * _relative(gradient, others), "% of its norm")
    world, (net, view) = inputs.world(inputs.scale.compared, _CPU), inputs.policy(_CPU)
    uniform = torch.rand(
        decisions(inputs.vocabulary) + 2, *world.types.shape, generator=torch.Generator().manual_seed(0)
    )
    config = dataclasses.replace(PPOConfig(beta=0.0), minibatch=inputs.scale.minibatch, epochs=1)
    rollout = collect(net, Simulator(inputs.vocabulary, view), world, None, config, uniform)
    figures, weights = [], []
    for device in (_CPU, inputs.device):
        fabric = Fabric(accelerator="gpu" if device.type == "cuda" else "cpu", devices=1, precision="32-true")
        bare, _ = inputs.policy(device)
        there = _moved_rollout(rollout, device)
        figures.append(Learner(fabric, bare, config).update(there, torch.Generator().manual_seed(0)))
        weights.append(list(bare.parameters()))
    apart = max(abs(figures[0][name] - figures[1][name]) for name in figures[0])
    yield Row("an update of PPO: largest difference of its figures", apart, "")
    before = list(inputs.policy(_CPU)[0].parameters())
    changes = [[(a.detach().cpu() - b.detach()) for a, b in zip(after, before, strict=True)] for after in weights]
    yield Row("an update of PPO: change of the weights", 100 * _relative(*changes), "% of its norm")


def _moved_rollout(rollout: Rollout, device: torch.device) -> Rollout:
    moved = map_tensors(rollout, lambda tensor: tensor.to(device))
    return dataclasses.replace(moved, sums={name: value.to(device) for name, value in rollout.sums.items()})


def paths(inputs: Inputs) -> Iterator[Row]:
    """Entry points with models on the device and scenes on the CPU, as from a store."""
    scenes = inputs.scenes[:2]
    net, view = inputs.policy()
    ours, our_view = inputs.policy(_CPU)
    there = mean_divergence(scene_divergences(net, inputs.reference(), scenes, view, 0))
    here = mean_divergence(scene_divergences(ours, inputs.reference(_CPU), scenes, our_view, 0))
    yield Row("divergence of policy and reference", max(abs(there[n] - here[n]) for n in here), "nats")


def aligned(inputs: Inputs) -> Iterator[Row]:
    """``score`` with ids on the CPU, states and context on the device."""
    scene = inputs.scenes[0]
    context, config = prepare_scene(scene), load_config("2025")
    states, ids = noisy_rollouts(scene, 2), scene.agents.id[scene.simulated]
    ours = score(context, ids, states, config).values["metametric"]
    theirs = score(context.to(inputs.device), ids, states.to(inputs.device), config).values["metametric"]
    yield Row("score() with ids on the CPU: metametric", largest(ours, theirs), "", 4e-7)
