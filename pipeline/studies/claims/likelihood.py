"""Mean log-likelihood of a decision under the reference, for recorded, disturbed, simulated and naive futures.

Every kind of future is tokenised alike: rolling matching from the current pose, the logged first second before it,
all agents of the scene together. A decision counts where the log has the agent at both of its ends and the agent
moves; what no token can follow does not count (``coverage`` says how much that is).

Shape legend: R rollouts, A simulated agents, D decisions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.batch import collate
from data.geometry import wrap_angle
from data.scene import CURRENT_INDEX, FUTURE_STEPS, Scene, generator_for, map_tensors
from data.scenes_source import SceneSource, open_scenes
from data.tokenizer import extend_back, scene_origin, tokenize_motion
from data.vocabulary import TYPE_NAMES, type_index
from models.reference.agent import ReferenceAgent
from models.reference.inputs import collate_inputs, select_agents
from pipeline.agents.agent import Agent
from pipeline.agents.baselines import ConstantVelocity, LogReplay
from pipeline.agents.catalogue import make_agent
from pipeline.agents.reference_agent import ReferenceDriver
from pipeline.execution.result_cache import digest_of
from pipeline.selfplay.rollout import LEAST_LOG_LIKELIHOOD
from pipeline.simulator.world import moving_agents
from submission.realism import load_config, prepare_scene, score, unscorable_reason


@dataclass(frozen=True)
class LikelihoodTask:
    """One scene, for any process.

    Attributes:
        scenarios: store or records. digest: tells changed ones apart. index: of the scene.
        reference, policy: checkpoints. levels: of the disturbance, metres.
        rollouts: futures of each kind that the metric sees. scored: of these, how many the reference scores.
        metric: name of the metric's configuration. seed: of everything drawn. checkpoints: digests of both.
        device: of the models, as torch takes it.
    """

    scenarios: str
    digest: str
    index: int
    reference: Path
    policy: Path
    levels: tuple[float, ...]
    rollouts: int
    scored: int
    metric: str
    seed: int
    checkpoints: tuple[str, str]
    device: str = "cpu"

    @property
    def name(self) -> str:
        """Stands for all that decides the result; not where the files are and where it is computed."""
        return digest_of(replace(self, scenarios="", reference=Path(), policy=Path(), device=""))

    @property
    def size(self) -> int:
        return 1


def kind_names(levels: Sequence[float]) -> list[str]:
    """Kinds of futures, the most human first as the claim has it, then those of models."""
    return ["log", *(f"perturbed {level:g} m" for level in levels), "constant velocity", "reference", "policy"]


def futures_of(
    scene: Scene, reference: Agent, policy: Agent, levels: Sequence[float], count: int, seed: int
) -> dict[str, Tensor]:
    """Futures [count, A, 80, 4] of every kind; the deterministic ones are repeated."""
    log = LogReplay().rollouts(scene, 1, seed)[0]
    moving = moving_agents(scene)
    found = {"log": log.expand(count, -1, -1, -1)}
    for level, name in zip(levels, kind_names(levels)[1:], strict=False):
        generator = generator_for(seed, f"{scene.scenario_id}/{level}")
        found[name] = perturbed(log, moving, level, count, generator)
    found["constant velocity"] = ConstantVelocity().rollouts(scene, count, seed)
    found["reference"] = reference.rollouts(scene, count, seed)
    found["policy"] = policy.rollouts(scene, count, seed)
    return found


@torch.no_grad()
def score_futures(
    reference: ReferenceAgent, scene: Scene, states: Tensor, present: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-likelihoods of what futures do, decision by decision.

    Args:
        reference: frozen. scene: a single one. states: [R, A, 80, 4] of its simulated agents, global.
        present: [A, 80] bool, where these states mean something.

    Returns:
        [R, A, D] in nats, at least -20; and [R, A, D] bool, where a token could be matched.
    """
    vocabulary = reference.vocabulary.to("cpu")
    scene = select_agents(scene, scene.simulated.nonzero().flatten())
    agents, origin, count = scene.agents, scene_origin(scene), len(states)
    until = slice(0, CURRENT_INDEX + 1)
    logged = torch.cat((agents.position[:, until, :2] - origin, agents.heading[:, until, None]), dim=-1)
    future = torch.cat((states[..., :2] - origin, states[..., 3:]), dim=-1)
    pose = torch.cat((logged.expand(count, -1, -1, -1), future), dim=2)  # [R, A, 91, 3]
    valid = torch.cat((agents.valid[:, until], present), dim=-1).expand(count, -1, -1)
    velocity = torch.nn.functional.pad(agents.velocity[:, until], (0, 0, 0, FUTURE_STEPS)).expand(count, -1, -1, -1)
    types = type_index(agents.type).expand(count, -1)
    pose, valid = extend_back(pose, velocity, valid, vocabulary.token_steps)
    tokens = tokenize_motion(vocabulary, pose, valid, types)
    encoding = reference.encode_map(collate([scene]))
    # Nothing reads the map again.
    bare = replace(scene, map=map_tensors(scene.map, lambda tensor: tensor[:0]))
    batch = collate([bare] * count)
    scores = reference.score(
        collate_inputs([encoding] * count), batch, tokens.ids, tokens.valid, tokens.poses
    ).cpu()
    first = CURRENT_INDEX // vocabulary.token_steps
    likelihood = scores.gather(-1, tokens.ids.unsqueeze(-1)).squeeze(-1).clamp(min=LEAST_LOG_LIKELIHOOD)
    return likelihood[..., first:], tokens.valid[..., first:]


