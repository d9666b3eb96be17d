"""Frozen models that a policy is anchored to or compared with, and their log-probabilities of executed tokens.

An anchor is a reference that sees the whole scene, a policy that sees what the agent sees (HR-PPO), or the log.

Shape legend: W worlds, A agents, D decisions, N controlled agents of all worlds, K vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from data.errors import UserError
from data.scene import Scene, map_tensors
from data.vocabulary import Vocabulary
from models.checkpoints import checkpoint_kind
from models.policy import POLICY_KIND, Policy, load_policy
from models.reference.agent import ReferenceAgent
from models.reference.engine import Sampler
from models.reference.known_scenes import KnownScenes, encode_scenes, join_scenes
from models.sampling import SamplingConfig
from pipeline.selfplay.config import PPOConfig
from pipeline.selfplay.rollout import Executed, Given, act, collect
from pipeline.simulator.episode import Simulator
from pipeline.simulator.observation import ObservationConfig
from pipeline.simulator.step import agent_indices, controlled_agents, decisions
from pipeline.simulator.world import World, build_world, stack_worlds

# Agents times tokens that are scored in one pass: on a CPU as many as its caches hold.
_SLOTS = {"cpu": 1 << 11, "cuda": 1 << 15}
# Log-probability of tokens other than the log's: almost none, and finite.
_NEVER = -30.0
# Worlds that ``scene_divergences`` drives at once.
_WORLDS = 4


class Anchor(Protocol):
    """A frozen model with log-probabilities of tokens."""

    def scores(self, scene_index: Sequence[int], world: World, executed: Executed) -> Tensor:
        """[D, N, K] log-probabilities of all tokens at the decisions of the controlled agents.

        Args:
            scene_index: [W] of the worlds' scenes. world: the batch of these worlds. executed: what they did.
        """
        ...


class ReferenceScorer:
    """Log-probabilities of a reference along executed tokens.

    One teacher-forced pass per finished episode on its true context: the logged first second, the executed tokens,
    and replayed agents tokenised from where they were. Maps are encoded once per scene, since the reference is
    frozen.

    Args:
        reference: frozen.
        scene: finds the scene of an index; called once for each while its encoded map is kept.
        capacity: scenes whose encoded maps are kept, or as many as are scored at once.
    """

    def __init__(self, reference: ReferenceAgent, scene: Callable[[int], Scene], capacity: int = 512) -> None:
        self.reference = reference
        self._scene, self._capacity = scene, capacity
        self._row: dict[int, int] = {}
        self._known: KnownScenes | None = None

    @torch.no_grad()
    def log_probs(
        self,
        scene_index: Sequence[int],
        world: World,
        tokens: Tensor,
        poses: Tensor,
        controlled: Tensor,
        present: Tensor,
    ) -> Tensor:
        """Log-probabilities of every token at every decision of an episode.

        Args:
            scene_index: [W] of the worlds' scenes. world: the batch of these worlds.
            tokens: [W, A, D] executed by controlled agents.
            poses: [W, A, D + 1, 3] at the decisions and at the end, minus the origin.
            controlled: [W, A] bool. present: [W, A, D + 1] bool.

        Returns:
            [W, A, D, K]; rows of agents that are not controlled mean nothing.
        """
        executed = torch.where(controlled.unsqueeze(-1), tokens, world.log_ids)
        history, count = world.history_ids.shape[-1], tokens.shape[-1]
        exists = world.exists[..., None]
        ids = torch.cat((world.history_ids, executed), dim=-1)
        at_both_ends = present[..., :-1] & present[..., 1:] & exists
        valid = torch.cat((world.history_valid & exists, at_both_ends), dim=-1)
        path = torch.cat((world.history_poses[:, :, :-1], poses), dim=2)
        result = torch.zeros(*tokens.shape, self.reference.vocabulary.size, device=tokens.device)
        known, places = self._prepared(scene_index, history + count)
        for rows in self._groups([known.present[place] for place in places], history + count):
            encoding, agents, lights = known.choose([places[row] for row in rows])
            most, index = agents.types.shape[1], torch.tensor(rows).to(tokens.device, non_blocking=True)
            part = self.reference.score_known(
                encoding, agents, lights, *(t[index, :most] for t in (ids, valid, path))
            )
            result[index, :most] = part[:, :, history:].to(result.device)
        return result

    def scores(self, scene_index: Sequence[int], world: World, executed: Executed) -> Tensor:
        """See ``Anchor``."""
        log_probs = self.log_probs(
            scene_index, world, executed.tokens, executed.poses, executed.controlled, executed.present
        )
        return log_probs[executed.agent_index].transpose(0, 1)

    def _groups(self, sizes: Sequence[int], tokens: int) -> list[list[int]]:
        """Rows of worlds to be scored together: of similar size, since padding costs as much as agents do."""
        limit = _SLOTS.get(self.reference.device.type, _SLOTS["cuda"]) // tokens
        groups: list[list[int]] = []
        for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
            if not groups or (len(groups[-1]) + 1) * sizes[groups[-1][0]] > limit:
                groups.append([])
            groups[-1].append(row)
        return groups

    def _prepared(self, scene_index: Sequence[int], tokens: int) -> tuple[KnownScenes, list[int]]:
        """The known scenes, and the places of some among them, which are encoded now where they are not known."""
        new = [index for index in dict.fromkeys(scene_index) if index not in self._row]
        if self._known is None or len(self._row) + len(new) > self._capacity:
            new, self._known, self._row = list(dict.fromkeys(scene_index)), None, {}
        if new:
            encoded = encode_scenes(
                self.reference, [self._scene(index) for index in new], self.reference.seconds(tokens)
            )
            self._known = encoded if self._known is None else join_scenes([self._known, encoded])
            self._row |= {index: len(self._row) + place for place, index in enumerate(new)}
        assert self._known is not None
        return self._known, [self._row[index] for index in scene_index]


class PolicyScorer:
    """Log-probabilities of a policy cloned from the log, as in HR-PPO (arXiv 2403.19648): it sees what the agent
    sees."""

    def __init__(self, policy: Policy) -> None:
        self._policy = policy

    @torch.no_grad()
    def scores(self, scene_index: Sequence[int], world: World, executed: Executed) -> Tensor:
        """See ``Anchor``."""
        logits, _ = act(self._policy, executed.observations)
        return logits.log_softmax(-1).unflatten(0, (executed.tokens.shape[-1], -1))


class LogScorer:
    """Log-probabilities of an expert that does what was executed: for behaviour cloning, where the log drives."""

    def __init__(self, size: int) -> None:
        self._size = size

    def scores(self, scene_index: Sequence[int], world: World, executed: Executed) -> Tensor:
        """See ``Anchor``; NaN where the agent was not there."""
        present = executed.present[..., :-1] & executed.present[..., 1:]  # [W, A, D]
        tokens, present = executed.tokens[executed.agent_index].T, present[executed.agent_index].T  # [D, N]
        scores = torch.full((*tokens.shape, self._size), _NEVER, device=tokens.device)
        scores = scores.scatter(-1, tokens.unsqueeze(-1), 0.0)
        return torch.where(present.unsqueeze(-1), scores, torch.nan)


def load_anchor(
    path: Path, device: torch.device
) -> tuple[ReferenceAgent | Policy, Vocabulary, dict[str, object] | None]:
    """A frozen model from ``reference.ckpt`` or ``policy.ckpt``, its vocabulary, whose tokens are the policy's
    actions, and the observation that a policy needs.

    Raises:
        UserError: neither.
    """
    if checkpoint_kind(path) == POLICY_KIND:
        policy, vocabulary, view = load_policy(path)
        return policy.to(device), vocabulary.to(device), view
    agent = ReferenceAgent.from_checkpoint(path, device=str(device))
    return agent, agent.vocabulary, None


@torch.no_grad()
def sampled_tokens(reference: ReferenceAgent, scenes: Sequence[Scene], uniform: Tensor) -> Tensor:
    """[W, A, D] tokens of a rollout of each scene that the reference drives; any token for padded agents.

    Args:
        scenes: single ones. uniform: [D, W, A] in [0, 1), all that is random.
    """
    result = torch.zeros(*uniform.shape[1:], len(uniform), dtype=torch.int64, device=uniform.device)
    for row, scene in enumerate(scenes):
        known = reference.prepare(scene)
        inputs = known.inputs
        types = inputs.agents.types
        drawn = uniform[:, row, : types.shape[1]].unsqueeze(0).to(reference.device)
        rollout = reference.engine.rollout(
            known.encoding,
            inputs.agents,
            inputs.tokens,
            known.lights,
            1,
            len(uniform),
            Sampler(drawn, types, SamplingConfig()),
        )
        result[row, : types.shape[1]] = rollout.ids[0, 0].to(result.device)
    return result


def given_tokens(
    driver: str,
    model: ReferenceAgent | Policy,
    scene: Callable[[int], Scene],
    scene_index: Sequence[int],
    world: World,
    uniform: Tensor,
) -> Given | None:
    """What somebody else than the policy does in the worlds of an update; None where the policy drives.

    Args:
        driver: policy, log or reference. model: of the anchor. scene: finds the scene of an index.
        scene_index: [W]. world: the batch of these worlds. uniform: [D + 2, W, A], see ``rollout.start``.

    Raises:
        UserError: a reference shall drive, and the model is none.
    """
    if driver == "log":
        return Given(world.log_ids, replay=True)
    if driver == "policy":
        return None
    if isinstance(model, Policy):
        raise UserError("--driver reference: --reference is a policy; give a reference, or let the log drive")
    return Given(sampled_tokens(model, [scene(index) for index in scene_index], uniform[:-2]), replay=False)


@dataclass(frozen=True)
class SceneDivergence:
    """How far a policy is from a reference in one scene: sums in nats over the decisions that are covered, that is
    on which the reference has an opinion.

    Attributes:
        kl: of KL(policy || reference). entropy: of the policy. log_likelihood: of tokens under the reference.
        covered: number of covered decisions. decided: number of all decisions.
    """

    kl: float
    entropy: float
    log_likelihood: float
    covered: int
    decided: int


@torch.no_grad()
def scene_divergences(
    policy: Policy, reference: ReferenceAgent, scenes: Sequence[Scene], view: ObservationConfig, seed: int
) -> list[SceneDivergence]:
    """Drive every scene once by the policy, all agents, goals shown, and compare it with the reference on the way.

    Args:
        policy: in evaluation mode. reference: with the same vocabulary. scenes: single ones.
        view: what the policy sees. seed: of its draws.
    """
    vocabulary, words = reference.vocabulary, reference.vocabulary.to("cpu")
    anchor, simulator = ReferenceScorer(reference, scenes.__getitem__), Simulator(vocabulary, view)
    config = PPOConfig(goal_dropout=0.0)
    results: list[SceneDivergence] = []
    for first in range(0, len(scenes), _WORLDS):
        scene_index = range(first, min(first + _WORLDS, len(scenes)))
        built = [build_world(scenes[index], words, view.listed_segments) for index in scene_index]
        world = map_tensors(stack_worlds(built), lambda tensor: tensor.to(reference.device))
        generator = torch.Generator().manual_seed(seed * len(scenes) + first)
        uniform = torch.rand(decisions(vocabulary) + 2, *world.types.shape, generator=generator)
        score = partial(anchor.scores, scene_index, world)
        rollout = collect(policy, simulator, world, score, config, uniform.to(reference.device))
        log_reference = rollout.log_reference
        assert log_reference is not None
        log_policy = act(policy, rollout.observations)[0].log_softmax(-1).unflatten(0, rollout.actions.shape)
        probability = log_policy.exp()
        parts = torch.stack(
            (
                (probability * (log_policy - log_reference)).sum(-1),
                -(probability * log_policy).sum(-1),
                log_reference.gather(-1, rollout.actions.unsqueeze(-1)).squeeze(-1),
            ),
            dim=-1,
        )  # [D, N, 3]
        parts = torch.where(rollout.covered.unsqueeze(-1), parts, 0.0).double().sum(0)
        world_of_agent = agent_indices(controlled_agents(world))[0]
        for number in range(len(scene_index)):
            mine = world_of_agent == number
            kl, entropy, likelihood = parts[mine].sum(0).tolist()
            covered = rollout.covered[:, mine]
            results.append(SceneDivergence(kl, entropy, likelihood, int(covered.sum()), covered.numel()))
    return results


def mean_divergence(parts: Sequence[SceneDivergence]) -> dict[str, float]:
    """Some scenes as one.

    Returns:
        ``kl`` KL(policy || reference) in nats, ``entropy`` of the policy, ``log_likelihood`` of tokens under the
        reference: means over covered decisions; ``coverage``: their fraction.
    """
    covered, decided = (sum(getattr(part, name) for part in parts) for name in ("covered", "decided"))
    means = {
        name: sum(getattr(part, name) for part in parts) / max(1, covered)
        for name in ("kl", "entropy", "log_likelihood")
    }
    return means | {"coverage": covered / max(1, decided)}