@lru_cache(maxsize=1)
def _opened(
    scenarios: str, digest: str, reference: Path, policy: Path, device: str
) -> tuple[SceneSource, ReferenceAgent, Agent]:
    return (
        open_scenes(scenarios),
        ReferenceAgent.from_checkpoint(reference, device=device),
        make_agent("policy", policy, device=device),
    )


def score_scene(task: LikelihoodTask) -> list[dict[str, Any]]:
    """Score all kinds of futures of a scene; the result is the only row.

    The result has, for every kind, ``sum`` and ``count`` of log-likelihoods over counted decisions, in all and by
    type; ``coverage``; and ``realism``, if the scene can be scored.
    """
    source, reference, policy = _opened(task.scenarios, task.digest, task.reference, task.policy, task.device)
    scene = source[task.index]
    return [{"scenario_id": str(scene.scenario_id), "kinds": _kinds(scene, reference, policy, task)}]


def _kinds(scene: Scene, reference: ReferenceAgent, policy: Agent, task: LikelihoodTask) -> dict[str, Any]:
    steps = reference.vocabulary.token_steps
    simulated, moving = scene.simulated, moving_agents(scene)
    recorded_at = scene.agents.valid[simulated, CURRENT_INDEX::steps]  # [A, D + 1]
    moves = recorded_at[:, :-1] & recorded_at[:, 1:] & moving.unsqueeze(-1)
    types = type_index(scene.agents.type[simulated])
    recorded = scene.agents.valid[simulated, CURRENT_INDEX + 1 : CURRENT_INDEX + 1 + FUTURE_STEPS]
    everywhere = torch.ones_like(recorded)
    all_types = task.metric == "2024"
    context = prepare_scene(scene) if unscorable_reason(scene, all_types) is None else None
    futures = futures_of(scene, ReferenceDriver(reference), policy, task.levels, task.rollouts, task.seed)
    found: dict[str, Any] = {}
    for name, states in futures.items():
        # Disturbed agents are there when the recorded ones are; simulated ones never leave.
        present = recorded if name == "log" or name.startswith("perturbed") else everywhere
        # Where all futures are the same, one is enough.
        scored = 1 if name in ("log", "constant velocity") else task.scored
        likelihood, known = score_futures(reference, scene, states[:scored], present)
        counted = known & moves
        row: dict[str, Any] = {**_sums(likelihood, counted)}
        row["types"] = {
            kind: _sums(likelihood, counted & (types == index).unsqueeze(-1))
            for index, kind in enumerate(TYPE_NAMES)
        }
        row["coverage"] = int(counted.sum()) / max(1, int(moves.sum()) * len(likelihood))
        if context is not None:
            ids, metric = scene.agents.id[simulated], load_config(task.metric)
            values = score(context, ids, states, metric, all_types).values
            row["realism"] = float(values["metametric"])
        found[name] = row
    return found


def _sums(likelihood: Tensor, counted: Tensor) -> dict[str, float]:
    return {
        "sum": float(torch.where(counted, likelihood, 0.0).double().sum()) / len(likelihood),
        "count": int(counted.sum()) / len(likelihood),
    }


# Standard deviation of the Gaussian that white noise is smoothed with, steps: a disturbance lasts about a second.
_SMOOTHNESS = 10
# Steps over which it grows from nothing, since all futures begin where the record is.
_ONSET = 20
# How much the heading is disturbed for each metre, radians.
_TURN = 0.1


def smooth_noise(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """[..., T] Gaussian noise of unit variance that changes over about a second."""
    steps = shape[-1]
    half = 3 * _SMOOTHNESS
    kernel = torch.exp(-0.5 * (torch.arange(-half, half + 1) / _SMOOTHNESS).square())
    kernel = kernel / kernel.square().sum().sqrt()
    white = torch.randn(*shape[:-1], steps + 2 * half, generator=generator)
    return white.unfold(-1, 2 * half + 1, 1) @ kernel


def perturbed(states: Tensor, moving: Tensor, sigma: float, draws: int, generator: torch.Generator) -> Tensor:
    """Disturb futures of agents that move; standing agents keep standing.

    Args:
        states: [A, T, 4] x, y, z, heading. moving: [A] bool.
        sigma: standard deviation of x and of y behind the onset, metres; that of the heading is 0.1 rad a metre.
        draws: R. generator: of the noise.

    Returns:
        [R, A, T, 4].
    """
    agents, steps = states.shape[:2]
    onset = (torch.arange(1, steps + 1) / _ONSET).clamp(max=1.0)
    noise = smooth_noise((draws, agents, 3, steps), generator).transpose(-1, -2)  # [R, A, T, 3]
    noise = noise * onset.unsqueeze(-1)
    noise = torch.where(moving[:, None, None], sigma * noise, 0.0)
    result = states.expand(draws, -1, -1, -1).clone()
    result[..., :2] += noise[..., :2]
    result[..., 3] = wrap_angle(result[..., 3] + _TURN * noise[..., 2])
    return result
